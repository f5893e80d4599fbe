//! What configuration does with a rate limiter.

use super::adjusted::SetPolicyError;
use super::rate::RateLimiter;
use crate::policy::{NamedQuota, Policy};

impl RateLimiter {
    /// As [`set_policy`](Self::set_policy), for all policies of a layer.
    pub(crate) fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError> {
        let adjusted = self.adjusted().ok_or(SetPolicyError::Fixed)?;
        adjusted.set_policies(policies)
    }

    /// Whether [`set_policies`](Self::set_policies) takes these.
    pub(crate) fn takes_policies(&self, policies: &[Policy]) -> bool {
        self.adjusted()
            .is_some_and(|adjusted| adjusted.takes(policies))
    }

    /// Whether they were not changed too often lately for that.
    pub(crate) fn can_set_policies(&self, policies: &[Policy]) -> bool {
        let adjusted = self.adjusted();
        adjusted.is_some_and(|adjusted| adjusted.can_set(policies))
    }

    /// Whether it limits nobody for now, so that those who look after limits are not told of it.
    pub(crate) fn rest(&self, rests: bool) {
        if let Some(adjusted) = self.adjusted() {
            adjusted.rest(rests);
        }
    }

    /// Lets another limiter count in its place in a store that replicas share, where requests in flight may
    /// go on to use this one.
    pub(crate) fn retire(&self) {
        if let Some(adjusted) = self.adjusted() {
            adjusted.retire();
        }
    }

    /// The names of the quotas of all tiers.
    pub(crate) fn all_names(&self) -> impl Iterator<Item = &str> {
        let quotas = self.policies().iter().flat_map(Policy::all_quotas);
        quotas.map(NamedQuota::name)
    }
}
