//! What other crates need of a [`RateLimiter`].

use std::future::Future;

use crate::decision::Decision;
use crate::key::Key;
use crate::limiter::{RateLimiter, SetPolicyError};
use crate::limits::LimitExplanation;
use crate::policy::Policy;
use crate::rejection::Rejection;

/// For WebSocket messages and the admin endpoints: decisions in words. For configuration: what a reload changes.
pub trait RateLimiterInternals {
    /// The name of the quota with the least left in a decision that admits; empty without a quota.
    fn binding_quota(&self, decision: &Decision) -> &str;

    /// The rejection of a decision that rejects, by a limiter of this name.
    fn rejection(&self, name: &str, decision: Decision) -> Rejection;

    /// Each quota, explained for a key.
    fn explain_key(&self, key: Key) -> impl Future<Output = Vec<LimitExplanation>> + Send;

    /// Whether the limiter is switched off, and so limits nothing.
    fn is_suspended(&self) -> bool;

    /// Sets whether the limiter is switched off.
    fn set_suspended(&self, is_suspended: bool);

    /// Replaces all policies of the limiter, as [`RateLimiter::set_policy`] does for one.
    ///
    /// # Errors
    ///
    /// As [`RateLimiter::set_policy`].
    fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError>;

    /// Whether [`set_policies`](Self::set_policies) accepts these policies and all their tiers.
    fn accepts_policies(&self, policies: &[Policy]) -> bool;

    /// Lets another limiter count under the same name in a store that replicas share. Requests in flight may go on to use
    /// this one.
    fn retire(&self);

    /// The names of the quotas of all policies.
    fn quota_names(&self) -> impl Iterator<Item = &str>;

    /// Expects several services with the layer of this limit, before the first request: nested ones count a request
    /// once.
    fn expect_nested_services(&self);

    /// The keys that the store has evicted since the last call.
    fn new_evictions(&self) -> Option<u64>;
}

impl RateLimiterInternals for RateLimiter {
    fn binding_quota(&self, decision: &Decision) -> &str {
        self.binding_quota(decision)
    }

    fn rejection(&self, name: &str, decision: Decision) -> Rejection {
        self.rejection(name, decision)
    }

    fn explain_key(&self, key: Key) -> impl Future<Output = Vec<LimitExplanation>> + Send {
        self.explain_key(key)
    }

    #[inline]
    fn is_suspended(&self) -> bool {
        self.is_suspended()
    }

    fn set_suspended(&self, is_suspended: bool) {
        self.set_suspended(is_suspended);
    }

    fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError> {
        self.set_policies(policies)
    }

    fn accepts_policies(&self, policies: &[Policy]) -> bool {
        self.accepts_policies(policies)
    }

    fn retire(&self) {
        self.retire();
    }

    fn quota_names(&self) -> impl Iterator<Item = &str> {
        self.quota_names()
    }

    fn expect_nested_services(&self) {
        self.nesting().expect();
    }

    fn new_evictions(&self) -> Option<u64> {
        self.new_evictions()
    }
}
