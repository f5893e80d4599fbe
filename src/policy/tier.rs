//! What a policy is for some: those of a plan, or those who come by another way.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use super::{NamedQuota, Policy, PolicyError, has, is_name};

/// Tiers that one policy may have.
const MAX_TIERS: usize = 8;

/// The quotas of one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tier {
    pub(super) name: Arc<str>,
    pub(super) quotas: Vec<NamedQuota>,
}

impl Policy {
    /// Other quotas for the requests of a tier: of a plan, say.
    ///
    /// Which tier a request is of, the layer is told by
    /// [`tier_by`](crate::RateLimitLayer::tier_by), and a limiter is asked for it by
    /// [`RateLimiter::tier`](crate::RateLimiter::tier). It then has to fit the quotas of that tier and none
    /// else.
    ///
    /// What is used is not the tier's but the key's: **a request counts in every tier**, whichever it came
    /// in by. So who goes up finds what a higher limit leaves and no fresh burst, who goes down finds a
    /// bucket as empty as it would be there, and who alternates gets no more of any tier than it
    /// allows. A bucket owes no more than an empty one does: after a thousand requests of
    /// a high tier a low one admits again after one of its intervals.
    ///
    /// Quotas of one tier may be called as those of another. A tier whose quota is off limits nothing, and
    /// counts for the others. [`and`](Self::and) adds to what is of no tier. What is
    /// [given back](crate::RateLimiter::refund) is given back in every tier, also where a bucket that was empty had not
    /// counted it. **So a refund in one tier can admit a request more in another**, and a client that can choose
    /// its tier, for example by the path, and have requests refunded, for example by an answer that
    /// [`count_if`](crate::RateLimitLayer::count_if) does not count, is not bounded by the lower tier. Where
    /// requests are refunded, select the tier by what the client cannot choose, or use
    /// [sliding](crate::Quota::sliding) quotas, which count all.
    ///
    /// Each tier takes as much memory as a policy of its own, and each admitted request is charged to all of them.
    ///
    /// ```
    /// use tower_admission::{Key, Policy, Quota, RateLimiter};
    ///
    /// let free = Quota::per_minute(10).burst(3);
    /// let limiter = RateLimiter::new(Policy::from(free).tier("pro", Quota::per_minute(600)));
    /// let alice = Key::id("user", "alice");
    ///
    /// while limiter.check(&alice).is_admitted() {}
    /// let pro = limiter.tier("pro").unwrap();
    /// assert_eq!(pro.check(&alice).remaining(), Some(596));
    /// ```
    ///
    /// # Panics
    ///
    /// Where [`try_tier`](Self::try_tier) returns an error.
    #[must_use]
    #[track_caller]
    pub fn tier(self, name: &str, policy: impl Into<Policy>) -> Self {
        self.try_tier(name, policy)
            .unwrap_or_else(|error| panic!("{error}: {name:?}"))
    }

    /// As [`Policy::tier`], for a name that comes from outside.
    ///
    /// # Errors
    ///
    /// - [`PolicyError::Name`]: the name is empty, longer than 64 bytes or has anything but
    ///   printable ASCII in it.
    /// - [`PolicyError::TierTaken`]: the policy has a tier of that name already.
    /// - [`PolicyError::TooManyTiers`]: the policy has 8 tiers already.
    /// - [`PolicyError::Nested`]: `policy` has tiers itself.
    pub fn try_tier(mut self, name: &str, policy: impl Into<Policy>) -> Result<Self, PolicyError> {
        let policy = policy.into();
        if !is_name(name) {
            return Err(PolicyError::Name);
        }
        if self.tiers().any(|tier| tier == name) {
            return Err(PolicyError::TierTaken);
        }
        if self.tiers.len() == MAX_TIERS {
            return Err(PolicyError::TooManyTiers);
        }
        if !policy.tiers.is_empty() {
            return Err(PolicyError::Nested);
        }
        self.tiers.push(Tier {
            name: name.into(),
            quotas: policy.quotas,
        });
        Ok(self)
    }

    /// The names of its tiers, in the order they were given.
    pub fn tiers(&self) -> impl Iterator<Item = &str> {
        self.tiers.iter().map(|tier| &*tier.name)
    }

    /// What it is in a tier, without tiers: what it is in none, if it has not that one.
    #[must_use]
    pub fn in_tier(&self, name: &str) -> Self {
        let tier = self.tiers.iter().find(|tier| *tier.name == *name);
        Self {
            quotas: tier.map_or(&self.quotas, |tier| &tier.quotas).clone(),
            tiers: Vec::new(),
        }
    }

    /// The quotas of no tier, then those of each.
    pub(crate) fn all_quotas(&self) -> impl Iterator<Item = &NamedQuota> {
        let of_tiers = self.tiers.iter().flat_map(|tier| &tier.quotas);
        self.quotas.iter().chain(of_tiers)
    }

    /// The same by tier.
    pub(super) fn lists_mut(&mut self) -> impl Iterator<Item = &mut Vec<NamedQuota>> {
        let of_tiers = self.tiers.iter_mut().map(|tier| &mut tier.quotas);
        iter::once(&mut self.quotas).chain(of_tiers)
    }

    /// Whether a quota of any tier has this name.
    pub(super) fn has_anywhere(&self, name: &str) -> bool {
        has(&self.quotas, name) || self.tiers.iter().any(|tier| has(&tier.quotas, name))
    }
}

/// Which quotas a request has to fit: those that each policy has in one tier. The others of a policy only
/// count it.
///
/// Places are those among all quotas of a policy that are not off.
#[derive(Clone, Debug, Default)]
pub(crate) struct Binding {
    tier: Option<Arc<str>>,
    /// For each policy.
    binds: Box<[Range<usize>]>,
    /// Whether there are others.
    has_others: bool,
}

impl Binding {
    /// What binds in a tier, or in none.
    pub(crate) fn of(policies: &[Policy], tier: Option<&str>) -> Self {
        let count = |quotas: &[NamedQuota]| quotas.iter().filter(|q| !q.quota().is_off()).count();
        let mut has_others = false;
        let range = |policy: &Policy| {
            let at = tier.and_then(|tier| policy.tiers().position(|name| name == tier));
            has_others |= !policy.tiers.is_empty();
            let Some(at) = at else {
                return 0..count(&policy.quotas);
            };
            let before = policy.tiers[..at].iter().map(|tier| count(&tier.quotas));
            let start = count(&policy.quotas) + before.sum::<usize>();
            start..start + count(&policy.tiers[at].quotas)
        };
        Self {
            binds: policies.iter().map(range).collect(),
            tier: tier.map(Into::into),
            has_others,
        }
    }

    /// The same in a tier, if any of the policies has it.
    pub(crate) fn of_tier(policies: &[Policy], tier: &str) -> Option<Self> {
        let mut tiers = policies.iter().flat_map(Policy::tiers);
        tiers
            .any(|name| name == tier)
            .then(|| Self::of(policies, Some(tier)))
    }

    /// The tier that it is of.
    #[inline]
    pub(crate) fn tier(&self) -> Option<&Arc<str>> {
        self.tier.as_ref()
    }

    /// Whether a request has to fit the quota at this place.
    #[inline]
    pub(crate) fn binds(&self, policy: usize, at: usize) -> bool {
        !self.has_others
            || self
                .binds
                .get(policy)
                .is_some_and(|range| range.contains(&at))
    }

    /// The places of the quotas that a policy has here.
    #[cfg(feature = "redis")]
    pub(crate) fn places(&self, policy: usize) -> Range<usize> {
        self.binds.get(policy).cloned().unwrap_or_default()
    }

    /// What policies are here.
    pub(crate) fn of_policies(&self, policies: &Arc<Vec<Policy>>) -> Arc<Vec<Policy>> {
        if !self.has_others {
            return policies.clone();
        }
        // No tier has an empty name.
        let tier = self.tier.as_deref().unwrap_or("");
        let policies = policies.iter();
        Arc::new(policies.map(|policy| policy.in_tier(tier)).collect())
    }
}

/// The names of all tiers of some policies.
pub(crate) fn tiers_of(policies: &[Policy]) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for tier in policies.iter().flat_map(|policy| &policy.tiers) {
        if !names.contains(&tier.name) {
            names.push(tier.name.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    fn policy() -> Policy {
        let free = Policy::new("free", Quota::per_minute(10)).and("no", Quota::off());
        let paid = Policy::new("paid", Quota::per_minute(60)).and("daily", Quota::per_day(1000));
        free.tier("pro", paid).tier("staff", Quota::off())
    }

    #[test]
    fn each_tier_has_its_places() {
        let policies = [policy(), Quota::per_second(5).into()];
        let places = |tier| {
            let binding = Binding::of(&policies, tier);
            let binds = |policy| (0..4).filter(move |at| binding.binds(policy, *at));
            [0, 1].map(|policy| binds.clone()(policy).collect::<Vec<_>>())
        };
        assert_eq!(places(None), [vec![0], vec![0]]);
        assert_eq!(places(Some("pro")), [vec![1, 2], vec![0]]);
        assert_eq!(places(Some("staff")), [vec![], vec![0]]);
        assert!(Binding::of_tier(&policies, "other").is_none());
        let names = policies[0].in_tier("pro");
        assert_eq!(names.quotas()[1].name(), "daily");
        assert_eq!(policies[0].in_tier("other").quotas()[0].name(), "free");
        let names = tiers_of(&policies);
        let names: Vec<_> = names.iter().map(|name| &**name).collect();
        assert_eq!(names, ["pro", "staff"]);
    }

    #[test]
    fn names_stay_apart_in_every_tier() {
        let renamed = policy().renamed_apart_from(&[Policy::new("daily", Quota::per_day(1))]);
        assert_eq!(renamed.in_tier("pro").quotas()[1].name(), "daily-2");
        let other = Policy::new("paid", Quota::per_second(1)).renamed_apart_from(&[policy()]);
        assert_eq!(other.quotas()[0].name(), "paid-2");
    }

    #[test]
    fn a_shape_has_the_tiers() {
        let quota = |n| Policy::from(Quota::per_second(n));
        let shape = quota(1).tier("pro", quota(2)).shape();
        assert!(shape.fits(&quota(3).tier("pro", quota(4))));
        assert!(shape.fits(&quota(3).tier("pro", Quota::deny_all())));
        assert!(!shape.fits(&quota(1)));
        assert!(!shape.fits(&quota(1).tier("max", quota(2))));
        assert!(!shape.fits(&quota(1).tier("pro", quota(2)).tier("max", quota(2))));
        assert!(!shape.fits(&quota(1).tier("pro", Quota::per_second(2).sliding())));
        assert!(!shape.fits(&quota(1).tier("pro", Quota::off())));
    }

    #[test]
    fn what_comes_from_outside_is_an_error() {
        let quota = Quota::per_second(1);
        let tiered = Policy::from(quota).tier("pro", quota);
        assert_eq!(tiered.clone().try_tier("", quota), Err(PolicyError::Name));
        assert_eq!(
            tiered.clone().try_tier("pro", quota),
            Err(PolicyError::TierTaken)
        );
        let nested = Policy::from(quota).try_tier("x", tiered.clone());
        assert_eq!(nested, Err(PolicyError::Nested));
        let full = (1..MAX_TIERS).fold(tiered, |policy, n| policy.tier(&n.to_string(), quota));
        assert_eq!(full.try_tier("more", quota), Err(PolicyError::TooManyTiers));
    }
}
