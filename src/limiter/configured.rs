//! What configuration does with a rate limiter.

use super::rate::RateLimiter;
use super::rules::{Rules, SetPolicyError};
use crate::policy::{NamedQuota, Policy};

impl RateLimiter {
    /// As [`set_policy`](Self::set_policy), for all policies of a layer.
    pub(crate) fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError> {
        let rules = self.rules().ok_or(SetPolicyError::Fixed)?;
        rules.set_policies(policies)
    }

    /// Whether [`set_policies`](Self::set_policies) takes these and all of their tiers.
    pub(crate) fn takes_policies(&self, policies: &[Policy]) -> bool {
        let takes = |rules: &Rules| rules.takes(policies) && rules.has_room_for_tiers(policies);
        self.rules().is_some_and(takes)
    }

    /// Whether it limits nothing for now, so that it is not reported.
    pub(crate) fn rest(&self, rests: bool) {
        if let Some(rules) = self.rules() {
            rules.rest(rests);
        }
    }

    /// Whether it [rests](Self::rest).
    pub(crate) fn rests(&self) -> bool {
        self.rules().is_some_and(Rules::rests)
    }

    /// Lets another limiter count in its place in a store that replicas share, where requests in flight may
    /// go on to use this one.
    pub(crate) fn retire(&self) {
        if let Some(rules) = self.rules() {
            rules.buckets().retire();
        }
    }

    /// The names of the quotas.
    pub(crate) fn all_names(&self) -> impl Iterator<Item = &str> {
        let quotas = self.policies().iter().flat_map(Policy::quotas);
        quotas.map(NamedQuota::name)
    }
}
