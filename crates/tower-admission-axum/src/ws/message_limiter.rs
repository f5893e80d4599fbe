//! Limits the messages of one connection.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use axum::extract::ws::Message;
use tokio::time::Instant;
use tower_admission::observe::Subject;
use tower_admission::provider::{Observers, RateLimiterInternals, problem_json};
use tower_admission::store::ReplyFuture;
use tower_admission::{Decision, Key, RateLimiter, Rejection};

pub(super) type NoticeFn = Arc<dyn Fn(&Rejection) -> Option<Message> + Send + Sync>;

/// The settings about messages.
#[derive(Clone, Default)]
pub(super) struct MessageLimits {
    pub(super) per_connection: Option<RateLimiter>,
    pub(super) per_key: Option<RateLimiter>,
    pub(super) close_after: Option<u32>,
    pub(super) notice: Option<NoticeFn>,
}

impl MessageLimits {
    /// The limit per key, unless it is suspended.
    fn active_per_key(&self) -> Option<&RateLimiter> {
        self.per_key
            .as_ref()
            .filter(|limiter| !limiter.is_suspended())
    }
}

/// Decides about the messages of one connection.
pub(super) struct MessageLimiter {
    limits: MessageLimits,
    name: Arc<str>,
    key: Key,
    /// Identifies the connection in this process.
    connection: Key,
    /// The decision of the limit per key about the current message.
    pending_decision: Option<ReplyFuture<Decision>>,
    /// The time of the first poll for the current message, if there are observers.
    started_at: Option<Instant>,
    violations: u32,
    observers: Observers,
}

/// The response to a message above a limit.
pub(super) enum ExcessMessage {
    /// Sends this notice, if there is one.
    Notice(Option<Message>),
    /// Closes the connection.
    Close(Rejection),
}

impl MessageLimiter {
    pub(super) fn new(
        limits: MessageLimits,
        name: Arc<str>,
        key: Key,
        observers: Observers,
    ) -> Self {
        static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
        let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Self {
            limits,
            name,
            key,
            connection: Key::new("ws-connection", &number.to_le_bytes()),
            pending_decision: None,
            started_at: None,
            violations: 0,
            observers,
        }
    }

    /// Charges the current message. A pending decision is kept, so further calls are for the same message.
    pub(super) fn poll_check(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ExcessMessage>> {
        if self.started_at.is_none() {
            self.started_at = self.observers.begin();
        }
        let charged = ready!(self.poll_charge(cx));
        self.notify(&charged);
        Poll::Ready(match charged {
            Ok(_) => Ok(()),
            Err(rejection) => Err(self.exceeded(rejection)),
        })
    }

    /// Admits with the name of the binding quota, if there is one and there are observers.
    fn poll_charge(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Arc<str>>, Rejection>> {
        let watched = !self.observers.is_empty();
        let binding = |limiter: &RateLimiter, decision: &Decision| {
            watched.then(|| Arc::from(limiter.binding_quota(decision)))
        };
        let per_key = self.limits.active_per_key();
        if self.pending_decision.is_none() {
            let mut policy = None;
            // The limit per connection decides first: it is local, and a message that it rejects is not charged to the key.
            if let Some(limiter) = &self.limits.per_connection
                && let Some(decision) = limiter.check(&self.connection).now()
            {
                policy = binding(limiter, &decision);
                if !decision.is_admitted() {
                    return Poll::Ready(Err(limiter.rejection(&self.name, decision)));
                }
            }
            let Some(limiter) = per_key else {
                return Poll::Ready(Ok(policy));
            };
            self.pending_decision = Some(limiter.decide(&[self.key], 1).into_future());
        }
        let (Some(limiter), Some(pending_decision)) = (per_key, &mut self.pending_decision) else {
            // The limit per key was suspended since the last poll.
            self.pending_decision = None;
            return Poll::Ready(Ok(None));
        };
        let decision = ready!(Pin::new(pending_decision).poll(cx));
        self.pending_decision = None;
        if decision.is_admitted() {
            return Poll::Ready(Ok(binding(limiter, &decision)));
        }
        if let Some(limiter) = &self.limits.per_connection {
            let _ = limiter.refund(&self.connection, 1);
        }
        Poll::Ready(Err(limiter.rejection(&self.name, decision)))
    }

    /// Notifies observers of the decision, if a limit decided.
    fn notify(&mut self, charged: &Result<Option<Arc<str>>, Rejection>) {
        let started_at = self.started_at.take();
        let policy = match charged {
            Ok(None) => return,
            Ok(Some(policy)) => policy,
            Err(rejection) => rejection.violated_policies().next().unwrap_or(""),
        };
        let subject = Subject::new("ws_message", &self.name, policy, Some(&self.key));
        (self.observers).decided(started_at, &subject, |observer| match charged {
            Ok(_) => observer.admitted(&subject),
            Err(rejection) => observer.rejected(&subject, rejection),
        });
    }

    fn exceeded(&mut self, rejection: Rejection) -> ExcessMessage {
        // A client does not cause the failure of a store.
        if rejection.reason().is_caller_limit() {
            self.violations = self.violations.saturating_add(1);
        }
        if (self.limits.close_after).is_some_and(|most| self.violations >= most) {
            return ExcessMessage::Close(rejection);
        }
        ExcessMessage::Notice(match &self.limits.notice {
            Some(notice) => notice(&rejection),
            None => Some(Message::Text(problem_json(&rejection).into())),
        })
    }
}
