//! Why a limiter cannot be built, or its policy not changed.

use std::fmt;

#[cfg(doc)]
use crate::limits::Limits;
#[cfg(doc)]
use crate::policy::Policy;

/// The store has no tiers, and the policy or the limits declare some.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TiersUnsupported;

impl fmt::Display for TiersUnsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this store has no tiers")
    }
}

/// Why a limiter's policy cannot be changed to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetPolicyError {
    /// All quotas of the limiter were off and it was built without [`Limits`], or its store cannot change quotas.
    Fixed,
    /// The policy has other names than the one at first, or one of its quotas, also in a tier, is
    /// [sliding](crate::Quota::sliding) where that was not.
    Shape,
    /// The policy has had [`Policy::MAX_TIERS`] tiers already since the limiter was built. Requests of the others have
    /// the defaults.
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
            Self::TooManyTiers => "a limiter's policy has had at most 16 tiers since it was built",
        })
    }
}

impl std::error::Error for SetPolicyError {}
