//! Why something is no quota.

use std::fmt;

/// Why something is not a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// More than one request a nanosecond.
    TooFast,
    /// A period of 0.
    NoPeriod,
    /// An empty bucket would take more than 100 years to fill.
    TooSlow,
    /// A burst of 0 would never admit anything.
    NoBurst,
    /// A count above [`u32::MAX`] (with the burst, if sliding), or a period above [`u64::MAX`] of its unit.
    TooLarge,
    /// What stands for a count is not one: it is negative, a fraction or not a number.
    Count,
    /// What stands for a unit is not one.
    Unit,
    /// Not a quota as its [`FromStr`](std::str::FromStr) reads it.
    Syntax,
}

impl QuotaError {
    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::TooFast => "a quota cannot be above one request a nanosecond",
            Self::NoPeriod => "a quota's period is above 0, as in `10/s` or `5 per 30s`",
            Self::TooSlow => "a quota's bucket must fill within 100 years",
            Self::NoBurst => "a quota with a burst of 0 would admit nothing",
            Self::TooLarge => "a quota counts up to 4294967295, with its burst if it is sliding",
            Self::Count => {
                "a count is a whole number such as 10, 1_000 or 1k, per s, min, h, day or week"
            }
            Self::Unit => "units are s, min, h, day and week, as in `10/s` or `5 per 30s`",
            Self::Syntax => {
                "a quota is written like `10/s` or `600/min burst 50`: a number per s, min, h, day or week"
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
