//! The number of permits or leases that may exist at a time.

use std::fmt;

/// The maximum number of permits at a time.
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
    /// No limit: permits are only counted.
    Unlimited,
    /// At most this many. 0 admits nothing.
    AtMost(usize),
}

impl Capacity {
    /// Reads a setting where 0 turns the limit off.
    #[must_use]
    pub const fn or_off(limit: usize) -> Self {
        match limit {
            0 => Self::Unlimited,
            limit => Self::AtMost(limit),
        }
    }
}

impl Capacity {
    /// The limit, unless unlimited.
    pub(crate) fn at_most(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::AtMost(limit) => Some(limit as u64),
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
