//! Refusals as tracing events.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::warned::{LONGEST, Warned};
use super::{Observer, Subject};
use crate::key::{Key, KeyName};
use crate::rejection::{Reason, Rejection};

/// Logs a warning for the first refusal of a key, and debug events for the next ones and for
/// those of a dry run.
///
/// A key that was warned of is not warned of again until it may come back: until its wait has
/// passed, else until its quota is unused, but for at least one second and at most sixty. Each
/// sort of limit and each limiter warns by itself; refusals without a key, as those for capacity,
/// count as of one.
///
/// All clones together log at most ten warnings a second, however many keys there are, and remember
/// those warned of in 17 KiB. `suppressed` in a warning says how many refusals had none since the
/// one before: repeats, and what was above the ten.
///
/// It also logs a warning when a permit is reclaimed from a response that its client does not read, at
/// most once a minute for each key.
///
/// The key is in it as its [`KeyName`]: an address, or the fingerprint of a credential or a name, by
/// which [`Limits`](crate::Limits) can be set; never the credential.
#[derive(Clone)]
pub struct TracingObserver {
    warned: Arc<Warned>,
    started: Instant,
}

impl TracingObserver {
    /// An observer that logs to whichever subscriber is there.
    #[must_use]
    pub fn new() -> Self {
        Self {
            warned: Arc::new(Warned::new()),
            started: Instant::now(),
        }
    }
}

macro_rules! event {
    ($level:ident, $subject:ident, $rejection:ident, $($field:ident = $value:expr,)? $message:literal) => {
        $level!(
            limit_type = $subject.limit_type,
            limiter = $subject.limiter,
            policy = Some($subject.policy).filter(|policy| !policy.is_empty()),
            reason = $rejection.reason().as_str(),
            key = $subject.key.map(|key| tracing::field::display(KeyName::from(*key))),
            limit = $rejection.decision().and_then(|decision| decision.limit()),
            remaining = $rejection
                .decision()
                .and_then(|decision| decision.remaining()),
            retry_after = $rejection.retry_after_seconds(),
            $($field = $value,)?
            $message
        )
    };
}

impl Observer for TracingObserver {
    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let who = (subject.limit_type, subject.limiter, subject.key);
        let now = self.started.elapsed();
        match self.warned.warns(who, now, window(rejection)) {
            Some(suppressed) => {
                event!(
                    warn,
                    subject,
                    rejection,
                    suppressed = suppressed,
                    "request refused"
                );
            }
            None => event!(debug, subject, rejection, "request refused"),
        }
    }

    fn reclaimed(&self, limiter: &str, key: Option<&Key>, stalled: Duration) {
        let who = ("reclaimed", limiter, key);
        let now = self.started.elapsed();
        if let Some(suppressed) = self.warned.warns(who, now, Duration::from_secs(60)) {
            warn!(
                limiter,
                key = key.map(|key| tracing::field::display(KeyName::from(*key))),
                stalled_seconds = stalled.as_secs(),
                suppressed,
                "a client did not read its response, and another request got its permit"
            );
        }
    }

    fn would_reject(&self, subject: &Subject<'_>, rejection: &Rejection) {
        event!(debug, subject, rejection, "request would be refused");
    }
}

/// How long a key needs no second warning.
fn window(rejection: &Rejection) -> Duration {
    if matches!(rejection.reason(), Reason::Denied | Reason::Banned) {
        return LONGEST;
    }
    let reset = || rejection.decision().and_then(|decision| decision.reset());
    rejection.retry_after().or_else(reset).unwrap_or_default()
}

/// As [`TracingObserver::new`].
impl Default for TracingObserver {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TracingObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TracingObserver").finish_non_exhaustive()
    }
}
