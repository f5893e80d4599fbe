//! Errors from building a limiter or changing its policy.

use std::fmt;

#[cfg(doc)]
use crate::limits::Limits;
#[cfg(doc)]
use crate::policy::Policy;

/// The policy or the limits declare tiers, and the store does not support them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TiersUnsupported;

impl fmt::Display for TiersUnsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this store has no tiers")
    }
}

/// The error of [`RateLimiter::set_policy`](crate::RateLimiter::set_policy): the policy cannot be
/// replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetPolicyError {
    /// All quotas were off at construction and there are no [`Limits`], or the store cannot change
    /// quotas.
    Fixed,
    /// The names of the quotas differ from those at construction, or a quota changes between bucket
    /// and [sliding](crate::Quota::sliding) window, also in a tier.
    Shape,
    /// The policy has had [`Policy::MAX_TIERS`] tiers since the limiter was built. Requests of
    /// further tiers get the defaults.
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
