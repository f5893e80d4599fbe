//! The error of invalid quotas.

use std::fmt;

/// A number or a text that is not a valid quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// The rate is above one request per nanosecond.
    TooFast,
    /// The period is 0.
    NoPeriod,
    /// An empty bucket would take more than 100 years to fill.
    TooSlow,
    /// The burst is 0, which would admit nothing.
    NoBurst,
    /// The count is above [`u32::MAX`] (with the burst, if sliding), or the period is above
    /// [`u64::MAX`] of its unit.
    TooLarge,
    /// The count is negative, a fraction, or not a number.
    Count,
    /// The unit is unknown.
    Unit,
    /// [`FromStr`](std::str::FromStr) cannot read the text as a quota.
    Syntax,
}

impl QuotaError {
    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::TooFast => {
                "the rate is too high; a quota admits at most one request per nanosecond"
            }
            Self::NoPeriod => {
                "the period is 0; write a period above 0, as in `10/s` or `5 per 30s`"
            }
            Self::TooSlow => "the rate is too low; a bucket must fill within 100 years",
            Self::NoBurst => {
                "a burst of 0 would admit nothing; use 1 or more, or leave the burst out"
            }
            Self::TooLarge => {
                "the count is too large; at most 4294967295, including the burst of a sliding quota"
            }
            Self::Count => {
                "expected a whole number such as 10, 1_000 or 1k, per s, min, h, day or week"
            }
            Self::Unit => "unknown unit; use s, min, h, day or week, as in `10/s` or `5 per 30s`",
            Self::Syntax => {
                "expected a count per s, min, h, day or week, such as `10/s` or `600/min burst 50`"
            }
        }
    }
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for QuotaError {}
