//! The error of invalid limits.

use std::fmt;

use super::NAME_RULES;
use crate::quota::QuotaError;

/// A text that is not a valid [`Limit`](super::Limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// A part is neither a quota nor a number followed by `concurrent`.
    Quota(QuotaError),
    /// The text before `concurrent` is not a number up to [`u32::MAX`].
    Concurrency,
    /// A number is 0, or a quota is `off`.
    Zero,
    /// A name is empty, longer than 64 bytes, `tier`, starts or ends with a space, or has
    /// characters other than printable ASCII without `,` and `=`.
    Name,
    /// Two parts set the same limit, or two parts name a tier.
    Twice,
    /// The limit has more than 16 parts.
    TooMany,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quota(_) => {
                "expected a quota such as `1000/min burst 50`, a number such as `20 concurrent`, \
                 `unlimited` or `deny all`"
            }
            Self::Concurrency => "`concurrent` needs a number before it, such as `20 concurrent`",
            Self::Zero => "0 is ambiguous here: write `unlimited` or `deny all`",
            Self::Name => NAME_RULES,
            Self::Twice => "two parts of the limit set the same limit",
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
