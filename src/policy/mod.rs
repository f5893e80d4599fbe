//! A named quota, or several that are checked as one.

mod shape;
mod tier;

use std::fmt;
use std::sync::Arc;

use crate::limit::{Limit, is_name};
use crate::quota::Quota;

pub(crate) use self::shape::Shape;
pub(crate) use self::tier::Tier;

/// The name of a policy that was given as a bare [`Quota`].
const DEFAULT_NAME: &str = "default";

/// Quotas that one policy may have.
const MAX_QUOTAS: usize = 16;

/// A named quota, or several that are checked as one: a request has to fit all of them, and one
/// that does not takes nothing from any.
///
/// The names are what clients read in `RateLimit-Policy` and in `violated-policies`.
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
    /// A policy of one quota.
    ///
    /// # Panics
    ///
    /// Where [`Policy::try_new`] returns an error.
    #[must_use]
    #[track_caller]
    pub fn new(name: &str, quota: Quota) -> Self {
        match Self::try_new(name, quota) {
            Ok(policy) => policy,
            Err(error) => panic!("{error}: {name:?}"),
        }
    }

    /// As [`Policy::new`], for a name that comes from outside.
    ///
    /// # Errors
    ///
    /// [`PolicyError::Name`]: the name is empty, longer than 64 bytes or has anything but
    /// printable ASCII in it. It is sent in headers.
    pub fn try_new(name: &str, quota: Quota) -> Result<Self, PolicyError> {
        Self::empty().try_and(name, quota)
    }

    /// Adds a quota that has to be kept as well.
    ///
    /// # Panics
    ///
    /// Where [`Policy::try_and`] returns an error.
    #[must_use]
    #[track_caller]
    pub fn and(self, name: &str, quota: Quota) -> Self {
        match self.try_and(name, quota) {
            Ok(policy) => policy,
            Err(error) => panic!("{error}: {name:?}"),
        }
    }

    /// As [`Policy::and`], for a name that comes from outside.
    ///
    /// # Errors
    ///
    /// - [`PolicyError::Name`], as [`Policy::try_new`].
    /// - [`PolicyError::NameTaken`]: the policy has a quota of that name already.
    /// - [`PolicyError::TooMany`]: the policy has 16 quotas already.
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

    /// The quotas, in the order they were given.
    #[must_use]
    pub fn quotas(&self) -> &[NamedQuota] {
        &self.quotas
    }

    /// Of no quotas, which limits nothing.
    pub(crate) fn empty() -> Self {
        Self {
            quotas: Vec::new(),
            tiers: Vec::new(),
        }
    }

    /// One replica's share of it, without tiers.
    pub(crate) fn share(&self, replicas: u32) -> Self {
        self.map_quotas(|quota| quota.quota.share(replicas))
    }

    /// The same names with other quotas, and without tiers.
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

    /// The policy under a limit, which names some of its quotas; `None` if it names none of them.
    pub(crate) fn under(&self, limit: &Limit) -> Option<Self> {
        let mut names_any = false;
        let is_single = self.quotas.len() == 1;
        let under = self.map_quotas(|named| {
            let quota = named.quota;
            let slides = match quota.rate() {
                Some(rate) => rate.is_sliding(),
                // It has no algorithm to keep.
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

    /// Without the quotas that are off, in every tier.
    pub(crate) fn limiting(mut self) -> Self {
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

    /// With names that are none of `taken`: a second `default` becomes `default-2`.
    pub(crate) fn renamed_apart_from(mut self, taken: &[Policy]) -> Self {
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

    /// With another name for a quota that was given without one.
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
    /// What clients know the quota by.
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

/// A policy named `default`.
impl From<Quota> for Policy {
    fn from(quota: Quota) -> Self {
        Self::new(DEFAULT_NAME, quota)
    }
}

/// Why a quota cannot be part of a [`Policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// The name is empty, longer than 64 bytes or has anything but printable ASCII in it; or it is a tier's, and has
    /// a `,` or a `=` in it or a space at an end, or is `tier`.
    Name,
    /// The policy has a quota of that name already.
    NameTaken,
    /// The policy has 16 quotas already.
    TooMany,
    /// The policy has a tier of that name already.
    TierTaken,
    /// The policy has [`Policy::MAX_TIERS`] tiers already.
    TooManyTiers,
    /// A tier names a quota that the policy has not, or none that it has.
    UnknownQuota,
    /// A tier names a tier.
    Nested,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => {
                "a policy's name is 1 to 64 bytes of printable ASCII, and a tier's has no `,` and no `=` in it"
            }
            Self::NameTaken => "the policy has a quota of that name already",
            Self::TooMany => "a policy has at most 16 quotas",
            Self::TierTaken => "the policy has a tier of that name already",
            Self::TooManyTiers => "a policy has at most 16 tiers",
            Self::UnknownQuota => "a tier of a policy names quotas of the policy, and at least one",
            Self::Nested => "a tier names no other tier",
        })
    }
}

impl std::error::Error for PolicyError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_apart() {
        let one = Policy::from(Quota::per_second(1));
        let two = one.clone().renamed_apart_from(std::slice::from_ref(&one));
        assert_eq!(two.quotas()[0].name(), "default-2");
        let three = one.clone().renamed_apart_from(&[one, two]);
        assert_eq!(three.quotas()[0].name(), "default-3");
    }

    #[test]
    #[should_panic(expected = "printable ASCII")]
    fn a_name_that_no_header_takes_panics() {
        let _ = Policy::new("a\r\nb", Quota::per_second(1));
    }

    #[test]
    #[should_panic(expected = "already")]
    fn a_name_twice_panics() {
        let _ = Policy::new("a", Quota::per_second(1)).and("a", Quota::per_hour(1));
    }

    #[test]
    fn what_comes_from_outside_is_an_error() {
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
    fn quotas_that_are_off_do_not_count() {
        let policy = Policy::new("a", Quota::off()).and("b", Quota::per_hour(1));
        assert_eq!(policy.limiting().quotas().len(), 1);
    }
}
