//! What layers configure of a limiter.

use std::sync::Arc;
use std::time::Duration;

use super::occupied::Occupied;
use super::{Capacity, ConcurrencyLimiter};
use crate::limiter::per_key::PerKey;
use crate::limits::{Limited, Limits};
use crate::observe::Observer;
use crate::store::LeaseStore;

impl ConcurrencyLimiter {
    pub(crate) fn named(mut self, name: &str) -> Self {
        Arc::make_mut(&mut self.0).name = name.into();
        self.settled()
    }

    /// Adds a limit for each key of the next place; 0 turns it off.
    pub(crate) fn per_key(mut self, limit: usize) -> Self {
        let per_key = Arc::new(PerKey::new(Capacity::or_off(limit).slots()));
        Arc::make_mut(&mut self.0).per_key.push(per_key);
        self.settled()
    }

    /// Has single keys have limits of their own.
    pub(crate) fn limits(mut self, limits: &Limits) -> Self {
        Arc::make_mut(&mut self.0).limits = Some(limits.clone());
        self.settled()
    }

    pub(crate) fn has_limits(&self) -> bool {
        self.0.limits.is_some()
    }

    /// Tells the limits of this limiter, as it is by now.
    fn settled(mut self) -> Self {
        let limit = Arc::make_mut(&mut self.0);
        if let Some(limits) = &limit.limits {
            let limited: Arc<dyn Limited> = Arc::new(Occupied {
                name: limit.name.clone(),
                counter: limit.counter.clone(),
                per_key: limit.per_key.clone(),
                limits: limits.clone(),
                #[cfg(feature = "redis")]
                leases: limit.leases.clone(),
            });
            limits.attach(&limited);
            limit.limited = Some(limited);
        }
        self
    }

    /// Counts in a store as well, under the limiter's name.
    pub(crate) fn stored(mut self, store: &dyn LeaseStore) -> Self {
        let limit = Arc::make_mut(&mut self.0);
        limit.leases = Some(store.open_leases(&limit.name));
        self.settled()
    }

    pub(crate) fn retry_after(mut self, wait: Option<Duration>) -> Self {
        Arc::make_mut(&mut self.0).retry_after = wait.filter(|wait| !wait.is_zero());
        self
    }

    pub(crate) fn retry_after_jitter(mut self, jitter: Duration) -> Self {
        Arc::make_mut(&mut self.0).retry_after_jitter = jitter;
        self
    }

    pub(crate) fn spares_stalled(mut self, spares: bool) -> Self {
        Arc::make_mut(&mut self.0).spares_stalled = spares;
        self
    }

    pub(crate) fn observed(mut self, observer: Arc<dyn Observer>) -> Self {
        Arc::make_mut(&mut self.0).observer = Some(observer);
        self
    }
}
