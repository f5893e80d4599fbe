//! What a key has used is carried from one table to another when quotas change, while requests are decided.

use std::sync::Arc;

use governor::clock::Clock;

#[cfg(feature = "redis")]
use super::super::buckets::Metered;
use super::super::buckets::{MemoryBuckets, Meter};
use super::super::generation::Generation;
use super::super::own::{Copied, Own};
use super::Adjustable;
use crate::key::Key;

impl<C: Clock> Adjustable<C> {
    /// After a key may have got a bucket among those of all, of policies that are charged there by bits: if it has
    /// quotas of its own by now, it has no bucket there. Whoever set them has removed it or is seen here,
    /// as both hold the lock under which keys are put in.
    #[inline]
    pub(super) fn settle(&self, now: &Generation<C>, keys: &[Key], of_all: u64) {
        for (policy, (own, key)) in self.own.iter().zip(keys).enumerate() {
            if of_all & bit(policy) != 0
                && let Some(own) = own.find(key, Arc::clone)
            {
                self.remove(&now.buckets, policy, key, &own, &[]);
            }
        }
    }

    /// Forgets what a key has used among those of all, and charges its own for what that was beyond what was
    /// `copied`.
    #[cold]
    pub(super) fn remove(
        &self,
        buckets: &MemoryBuckets<C>,
        policy: usize,
        key: &Key,
        own: &Own,
        copied: &[Option<Copied>],
    ) {
        for (at, (meter, quota)) in buckets.of_policy(policy).zip(own.quotas()).enumerate() {
            let copied = copied.get(at).and_then(Option::as_ref);
            quota.take_from(meter, key, copied, &|| self.time.now());
        }
    }

    /// Whether the quotas of all were changed since: what was charged may then not have been carried over. A
    /// request that was admitted is given back there and decided anew, by those that count. Where it was
    /// carried over as well it is charged twice: too much for a moment, and never too little.
    #[inline]
    pub(super) fn is_over(&self, decided: &Arc<Generation<C>>) -> bool {
        !Arc::ptr_eq(&self.current().buckets, &decided.buckets)
    }

    /// After a request was charged that was admitted elsewhere: the same, whether it fits or not.
    #[cfg(feature = "redis")]
    pub(super) fn catch_up(&self, decided: &Arc<Generation<C>>, keys: &[Key], cost: u32) {
        let current = self.current();
        if !Arc::ptr_eq(&current.buckets, &decided.buckets) {
            self.charge_again(&current, keys, cost);
        }
    }

    #[cfg(feature = "redis")]
    #[cold]
    fn charge_again(&self, now: &Arc<Generation<C>>, keys: &[Key], cost: u32) {
        for (policy, (own, key)) in self.own.iter().zip(keys).enumerate() {
            if !own.has(key) {
                self.carry(now, policy, key);
                for meter in now.buckets.of_policy(policy) {
                    meter.charge(key, cost);
                }
            }
        }
        // They may have been changed once more in between.
        self.settle(now, keys, EVERY);
        self.catch_up(now, keys, cost);
    }

    /// Carries over what a key has used before the last change, if it was not seen since. It stays there as well:
    /// whoever still decides by what was before has to find it.
    #[cold]
    pub(super) fn carry(&self, now: &Arc<Generation<C>>, policy: usize, key: &Key) {
        let Some(before) = &now.before else {
            return;
        };
        let time = self.time.now();
        if time >= before.until {
            // Unless somebody changed them in between.
            self.now.compare_and_swap(now, Arc::new(now.settled()));
            return;
        }
        for (at, meter) in now.buckets.of_policy(policy).enumerate() {
            match meter {
                Meter::Rate(meter) if !meter.knows(key) => {
                    if let Some(debt) = now.owed(policy, at, key, time, time) {
                        meter.owe(key, debt);
                    }
                }
                Meter::Sliding(meter) if !meter.knows(*key) => {
                    if let Some((length, counted)) = now.counted(policy, at, key) {
                        meter.put(*key, length, &counted, true);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Those of all policies.
pub(super) const EVERY: u64 = u64::MAX;

/// Of a policy; no more than a few are charged at once.
pub(super) fn bit(policy: usize) -> u64 {
    1 << policy.min(63)
}
