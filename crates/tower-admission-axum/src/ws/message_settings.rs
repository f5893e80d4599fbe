//! The settings of [`SocketLimits`] about messages, and their changes at run time.

use std::sync::Arc;

use axum::extract::ws::Message;
use tower_admission::provider::{
    ConcurrencyLimiterInternals, RateLimiterInternals, SECRET_MISSING,
};
use tower_admission::store::RateStore;
use tower_admission::{Limits, MemoryStore, Policy, RateLimiter, Rejection, SetPolicyError};

use super::SocketLimits;

impl SocketLimits {
    /// Limits the messages of each connection. Default: no limit.
    ///
    /// This process counts them, because the connection belongs to it.
    #[must_use]
    pub fn messages(self, policy: impl Into<Policy>) -> Self {
        // With its own `Limits`, so that the policy can change, also from a policy that is off.
        let limiter = RateLimiter::with_limits(policy, &MemoryStore::new(), &Limits::new());
        self.with(|shared| shared.messages.per_connection = Some(limiter))
    }

    /// Changes the limit on the messages of each connection, also for open connections. Usage is kept.
    ///
    /// # Errors
    ///
    /// As [`RateLimiter::set_policy`]; also [`SetPolicyError::Fixed`] without a policy of
    /// [`messages`](Self::messages), which may be [off](tower_admission::Quota::off).
    pub fn set_messages(&self, policy: impl Into<Policy>) -> Result<(), SetPolicyError> {
        set_policy(self.0.messages.per_connection.as_ref(), policy)
    }

    /// Limits the messages of each key over all its connections. Default: no limit.
    ///
    /// # Panics
    ///
    /// As [`limits`](Self::limits).
    #[must_use]
    #[track_caller]
    pub fn messages_per_key(self, policy: impl Into<Policy>) -> Self {
        self.with(|shared| shared.messages_of_key = Some(policy.into()))
            .with_messages_counted()
    }

    /// Changes the limit on the messages of each key. Usage is kept.
    ///
    /// # Errors
    ///
    /// As [`RateLimiter::set_policy`]; also [`SetPolicyError::Fixed`] without a policy of
    /// [`messages_per_key`](Self::messages_per_key), which may be off where there are [limits](Self::limits).
    pub fn set_messages_per_key(&self, policy: impl Into<Policy>) -> Result<(), SetPolicyError> {
        set_policy(self.0.messages.per_key.as_ref(), policy)
    }

    /// Ignores overrides and tiers, because the limits are switched off. A ban still rejects connections. Default: they
    /// apply.
    pub fn set_suspended(&self, is_suspended: bool) {
        self.limiter().suspend_except_bans(is_suspended);
        if let Some(per_key) = &self.0.messages.per_key {
            per_key.set_suspended(is_suspended);
        }
    }

    /// Sets the store that counts the messages of each key. Default: the memory of this process.
    ///
    /// # Panics
    ///
    /// As [`store`](Self::store) and [`limits`](Self::limits).
    #[must_use]
    #[track_caller]
    pub fn message_store(self, store: impl RateStore) -> Self {
        assert!(store.agrees_on_fingerprints(), "{}", SECRET_MISSING);
        self.with(|shared| shared.message_store = Arc::new(store))
            .with_messages_counted()
    }

    // No closures, so that a panic reports the line of the caller.
    #[track_caller]
    pub(super) fn with_messages_counted(mut self) -> Self {
        let shared = Arc::make_mut(&mut self.0);
        // Drop the old limiter first: a store may know limits by name.
        shared.messages.per_key = None;
        if let Some(policy) = shared.messages_of_key.clone() {
            let store = &*shared.message_store;
            shared.messages.per_key = Some(match &shared.limits {
                Some(limits) => RateLimiter::with_limits(policy, store, limits),
                None => RateLimiter::with_store(policy, store),
            });
        }
        self
    }

    /// Closes a connection with code 1008 after this number of messages above a limit. 0 counts as 1. Default: never; each
    /// such message gets a notice. The client has two seconds to answer the close frame. During this time
    /// [`recv`](super::LimitedSocket::recv) is pending.
    ///
    /// A message that is rejected because its store [fails closed](tower_admission::store::FailureMode::Closed) gets a
    /// notice with status 503, and does not count here.
    #[must_use]
    pub fn close_after(self, violations: u32) -> Self {
        self.with(|shared| shared.messages.close_after = Some(violations.max(1)))
    }

    /// Sets the notice that a message above a limit gets; `None` sends nothing. Default: problem details as JSON.
    #[must_use]
    pub fn notice(
        self,
        notice: impl Fn(&Rejection) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        self.with(|shared| shared.messages.notice = Some(Arc::new(notice)))
    }
}

fn set_policy(
    limiter: Option<&RateLimiter>,
    policy: impl Into<Policy>,
) -> Result<(), SetPolicyError> {
    let limiter = limiter.ok_or(SetPolicyError::Fixed)?;
    limiter.set_policy(policy)
}
