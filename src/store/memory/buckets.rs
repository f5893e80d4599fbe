//! The buckets of one limiter: several quotas of several keys as one decision.

use std::time::Duration;

use governor::clock::Clock;
use smallvec::SmallVec;

use super::rate::{Mode, RateMeter};
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

enum Meter<C: Clock> {
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

impl<C: Clock> MemoryBuckets<C> {
    /// The windows that have a key, those of addresses first.
    fn charged<'a>(
        &'a self,
        keys: &'a [Key],
    ) -> impl Iterator<Item = (usize, &'a Meter<C>, &'a Key)> {
        let pass = move |addresses: bool| {
            self.windows
                .iter()
                .enumerate()
                .filter_map(move |(index, window)| {
                    let key = keys.get(window.policy)?;
                    (key.is_ip() == addresses).then_some((index, &window.meter, key))
                })
        };
        pass(true).chain(pass(false))
    }

    fn peek_all(&self, keys: &[Key], cost: u32) -> Decision {
        let windows = self.windows.iter();
        Decision::from_usages(windows.filter_map(|window| {
            let key = keys.get(window.policy)?;
            Some(window.meter.decide(key, cost, Mode::Peek))
        }))
    }

    /// Asks every window before it takes from any, so that a refusal by one never takes from
    /// another, not even for the moment until it is given back.
    fn take_all(&self, keys: &[Key], cost: u32) -> Decision {
        let asked = self.peek_all(keys, cost);
        if cost == 0 || !asked.is_admitted() {
            return asked;
        }
        let mut usages: SmallVec<[Usage; 8]> = asked.usages().into();
        let mut taken = SmallVec::<[(&Meter<C>, &Key); 8]>::new();
        for (index, meter, key) in self.charged(keys) {
            usages[index] = meter.decide(key, cost, Mode::Take);
            if !usages[index].fits() {
                // Another request took the last of it in between. What this one took goes back.
                let refusal = usages[index];
                for (meter, key) in taken {
                    meter.refund(key, cost);
                }
                usages = self.peek_all(keys, cost).usages().into();
                usages[index] = refusal;
                break;
            }
            taken.push((meter, key));
        }
        Decision::from_usages(usages)
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
            _ => Reply::Ready(self.take_all(keys, cost)),
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
        Reply::Ready(self.peek_all(keys, cost))
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        for (_, meter, key) in self.charged(keys) {
            meter.refund(key, cost);
        }
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

impl<C: Clock> Meter<C> {
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

    #[inline]
    fn take_one(&self, key: &Key) -> bool {
        match self {
            Self::Rate(meter) => meter.take_one(key),
            Self::Sliding(_) | Self::DenyAll => false,
        }
    }

    fn refund(&self, key: &Key, cost: u32) {
        match self {
            Self::Rate(meter) => meter.refund(key, cost),
            Self::Sliding(meter) => meter.refund(*key, cost),
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
}
