//! How many may be in flight, as it is set at run time.

use std::fmt;

use crate::limiter::slots::UNLIMITED;

/// How many permits there are at a time.
///
/// ```
/// use tower_admission::{Capacity, ConcurrencyLimiter};
///
/// let jobs = ConcurrencyLimiter::new(4);
/// jobs.set_limit(2);
/// assert_eq!(jobs.limit(), 2);
/// jobs.set_limit(0);
/// assert!(jobs.try_acquire().is_err());
/// jobs.set_limit(Capacity::Unlimited);
/// assert!(jobs.try_acquire().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Any number: permits are only counted.
    Unlimited,
    /// At most so many; 0 admits nothing.
    AtMost(usize),
}

impl Capacity {
    /// The capacity of a setting in which 0 turns the limit off.
    pub(crate) const fn or_off(limit: usize) -> Self {
        match limit {
            0 => Self::Unlimited,
            limit => Self::AtMost(limit),
        }
    }

    /// As counters have it.
    pub(super) fn of_slots(limit: u64) -> Self {
        match usize::try_from(limit) {
            _ if limit == UNLIMITED => Self::Unlimited,
            Ok(limit) => Self::AtMost(limit),
            Err(_) => Self::AtMost(usize::MAX),
        }
    }

    /// As counters have it.
    pub(super) fn slots(self) -> u64 {
        match self {
            Self::Unlimited => UNLIMITED,
            Self::AtMost(limit) => (limit as u64).min(UNLIMITED - 1),
        }
    }
}

impl From<usize> for Capacity {
    fn from(limit: usize) -> Self {
        Self::AtMost(limit)
    }
}

impl PartialEq<usize> for Capacity {
    fn eq(&self, other: &usize) -> bool {
        *self == Self::AtMost(*other)
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::AtMost(limit) => limit.fmt(f),
        }
    }
}
