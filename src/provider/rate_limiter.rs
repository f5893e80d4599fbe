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
    fn binding(&self, decision: &Decision) -> &str;

    /// The rejection of a decision that rejects, by a limiter of this name.
    fn rejection(&self, name: &str, decision: Decision) -> Rejection;

    /// Each quota, explained for a key.
    fn explained(&self, key: Key) -> impl Future<Output = Vec<LimitExplanation>> + Send;

    /// Whether the limiter is switched off, and so limits nothing.
    fn rests(&self) -> bool;

    /// Sets whether the limiter is switched off.
    fn rest(&self, rests: bool);
}

impl RateLimiterInternals for RateLimiter {
    fn binding(&self, decision: &Decision) -> &str {
        self.binding(decision)
    }

    fn rejection(&self, name: &str, decision: Decision) -> Rejection {
        self.rejection(name, decision)
    }

    fn explained(&self, key: Key) -> impl Future<Output = Vec<LimitExplanation>> + Send {
        self.explained(key)
    }

    fn rests(&self) -> bool {
        self.rests()
    }

    fn rest(&self, rests: bool) {
        self.rest(rests);
    }
}
