//! Refusals as tracing events.

use tracing::{debug, warn};

use super::{Observer, Subject};
use crate::rejection::Rejection;

/// Logs a warning for each refusal, and a debug event for each on a dry run.
///
/// The key is in it as its kind, or as the address that it is; never a credential.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TracingObserver;

impl TracingObserver {
    /// An observer that logs to whichever subscriber is there.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

macro_rules! event {
    ($level:ident, $subject:ident, $rejection:ident, $message:literal) => {
        $level!(
            limit_type = $subject.limit_type,
            limiter = $subject.limiter,
            reason = $rejection.reason().as_str(),
            key = $subject.key.map(tracing::field::debug),
            limit = $rejection.decision().and_then(|decision| decision.limit()),
            remaining = $rejection
                .decision()
                .and_then(|decision| decision.remaining()),
            retry_after = $rejection.retry_after_seconds(),
            $message
        )
    };
}

impl Observer for TracingObserver {
    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        event!(warn, subject, rejection, "request refused");
    }

    fn would_reject(&self, subject: &Subject<'_>, rejection: &Rejection) {
        event!(debug, subject, rejection, "request would be refused");
    }
}
