//! The buckets of one limiter: several quotas of several keys as one decision.

use std::time::Duration;

use governor::clock::Clock;
use smallvec::SmallVec;

use super::governed::Mode;
use super::rate::RateMeter;
use super::sliding::SlidingMeter;
use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::policy::{NamedQuota, Policy};
use crate::store::{RateBuckets, RateStats, Reply};

/// The buckets of one limiter.
pub(super) struct MemoryBuckets<C: Clock> {
    /// One entry for each quota of each policy, in their order.
    windows: Vec<Window<C>>,
}

/// One quota, charged to the key of the policy it belongs to.
struct Window<C: Clock> {
    policy: usize,
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
            for quota in quotas.quotas().iter().map(NamedQuota::quota) {
                let meter = match quota.rate() {
                    Some(rate) if rate.is_sliding() => {
                        let meter = SlidingMeter::new(rate, max_keys, clock.clone());
                        Meter::Sliding(Box::new(meter))
                    }
                    Some(rate) => Meter::Rate(RateMeter::new(rate, max_keys, clock.clone())),
                    None if quota.is_off() => continue,
                    None => Meter::DenyAll,
                };
                windows.push(Window { policy, meter });
            }
        }
        Self { windows }
    }
}

/// Something that one key is charged to.
pub(super) trait Metered {
    fn decide(&self, key: &Key, cost: u32, mode: Mode) -> Usage;

    fn refund(&self, key: &Key, cost: u32);
}

/// What a decision charges, and to whom, in the order of its usages.
pub(super) type Charges<'a, M> = SmallVec<[(M, &'a Key); 8]>;

pub(super) fn peek_all<M: Metered>(charges: &[(M, &Key)], cost: u32) -> Decision {
    let charges = charges.iter();
    Decision::from_usages(charges.map(|(meter, key)| meter.decide(key, cost, Mode::Peek)))
}

/// Asks every meter before it takes from any, so that a refusal by one never takes from
/// another, not even for the moment until it is given back.
pub(super) fn take_all<M: Metered>(charges: &[(M, &Key)], cost: u32) -> Decision {
    let asked = peek_all(charges, cost);
    if cost == 0 || !asked.is_admitted() {
        return asked;
    }
    let mut usages: SmallVec<[Usage; 8]> = asked.usages().into();
    let mut taken = SmallVec::<[usize; 8]>::new();
    for at in addresses_first(charges) {
        let (meter, key) = &charges[at];
        usages[at] = meter.decide(key, cost, Mode::Take);
        if !usages[at].fits() {
            // Another request took the last of it in between. What this one took goes back.
            let refusal = usages[at];
            for at in taken {
                let (meter, key) = &charges[at];
                meter.refund(key, cost);
            }
            usages = peek_all(charges, cost).usages().into();
            usages[at] = refusal;
            break;
        }
        taken.push(at);
    }
    Decision::from_usages(usages)
}

pub(super) fn refund_all<M: Metered>(charges: &[(M, &Key)], cost: u32) {
    for at in addresses_first(charges) {
        let (meter, key) = &charges[at];
        meter.refund(key, cost);
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
    fn charges<'a>(&'a self, keys: &'a [Key]) -> Charges<'a, &'a Meter<C>> {
        let windows = self.windows.iter();
        windows
            .filter_map(|window| Some((&window.meter, keys.get(window.policy)?)))
            .collect()
    }

    /// The only bucket that a key of the first policy is charged to, if it is that.
    #[inline]
    pub(super) fn only_rate(&self) -> Option<&RateMeter<C>> {
        match &*self.windows {
            [
                Window {
                    policy: 0,
                    meter: Meter::Rate(meter),
                },
            ] => Some(meter),
            _ => None,
        }
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
        match (&*self.windows, keys) {
            ([window @ Window { policy: 0, .. }], [key, ..]) => {
                let usage = window.meter.decide(key, cost, Mode::Take);
                Reply::Ready(Decision::from_usage(usage))
            }
            _ => Reply::Ready(take_all(&self.charges(keys), cost)),
        }
    }

    #[inline]
    fn take_one(&self, key: &Key) -> bool {
        match &*self.windows {
            [window @ Window { policy: 0, .. }] => window.meter.take_one(key),
            _ => false,
        }
    }

    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        Reply::Ready(peek_all(&self.charges(keys), cost))
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        refund_all(&self.charges(keys), cost);
        Reply::Ready(())
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

    fn refund(&self, key: &Key, cost: u32) {
        (**self).refund(key, cost);
    }
}

impl<C: Clock> Meter<C> {
    /// Charges a request that was admitted elsewhere, whether it fits or not.
    pub(super) fn charge(&self, key: &Key, cost: u32) {
        match self {
            Self::Rate(meter) => meter.charge(key, cost),
            Self::Sliding(meter) => meter.charge(*key, cost),
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
