//! Buckets whose quotas change: for single keys, or for all.

use std::borrow::Cow;
use std::slice;
use std::sync::Arc;

use arc_swap::ArcSwap;
use governor::clock::Clock;

use super::buckets::{Charges, MemoryBuckets, Meter, peek_all, refund_all, take_all};
use super::charged::Charged;
use super::clock::SinceZero;
use super::generation::{Before, Current, Generation, MOST_GENERATIONS, full_after};
use super::governed::Mode;
use super::own::{Own, Used};
use super::rate::{Debt, RateMeter};
use crate::decision::Decision;
use crate::key::{Key, KeyMap};
use crate::policy::Policy;
use crate::store::{AdjustableBuckets, RateBuckets, RateStats, Reply};
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// Buckets whose quotas change.
///
/// A look-up is a probe of a table that readers take no lock for, and with a single quota a key that is
/// charged there has none of its own, so that it is not even looked up. What a key has used is carried over
/// when it gets quotas of its own and when it loses them; what another thread decides about it in
/// that very moment may be lost.
///
/// Until everybody's quotas are changed for the first time, they are found without a look-up.
pub(super) struct Adjustable<C: Clock> {
    first: Arc<Generation<C>>,
    is_changed: AtomicBool,
    now: ArcSwap<Generation<C>>,
    /// For each policy.
    own: Box<[KeyMap<Arc<Own>>]>,
    time: SinceZero<C>,
    clock: C,
    max_keys: usize,
    /// Held while quotas are changed.
    changing: Mutex<()>,
}

impl<C: Clock + Clone> Adjustable<C> {
    pub(super) fn new(policies: &[Policy], max_keys: usize, clock: C) -> Self {
        let first = Arc::new(Generation {
            policies: Arc::new(policies.to_vec()),
            buckets: Arc::new(MemoryBuckets::new(policies, max_keys, clock.clone())),
            changed: false,
            since: 0,
            before: None,
        });
        Self {
            now: ArcSwap::new(first.clone()),
            first,
            is_changed: AtomicBool::new(false),
            own: policies.iter().map(|_| KeyMap::default()).collect(),
            time: SinceZero::new(clock.clone()),
            clock,
            max_keys,
            changing: Mutex::new(()),
        }
    }
}

impl<C: Clock> Adjustable<C> {
    #[inline]
    fn current(&self) -> Current<'_, C> {
        if self.is_changed.load(Ordering::Acquire) {
            Current::Later(self.now.load())
        } else {
            Current::First(&self.first)
        }
    }

    fn own(&self, policy: usize, key: &Key) -> Option<Arc<Own>> {
        self.own.get(policy)?.find(key, Arc::clone)
    }

    /// The only bucket of all keys, if it is that which knows whether a key has limits of its own: one that
    /// has a bucket there has none.
    #[inline]
    fn known_first<'a>(&self, now: &'a Generation<C>) -> Option<&'a RateMeter<C>> {
        let [own] = &*self.own else {
            return None;
        };
        now.buckets
            .only_rate()
            .filter(|_| !now.changed && !own.is_empty())
    }

    /// After a key may have got a bucket among those of all: if it has quotas of its own by now, it
    /// has no bucket there. Whoever set them has removed it or is seen here, as both hold the lock
    /// under which keys are put in.
    #[inline]
    fn settle(&self, now: &Generation<C>, keys: &[Key]) {
        for (policy, (own, key)) in self.own.iter().zip(keys).enumerate() {
            if let Some(own) = own.find(key, Arc::clone) {
                self.remove(&now.buckets, policy, key, &own, &[]);
            }
        }
    }

    /// Forgets a key's buckets among those of all, and charges its own for what they owed beyond what was
    /// `copied`.
    #[cold]
    fn remove(
        &self,
        buckets: &MemoryBuckets<C>,
        policy: usize,
        key: &Key,
        own: &Own,
        copied: &[Option<Debt>],
    ) {
        for (at, (meter, quota)) in buckets.of_policy(policy).zip(own.quotas()).enumerate() {
            if let Meter::Rate(meter) = meter {
                let copied = copied.get(at).copied().flatten();
                quota.add(copied, meter.remove(key), self.time.now());
            }
        }
    }

    /// After a request was admitted: if the quotas of all were changed meanwhile, its charge may not have been
    /// carried over, so that it is charged once more. Too much for a moment, and never too little.
    #[inline]
    fn catch_up(&self, decided: &Arc<Generation<C>>, keys: &[Key], cost: u32) {
        let current = self.current();
        if !Arc::ptr_eq(&current.buckets, &decided.buckets) {
            self.charge_again(&current, keys, cost);
        }
    }

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
    }

    /// Whether a decision is as of buckets that do not change.
    #[inline]
    fn is_plain(&self, now: &Generation<C>, keys: &[Key]) -> bool {
        !now.changed && !self.own.iter().zip(keys).any(|(own, key)| own.has(key))
    }

    /// What a decision is charged to, and by which policies if it is not those of the beginning.
    fn charges<'a>(
        &'a self,
        now: &'a Arc<Generation<C>>,
        keys: &'a [Key],
    ) -> (Charges<'a, Charged<'a, C>>, Option<Arc<Vec<Policy>>>) {
        let mut charges = Charges::new();
        let mut policies = Cow::Borrowed(&*now.policies);
        for (policy, key) in keys.iter().enumerate().take(self.own.len()) {
            if let Some(own) = self.own(policy, key) {
                policies.to_mut()[policy] = own.policy().clone();
                charges.extend((0..own.quotas().len()).map(|at| {
                    let (own, time) = (own.clone(), &self.time);
                    (Charged::Own { own, at, time }, key)
                }));
            } else {
                self.carry(now, policy, key);
                let meters = now.buckets.of_policy(policy);
                charges.extend(meters.map(|meter| (Charged::Meter(meter), key)));
            }
        }
        let told = match policies {
            Cow::Owned(policies) => Some(Arc::new(policies)),
            Cow::Borrowed(_) => now.changed.then(|| now.policies.clone()),
        };
        (charges, told)
    }

    /// Where a key's only quota is its own.
    #[inline]
    fn take_own(&self, own: &Own, cost: u32) -> Option<Decision> {
        let [quota] = own.quotas() else {
            return None;
        };
        let usage = quota.decide(&|| self.time.now(), cost, Mode::Take);
        Some(Decision::from_usage(usage).by(own.alone().clone()))
    }

    fn decide(
        &self,
        now: &Arc<Generation<C>>,
        keys: &[Key],
        decide: impl FnOnce(&Charges<'_, Charged<'_, C>>) -> Decision,
    ) -> Decision {
        let (charges, policies) = self.charges(now, keys);
        let decision = decide(&charges);
        match policies {
            Some(policies) => decision.by(policies),
            None => decision,
        }
    }

    /// Moves here what a key has used before the last change, if it was not seen since. It is put here before
    /// it goes there, so that whoever comes in between finds it twice rather than not at all.
    #[cold]
    fn carry(&self, now: &Arc<Generation<C>>, policy: usize, key: &Key) {
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
                        now.forget_before(policy, at, key);
                    }
                }
                Meter::Sliding(meter) if !meter.knows(*key) => {
                    if let Some((length, counted)) = now.counted(policy, at, key) {
                        meter.put(*key, length, &counted, true);
                        now.forget_before(policy, at, key);
                    }
                }
                _ => {}
            }
        }
    }
}

impl<C> RateBuckets for Adjustable<C>
where
    C: Clock + Send + Sync + 'static,
    C::Instant: Send + Sync,
{
    #[inline]
    fn take(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        let now = self.current();
        if let (Some(meter), [key, ..]) = (self.known_first(&now), keys)
            && let Some(usage) = meter.take_of_known(key, cost)
        {
            if usage.fits() {
                self.catch_up(&now, keys, cost);
            }
            return Reply::Ready(Decision::from_usage(usage));
        }
        if self.is_plain(&now, keys) {
            let decided = now.buckets.take(keys, cost);
            self.settle(&now, keys);
            if matches!(&decided, Reply::Ready(decision) if decision.is_admitted()) {
                self.catch_up(&now, keys, cost);
            }
            return decided;
        }
        if let ([own], [key, ..]) = (&*self.own, keys)
            && let Some(Some(decision)) = own.find(key, |own| self.take_own(own, cost))
        {
            return Reply::Ready(decision);
        }
        let decision = self.decide(&now, keys, |charges| take_all(charges, cost));
        if decision.is_admitted() {
            self.catch_up(&now, keys, cost);
        }
        Reply::Ready(decision)
    }

    #[inline]
    fn take_one(&self, key: &Key) -> bool {
        let now = self.current();
        if now.before.is_some() {
            return false;
        }
        if let Some(meter) = self.known_first(&now)
            && let Some(taken) = meter.take_one_of_known(key)
        {
            if taken {
                self.catch_up(&now, slice::from_ref(key), 1);
            }
            return taken;
        }
        let own = self.own.first().and_then(|own| {
            own.find(key, |own| match own.quotas() {
                [quota] => quota.decide(&|| self.time.now(), 1, Mode::Take).fits(),
                _ => false,
            })
        });
        if let Some(taken) = own {
            return taken;
        }
        let taken = now.buckets.take_one(key);
        self.settle(&now, slice::from_ref(key));
        if taken {
            self.catch_up(&now, slice::from_ref(key), 1);
        }
        taken
    }

    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        let now = self.current();
        Reply::Ready(self.decide(&now, keys, |charges| peek_all(charges, cost)))
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        let now = self.current();
        let (charges, _) = self.charges(&now, keys);
        refund_all(&charges, cost);
        Reply::Ready(())
    }

    /// Without the keys that have quotas of their own, which are not in the tables.
    fn stats(&self) -> Option<RateStats> {
        self.current().buckets.stats()
    }
}

impl<C> AdjustableBuckets for Adjustable<C>
where
    C: Clock + Clone + Send + Sync + 'static,
    C::Instant: Send + Sync,
{
    fn set_policies(&self, policies: &[Policy]) -> bool {
        let _changing = lock(&self.changing);
        let before = self.now.load_full();
        if *before.policies == policies {
            return true;
        }
        let time = self.time.now();
        if before.depth(time) >= MOST_GENERATIONS {
            return false;
        }
        // Of what counts before it, what does not any more goes.
        let before = match &before.before {
            Some(earlier) if time >= earlier.until => Arc::new(before.settled()),
            _ => before,
        };
        let counts = full_after(policies).max(full_after(&before.policies));
        let earlier = before.before.as_ref().map_or(0, |earlier| earlier.until);
        let buckets = MemoryBuckets::new(policies, self.max_keys, self.clock.clone());
        self.now.store(Arc::new(Generation {
            policies: Arc::new(policies.to_vec()),
            buckets: Arc::new(buckets),
            changed: true,
            since: time,
            before: Some(Before {
                until: time.saturating_add(counts).max(earlier),
                generation: before,
            }),
        }));
        self.is_changed.store(true, Ordering::Release);
        true
    }

    fn can_set_policies(&self) -> bool {
        self.now.load().depth(self.time.now()) < MOST_GENERATIONS
    }

    fn set_own(&self, policy: usize, key: &Key, own: Option<&Policy>) {
        let _changing = lock(&self.changing);
        let Some(by_key) = self.own.get(policy) else {
            return;
        };
        let now = self.now.load_full();
        let before = by_key.find(key, Arc::clone);
        if before.is_none() {
            self.carry(&now, policy, key);
        }
        let time = self.time.now();
        let Some(own) = own else {
            if let Some(before) = before {
                for (quota, meter) in before.quotas().iter().zip(now.buckets.of_policy(policy)) {
                    quota.used().carry_to(meter, key, time);
                }
                by_key.set(key, None);
            }
            return;
        };
        let mut copied = Vec::new();
        let meters = now.buckets.of_policy(policy).enumerate();
        let used = meters.zip(own.quotas()).map(|((at, meter), quota)| {
            let used = before.as_ref().map(|before| before.quotas()[at].used());
            match used {
                Some(used) if used.suits(quota.quota()) => {
                    copied.push(None);
                    used.clone()
                }
                _ => {
                    let used = Used::carried_from(meter, key, quota.quota(), time);
                    copied.push(used.debt(time));
                    Arc::new(used)
                }
            }
        });
        let own = Arc::new(Own::new(own.clone(), used.collect::<Vec<_>>()));
        by_key.set(key, Some(own.clone()));
        self.remove(&now.buckets, policy, key, &own, &copied);
        own.quotas().iter().for_each(|quota| quota.settle(time));
    }
}
