//! What layers configure of a limiter.

use std::sync::Arc;
use std::time::Duration;

use super::ConcurrencyLimiter;
use super::occupied::Occupied;
use crate::capacity::Capacity;
use crate::limiter::per_key::PerKey;
use crate::limits::{LimitTarget, Limits};
use crate::observe::Observer;
use crate::store::{LeaseSlots, LeaseStore};

/// What a limiter opens once, when its description is complete.
#[derive(Clone)]
pub(crate) struct Opened {
    limited: Option<Arc<dyn LimitTarget>>,
    leases: Option<Arc<dyn LeaseSlots>>,
}

impl ConcurrencyLimiter {
    pub(crate) fn named(mut self, name: &str) -> Self {
        Arc::make_mut(&mut self.0).name = name.into();
        self
    }

    /// Adds a limit for each key of the next place; 0 turns it off.
    pub(crate) fn per_key(mut self, limit: usize) -> Self {
        let per_key = Arc::new(PerKey::new(Capacity::or_off(limit).slots()));
        Arc::make_mut(&mut self.0).per_key.push(per_key);
        self
    }

    /// Sets the overrides of keys.
    pub(crate) fn limits(mut self, limits: &Limits) -> Self {
        Arc::make_mut(&mut self.0).limits = Some(limits.clone());
        self
    }

    pub(crate) fn has_limits(&self) -> bool {
        self.0.limits.is_some()
    }

    /// Opens the limiter's slots in a store, under its name, and attaches it to its limits. Nothing that is
    /// counted may change afterwards.
    pub(crate) fn open(&self, store: Option<&dyn LeaseStore>) -> Opened {
        let limit = &*self.0;
        let leases = store.map(|store| store.open_leases(&limit.name));
        let limited = limit.limits.as_ref().map(|limits| {
            let limited: Arc<dyn LimitTarget> = Arc::new(Occupied {
                name: limit.name.clone(),
                counter: limit.counter.clone(),
                per_key: limit.per_key.clone(),
                limits: limits.clone(),
                retry_after: limit.retry_after,
                leases: leases.clone(),
            });
            limits.attach(&limited);
            limited
        });
        Opened { limited, leases }
    }

    /// The limiter with what it [opened](Self::open).
    pub(crate) fn opened(mut self, opened: &Opened) -> Self {
        let limit = Arc::make_mut(&mut self.0);
        limit.limited = opened.limited.clone();
        limit.leases = opened.leases.clone();
        self
    }

    /// What it opened before.
    pub(crate) fn reopen(&self) -> Opened {
        Opened {
            limited: self.0.limited.clone(),
            leases: self.0.leases.clone(),
        }
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
