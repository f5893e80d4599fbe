//! Builds a limiter from the settings of a layer.

use std::sync::Arc;
use std::time::Duration;

use super::ConcurrencyLimiter;
use super::limit_target::ConcurrencyTarget;
use crate::capacity::Capacity;
use crate::limiter::key_counters::KeyCounters;
use crate::limits::{LimitTarget, Limits};
use crate::observe::Observer;
use crate::store::{LeaseSlots, LeaseStore};

/// Resources that a limiter opens once, when its settings are complete.
#[derive(Clone)]
pub(crate) struct OpenedResources {
    limit_target: Option<Arc<dyn LimitTarget>>,
    leases: Option<Arc<dyn LeaseSlots>>,
}

impl ConcurrencyLimiter {
    pub(crate) fn named(mut self, name: &str) -> Self {
        Arc::make_mut(&mut self.0).name = name.into();
        self
    }

    /// Adds a limit per key at the next position; 0 turns it off.
    pub(crate) fn per_key(mut self, limit: usize) -> Self {
        let per_key = Arc::new(KeyCounters::new(Capacity::or_off(limit).slots()));
        Arc::make_mut(&mut self.0).per_key.push(per_key);
        self
    }

    /// Sets the overrides per key.
    pub(crate) fn limits(mut self, limits: &Limits) -> Self {
        Arc::make_mut(&mut self.0).limits = Some(limits.clone());
        self
    }

    pub(crate) fn has_limits(&self) -> bool {
        self.0.limits.is_some()
    }

    /// Opens the limiter's slots in a store, under its name, and attaches the limiter to its
    /// limits. Afterwards, no setting that affects counting may change.
    pub(crate) fn open(&self, store: Option<&dyn LeaseStore>) -> OpenedResources {
        let limit = &*self.0;
        let leases = store.map(|store| store.open_leases(&limit.name));
        let limit_target = limit.limits.as_ref().map(|limits| {
            let limit_target: Arc<dyn LimitTarget> = Arc::new(ConcurrencyTarget {
                name: limit.name.clone(),
                counter: limit.counter.clone(),
                per_key: limit.per_key.clone(),
                limits: limits.clone(),
                retry_after: limit.retry_after,
                leases: leases.clone(),
            });
            limits.attach(&limit_target);
            limit_target
        });
        OpenedResources {
            limit_target,
            leases,
        }
    }

    /// Adds the resources that [`open`](Self::open) returned.
    pub(crate) fn opened(mut self, opened: &OpenedResources) -> Self {
        let limit = Arc::make_mut(&mut self.0);
        limit.limit_target = opened.limit_target.clone();
        limit.leases = opened.leases.clone();
        self
    }

    /// The resources that were opened before.
    pub(crate) fn reopen(&self) -> OpenedResources {
        OpenedResources {
            limit_target: self.0.limit_target.clone(),
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
