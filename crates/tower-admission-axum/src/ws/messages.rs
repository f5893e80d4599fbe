//! How many messages may be sent.

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

pub(super) type Notice = Arc<dyn Fn(&Rejection) -> Option<Message> + Send + Sync>;

/// What is configured about messages.
#[derive(Clone, Default)]
pub(super) struct MessageLimits {
    pub(super) per_connection: Option<RateLimiter>,
    pub(super) per_key: Option<RateLimiter>,
    pub(super) close_after: Option<u32>,
    pub(super) notice: Option<Notice>,
}

impl MessageLimits {
    /// The limit of the key, unless it is switched off.
    fn per_key_now(&self) -> Option<&RateLimiter> {
        self.per_key
            .as_ref()
            .filter(|limiter| !limiter.is_suspended())
    }
}

/// The messages of one connection.
pub(super) struct Messages {
    limits: MessageLimits,
    name: Arc<str>,
    key: Key,
    /// Its own, among all connections of this process.
    connection: Key,
    /// What the key's limit was asked about the message in hand.
    asked: Option<ReplyFuture<Decision>>,
    /// When the message in hand was first looked at, if anybody is to know.
    begun: Option<Instant>,
    violations: u32,
    observers: Observers,
}

/// What becomes of a message above a limit.
pub(super) enum Excess {
    /// It is answered, with this if there is one.
    Answer(Option<Message>),
    /// It was the last.
    Close(Rejection),
}

impl Messages {
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
            asked: None,
            begun: None,
            violations: 0,
            observers,
        }
    }

    /// Charges the message in hand; says what is to be done with one that does not fit.
    ///
    /// What was asked stays asked until it is answered: each call is about the same message.
    pub(super) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Excess>> {
        if self.begun.is_none() {
            self.begun = self.observers.begin();
        }
        let charged = ready!(self.poll_charge(cx));
        self.tell(&charged);
        Poll::Ready(match charged {
            Ok(_) => Ok(()),
            Err(rejection) => Err(self.exceeded(rejection)),
        })
    }

    /// Admitted, with the name of the quota that binds if there is any and observers are to be told.
    fn poll_charge(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Arc<str>>, Rejection>> {
        let watched = !self.observers.is_empty();
        let binding = |limiter: &RateLimiter, decision: &Decision| {
            watched.then(|| Arc::from(limiter.binding_quota(decision)))
        };
        let per_key = self.limits.per_key_now();
        if self.asked.is_none() {
            let mut policy = None;
            // The connection's first: it is here, and spares the key what does not fit anyway.
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
            self.asked = Some(limiter.decide(&[self.key], 1).into_future());
        }
        let (Some(limiter), Some(asked)) = (per_key, &mut self.asked) else {
            // Switched off meanwhile.
            self.asked = None;
            return Poll::Ready(Ok(None));
        };
        let decision = ready!(Pin::new(asked).poll(cx));
        self.asked = None;
        if decision.is_admitted() {
            return Poll::Ready(Ok(binding(limiter, &decision)));
        }
        if let Some(limiter) = &self.limits.per_connection {
            let _ = limiter.refund(&self.connection, 1);
        }
        Poll::Ready(Err(limiter.rejection(&self.name, decision)))
    }

    /// Tells observers what was decided, if anything was.
    fn tell(&mut self, charged: &Result<Option<Arc<str>>, Rejection>) {
        let begun = self.begun.take();
        let policy = match charged {
            Ok(None) => return,
            Ok(Some(policy)) => policy,
            Err(rejection) => rejection.violated_policies().next().unwrap_or(""),
        };
        let subject = Subject::new("ws_message", &self.name, policy, Some(&self.key));
        (self.observers).decided(begun, &subject, |observer| match charged {
            Ok(_) => observer.admitted(&subject),
            Err(rejection) => observer.rejected(&subject, rejection),
        });
    }

    fn exceeded(&mut self, rejection: Rejection) -> Excess {
        // That limits cannot be checked is none of the client's doing.
        if rejection.reason().is_caller_limit() {
            self.violations = self.violations.saturating_add(1);
        }
        if (self.limits.close_after).is_some_and(|most| self.violations >= most) {
            return Excess::Close(rejection);
        }
        Excess::Answer(match &self.limits.notice {
            Some(notice) => notice(&rejection),
            None => Some(Message::Text(problem_json(&rejection).into())),
        })
    }
}
