//! The tiers of a policy.

use std::fmt::Display;
use std::sync::Arc;

use super::{Policy, PolicyError, has};
use crate::limit::{Limit, is_addressable};

/// A named set of limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tier {
    pub(crate) name: Arc<str>,
    pub(crate) limit: Limit,
}

impl Policy {
    /// The maximum number of tiers per policy.
    pub const MAX_TIERS: usize = 16;

    /// The maximum number of tiers over the lifetime of a limiter: those of its policy, and those
    /// of its limits.
    pub const MAX_OPENED_TIERS: usize = 2 * Self::MAX_TIERS;

    /// Declares a tier: other numbers for some requests, such as those of a plan. A quota that
    /// `limit` does not name keeps its default.
    ///
    /// This is the short form for one policy. [`Limits::tier`](crate::Limits::tier) declares a tier
    /// for all limits of a service. [`tier_by`](crate::RateLimitLayer::tier_by) selects the tier of
    /// a request, and [`RateLimiter::tier`](crate::RateLimiter::tier) that of a decision.
    ///
    /// **Each tier has its own buckets.** A request checks and charges only the buckets of its own
    /// tier. Adding a tier changes no usage. A key that moves to another tier uses the buckets of
    /// that tier. Select the tier by something that the client cannot choose, otherwise a client
    /// can use the quotas of all tiers together.
    ///
    /// Cost: each key that uses the tier takes as much memory as under a separate policy. An unused
    /// tier takes 20 KiB per quota.
    ///
    /// ```
    /// use tower_admission::{Key, Policy, Quota, RateLimiter};
    ///
    /// let policy = Policy::new("burst", Quota::per_second(10)).and("daily", Quota::per_day(50_000));
    /// let limiter = RateLimiter::new(policy.tier("pro", "burst=100/s, daily=1000000/day"));
    /// let alice = Key::id("user", "alice");
    ///
    /// let pro = limiter.tier("pro").unwrap();
    /// assert_eq!(pro.check_now(&alice).unwrap().remaining(), Some(99));
    /// assert_eq!(limiter.check_now(&alice).unwrap().remaining(), Some(9));
    /// ```
    ///
    /// # Panics
    ///
    /// Panics when `limit` cannot be parsed, and where [`try_tier`](Self::try_tier) returns an
    /// error.
    #[must_use]
    #[track_caller]
    pub fn tier(self, name: &str, limit: impl TryInto<Limit, Error: Display>) -> Self {
        let limit = match limit.try_into() {
            Ok(limit) => limit,
            Err(error) => panic!("{error}: tier {name:?}"),
        };
        match self.try_tier(name, limit) {
            Ok(policy) => policy,
            Err(error) => panic!("{error}: tier {name:?}"),
        }
    }

    /// As [`Policy::tier`]. Use it for a tier from outside.
    ///
    /// # Errors
    ///
    /// - [`PolicyError::Name`]: the name is not 1 to 64 bytes of printable ASCII without `,` and
    ///   `=`, starts or ends with a space, or is `tier`.
    /// - [`PolicyError::TierTaken`]: the policy already has a tier with this name.
    /// - [`PolicyError::TooManyTiers`]: the policy already has [`MAX_TIERS`](Self::MAX_TIERS)
    ///   tiers.
    /// - [`PolicyError::UnknownQuota`]: the limit names a quota that the policy does not have, or
    ///   no quota of the policy.
    /// - [`PolicyError::Nested`]: the limit names a tier.
    pub fn try_tier(mut self, name: &str, limit: Limit) -> Result<Self, PolicyError> {
        if !is_addressable(name) {
            return Err(PolicyError::Name);
        }
        if limit.tier().is_some() {
            return Err(PolicyError::Nested);
        }
        if self.tiers().any(|tier| tier == name) {
            return Err(PolicyError::TierTaken);
        }
        if self.tiers.len() == Self::MAX_TIERS {
            return Err(PolicyError::TooManyTiers);
        }
        let is_known = limit.names().all(|name| has(&self.quotas, name));
        if !is_known || self.with_limit(&limit).is_none() {
            return Err(PolicyError::UnknownQuota);
        }
        self.tiers.push(Tier {
            name: name.into(),
            limit,
        });
        Ok(self)
    }

    /// The names of the tiers, in the order in which they were added.
    pub fn tiers(&self) -> impl Iterator<Item = &str> {
        self.tiers.iter().map(|tier| &*tier.name)
    }

    /// The tiers, in the order in which they were added.
    pub(crate) fn declared(&self) -> &[Tier] {
        &self.tiers
    }

    /// The policy for requests of this tier, without tiers. An unknown name returns the default
    /// quotas.
    #[must_use]
    pub fn in_tier(&self, name: &str) -> Self {
        let tier = self.tiers.iter().find(|tier| *tier.name == *name);
        let in_tier = tier.and_then(|tier| self.with_limit(&tier.limit));
        in_tier.unwrap_or_else(|| self.map_quotas(|quota| quota.quota))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    fn policy() -> Policy {
        Policy::new("burst", Quota::per_minute(10)).and("daily", Quota::off())
    }

    fn quotas(policy: &Policy) -> String {
        let quotas = policy.quotas().iter();
        let quotas = quotas.map(|quota| format!("{}={}", quota.name(), quota.quota()));
        quotas.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_tier_keeps_the_default_for_quotas_it_does_not_name() {
        let policy = policy()
            .tier("pro", "daily=1000/day")
            .tier("staff", Quota::off());
        assert_eq!(
            quotas(&policy.in_tier("pro")),
            "burst=10/min, daily=1000/day"
        );
        assert_eq!(quotas(&policy.in_tier("staff")), "burst=off, daily=off");
        assert_eq!(quotas(&policy.in_tier("other")), "burst=10/min, daily=off");
    }

    #[test]
    fn a_quota_that_only_a_tier_enables_is_kept() {
        assert_eq!(quotas(&policy().without_off_quotas()), "burst=10/min");
        let policy = policy().tier("pro", "daily=1000/day");
        assert_eq!(
            quotas(&policy.without_off_quotas()),
            "burst=10/min, daily=off"
        );
    }

    #[test]
    fn an_invalid_tier_is_an_error() {
        let limit = |text: &str| text.parse::<Limit>().unwrap();
        let tiered = policy().tier("pro", "burst=60/min");
        let tier = |name, text| tiered.clone().try_tier(name, limit(text));
        assert_eq!(tier("", "burst=1/s"), Err(PolicyError::Name));
        assert_eq!(tier("pro", "burst=1/s"), Err(PolicyError::TierTaken));
        assert_eq!(tier("x", "weekly=1/s"), Err(PolicyError::UnknownQuota));
        // A limit without a name matches none of several quotas.
        assert_eq!(tier("x", "1/s"), Err(PolicyError::UnknownQuota));
        assert_eq!(tier("x", "tier=pro, burst=1/s"), Err(PolicyError::Nested));
        let full = (1..Policy::MAX_TIERS).fold(tiered.clone(), |policy, n| {
            policy.tier(&n.to_string(), "burst=1/s")
        });
        let more = full.try_tier("more", limit("burst=1/s"));
        assert_eq!(more, Err(PolicyError::TooManyTiers));
    }
}
