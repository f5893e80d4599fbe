//! One or more named quotas that are checked together.

mod shape;
mod tier;

use std::fmt;
use std::sync::Arc;

use crate::limit::{Limit, is_name};
use crate::quota::Quota;

pub(crate) use self::shape::PolicyShape;
pub(crate) use self::tier::Tier;

/// The name of a policy made from a bare [`Quota`].
const DEFAULT_NAME: &str = "default";

/// The maximum number of quotas per policy.
const MAX_QUOTAS: usize = 16;

/// One or more named quotas that are checked together. A request must fit every quota; a request
/// that does not fit is charged to none.
///
/// Clients see the names in `RateLimit-Policy` and in `violated-policies`.
///
/// ```
/// use tower_admission::{Policy, Quota};
///
/// let policy = Policy::new("burst", Quota::per_second(10)).and("daily", Quota::per_day(50_000));
/// assert_eq!(policy.quotas().len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    quotas: Vec<NamedQuota>,
    tiers: Vec<Tier>,
}

/// One quota of a [`Policy`] and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedQuota {
    name: Arc<str>,
    quota: Quota,
}

impl Policy {
    /// Makes a policy of one quota.
    ///
    /// # Panics
    ///
    /// Panics where [`Policy::try_new`] returns an error.
    #[must_use]
    #[track_caller]
    pub fn new(name: &str, quota: Quota) -> Self {
        match Self::try_new(name, quota) {
            Ok(policy) => policy,
            Err(error) => panic!("{error}: {name:?}"),
        }
    }

    /// As [`Policy::new`]. Use it for a name from outside.
    ///
    /// # Errors
    ///
    /// Returns [`PolicyError::Name`] when the name is empty, longer than 64 bytes, or has
    /// characters other than printable ASCII. Names are sent in headers.
    pub fn try_new(name: &str, quota: Quota) -> Result<Self, PolicyError> {
        Self::empty().try_and(name, quota)
    }

    /// Adds another quota that every request must fit.
    ///
    /// # Panics
    ///
    /// Panics where [`Policy::try_and`] returns an error.
    #[must_use]
    #[track_caller]
    pub fn and(self, name: &str, quota: Quota) -> Self {
        match self.try_and(name, quota) {
            Ok(policy) => policy,
            Err(error) => panic!("{error}: {name:?}"),
        }
    }

    /// As [`Policy::and`]. Use it for a name from outside.
    ///
    /// # Errors
    ///
    /// - [`PolicyError::Name`], as for [`Policy::try_new`].
    /// - [`PolicyError::NameTaken`]: the policy already has a quota with this name.
    /// - [`PolicyError::TooMany`]: the policy already has 16 quotas.
    pub fn try_and(mut self, name: &str, quota: Quota) -> Result<Self, PolicyError> {
        if !is_name(name) {
            return Err(PolicyError::Name);
        }
        if has(&self.quotas, name) {
            return Err(PolicyError::NameTaken);
        }
        if self.quotas.len() == MAX_QUOTAS {
            return Err(PolicyError::TooMany);
        }
        self.quotas.push(NamedQuota {
            name: name.into(),
            quota,
        });
        Ok(self)
    }

    /// The quotas, in the order in which they were added.
    #[must_use]
    pub fn quotas(&self) -> &[NamedQuota] {
        &self.quotas
    }

    /// A policy without quotas, which limits nothing.
    pub(crate) fn empty() -> Self {
        Self {
            quotas: Vec::new(),
            tiers: Vec::new(),
        }
    }

    /// One replica's share of the quotas, without tiers.
    pub(crate) fn replica_share(&self, replicas: u32) -> Self {
        self.map_quotas(|quota| quota.quota.replica_share(replicas))
    }

    /// A policy with the same names, mapped quotas and no tiers.
    pub(crate) fn map_quotas(&self, mut map: impl FnMut(&NamedQuota) -> Quota) -> Self {
        let quotas = self.quotas.iter().map(|quota| NamedQuota {
            name: quota.name.clone(),
            quota: map(quota),
        });
        Self {
            quotas: quotas.collect(),
            tiers: Vec::new(),
        }
    }

    /// Whether an override has numbers for one of the quotas.
    pub(crate) fn is_changed_by(&self, limit: &Limit) -> bool {
        let is_single = self.quotas().len() == 1;
        let mut quotas = self.quotas().iter();
        quotas.any(|quota| {
            let is_sliding = quota.quota().is_sliding();
            limit.rule(quota.name(), is_single, is_sliding).is_some()
        })
    }

    /// The policy with the numbers of `limit` for the quotas that it names. `None` if it names none
    /// of them.
    pub(crate) fn with_limit(&self, limit: &Limit) -> Option<Self> {
        let mut names_any = false;
        let is_single = self.quotas.len() == 1;
        let under = self.map_quotas(|named| {
            let quota = named.quota;
            let slides = match quota.rate() {
                Some(rate) => rate.is_sliding(),
                // A quota that is off or denies all has no algorithm that an override must keep.
                None => limit
                    .quota(named.name())
                    .is_some_and(|own| own.is_sliding()),
            };
            let rule = limit.rule(named.name(), is_single, slides);
            names_any |= rule.is_some();
            rule.map_or(quota, |rule| rule.quota())
        });
        names_any.then_some(under)
    }

    /// Removes the quotas that are off in every tier.
    pub(crate) fn without_off_quotas(mut self) -> Self {
        let tiers: Vec<_> = self.tiers().map(|tier| self.in_tier(tier)).collect();
        let mut at = 0;
        self.quotas.retain(|quota| {
            let is_off = |policy: &Self| policy.quotas[at].quota.is_off();
            let keeps = !quota.quota.is_off() || !tiers.iter().all(is_off);
            at += 1;
            keeps
        });
        self
    }

    /// Renames quotas whose names are in `taken`: a second `default` becomes `default-2`.
    pub(crate) fn with_unique_names(mut self, taken: &[Policy]) -> Self {
        let is_taken = |name: &str| taken.iter().any(|policy| has(&policy.quotas, name));
        for at in 0..self.quotas.len() {
            let original = self.quotas[at].name.clone();
            let mut n = 2;
            while is_taken(&self.quotas[at].name) {
                let name = format!("{original}-{n}");
                if !has(&self.quotas, &name) {
                    self.quotas[at].name = name.into();
                }
                n += 1;
            }
            let name = self.quotas[at].name.clone();
            for tier in &mut self.tiers {
                tier.limit.rename(&original, &name);
            }
        }
        self
    }

    /// Renames the quota of a policy that was made from a bare [`Quota`].
    pub(crate) fn with_default_name(mut self, name: &str) -> Self {
        if let [quota] = &mut *self.quotas
            && *quota.name == *DEFAULT_NAME
        {
            quota.name = name.into();
        }
        self
    }
}

fn has(quotas: &[NamedQuota], name: &str) -> bool {
    quotas.iter().any(|quota| *quota.name == *name)
}

impl NamedQuota {
    /// The name of the quota in headers and answers.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }
}

/// Makes a policy with one quota named `default`.
impl From<Quota> for Policy {
    fn from(quota: Quota) -> Self {
        Self::new(DEFAULT_NAME, quota)
    }
}

/// A quota or a tier that cannot be added to a [`Policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// The name is empty, longer than 64 bytes, or has characters other than printable ASCII. The
    /// name of a tier also must not contain `,` or `=`, start or end with a space, or be `tier`.
    Name,
    /// The policy already has a quota with this name.
    NameTaken,
    /// The policy already has 16 quotas.
    TooMany,
    /// The policy already has a tier with this name.
    TierTaken,
    /// The policy already has [`Policy::MAX_TIERS`] tiers.
    TooManyTiers,
    /// A tier names a quota that the policy does not have, or no quota of the policy.
    UnknownQuota,
    /// A tier names another tier.
    Nested,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => {
                "invalid name: use 1 to 64 bytes of printable ASCII, for a tier without `,` and `=`"
            }
            Self::NameTaken => "the policy already has a quota with this name",
            Self::TooMany => "a policy has at most 16 quotas",
            Self::TierTaken => "the policy already has a tier with this name",
            Self::TooManyTiers => "a policy has at most 16 tiers",
            Self::UnknownQuota => {
                "a tier must name at least one quota of its policy, and no others"
            }
            Self::Nested => "a tier cannot name another tier",
        })
    }
}

impl std::error::Error for PolicyError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_name_gets_a_number() {
        let one = Policy::from(Quota::per_second(1));
        let two = one.clone().with_unique_names(std::slice::from_ref(&one));
        assert_eq!(two.quotas()[0].name(), "default-2");
        let three = one.clone().with_unique_names(&[one, two]);
        assert_eq!(three.quotas()[0].name(), "default-3");
    }

    #[test]
    #[should_panic(expected = "printable ASCII")]
    fn a_name_that_a_header_cannot_carry_panics() {
        let _ = Policy::new("a\r\nb", Quota::per_second(1));
    }

    #[test]
    #[should_panic(expected = "already")]
    fn a_duplicate_name_panics() {
        let _ = Policy::new("a", Quota::per_second(1)).and("a", Quota::per_hour(1));
    }

    #[test]
    fn invalid_input_is_an_error() {
        let quota = Quota::per_second(1);
        for name in ["", "\u{7f}", "é", &"x".repeat(65)] {
            assert_eq!(
                Policy::try_new(name, quota),
                Err(PolicyError::Name),
                "{name:?}"
            );
        }
        let mut policy = Policy::new("0", quota);
        for n in 1..16 {
            policy = policy.and(&n.to_string(), quota);
        }
        assert_eq!(policy.try_and("16", quota), Err(PolicyError::TooMany));
    }

    #[test]
    fn a_quota_that_is_off_is_removed() {
        let policy = Policy::new("a", Quota::off()).and("b", Quota::per_hour(1));
        assert_eq!(policy.without_off_quotas().quotas().len(), 1);
    }
}
