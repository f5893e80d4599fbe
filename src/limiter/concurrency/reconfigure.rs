//! Changes limits at run time.

use super::{ConcurrencyLimiter, limit_of};
use crate::capacity::Capacity;
use crate::observe::Observer;
use crate::sync::Ordering;

impl ConcurrencyLimiter {
    /// The limit on requests in flight.
    #[must_use]
    pub fn limit(&self) -> Capacity {
        Capacity::of_slots(self.slots().limit())
    }

    /// Changes the limit for all users of it in this process. Replicas that share a store each
    /// apply their own limit.
    ///
    /// Unlike in [`new`](Self::new), 0 rejects every request; [`Capacity::Unlimited`] turns the
    /// limit off.
    ///
    /// Never blocks. After a reduction, requests in flight continue, and new ones are rejected
    /// until enough permits are released. Observers see the new limit.
    pub fn set_limit(&self, limit: impl Into<Capacity>) {
        self.slots().set_limit(limit.into().slots());
        if let Some(observer) = &self.0.observer {
            self.report_limit(&**observer);
        }
    }

    /// Reports the limit to an observer, and again if it changed meanwhile. With several concurrent
    /// changes, the last report is the limit in force.
    #[cold]
    fn report_limit(&self, observer: &dyn Observer) {
        let mut limit = limit_of(self.slots());
        loop {
            observer.limit(&self.0.name, limit);
            match limit_of(self.slots()) {
                same if same == limit => return,
                changed => limit = changed,
            }
        }
    }

    /// Sets whether overrides and tiers are ignored, because the limiter is switched off. Default:
    /// not ignored.
    pub(crate) fn set_suspended(&self, is_suspended: bool) {
        self.0
            .counter
            .suspended
            .store(is_suspended, Ordering::Relaxed);
    }

    /// Like [`set_suspended`](Self::set_suspended), for limits without allow
    /// and deny lists in front: bans still apply.
    pub(crate) fn suspend_except_bans(&self, is_suspended: bool) {
        self.0.counter.keeps_bans.store(true, Ordering::Relaxed);
        self.set_suspended(is_suspended);
    }

    /// Changes the default limit per key at one position. Positions are numbered from 0 in the
    /// order in which [`per_key`](crate::ConcurrencyLimitLayer::per_key) added them. Overrides
    /// stay. An unknown position has no effect.
    pub fn set_limit_per_key(&self, place: usize, limit: impl Into<Capacity>) {
        if let Some(per_key) = self.0.per_key.get(place) {
            per_key.set_limit(limit.into().slots());
        }
    }
}
