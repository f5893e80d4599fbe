//! Several limiters that decide as one: all of them admit a request, or none charges anything.

use std::sync::Arc;

use smallvec::SmallVec;

use super::rate::RateLimiter;
use super::rules::RateRules;
use crate::decision::Decision;
use crate::key::Key;
use crate::policy::Policy;
use crate::store::joined_set::{joined_set, split_joined_set};
use crate::store::{Charge, RateBuckets, Reply};

/// Joined limiters. Each keeps its own buckets, and also decides alone or joined with others.
pub(super) struct Joined {
    parts: Box<[JoinedLimiter]>,
    buckets: Arc<dyn RateBuckets>,
}

struct JoinedLimiter {
    rules: Arc<RateRules>,
    /// The number of its policies, each with a key.
    policies: usize,
    quotas: usize,
}

/// The charges of one decision.
type Charges = SmallVec<[Charge; 4]>;

/// A set of joined limiters, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimiterSet(u8);

impl LimiterSet {
    pub(crate) const NONE: Self = Self(0);

    /// The maximum number of limiters that can be joined.
    pub(crate) const MAX: usize = 8;

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn contains(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    pub(crate) fn add(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The complement among the first `count` limiters.
    pub(crate) fn complement(self, count: usize) -> Self {
        let mut others = Self::NONE;
        for index in (0..count).filter(|index| !self.contains(*index)) {
            others.add(index);
        }
        others
    }

    /// Whether this set contains all of the first `count` limiters.
    pub(crate) fn contains_all(self, count: usize) -> bool {
        (0..count).all(|index| self.contains(index))
    }
}

impl Joined {
    /// Returns `None` if the limiters use different stores, or a store that cannot join them.
    pub(super) fn new(limiters: &[(Arc<RateRules>, &[Policy])]) -> Option<Self> {
        let ((first, _), others) = limiters.split_first()?;
        if limiters.len() > LimiterSet::MAX {
            return None;
        }
        let others: Vec<_> = others.iter().map(|(of, _)| of.buckets().clone()).collect();
        let buckets = first.buckets().join(&others)?;
        let parts = limiters.iter().map(|(rules, policies)| JoinedLimiter {
            rules: rules.clone(),
            policies: policies.len(),
            quotas: policies.iter().map(|policy| policy.quotas().len()).sum(),
        });
        let parts = parts.collect();
        Some(Self { parts, buckets })
    }

    /// The limiters that are not excluded, with their indexes and keys.
    fn limiters<'a>(
        &'a self,
        keys: &'a [Key],
        excluded: LimiterSet,
    ) -> impl Iterator<Item = (usize, &'a JoinedLimiter, &'a [Key])> {
        let parts = self.parts.iter().enumerate();
        let parts = parts.scan(keys, |keys, (index, part)| {
            let (part_keys, others) = keys.split_at(part.policies.min(keys.len()));
            *keys = others;
            Some((index, part, part_keys))
        });
        parts.filter(move |(index, ..)| !excluded.contains(*index))
    }

    fn charges(&self, keys: &[Key], tier: Option<&str>, excluded: LimiterSet) -> Charges {
        let mut charges = Charges::new();
        for (index, part, keys) in self.limiters(keys, excluded) {
            let tier = tier.filter(|tier| part.rules.has_tier(tier));
            let part_charges = part.rules.charges(keys, tier).into_iter();
            charges.extend(part_charges.map(|charge| for_limiter(charge, index)));
        }
        charges
    }

    /// Like [`RateRules::charges_to`], for the joined limiters.
    fn charges_to(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
        excluded: LimiterSet,
    ) -> Charges {
        let mut charges = Charges::new();
        let mut first = 0;
        for (index, part, keys) in self.limiters(keys, LimiterSet::NONE) {
            let range = first..first + keys.len();
            first = range.end;
            if excluded.contains(index) {
                continue;
            }
            let tier = tier.filter(|tier| part.rules.has_tier(tier));
            let sets = sets.and_then(|sets| sets.get(range)).map(|sets| {
                let sets = sets.iter().map(|set| split_joined_set(*set).1);
                sets.collect::<SmallVec<[usize; 2]>>()
            });
            let part_charges = part.rules.charges_to(keys, tier, sets.as_deref());
            charges.extend(
                part_charges
                    .into_iter()
                    .map(|charge| for_limiter(charge, index)),
            );
        }
        charges
    }

    /// The bucket sets of all keys, if the tier of one differs from the request's tier.
    pub(super) fn sets(&self, keys: &[Key], tier: Option<&str>) -> Option<Box<[usize]>> {
        let mut parts = self.limiters(keys, LimiterSet::NONE);
        let has_other_tier = parts.any(|(_, part, keys)| {
            let tier = tier.filter(|tier| part.rules.has_tier(tier));
            part.rules.sets(keys, tier).is_some()
        });
        let charges = has_other_tier.then(|| self.charges(keys, tier, LimiterSet::NONE));
        charges.map(|charges| charges.iter().map(|charge| charge.set).collect())
    }

    pub(super) fn tier_name(&self, name: &str) -> Option<Arc<str>> {
        self.parts.iter().find_map(|part| part.rules.tier(name))
    }

    pub(super) fn decide(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        cost: u32,
        excluded: LimiterSet,
    ) -> Reply<Decision> {
        let charges = self.charges(keys, tier, excluded);
        let reply = self.buckets.take(&charges, cost);
        if let Reply::Ready(decision) = &reply
            && decision.needs_conversion()
        {
            for (_, part, keys) in self.limiters(keys, excluded) {
                part.rules.settle(keys);
            }
        }
        self.with_quota_positions(reply, excluded)
    }

    pub(super) fn charge_more(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
        cost: u32,
        excluded: LimiterSet,
    ) -> Reply<Decision> {
        let charges = self.charges_to(keys, tier, sets, excluded);
        self.with_quota_positions(self.buckets.take(&charges, cost), excluded)
    }

    pub(super) fn peek(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
        excluded: LimiterSet,
    ) -> Reply<Decision> {
        let charges = self.charges_to(keys, tier, sets, excluded);
        self.with_quota_positions(self.buckets.peek(&charges, 0), excluded)
    }

    pub(super) fn refund(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
        cost: u32,
        excluded: LimiterSet,
    ) -> Reply<()> {
        let charges = self.charges_to(keys, tier, sets, excluded);
        self.buckets.refund(&charges, cost)
    }

    /// Numbers the usages by the positions of their quotas among all limiters.
    fn with_quota_positions(
        &self,
        reply: Reply<Decision>,
        excluded: LimiterSet,
    ) -> Reply<Decision> {
        if excluded.is_empty() {
            return reply;
        }
        let mut positions = SmallVec::<[u16; 16]>::new();
        let mut first = 0;
        for (index, part) in self.parts.iter().enumerate() {
            let quotas = first..first + part.quotas as u16;
            first = quotas.end;
            if !excluded.contains(index) {
                positions.extend(quotas);
            }
        }
        match reply {
            Reply::Ready(decision) => Reply::Ready(decision.with_indices(&positions)),
            Reply::Pending(decision) => {
                Reply::Pending(Box::pin(
                    async move { decision.await.with_indices(&positions) },
                ))
            }
        }
    }
}

fn for_limiter(mut charge: Charge, index: usize) -> Charge {
    charge.set = joined_set(index, charge.set);
    charge
}

impl RateLimiter {
    /// Joins limiters into one that decides by all of them. Each also keeps deciding alone, with
    /// the same counts. Returns `None` if they use different stores, or a store that cannot join
    /// them.
    pub(crate) fn join(limiters: &[Self]) -> Option<Self> {
        if let [only] = limiters {
            return Some(only.clone());
        }
        let parts = limiters.iter().map(Self::rules_and_policies);
        let parts: Vec<_> = parts.collect::<Option<_>>()?;
        let joined = Joined::new(&parts)?;
        Some(Self::from_joined(joined, &parts))
    }

    /// Like [`decide`](Self::decide), without the `excluded` joined limiters.
    pub(crate) fn decide_excluding(
        &self,
        excluded: LimiterSet,
        tier: Option<&str>,
        keys: &[Key],
        cost: u32,
    ) -> Reply<Decision> {
        match self.joined() {
            Some(joined) => joined.decide(keys, tier, cost, excluded),
            None if excluded.is_empty() => self.decide_in_tier(tier, keys, cost),
            None => Reply::Ready(Decision::unlimited()),
        }
    }
}
