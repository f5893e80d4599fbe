//! The buckets of one limiter: several quotas of several keys as one decision.

use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock;
use smallvec::SmallVec;

use super::governed::Mode;
use super::rate::RateMeter;
use super::sliding::SlidingMeter;
use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::policy::{Binding, NamedQuota, Policy};
use crate::store::{InTier, RateBuckets, RateStats, Reply, Tiered};

/// The buckets of one limiter.
pub(super) struct MemoryBuckets<C: Clock> {
    /// One entry for each quota of each policy, in their order.
    windows: Vec<Window<C>>,
    policies: Vec<Policy>,
    /// What binds a request of no tier.
    binding: Binding,
    /// Whether that is the only quota of all, and the first policy's.
    is_single: bool,
}

/// One quota, charged to the key of the policy it belongs to.
struct Window<C: Clock> {
    policy: usize,
    /// Its place among the policy's.
    at: usize,
    meter: Meter<C>,
}

pub(super) enum Meter<C: Clock> {
    DenyAll,
    Rate(RateMeter<C>),
    Sliding(Box<SlidingMeter<C>>),
}

impl<C: Clock + Clone> MemoryBuckets<C> {
    pub(super) fn new(policies: &[Policy], max_keys: usize, clock: C) -> Self {
        let mut windows = Vec::new();
        for (policy, quotas) in policies.iter().enumerate() {
            let mut at = 0;
            for quota in quotas.all_quotas().map(NamedQuota::quota) {
                let meter = match quota.rate() {
                    Some(rate) if rate.is_sliding() => {
                        let meter = SlidingMeter::new(rate, max_keys, clock.clone());
                        Meter::Sliding(Box::new(meter))
                    }
                    Some(rate) => Meter::Rate(RateMeter::new(rate, max_keys, clock.clone())),
                    None if quota.is_off() => continue,
                    None => Meter::DenyAll,
                };
                windows.push(Window { policy, at, meter });
                at += 1;
            }
        }
        let binding = Binding::of(policies, None);
        let is_single = match &*windows {
            [window] => window.policy == 0 && binding.binds(0, window.at),
            _ => false,
        };
        Self {
            windows,
            binding,
            is_single,
            policies: policies.to_vec(),
        }
    }
}

/// Something that one key is charged to.
pub(super) trait Metered {
    fn decide(&self, key: &Key, cost: u32, mode: Mode) -> Usage;

    /// Charges a request that was admitted elsewhere, whether it fits or not.
    fn charge(&self, key: &Key, cost: u32);

    fn refund(&self, key: &Key, cost: u32);
}

/// What a decision charges, and to whom.
pub(super) struct Charges<'a, M> {
    /// What the request has to fit, in the order of its usages.
    asked: SmallVec<[(M, &'a Key); 8]>,
    /// What it is counted in, if it does.
    counted: SmallVec<[(M, &'a Key); 4]>,
}

impl<'a, M: Metered> Charges<'a, M> {
    pub(super) fn new() -> Self {
        Self {
            asked: SmallVec::new(),
            counted: SmallVec::new(),
        }
    }

    pub(super) fn push(&mut self, is_asked: bool, meter: M, key: &'a Key) {
        if is_asked {
            self.asked.push((meter, key));
        } else {
            self.counted.push((meter, key));
        }
    }

    pub(super) fn peek(&self, cost: u32) -> Decision {
        let charges = self.asked.iter();
        Decision::from_usages(charges.map(|(meter, key)| meter.decide(key, cost, Mode::Peek)))
    }

    /// Asks every meter before it takes from any, so that a refusal by one never takes from
    /// another, not even for the moment until it is given back.
    pub(super) fn take(&self, cost: u32) -> Decision {
        let asked = self.peek(cost);
        if cost == 0 || !asked.is_admitted() {
            return asked;
        }
        let mut usages: SmallVec<[Usage; 8]> = asked.usages().into();
        let mut taken = SmallVec::<[usize; 8]>::new();
        for at in addresses_first(&self.asked) {
            let (meter, key) = &self.asked[at];
            usages[at] = meter.decide(key, cost, Mode::Take);
            if !usages[at].fits() {
                // Another request took the last of it in between. What this one took goes back.
                let refusal = usages[at];
                for at in taken {
                    let (meter, key) = &self.asked[at];
                    meter.refund(key, cost);
                }
                usages = self.peek(cost).usages().into();
                usages[at] = refusal;
                return Decision::from_usages(usages);
            }
            taken.push(at);
        }
        for (meter, key) in &self.counted {
            meter.charge(key, cost);
        }
        Decision::from_usages(usages)
    }

    /// Charges them all, whether the request fits or not.
    #[cfg(feature = "redis")]
    pub(super) fn charge(&self, cost: u32) {
        for (meter, key) in self.asked.iter().chain(&self.counted) {
            meter.charge(key, cost);
        }
    }

    pub(super) fn refund(&self, cost: u32) {
        for charges in [&self.asked[..], &self.counted] {
            for at in addresses_first(charges) {
                let (meter, key) = &charges[at];
                meter.refund(key, cost);
            }
        }
    }
}

fn addresses_first<M>(charges: &[(M, &Key)]) -> impl Iterator<Item = usize> {
    let pass = move |addresses: bool| {
        (0..charges.len()).filter(move |at| charges[*at].1.is_ip() == addresses)
    };
    pass(true).chain(pass(false))
}

impl<C: Clock> MemoryBuckets<C> {
    /// The windows that have a key.
    fn charges<'a>(&'a self, binding: &Binding, keys: &'a [Key]) -> Charges<'a, &'a Meter<C>> {
        let mut charges = Charges::new();
        for window in &self.windows {
            if let Some(key) = keys.get(window.policy) {
                let is_asked = binding.binds(window.policy, window.at);
                charges.push(is_asked, &window.meter, key);
            }
        }
        charges
    }

    /// The only quota, if it is one of the first policy that binds a request of no tier.
    #[inline]
    fn only(&self) -> Option<&Meter<C>> {
        match &*self.windows {
            [window] if self.is_single => Some(&window.meter),
            _ => None,
        }
    }

    /// The same, if it is a bucket.
    #[inline]
    pub(super) fn only_rate(&self) -> Option<&RateMeter<C>> {
        match self.only() {
            Some(Meter::Rate(meter)) => Some(meter),
            _ => None,
        }
    }

    /// The meters of all, in their order.
    pub(super) fn meters(&self) -> impl Iterator<Item = &Meter<C>> {
        self.windows.iter().map(|window| &window.meter)
    }

    /// The meters of one policy's quotas, in their order.
    pub(super) fn of_policy(&self, policy: usize) -> impl Iterator<Item = &Meter<C>> {
        let windows = self.windows.iter();
        windows
            .filter(move |window| window.policy == policy)
            .map(|window| &window.meter)
    }
}

impl<C> RateBuckets for MemoryBuckets<C>
where
    C: Clock + Send + Sync + 'static,
{
    #[inline]
    fn take(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        match (self.only(), keys) {
            (Some(meter), [key, ..]) => {
                let usage = meter.decide(key, cost, Mode::Take);
                Reply::Ready(Decision::from_usage(usage))
            }
            _ => self.take_in(&self.binding, keys, cost),
        }
    }

    #[inline]
    fn take_one(&self, key: &Key) -> bool {
        self.only().is_some_and(|meter| meter.take_one(key))
    }

    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.peek_in(&self.binding, keys, cost)
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        self.charges(&self.binding, keys).refund(cost);
        Reply::Ready(())
    }

    fn tier(self: Arc<Self>, tier: &str) -> Option<Arc<dyn RateBuckets>> {
        let binding = Binding::of_tier(&self.policies, tier)?;
        let buckets = self;
        Some(Arc::new(InTier { buckets, binding }))
    }

    fn stats(&self) -> Option<RateStats> {
        let mut all = RateStats::default();
        for window in &self.windows {
            let one = window.meter.stats();
            all.tracked_keys += one.tracked_keys;
            all.evictions += one.evictions;
        }
        Some(all)
    }
}

impl<C> Tiered for MemoryBuckets<C>
where
    C: Clock + Send + Sync + 'static,
{
    fn take_in(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision> {
        Reply::Ready(self.charges(binding, keys).take(cost))
    }

    fn peek_in(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision> {
        Reply::Ready(self.charges(binding, keys).peek(cost))
    }
}

impl<C: Clock> Metered for Meter<C> {
    #[inline]
    fn decide(&self, key: &Key, cost: u32, mode: Mode) -> Usage {
        match self {
            Self::Rate(meter) => meter.decide(key, cost, mode),
            Self::Sliding(meter) => match mode {
                Mode::Take | Mode::TakeUnseen => meter.take(*key, cost),
                Mode::Peek => meter.peek(*key, cost),
            },
            Self::DenyAll if cost == 0 => Usage::admitted(0, 0, Duration::ZERO),
            Self::DenyAll => Usage::refused(0, 0, Duration::ZERO, None),
        }
    }

    fn charge(&self, key: &Key, cost: u32) {
        match self {
            Self::Rate(meter) => meter.charge(key, cost),
            Self::Sliding(meter) => meter.charge(*key, cost),
            Self::DenyAll => {}
        }
    }

    fn refund(&self, key: &Key, cost: u32) {
        match self {
            Self::Rate(meter) => meter.refund(key, cost),
            Self::Sliding(meter) => meter.refund(*key, cost),
            Self::DenyAll => {}
        }
    }
}

impl<C: Clock> Metered for &Meter<C> {
    fn decide(&self, key: &Key, cost: u32, mode: Mode) -> Usage {
        (**self).decide(key, cost, mode)
    }

    fn charge(&self, key: &Key, cost: u32) {
        (**self).charge(key, cost);
    }

    fn refund(&self, key: &Key, cost: u32) {
        (**self).refund(key, cost);
    }
}

impl<C: Clock> Meter<C> {
    /// Whether nothing that a key used counts any more.
    pub(super) fn is_unused(&self, key: &Key) -> bool {
        match self {
            Self::Rate(meter) => meter.debt(key, 0).is_none(),
            Self::Sliding(meter) => meter.is_unused(*key),
            Self::DenyAll => false,
        }
    }

    /// Has a key unused.
    pub(super) fn forget(&self, key: &Key) {
        match self {
            Self::Rate(meter) => drop(meter.remove(key)),
            Self::Sliding(meter) => meter.forget(*key),
            Self::DenyAll => {}
        }
    }

    fn stats(&self) -> RateStats {
        match self {
            Self::Rate(meter) => meter.stats(),
            Self::Sliding(meter) => meter.stats(),
            Self::DenyAll => RateStats::default(),
        }
    }

    #[inline]
    fn take_one(&self, key: &Key) -> bool {
        match self {
            Self::Rate(meter) => meter.take_one(key),
            Self::Sliding(_) | Self::DenyAll => false,
        }
    }
}
