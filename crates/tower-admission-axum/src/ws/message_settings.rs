//! The settings of [`SocketLimits`] about messages, and how they change at run time.

use std::sync::Arc;

use axum::extract::ws::Message;
use tower_admission::provider::{
    ConcurrencyLimiterInternals, RateLimiterInternals, SECRET_MISSING,
};
use tower_admission::store::RateStore;
use tower_admission::{Limits, MemoryStore, Policy, RateLimiter, Rejection, SetPolicyError};

use super::SocketLimits;

impl SocketLimits {
    /// How many messages a connection may send. Default: any number.
    ///
    /// Counted in this process, as the connection is in it.
    #[must_use]
    pub fn messages(self, policy: impl Into<Policy>) -> Self {
        // With limits of its own, so that the policy can change, also from one that is off.
        let limiter = RateLimiter::with_limits(policy, &MemoryStore::new(), &Limits::new());
        self.with(|shared| shared.messages.per_connection = Some(limiter))
    }

    /// Changes how many messages a connection may send, for the connections that are there as well. What they used
    /// stays used.
    ///
    /// # Errors
    ///
    /// As [`RateLimiter::set_policy`]; also [`SetPolicyError::Fixed`] without a policy of
    /// [`messages`](Self::messages), which may be [off](tower_admission::Quota::off).
    pub fn set_messages(&self, policy: impl Into<Policy>) -> Result<(), SetPolicyError> {
        set_policy(self.0.messages.per_connection.as_ref(), policy)
    }

    /// How many messages a key may send over all its connections. Default: any number.
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

    /// Changes how many messages a key may send over all its connections, as [`set_messages`](Self::set_messages).
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

    /// Where the messages of a key are counted. Default: in this process's memory.
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

    // Without closures, so that a panic names the caller's line.
    #[track_caller]
    pub(super) fn with_messages_counted(mut self) -> Self {
        let shared = Arc::make_mut(&mut self.0);
        // The old limit goes first, so that a store which knows limits by name has it free.
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

    /// Closes a connection, with code 1008, at its so-and-so-many-th message above a limit; 0 is
    /// taken for 1. Default: never, each is answered and that is all. The client has two seconds
    /// to answer the close frame, during which [`recv`](super::LimitedSocket::recv) is not ready.
    ///
    /// A message that is refused because its store [fails closed](tower_admission::store::FailureMode::Closed)
    /// is answered as unavailable (503), and is none of them.
    #[must_use]
    pub fn close_after(self, violations: u32) -> Self {
        self.with(|shared| shared.messages.close_after = Some(violations.max(1)))
    }

    /// What answers a message above a limit, instead of a problem as JSON; `None` for nothing.
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
