//! Several limiters whose requests are decided as one: all of them admit a request, or none takes anything.

use std::sync::Arc;

use smallvec::SmallVec;

use super::rate::RateLimiter;
use super::rules::Rules;
use crate::decision::Decision;
use crate::key::Key;
use crate::policy::Policy;
use crate::store::joined_set::{joined_set, split_joined_set};
use crate::store::{Charge, RateBuckets, Reply};

/// The limiters, whose buckets stay their own: each also decides for itself, and for others that it is joined with.
pub(super) struct Joined {
    parts: Box<[Part]>,
    buckets: Arc<dyn RateBuckets>,
}

struct Part {
    rules: Arc<Rules>,
    /// How many policies it has, each with a key.
    policies: usize,
    quotas: usize,
}

/// What one decision charges.
type Charges = SmallVec<[Charge; 4]>;

/// Some of the limiters that are joined, by their places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts(u8);

impl Parts {
    pub(crate) const NONE: Self = Self(0);

    /// How many limiters can be joined.
    pub(crate) const MAX: usize = 8;

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn contains(self, place: usize) -> bool {
        self.0 & (1 << place) != 0
    }

    pub(crate) fn add(&mut self, place: usize) {
        self.0 |= 1 << place;
    }

    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The others of so many.
    pub(crate) fn others(self, parts: usize) -> Self {
        let mut others = Self::NONE;
        for place in (0..parts).filter(|place| !self.contains(*place)) {
            others.add(place);
        }
        others
    }

    /// Whether these are all of so many.
    pub(crate) fn are_all(self, parts: usize) -> bool {
        (0..parts).all(|place| self.contains(place))
    }
}

impl Joined {
    /// `None`: they count in different stores, or in one that cannot.
    pub(super) fn new(limiters: &[(Arc<Rules>, &[Policy])]) -> Option<Self> {
        let ((first, _), others) = limiters.split_first()?;
        if limiters.len() > Parts::MAX {
            return None;
        }
        let others: Vec<_> = others.iter().map(|(of, _)| of.buckets().clone()).collect();
        let buckets = first.buckets().join(&others)?;
        let parts = limiters.iter().map(|(rules, policies)| Part {
            rules: rules.clone(),
            policies: policies.len(),
            quotas: policies.iter().map(|policy| policy.quotas().len()).sum(),
        });
        let parts = parts.collect();
        Some(Self { parts, buckets })
    }

    /// The limiters with their places and keys.
    fn each<'a>(
        &'a self,
        keys: &'a [Key],
        left_out: Parts,
    ) -> impl Iterator<Item = (usize, &'a Part, &'a [Key])> {
        let parts = self.parts.iter().enumerate();
        let parts = parts.scan(keys, |keys, (place, part)| {
            let (own, others) = keys.split_at(part.policies.min(keys.len()));
            *keys = others;
            Some((place, part, own))
        });
        parts.filter(move |(place, ..)| !left_out.contains(*place))
    }

    fn charges(&self, keys: &[Key], tier: Option<&str>, left_out: Parts) -> Charges {
        let mut charges = Charges::new();
        for (place, part, keys) in self.each(keys, left_out) {
            let tier = tier.filter(|tier| part.rules.has_tier(tier));
            let own = part.rules.charges(keys, tier).into_iter();
            charges.extend(own.map(|charge| at_place(charge, place)));
        }
        charges
    }

    /// More of the same, as [`Rules::charges_to`].
    fn charges_to(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
        left_out: Parts,
    ) -> Charges {
        let mut charges = Charges::new();
        let mut first = 0;
        for (place, part, keys) in self.each(keys, Parts::NONE) {
            let own = first..first + keys.len();
            first = own.end;
            if left_out.contains(place) {
                continue;
            }
            let tier = tier.filter(|tier| part.rules.has_tier(tier));
            let sets = sets.and_then(|sets| sets.get(own)).map(|sets| {
                let sets = sets.iter().map(|set| split_joined_set(*set).1);
                sets.collect::<SmallVec<[usize; 2]>>()
            });
            let own = part.rules.charges_to(keys, tier, sets.as_deref());
            charges.extend(own.into_iter().map(|charge| at_place(charge, place)));
        }
        charges
    }

    /// The sets of all keys, if one has a tier of its own.
    pub(super) fn sets(&self, keys: &[Key], tier: Option<&str>) -> Option<Box<[usize]>> {
        let mut parts = self.each(keys, Parts::NONE);
        let has_own = parts.any(|(_, part, keys)| {
            let tier = tier.filter(|tier| part.rules.has_tier(tier));
            part.rules.sets(keys, tier).is_some()
        });
        let charges = has_own.then(|| self.charges(keys, tier, Parts::NONE));
        charges.map(|charges| charges.iter().map(|charge| charge.set).collect())
    }

    pub(super) fn known_tier(&self, name: &str) -> Option<Arc<str>> {
        self.parts.iter().find_map(|part| part.rules.tier(name))
    }

    pub(super) fn decide(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        cost: u32,
        left_out: Parts,
    ) -> Reply<Decision> {
        let charges = self.charges(keys, tier, left_out);
        let reply = self.buckets.take(&charges, cost);
        if let Reply::Ready(decision) = &reply
            && decision.needs_conversion()
        {
            for (_, part, keys) in self.each(keys, left_out) {
                part.rules.settle(keys);
            }
        }
        self.with_indices(reply, left_out)
    }

    pub(super) fn decide_more(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
        cost: u32,
        left_out: Parts,
    ) -> Reply<Decision> {
        let charges = self.charges_to(keys, tier, sets, left_out);
        self.with_indices(self.buckets.take(&charges, cost), left_out)
    }

    pub(super) fn peek(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
        left_out: Parts,
    ) -> Reply<Decision> {
        let charges = self.charges_to(keys, tier, sets, left_out);
        self.with_indices(self.buckets.peek(&charges, 0), left_out)
    }

    pub(super) fn refund(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
        cost: u32,
        left_out: Parts,
    ) -> Reply<()> {
        let charges = self.charges_to(keys, tier, sets, left_out);
        self.buckets.refund(&charges, cost)
    }

    /// Usages by the places of their quotas among those of all limiters.
    fn with_indices(&self, reply: Reply<Decision>, left_out: Parts) -> Reply<Decision> {
        if left_out.is_empty() {
            return reply;
        }
        let mut places = SmallVec::<[u16; 16]>::new();
        let mut first = 0;
        for (place, part) in self.parts.iter().enumerate() {
            let quotas = first..first + part.quotas as u16;
            first = quotas.end;
            if !left_out.contains(place) {
                places.extend(quotas);
            }
        }
        match reply {
            Reply::Ready(decision) => Reply::Ready(decision.with_indices(&places)),
            Reply::Pending(decision) => {
                Reply::Pending(Box::pin(
                    async move { decision.await.with_indices(&places) },
                ))
            }
        }
    }
}

fn at_place(mut charge: Charge, place: usize) -> Charge {
    charge.set = joined_set(place, charge.set);
    charge
}

impl RateLimiter {
    /// A limiter that decides by several at once. Each goes on to decide by itself as well, with the same counts.
    /// `None`: they count in different stores, or in one that cannot.
    pub(crate) fn join(limiters: &[Self]) -> Option<Self> {
        if let [only] = limiters {
            return Some(only.clone());
        }
        let parts = limiters.iter().map(Self::rules_and_policies);
        let parts: Vec<_> = parts.collect::<Option<_>>()?;
        let joined = Joined::new(&parts)?;
        Some(Self::of_joined(joined, &parts))
    }

    /// As [`decide`](Self::decide), without some of the limiters that are joined here.
    pub(crate) fn decide_without(
        &self,
        left_out: Parts,
        tier: Option<&str>,
        keys: &[Key],
        cost: u32,
    ) -> Reply<Decision> {
        match self.joined() {
            Some(joined) => joined.decide(keys, tier, cost, left_out),
            None if left_out.is_empty() => self.decide_in(tier, keys, cost),
            None => Reply::Ready(Decision::unlimited()),
        }
    }
}
