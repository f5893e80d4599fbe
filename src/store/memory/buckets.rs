//! The buckets of one limiter: one decision over several quotas and keys.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use super::bucket::StaleRules;
use super::clock::MonotonicClock;
use super::set::{BucketSet, CurrentRules, KeyedQuota};
use crate::decision::{Decision, Usage};
use crate::policy::Policy;
use crate::quota::Quota;
use crate::store::joined_set::split_joined_set;
use crate::store::{Charge, RateBuckets, RateStats, Reply};
use crate::sync::{Mutex, lock};

/// Sets for each policy of a limiter: one for each tier, and one for requests without a tier.
const SETS_PER_POLICY: usize = 1 + Policy::MAX_OPENED_TIERS;

type Sets = Arc<[OnceLock<Box<BucketSet>>]>;

/// The buckets of one limiter, or of several joined limiters.
pub(crate) struct MemoryBuckets {
    /// The sets of the initial policies, then the added sets.
    sets: Sets,
    /// The sets of the other joined limiters.
    joined_sets: Box<[Sets]>,
    max_keys: usize,
    clock: MonotonicClock,
    /// The number of sets; locked while a set is added.
    set_count: Mutex<usize>,
}

impl MemoryBuckets {
    pub(crate) fn new(policies: &[Policy], max_keys: usize, clock: MonotonicClock) -> Self {
        let buckets = Self {
            sets: (0..policies.len() * SETS_PER_POLICY)
                .map(|_| OnceLock::new())
                .collect(),
            joined_sets: Box::default(),
            max_keys,
            clock,
            set_count: Mutex::new(0),
        };
        for policy in policies {
            buckets.add(policy);
        }
        buckets
    }

    fn add(&self, policy: &Policy) -> Option<usize> {
        let mut len = lock(&self.set_count);
        let set = self.sets.get(*len)?;
        set.get_or_init(|| Box::new(BucketSet::new(policy, self.max_keys)));
        *len += 1;
        Some(*len - 1)
    }

    #[inline]
    fn set(&self, at: usize) -> Option<&BucketSet> {
        let set = match self.sets.get(at) {
            Some(set) => set,
            None => self.joined_set(at)?,
        };
        set.get().map(|set| &**set)
    }

    #[inline(never)]
    fn joined_set(&self, at: usize) -> Option<&OnceLock<Box<BucketSet>>> {
        let (place, set) = split_joined_set(at);
        self.joined_sets.get(place.checked_sub(1)?)?.get(set)
    }

    /// Joins these buckets and others into one.
    pub(crate) fn joined<'a>(&self, others: impl Iterator<Item = &'a Self>) -> Self {
        Self {
            sets: self.sets.clone(),
            joined_sets: others.map(|other| other.sets.clone()).collect(),
            max_keys: self.max_keys,
            clock: self.clock.clone(),
            // Tiers are added to the joined limiters, not to this one.
            set_count: Mutex::new(self.sets.len()),
        }
    }

    /// Runs `action` on the charged quotas under the rules in force. Retries when the rules changed
    /// meanwhile, so `action` must change nothing when it returns [`StaleRules`].
    fn with_current_rules<T>(
        &self,
        charges: &[Charge],
        action: impl Fn(&[KeyedQuota<'_>]) -> Result<T, StaleRules>,
    ) -> T {
        loop {
            let sets: SmallVec<[_; 4]> = charges
                .iter()
                .filter_map(|charge| Some((self.set(charge.set)?, charge)))
                .collect();
            let rules: SmallVec<[CurrentRules<'_>; 4]> =
                sets.iter().map(|(set, _)| set.rules()).collect();
            let charged = sets.iter().zip(&rules);
            let quotas: SmallVec<[KeyedQuota<'_>; 4]> = charged
                .flat_map(|((set, charge), rules)| {
                    (0..set.len()).map(move |at| set.keyed(rules, at, charge))
                })
                .collect();
            if let Ok(done) = action(&quotas) {
                return done;
            }
        }
    }

    /// Runs `action` once for each charged quota.
    fn for_each_quota(
        &self,
        charges: &[Charge],
        action: impl Fn(&KeyedQuota<'_>) -> Result<(), StaleRules>,
    ) {
        let order: SmallVec<[usize; 4]> =
            self.with_current_rules(charges, |quotas| Ok(addresses_first(quotas).collect()));
        for at in order {
            self.with_current_rules(charges, |quotas| action(&quotas[at]));
        }
    }

    fn peek_all(&self, quotas: &[KeyedQuota<'_>], cost: u32) -> Result<Decision, StaleRules> {
        let usages = quotas.iter();
        let usages = usages.map(|quota| quota.decide(cost, false, &self.clock));
        let usages: SmallVec<[_; 4]> = usages.collect::<Result<_, _>>()?;
        Ok(Decision::from_usages(usages))
    }

    /// Checks every quota before it charges any. A rejection by one quota thus never charges
    /// another, not even for a moment.
    fn take_from_all(
        &self,
        quotas: &[KeyedQuota<'_>],
        cost: u32,
        refund: impl Fn(usize),
    ) -> Result<Decision, StaleRules> {
        let peeked = self.peek_all(quotas, cost)?;
        if cost == 0 || !peeked.is_admitted() {
            return Ok(peeked);
        }
        let mut usages: SmallVec<[Option<Usage>; 4]> = SmallVec::new();
        usages.resize(quotas.len(), None);
        let mut taken = SmallVec::<[usize; 4]>::new();
        for at in addresses_first(quotas) {
            let decided = quotas[at].decide(cost, true, &self.clock);
            if let Ok(usage) = decided
                && usage.is_none_or(|usage| usage.fits())
            {
                usages[at] = usage;
                // An unlimited quota charged nothing.
                taken.extend(usage.map(|_| at));
                continue;
            }
            // Another request used up this quota in between, or the rules changed. Refund what this
            // request charged.
            taken.into_iter().for_each(refund);
            let rejection = decided?;
            for (other, quota) in quotas.iter().enumerate() {
                usages[other] = match other == at {
                    true => rejection,
                    false => quota.decide(cost, false, &self.clock)?,
                };
            }
            break;
        }
        Ok(Decision::from_usages(usages))
    }

    /// The quota of a decision about one quota.
    #[inline]
    fn single_quota_set<'a>(&'a self, charges: &[Charge]) -> Option<&'a BucketSet> {
        match charges {
            [charge] => self.set(charge.set).filter(|set| set.len() == 1),
            _ => None,
        }
    }

    /// Charges a request that another store admitted, whether it fits or not.
    pub(crate) fn charge(&self, charges: &[Charge], cost: u32) {
        self.for_each_quota(charges, |quota| quota.charge(cost, &self.clock));
    }
}

/// Orders quotas, those of addresses first: a client cannot make up its address.
fn addresses_first<'a>(quotas: &'a [KeyedQuota<'_>]) -> impl Iterator<Item = usize> + 'a {
    let pass = move |addresses: bool| {
        (0..quotas.len()).filter(move |at| quotas[*at].key().is_ip() == addresses)
    };
    pass(true).chain(pass(false))
}

impl RateBuckets for MemoryBuckets {
    #[inline]
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        if let Some(set) = self.single_quota_set(charges) {
            let quota = |rules| set.keyed(rules, 0, &charges[0]);
            if let Ok(usage) = quota(&set.rules()).decide(cost, true, &self.clock) {
                return Reply::Ready(match usage {
                    Some(usage) => Decision::from_usage(usage),
                    None => Decision::unlimited(),
                });
            }
        }
        let refund = |at: usize| {
            self.with_current_rules(charges, |quotas| quotas[at].refund(cost, &self.clock));
        };
        Reply::Ready(
            self.with_current_rules(charges, |quotas| self.take_from_all(quotas, cost, refund)),
        )
    }

    #[inline]
    fn take_one(&self, charge: &Charge) -> bool {
        let Some(set) = self.set(charge.set).filter(|set| set.len() == 1) else {
            return false;
        };
        let rules = set.rules();
        set.keyed(&rules, 0, charge)
            .take_one(&self.clock)
            .unwrap_or(false)
    }

    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        Reply::Ready(self.with_current_rules(charges, |quotas| self.peek_all(quotas, cost)))
    }

    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()> {
        self.for_each_quota(charges, |quota| quota.refund(cost, &self.clock));
        Reply::Ready(())
    }

    fn settle(&self, charges: &[Charge]) {
        self.for_each_quota(charges, |quota| quota.refund(0, &self.clock));
    }

    fn add_tier(&self, _policy: usize, _tier: &str, quotas: &Policy) -> Option<usize> {
        self.add(quotas)
    }

    fn set_quotas(&self, set: usize, quotas: &[Quota]) -> bool {
        let set = self.set(set);
        set.is_some_and(|set| set.set_quotas(quotas, self.clock.now()))
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
