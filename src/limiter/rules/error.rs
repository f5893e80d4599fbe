//! Why a limiter cannot be built, or its policy not changed.

use std::fmt;

#[cfg(doc)]
use crate::limits::Limits;
#[cfg(doc)]
use crate::policy::Policy;

/// A policy or the limits have tiers that the store has no buckets for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TiersUnsupported {
    /// It has none for any.
    None,
    /// A policy has [`Policy::MAX_TIERS`] tiers, and the limits have others.
    TooMany,
}

impl fmt::Display for TiersUnsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "this store has no tiers",
            Self::TooMany => {
                "a limiter has at most 16 tiers, those of its policy and of its `Limits` together"
            }
        })
    }
}

/// Why a limiter's policy cannot be changed to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetPolicyError {
    /// All quotas of the limiter were off and it was built without [`Limits`], or its store cannot change quotas.
    Fixed,
    /// The policy has other names than the one at first, or one of its quotas is
    /// [sliding](crate::Quota::sliding) where that was not.
    Shape,
    /// There were [`Policy::MAX_TIERS`] tiers already since the limiter was built. Requests of the others have the
    /// defaults.
    TooManyTiers,
}

impl fmt::Display for SetPolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => {
                "this limiter was built without a quota or `Limits`, or its store cannot change quotas; its policy is \
                 fixed"
            }
            Self::Shape => "a policy keeps the names of its quotas and whether each is sliding",
            Self::TooManyTiers => "a limiter has had at most 16 tiers since it was built",
        })
    }
}

impl std::error::Error for SetPolicyError {}
