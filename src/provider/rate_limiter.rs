//! What other crates need of a [`RateLimiter`].

use std::future::Future;

use crate::decision::Decision;
use crate::key::Key;
use crate::limiter::RateLimiter;
use crate::limits::LimitExplanation;
use crate::rejection::Rejection;

/// For WebSocket messages and the admin endpoints: decisions in words.
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

    fn is_suspended(&self) -> bool {
        self.is_suspended()
    }

    fn set_suspended(&self, is_suspended: bool) {
        self.set_suspended(is_suspended);
    }
}
