//! What the configuration crate needs of a rate limiter.

use super::rate::RateLimiter;
use super::rules::{RateRules, SetPolicyError};
use crate::policy::Policy;

impl RateLimiter {
    /// Like [`set_policy`](Self::set_policy), for all policies of a layer.
    pub(crate) fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError> {
        let rules = self.rules().ok_or(SetPolicyError::Fixed)?;
        rules.set_policies(policies)
    }

    /// Whether [`set_policies`](Self::set_policies) accepts these policies and all their tiers.
    pub(crate) fn accepts_policies(&self, policies: &[Policy]) -> bool {
        let accepts =
            |rules: &RateRules| rules.accepts(policies) && rules.has_room_for_tiers(policies);
        self.rules().is_some_and(accepts)
    }

    /// Sets whether the limiter is suspended. A suspended limiter limits nothing and is not
    /// reported.
    pub(crate) fn set_suspended(&self, is_suspended: bool) {
        if let Some(rules) = self.rules() {
            rules.set_suspended(is_suspended);
        }
    }

    /// Whether the limiter is [suspended](Self::set_suspended).
    #[inline]
    pub(crate) fn is_suspended(&self) -> bool {
        self.rules().is_some_and(RateRules::is_suspended)
    }

    /// Frees this limiter's place in a shared store for another limiter. Requests in flight may
    /// still use this one.
    pub(crate) fn retire(&self) {
        if let Some(rules) = self.rules() {
            rules.buckets().retire();
        }
    }
}
