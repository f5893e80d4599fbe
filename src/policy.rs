//! A named quota, or several that are checked as one.

use std::fmt;
use std::sync::Arc;

use crate::quota::Quota;

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
        Self { quotas: Vec::new() }.try_and(name, quota)
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
        let printable = name.bytes().all(|b| (b' '..=b'~').contains(&b));
        if !(1..=64).contains(&name.len()) || !printable {
            return Err(PolicyError::Name);
        }
        if self.has(name) {
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

    /// One replica's share of it.
    #[cfg(feature = "redis")]
    pub(crate) fn share(&self, replicas: u32) -> Self {
        let mut share = self.clone();
        for quota in &mut share.quotas {
            quota.quota = quota.quota.share(replicas);
        }
        share
    }

    /// The same names with other quotas.
    pub(crate) fn map_quotas(&self, mut map: impl FnMut(usize, &str, Quota) -> Quota) -> Self {
        let quotas = self
            .quotas
            .iter()
            .enumerate()
            .map(|(at, quota)| NamedQuota {
                name: quota.name.clone(),
                quota: map(at, &quota.name, quota.quota),
            });
        Self {
            quotas: quotas.collect(),
        }
    }

    /// What stays the same when its quotas are changed.
    pub(crate) fn shape(&self) -> Shape {
        let quotas = self.quotas.iter();
        Shape(
            quotas
                .map(|quota| (quota.name.clone(), quota.quota.is_sliding()))
                .collect(),
        )
    }

    /// Without the quotas that are off.
    pub(crate) fn limiting(mut self) -> Self {
        self.quotas.retain(|q| !q.quota.is_off());
        self
    }

    /// With names that are none of `taken`: a second `default` becomes `default-2`.
    pub(crate) fn renamed_apart_from(mut self, taken: &[Policy]) -> Self {
        for at in 0..self.quotas.len() {
            let is_taken = |name: &str| taken.iter().any(|policy| policy.has(name));
            let original = self.quotas[at].name.clone();
            let mut n = 2;
            while is_taken(&self.quotas[at].name) {
                let name = format!("{original}-{n}");
                if !self.has(&name) {
                    self.quotas[at].name = name.into();
                }
                n += 1;
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

    fn has(&self, name: &str) -> bool {
        self.quotas.iter().any(|quota| *quota.name == *name)
    }
}

/// The names of a policy's quotas, and whether each is counted in a sliding window: what a limiter
/// was made with, and what its state is kept by. (One that denies everything is as a bucket.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape(Vec<(Arc<str>, bool)>);

impl Shape {
    /// Whether a policy could have been there from the beginning. One that denies everything for a
    /// while could.
    pub(crate) fn fits(&self, policy: &Policy) -> bool {
        let fits = |((name, sliding), quota): (&(Arc<str>, bool), &NamedQuota)| {
            let is_alike = quota.quota.denies_all() || quota.quota.is_sliding() == *sliding;
            *name == quota.name && !quota.quota.is_off() && is_alike
        };
        self.0.len() == policy.quotas.len() && self.0.iter().zip(&policy.quotas).all(fits)
    }

    pub(crate) fn is_sliding(&self, at: usize) -> bool {
        self.0.get(at).is_some_and(|(_, sliding)| *sliding)
    }
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
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "a policy's name is 1 to 64 bytes of printable ASCII",
            Self::NameTaken => "the policy has a quota of that name already",
            Self::TooMany => "a policy has at most 16 quotas",
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
