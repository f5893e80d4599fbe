//! How many messages may be sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::ws::Message;

use crate::key::Key;
use crate::limiter::RateLimiter;
use crate::observe::{Observers, Subject};
use crate::rejection::Rejection;
use crate::respond::problem_text;

pub(super) type Notice = Arc<dyn Fn(&Rejection) -> Option<Message> + Send + Sync>;

/// What is configured about messages.
#[derive(Clone, Default)]
pub(super) struct MessageLimits {
    pub(super) per_connection: Option<RateLimiter>,
    pub(super) per_key: Option<RateLimiter>,
    pub(super) close_after: Option<u32>,
    pub(super) notice: Option<Notice>,
}

/// The messages of one connection.
pub(super) struct Messages {
    limits: MessageLimits,
    name: Arc<str>,
    key: Key,
    /// Its own, among all connections of this process.
    connection: Key,
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
            violations: 0,
            observers,
        }
    }

    /// Charges a message; says what is to be done with one that does not fit.
    pub(super) async fn take(&mut self) -> Result<(), Excess> {
        let begun = self.observers.begin();
        let charged = self.charge().await;
        let policy = match &charged {
            // Nothing was decided, or nobody is to be told.
            Ok(None) => return Ok(()),
            Ok(Some(policy)) => policy,
            Err(rejection) => rejection.policy(),
        };
        let subject = Subject {
            limit_type: "ws_message",
            limiter: &self.name,
            policy,
            key: Some(&self.key),
        };
        (self.observers).decided(begun, &subject, |observer| match &charged {
            Ok(_) => observer.admitted(&subject),
            Err(rejection) => observer.rejected(&subject, rejection),
        });
        charged
            .map(|_| ())
            .map_err(|rejection| self.exceeded(rejection))
    }

    /// The name of the quota that binds, if there is any and observers are to be told.
    async fn charge(&self) -> Result<Option<&str>, Rejection> {
        let mut policy = None;
        // The connection's first: it is here, and spares the key what does not fit anyway.
        let limits = [
            (&self.limits.per_connection, self.connection),
            (&self.limits.per_key, self.key),
        ];
        for (limiter, key) in limits {
            let Some(limiter) = limiter else {
                continue;
            };
            let decision = limiter.decide(&[key], 1).await;
            if !decision.is_admitted() {
                return Err(limiter.rejection(&self.name, decision));
            }
            if !self.observers.is_empty() {
                policy = Some(limiter.binding(&decision));
            }
        }
        Ok(policy)
    }

    fn exceeded(&mut self, rejection: Rejection) -> Excess {
        self.violations = self.violations.saturating_add(1);
        if (self.limits.close_after).is_some_and(|most| self.violations >= most) {
            return Excess::Close(rejection);
        }
        Excess::Answer(match &self.limits.notice {
            Some(notice) => notice(&rejection),
            None => Some(Message::Text(problem_text(&rejection).into())),
        })
    }
}
