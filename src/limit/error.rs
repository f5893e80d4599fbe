//! Why a text is no limit.

use std::fmt;

use super::NAME_RULE;
use crate::quota::QuotaError;

/// Why a text is no [`Limit`](super::Limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// A part is neither a number with `concurrent` behind it nor a quota.
    Quota(QuotaError),
    /// What stands before `concurrent` is no number up to [`u32::MAX`].
    Concurrency,
    /// A 0, or a quota that is `off`.
    Zero,
    /// A name is empty, longer than 64 bytes or `tier`, has a space at an end, or has anything but printable
    /// ASCII without `,` and `=` in it.
    Name,
    /// Two parts are about the same limit, or two name a tier.
    Twice,
    /// There are more than 16 parts.
    TooMany,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quota(_) => {
                "a limit is written as a quota, 1000/min burst 50, as a number, 20 concurrent, \
                 as `unlimited` or as `deny all`"
            }
            Self::Concurrency => "there is no number before `concurrent`",
            Self::Zero => "0 is ambiguous here: write `unlimited` or `deny all`",
            Self::Name => NAME_RULE,
            Self::Twice => "two parts of the limit are about the same",
            Self::TooMany => "a limit has at most 16 parts",
        })
    }
}

impl std::error::Error for LimitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Quota(error) => Some(error),
            _ => None,
        }
    }
}
