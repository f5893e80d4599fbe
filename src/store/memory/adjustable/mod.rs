//! Buckets whose quotas change: for single keys, or for all.

mod carry;

use std::borrow::Cow;
use std::slice;
use std::sync::Arc;

use arc_swap::ArcSwap;
use governor::clock::Clock;
use smallvec::SmallVec;

use self::carry::{EVERY, bit};
use super::ChargedBuckets;
use super::buckets::{Charges, MemoryBuckets, Meter, Metered};
use super::charged::Charged;
use super::clock::SinceZero;
use super::generation::{Current, Generation, MOST_GENERATIONS};
use super::governed::Mode;
use super::own::{Own, Used};
use super::rate::RateMeter;
use crate::decision::Decision;
use crate::key::{Key, KeyMap};
use crate::policy::{Binding, Policy};
use crate::store::{AdjustableBuckets, InTier, RateBuckets, RateStats, Reply, Tiered};
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// Buckets whose quotas change.
///
/// A look-up is a probe of a table that readers take no lock for, and with a single quota a key that is
/// charged there has none of its own, so that it is not even looked up. What a key has used is carried over
/// when it gets quotas of its own and when it loses them; what another thread decides in the very moment in which
/// it loses them may be lost.
///
/// Until everybody's quotas are changed for the first time, they are found without a look-up.
pub(super) struct Adjustable<C: Clock> {
    first: Arc<Generation<C>>,
    is_changed: AtomicBool,
    now: ArcSwap<Generation<C>>,
    /// For each policy.
    own: Box<[KeyMap<Arc<Own>>]>,
    /// What binds a request of no tier.
    binding: Binding,
    time: SinceZero<C>,
    clock: C,
    max_keys: usize,
    /// Held while quotas are changed.
    changing: Mutex<()>,
}

/// By which policies it was decided, if these are not those of the beginning.
type Told = Option<Arc<Vec<Policy>>>;

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
            binding: Binding::of(policies, None),
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

    /// Whether a decision is as of buckets that do not change.
    #[inline]
    fn is_plain(&self, now: &Generation<C>, keys: &[Key]) -> bool {
        !now.changed && !self.own.iter().zip(keys).any(|(own, key)| own.has(key))
    }

    /// What a decision is charged to, by which policies if it is not those of the beginning, and which of them
    /// are charged among those of all, by bits.
    fn charges<'a>(
        &'a self,
        binding: &Binding,
        now: &'a Arc<Generation<C>>,
        keys: &'a [Key],
    ) -> (Charges<'a, Charged<'a, C>>, Told, u64) {
        let mut charges = Charges::new();
        let mut of_all = 0;
        let mut policies = Cow::Borrowed(&*now.policies);
        for (policy, key) in keys.iter().enumerate().take(self.own.len()) {
            if let Some(own) = self.own(policy, key) {
                policies.to_mut()[policy] = own.policy().clone();
                for at in 0..own.quotas().len() {
                    let (own, time) = (own.clone(), &self.time);
                    let charged = Charged::Own { own, at, time };
                    charges.push(binding.binds(policy, at), charged, key);
                }
            } else {
                of_all |= bit(policy);
                self.carry(now, policy, key);
                for (at, meter) in now.buckets.of_policy(policy).enumerate() {
                    charges.push(binding.binds(policy, at), Charged::Meter(meter), key);
                }
            }
        }
        let told = match policies {
            Cow::Owned(policies) => Some(binding.of_policies(&Arc::new(policies))),
            Cow::Borrowed(_) => now.changed.then(|| binding.of_policies(&now.policies)),
        };
        (charges, told, of_all)
    }

    /// Where a key's only quota is its own.
    #[inline]
    fn take_own(&self, binding: &Binding, own: &Own, cost: u32) -> Option<Decision> {
        let [quota] = own.quotas() else {
            return None;
        };
        if !binding.binds(0, 0) {
            return None;
        }
        let usage = quota.decide(&|| self.time.now(), cost, Mode::Take);
        let policies = binding.of_policies(own.alone());
        Some(Decision::from_usage(usage).by(policies))
    }
}

fn told(decision: Decision, policies: Told) -> Decision {
    match policies {
        Some(policies) => decision.by(policies),
        None => decision,
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
            if !usage.fits() || !self.is_over(&now) {
                return Reply::Ready(Decision::from_usage(usage));
            }
            meter.refund(key, cost);
        }
        self.take_in(&self.binding, keys, cost)
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
            if taken && self.is_over(&now) {
                meter.refund(key, 1);
                return false;
            }
            return taken;
        }
        let own = self.own.first().and_then(|own| {
            own.find(key, |own| match own.quotas() {
                [quota] if self.binding.binds(0, 0) => {
                    quota.decide(&|| self.time.now(), 1, Mode::Take).fits()
                }
                _ => false,
            })
        });
        if let Some(taken) = own {
            return taken;
        }
        let taken = now.buckets.take_one(key);
        self.settle(&now, slice::from_ref(key), EVERY);
        if taken && self.is_over(&now) {
            let _ = now.buckets.refund(slice::from_ref(key), 1);
            return false;
        }
        taken
    }

    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.peek_in(&self.binding, keys, cost)
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        let now = self.current();
        let (charges, _, of_all) = self.charges(&self.binding, &now, keys);
        charges.refund(cost);
        for (policy, key) in keys.iter().enumerate() {
            if of_all & bit(policy) != 0 && now.before.is_some() {
                let meters = now.buckets.of_policy(policy);
                let unused: SmallVec<[bool; 8]> =
                    meters.map(|meter| meter.is_unused(key)).collect();
                // What was more than an empty bucket owes was forgiven, and is there still.
                now.each_before(policy, |at, meter| match unused.get(at) {
                    Some(true) => meter.forget(key),
                    _ => meter.refund(key, cost),
                });
            }
        }
        Reply::Ready(())
    }

    fn tier(self: Arc<Self>, tier: &str) -> Option<Arc<dyn RateBuckets>> {
        let binding = Binding::of_tier(&self.first.policies, tier)?;
        let buckets = self;
        Some(Arc::new(InTier { buckets, binding }))
    }

    /// Without the keys that have quotas of their own, which are not in the tables.
    fn stats(&self) -> Option<RateStats> {
        self.current().buckets.stats()
    }
}

impl<C> Tiered for Adjustable<C>
where
    C: Clock + Send + Sync + 'static,
    C::Instant: Send + Sync,
{
    #[inline]
    fn take_in(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision> {
        let now = self.current();
        if self.is_plain(&now, keys) {
            let decided = match binding.tier() {
                None => now.buckets.take(keys, cost),
                Some(_) => now.buckets.take_in(binding, keys, cost),
            };
            self.settle(&now, keys, EVERY);
            let is_admitted = matches!(&decided, Reply::Ready(decision) if decision.is_admitted());
            if is_admitted && self.is_over(&now) {
                let _ = now.buckets.refund(keys, cost);
                return self.take_in(binding, keys, cost);
            }
            return decided;
        }
        if let ([own], [key, ..]) = (&*self.own, keys)
            && let Some(Some(decision)) = own.find(key, |own| self.take_own(binding, own, cost))
        {
            return Reply::Ready(decision);
        }
        let (charges, policies, of_all) = self.charges(binding, &now, keys);
        let decision = charges.take(cost);
        if decision.is_admitted() {
            self.settle(&now, keys, of_all);
            if self.is_over(&now) {
                charges.refund(cost);
                return self.take_in(binding, keys, cost);
            }
        }
        Reply::Ready(told(decision, policies))
    }

    fn peek_in(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision> {
        let now = self.current();
        let (charges, policies, _) = self.charges(binding, &now, keys);
        Reply::Ready(told(charges.peek(cost), policies))
    }
}

impl<C> ChargedBuckets for Adjustable<C>
where
    C: Clock + Clone + Send + Sync + 'static,
    C::Instant: Send + Sync,
{
    #[cfg(feature = "redis")]
    fn charge(&self, keys: &[Key], cost: u32) {
        let now = self.current();
        let (charges, _, of_all) = self.charges(&self.binding, &now, keys);
        charges.charge(cost);
        self.settle(&now, keys, of_all);
        self.catch_up(&now, keys, cost);
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
        let buckets = MemoryBuckets::new(policies, self.max_keys, self.clock.clone());
        self.now.store(Arc::new(Generation {
            policies: Arc::new(policies.to_vec()),
            before: before.as_before(&buckets, time),
            buckets: Arc::new(buckets),
            changed: true,
            since: time,
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
                now.each_before(policy, |_, meter| meter.forget(key));
                by_key.set(key, None);
            }
            return;
        };
        let mut copied = Vec::new();
        let meters = now.buckets.of_policy(policy).enumerate();
        let used = meters.zip(own.all_quotas()).map(|((at, meter), quota)| {
            let used = before.as_ref().map(|before| before.quotas()[at].used());
            match used {
                Some(used) if used.suits(quota.quota()) => {
                    copied.push(None);
                    used.clone()
                }
                _ => {
                    let used = match meter {
                        // It counts nothing itself.
                        Meter::DenyAll => now.used_before(policy, at, key, quota.quota(), time),
                        _ => Used::carried_from(meter, key, quota.quota(), time),
                    };
                    copied.push(Some(used.copied(time)));
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
