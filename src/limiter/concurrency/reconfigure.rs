//! Limits that change at run time.

use super::{ConcurrencyLimiter, limit_of};
use crate::capacity::Capacity;
use crate::observe::Observer;
use crate::sync::Ordering;

impl ConcurrencyLimiter {
    /// How many may be in flight.
    #[must_use]
    pub fn limit(&self) -> Capacity {
        Capacity::of_slots(self.slots().limit())
    }

    /// Changes the limit for all users of it in this process. Replicas that count in one store each go
    /// by their own.
    ///
    /// Unlike in [`new`](Self::new), 0 admits nothing; [`Capacity::Unlimited`] turns the limit off.
    ///
    /// Never blocks. When it is lowered, what is in flight stays, and nothing more is admitted until
    /// enough permits are back. Observers see the new limit.
    pub fn set_limit(&self, limit: impl Into<Capacity>) {
        self.slots().set_limit(limit.into().slots());
        if let Some(observer) = &self.0.observer {
            self.tell_limit(&**observer);
        }
    }

    /// Tells an observer the limit, and again if it was changed meanwhile: of several who set it
    /// the last to be heard tells what it is.
    #[cold]
    fn tell_limit(&self, observer: &dyn Observer) {
        let mut limit = limit_of(self.slots());
        loop {
            observer.limit(&self.0.name, limit);
            match limit_of(self.slots()) {
                same if same == limit => return,
                changed => limit = changed,
            }
        }
    }

    /// Sets whether overrides and tiers are ignored, because the limiter is switched off. Default: they count.
    pub(crate) fn rest(&self, rests: bool) {
        self.0.counter.rests.store(rests, Ordering::Relaxed);
    }

    /// As [`rest`](Self::rest), for what no layer with allow and deny lists is in front of: a key
    /// that is banned stays so.
    pub(crate) fn rest_but_for_bans(&self, rests: bool) {
        self.0.counter.keeps_bans.store(true, Ordering::Relaxed);
        self.rest(rests);
    }

    /// Changes how many each key may have in flight that has no limit of its own, at one of the places
    /// that [`per_key`](crate::ConcurrencyLimitLayer::per_key) added, the first of which is 0. Does
    /// nothing where there is no such place.
    pub fn set_limit_per_key(&self, place: usize, limit: impl Into<Capacity>) {
        if let Some(per_key) = self.0.per_key.get(place) {
            per_key.set_limit(limit.into().slots());
        }
    }
}
