//! The buckets of one limiter: several quotas of several keys as one decision.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use super::bucket::Stale;
use super::clock::Timer;
use super::set::{InForce, Meter, Set};
use crate::decision::{Decision, Usage};
use crate::policy::Policy;
use crate::quota::Quota;
use crate::store::joined_set::split_joined_set;
use crate::store::{Charge, RateBuckets, RateStats, Reply};
use crate::sync::{Mutex, lock};

/// Sets that a limiter may have for each of its policies: one for each tier, and one for the requests of none.
const SETS: usize = 1 + Policy::MAX_OPENED_TIERS;

type Sets = Arc<[OnceLock<Box<Set>>]>;

/// The buckets of one limiter, or of several that are joined.
pub(crate) struct MemoryBuckets {
    /// Those of the policies that they were opened with, then those that were added.
    sets: Sets,
    /// Those of the limiters that are joined to this one.
    others: Box<[Sets]>,
    max_keys: usize,
    time: Timer,
    /// Held while a set is added.
    adding: Mutex<usize>,
}

impl MemoryBuckets {
    pub(crate) fn new(policies: &[Policy], max_keys: usize, time: Timer) -> Self {
        let buckets = Self {
            sets: (0..policies.len() * SETS)
                .map(|_| OnceLock::new())
                .collect(),
            others: Box::default(),
            max_keys,
            time,
            adding: Mutex::new(0),
        };
        for policy in policies {
            buckets.add(policy);
        }
        buckets
    }

    fn add(&self, policy: &Policy) -> Option<usize> {
        let mut len = lock(&self.adding);
        let set = self.sets.get(*len)?;
        set.get_or_init(|| Box::new(Set::new(policy, self.max_keys)));
        *len += 1;
        Some(*len - 1)
    }

    #[inline]
    fn set(&self, at: usize) -> Option<&Set> {
        let set = match self.sets.get(at) {
            Some(set) => set,
            None => self.set_of_other(at)?,
        };
        set.get().map(|set| &**set)
    }

    #[inline(never)]
    fn set_of_other(&self, at: usize) -> Option<&OnceLock<Box<Set>>> {
        let (place, set) = split_joined_set(at);
        self.others.get(place.checked_sub(1)?)?.get(set)
    }

    /// These and others as one.
    pub(crate) fn joined<'a>(&self, others: impl Iterator<Item = &'a Self>) -> Self {
        Self {
            sets: self.sets.clone(),
            others: others.map(|other| other.sets.clone()).collect(),
            max_keys: self.max_keys,
            time: self.time.clone(),
            // Tiers are added to the parts.
            adding: Mutex::new(self.sets.len()),
        }
    }

    /// What a decision charges, by the rules that are in force; again when they were changed meanwhile. `act`
    /// changes nothing where it returns [`Stale`].
    fn with<T>(&self, charges: &[Charge], act: impl Fn(&[Meter<'_>]) -> Result<T, Stale>) -> T {
        loop {
            let sets: SmallVec<[_; 4]> = charges
                .iter()
                .filter_map(|charge| Some((self.set(charge.set)?, charge)))
                .collect();
            let rules: SmallVec<[InForce<'_>; 4]> =
                sets.iter().map(|(set, _)| set.rules()).collect();
            let charged = sets.iter().zip(&rules);
            let meters: SmallVec<[Meter<'_>; 4]> = charged
                .flat_map(|((set, charge), rules)| {
                    (0..set.len()).map(move |at| set.meter(rules, at, charge))
                })
                .collect();
            if let Ok(done) = act(&meters) {
                return done;
            }
        }
    }

    /// Does something with each quota that is charged, once.
    fn each(&self, charges: &[Charge], act: impl Fn(&Meter<'_>) -> Result<(), Stale>) {
        let order: SmallVec<[usize; 4]> =
            self.with(charges, |meters| Ok(addresses_first(meters).collect()));
        for at in order {
            self.with(charges, |meters| act(&meters[at]));
        }
    }

    fn peek_all(&self, meters: &[Meter<'_>], cost: u32) -> Result<Decision, Stale> {
        let usages = meters.iter();
        let usages = usages.map(|meter| meter.decide(cost, false, &self.time));
        let usages: SmallVec<[_; 4]> = usages.collect::<Result<_, _>>()?;
        Ok(Decision::from_usages(usages))
    }

    /// Asks every quota before it takes from any, so that a rejection by one never takes from
    /// another, not even for the moment until it is given back.
    fn take_all(
        &self,
        meters: &[Meter<'_>],
        cost: u32,
        give_back: impl Fn(usize),
    ) -> Result<Decision, Stale> {
        let asked = self.peek_all(meters, cost)?;
        if cost == 0 || !asked.is_admitted() {
            return Ok(asked);
        }
        let mut usages: SmallVec<[Option<Usage>; 4]> = SmallVec::new();
        usages.resize(meters.len(), None);
        let mut taken = SmallVec::<[usize; 4]>::new();
        for at in addresses_first(meters) {
            let decided = meters[at].decide(cost, true, &self.time);
            if let Ok(usage) = decided
                && usage.is_none_or(|usage| usage.fits())
            {
                usages[at] = usage;
                // Of a quota that is off nothing was taken.
                taken.extend(usage.map(|_| at));
                continue;
            }
            // Another request took the last of it in between, or the rules were changed. What this one took goes
            // back.
            taken.into_iter().for_each(give_back);
            let rejection = decided?;
            for (other, meter) in meters.iter().enumerate() {
                usages[other] = match other == at {
                    true => rejection,
                    false => meter.decide(cost, false, &self.time)?,
                };
            }
            break;
        }
        Ok(Decision::from_usages(usages))
    }

    /// The only quota that a decision is about, if it is a single one.
    #[inline]
    fn only<'a>(&'a self, charges: &[Charge]) -> Option<&'a Set> {
        match charges {
            [charge] => self.set(charge.set).filter(|set| set.len() == 1),
            _ => None,
        }
    }

    /// Charges a request that was admitted elsewhere, whether it fits or not.
    pub(crate) fn charge(&self, charges: &[Charge], cost: u32) {
        self.each(charges, |meter| meter.charge(cost, &self.time));
    }
}

/// The places of quotas, those of addresses first: a client cannot make up its address.
fn addresses_first<'a>(meters: &'a [Meter<'_>]) -> impl Iterator<Item = usize> + 'a {
    let pass = move |addresses: bool| {
        (0..meters.len()).filter(move |at| meters[*at].key().is_ip() == addresses)
    };
    pass(true).chain(pass(false))
}

impl RateBuckets for MemoryBuckets {
    #[inline]
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        if let Some(set) = self.only(charges) {
            let meter = |rules| set.meter(rules, 0, &charges[0]);
            if let Ok(usage) = meter(&set.rules()).decide(cost, true, &self.time) {
                return Reply::Ready(match usage {
                    Some(usage) => Decision::from_usage(usage),
                    None => Decision::unlimited(),
                });
            }
        }
        let give_back = |at: usize| {
            self.with(charges, |meters| meters[at].refund(cost, &self.time));
        };
        Reply::Ready(self.with(charges, |meters| self.take_all(meters, cost, give_back)))
    }

    #[inline]
    fn take_one(&self, charge: &Charge) -> bool {
        let Some(set) = self.set(charge.set).filter(|set| set.len() == 1) else {
            return false;
        };
        let rules = set.rules();
        set.meter(&rules, 0, charge)
            .take_one(&self.time)
            .unwrap_or(false)
    }

    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        Reply::Ready(self.with(charges, |meters| self.peek_all(meters, cost)))
    }

    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()> {
        self.each(charges, |meter| meter.refund(cost, &self.time));
        Reply::Ready(())
    }

    fn settle(&self, charges: &[Charge]) {
        self.each(charges, |meter| meter.refund(0, &self.time));
    }

    fn add_tier(&self, _policy: usize, _tier: &str, quotas: &Policy) -> Option<usize> {
        self.add(quotas)
    }

    fn set_quotas(&self, set: usize, quotas: &[Quota]) -> bool {
        let set = self.set(set);
        set.is_some_and(|set| set.set_quotas(quotas, self.time.now()))
    }

    fn join(&self, others: &[Arc<dyn RateBuckets>]) -> Option<Arc<dyn RateBuckets>> {
        let others = others.iter().map(|other| {
            let other: &dyn Any = &**other;
            other.downcast_ref::<Self>()
        });
        let others: Vec<_> = others.collect::<Option<_>>()?;
        Some(Arc::new(self.joined(others.into_iter())))
    }

    fn stats(&self) -> Option<RateStats> {
        let mut all = RateStats::default();
        for set in self.sets.iter().filter_map(OnceLock::get) {
            let one = set.stats();
            all.tracked_keys += one.tracked_keys;
            all.evictions += one.evictions;
        }
        Some(all)
    }
}
