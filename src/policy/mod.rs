//! A named quota, or several that are checked as one.

mod shape;
mod tier;

use std::fmt;
use std::sync::Arc;

use crate::quota::Quota;

pub(crate) use self::shape::Shape;
use self::tier::Tier;
pub(crate) use self::tier::{Binding, tiers_of};

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
        Self::try_new(name, quota).unwrap_or_else(|error| panic!("{error}: {name:?}"))
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
        self.try_and(name, quota)
            .unwrap_or_else(|error| panic!("{error}: {name:?}"))
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

    /// The quotas, in the order they were given, without those of [tiers](Self::tier).
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

    /// One replica's share of it.
    #[cfg(feature = "redis")]
    pub(crate) fn share(&self, replicas: u32) -> Self {
        let mut share = self.clone();
        for quotas in share.lists_mut() {
            for quota in quotas {
                quota.quota = quota.quota.share(replicas);
            }
        }
        share
    }

    /// The same names with other quotas. `map` is given the place of each, how many stand with it in the same
    /// tier, and what it is.
    pub(crate) fn map_quotas(
        &self,
        mut map: impl FnMut(usize, usize, &NamedQuota) -> Quota,
    ) -> Self {
        let mut mapped = self.clone();
        let mut at = 0;
        for quotas in mapped.lists_mut() {
            let with = quotas.len();
            for quota in quotas {
                quota.quota = map(at, with, quota);
                at += 1;
            }
        }
        mapped
    }

    /// Without the quotas that are off.
    pub(crate) fn limiting(mut self) -> Self {
        for quotas in self.lists_mut() {
            quotas.retain(|quota| !quota.quota.is_off());
        }
        self
    }

    /// With names that are none of `taken`: a second `default` becomes `default-2`.
    pub(crate) fn renamed_apart_from(mut self, taken: &[Policy]) -> Self {
        let is_taken = |name: &str| taken.iter().any(|policy| policy.has_anywhere(name));
        for quotas in self.lists_mut() {
            for at in 0..quotas.len() {
                let original = quotas[at].name.clone();
                let mut n = 2;
                while is_taken(&quotas[at].name) {
                    let name = format!("{original}-{n}");
                    if !has(quotas, &name) {
                        quotas[at].name = name.into();
                    }
                    n += 1;
                }
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

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| (b' '..=b'~').contains(&b))
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
    /// The name is empty, longer than 64 bytes or has anything but printable ASCII in it.
    Name,
    /// The policy has a quota of that name already.
    NameTaken,
    /// The policy has 16 quotas already.
    TooMany,
    /// The policy has a tier of that name already.
    TierTaken,
    /// The policy has 8 tiers already.
    TooManyTiers,
    /// What is to be a tier has tiers itself.
    Nested,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "a policy's name is 1 to 64 bytes of printable ASCII",
            Self::NameTaken => "the policy has a quota of that name already",
            Self::TooMany => "a policy has at most 16 quotas",
            Self::TierTaken => "the policy has a tier of that name already",
            Self::TooManyTiers => "a policy has at most 8 tiers",
            Self::Nested => "a tier of a policy has no tiers itself",
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
