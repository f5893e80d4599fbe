//! Decisions as tracing events, and rejections on the current span.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::display;
use tracing::{Span, debug, warn};

use super::warn_limiter::{MAX_SUPPRESSION, WarnLimiter};
use super::{Observer, Subject};
use crate::extract::logged::{Path, method, request_id, trace_id};
use crate::key::{Key, KeyName};
use crate::rejection::{Reason, Rejection};

/// Logs a warning for the first rejection of a key. Logs later rejections of the key, rejections on
/// a dry run and admitted requests as debug events.
///
/// A key causes no further warning until it may retry: until its wait has passed, or else until its
/// quota has recovered, but for at least one second and at most sixty. Each type of limit and each
/// limiter warns separately. Rejections without a key, such as those for capacity, count as one
/// key.
///
/// All clones together log at most ten warnings per second, however many keys there are.
/// Suppressing warnings takes 17 KiB. The field `suppressed` of a warning is the number of
/// rejections without a warning since the previous one.
///
/// It also logs a warning when a permit is reclaimed from a response that its client does not read,
/// at most once per minute and key.
///
/// # Fields
///
/// The target of all events is `tower_admission::decision`. Fields use the names of OpenTelemetry
/// where it defines one.
///
/// | field | value |
/// |---|---|
/// | `admission.limit_type` | the [type of limit](Subject::limit_type) |
/// | `admission.limiter` | the name of the limiter |
/// | `admission.policy` | the quota that [binds](Subject::policy), if a quota decided |
/// | `admission.key` | the [`KeyName`] of the key: an address, or the fingerprint of a credential or an identifier, which [`Limits`](crate::Limits) accept; never the credential |
/// | `error.type` | the [`Reason`](crate::Reason) as a word |
/// | `admission.limit`, `admission.remaining` | the numbers of the quota |
/// | `admission.retry_after` | the wait, in seconds |
/// | `http.response.status_code` | the status of the rejection's response |
/// | `http.request.method` | the method; `_OTHER` if it is not standard |
/// | `url.path` | the path without the query: at most 256 bytes, percent-encoded where it is not printable ASCII. A layer on a nested axum router sees it without the prefix of that router |
/// | `client.address` | the [client's address](Subject::client_address) |
/// | `trace_id` | the trace id of a valid `traceparent` header |
/// | `http.request.header.x-request-id` | the header, if it is there once, with at most 64 letters, digits and `-_.:=+/`. Else it is left out |
///
/// The last six are present if a layer rejects, or would reject, a request. An event about an
/// admitted request has the first four.
///
/// # Spans
///
/// With `tracing-opentelemetry` each event becomes an event of the current span, with these
/// attributes. Admitted requests are debug events, so enable `tower_admission::decision` at debug
/// for that layer.
///
/// A rejection of a request is also recorded on the span itself, in the fields `error.type`,
/// `admission.limit_type`, `admission.limiter`, `admission.policy` and `admission.key`. tracing
/// records only fields that the span declared when it was made, and silently ignores all others.
/// Make the span with [`admission_span!`](crate::admission_span), which declares them. An admitted
/// request leaves the fields empty, because an inner limit may still reject it, and a span must not
/// have an attribute twice.
///
/// `examples/otlp.rs` exports both over OTLP.
#[derive(Clone)]
pub struct TracingObserver {
    warned: Arc<WarnLimiter>,
    started: Instant,
}

/// Makes a span on which [`TracingObserver`](crate::observe::TracingObserver) records rejections: a
/// `tracing::span!` with this level, name and fields, that also declares `error.type` and the
/// fields `admission.*`.
///
/// ```
/// use tower_http::trace::TraceLayer;
/// use tower_admission::admission_span;
///
/// let layer = TraceLayer::new_for_http().make_span_with(|request: &http::Request<()>| {
///     admission_span!(
///         tracing::Level::INFO,
///         "request",
///         http.request.method = %request.method(),
///         url.path = request.uri().path(),
///     )
/// });
/// # let _ = layer.on_request(());
/// ```
#[macro_export]
macro_rules! admission_span {
    ($level:expr, $name:expr $(, $($fields:tt)*)?) => {
        $crate::observe::__tracing::span!(
            $level,
            $name,
            "error.type" = $crate::observe::__tracing::field::Empty,
            "admission.limit_type" = $crate::observe::__tracing::field::Empty,
            "admission.limiter" = $crate::observe::__tracing::field::Empty,
            "admission.policy" = $crate::observe::__tracing::field::Empty,
            "admission.key" = $crate::observe::__tracing::field::Empty,
            $($($fields)*)?
        )
    };
}

impl TracingObserver {
    /// Makes an observer that logs to the current subscriber.
    #[must_use]
    pub fn new() -> Self {
        Self {
            warned: Arc::new(WarnLimiter::new()),
            started: Instant::now(),
        }
    }
}

macro_rules! rejection_event {
    ($level:ident, $subject:ident, $rejection:ident, $($field:ident = $value:expr,)? $message:literal) => {{
        let decision = $rejection.decision();
        $level!(
            target: "tower_admission::decision",
            {
            "admission.limit_type" = $subject.limit_type,
            "admission.limiter" = $subject.limiter,
            "admission.policy" = policy($subject),
            "admission.key" = $subject.key.map(|key| display(KeyName::from(*key))),
            "error.type" = $rejection.reason().as_str(),
            "admission.limit" = decision.and_then(|decision| decision.limit()),
            "admission.remaining" = decision.and_then(|decision| decision.remaining()),
            "admission.retry_after" = $rejection.retry_after_seconds(),
            "http.response.status_code" = $subject.status,
            "http.request.method" = $subject.request.map(method),
            "url.path" = $subject.request.map(|head| display(Path(head.uri.path()))),
            "client.address" = $subject.client_address().map(display),
            trace_id = $subject.request.and_then(trace_id),
            "http.request.header.x-request-id" = $subject.request.and_then(request_id),
            $($field = $value,)?
            },
            $message
        )
    }};
}

impl Observer for TracingObserver {
    fn admitted(&self, subject: &Subject<'_>) {
        debug!(
            target: "tower_admission::decision",
            {
            "admission.limit_type" = subject.limit_type,
            "admission.limiter" = subject.limiter,
            "admission.policy" = policy(subject),
            "admission.key" = subject.key.map(|key| display(KeyName::from(*key))),
            },
            "request admitted"
        );
    }

    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        if subject.request.is_some() {
            record(&Span::current(), subject, rejection);
        }
        let source = (subject.limit_type, subject.limiter, subject.key);
        let now = self.started.elapsed();
        match self.warned.warns(source, now, window(rejection)) {
            Some(suppressed) => {
                rejection_event!(
                    warn,
                    subject,
                    rejection,
                    suppressed = suppressed,
                    "request rejected"
                );
            }
            None => rejection_event!(debug, subject, rejection, "request rejected"),
        }
    }

    fn reclaimed(&self, limiter: &str, key: Option<&Key>, stalled: Duration) {
        let source = ("reclaimed", limiter, key);
        let now = self.started.elapsed();
        if let Some(suppressed) = self.warned.warns(source, now, Duration::from_secs(60)) {
            warn!(
                target: "tower_admission::decision",
                {
                "admission.limiter" = limiter,
                "admission.key" = key.map(|key| display(KeyName::from(*key))),
                "admission.stalled_seconds" = stalled.as_secs(),
                suppressed,
                },
                "a client did not read its response, and another request got its permit"
            );
        }
    }

    fn would_reject(&self, subject: &Subject<'_>, rejection: &Rejection) {
        rejection_event!(debug, subject, rejection, "request would be rejected");
    }
}

fn policy<'a>(subject: &Subject<'a>) -> Option<&'a str> {
    Some(subject.policy).filter(|policy| !policy.is_empty())
}

/// Records a rejection in the span fields that [`admission_span!`](crate::admission_span) declares.
fn record(span: &Span, subject: &Subject<'_>, rejection: &Rejection) {
    if span.is_disabled() {
        return;
    }
    span.record("error.type", rejection.reason().as_str());
    span.record("admission.limit_type", subject.limit_type);
    span.record("admission.limiter", subject.limiter);
    if let Some(policy) = policy(subject) {
        span.record("admission.policy", policy);
    }
    if let Some(key) = subject.key {
        span.record("admission.key", display(KeyName::from(*key)));
    }
}

/// How long to suppress further warnings for the key.
fn window(rejection: &Rejection) -> Duration {
    if matches!(rejection.reason(), Reason::Denied | Reason::Banned) {
        return MAX_SUPPRESSION;
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
