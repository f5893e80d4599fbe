//! Hooks that see what limiters decide.

use std::fmt;
use std::sync::Arc;

use crate::key::Key;
use crate::rejection::Rejection;

#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "tracing")]
mod tracing;

#[cfg(feature = "metrics")]
pub use self::metrics::MetricsObserver;
#[cfg(feature = "tracing")]
pub use self::tracing::TracingObserver;

/// Sees what limiters decide. Every hook does nothing unless it is written.
///
/// Hooks run on the request's path, so they should be quick and must not block.
///
/// ```
/// use tower_admission::{Quota, RateLimitByTokenLayer, Rejection};
/// use tower_admission::observe::{Observer, Subject};
///
/// struct Refusals;
///
/// impl Observer for Refusals {
///     fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
///         println!("{}: {}", subject.limit_type, rejection.reason().as_str());
///     }
/// }
///
/// let layer = RateLimitByTokenLayer::new(Quota::per_second(10)).observe(Refusals);
/// ```
#[diagnostic::on_unimplemented(note = "implement `Observer` and write the hooks you need")]
pub trait Observer: Send + Sync + 'static {
    /// A layer admitted a request.
    fn admitted(&self, subject: &Subject<'_>) {
        let _ = subject;
    }

    /// A layer refused a request.
    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let _ = (subject, rejection);
    }

    /// A layer on a dry run admitted a request that it would have refused.
    fn would_reject(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let _ = (subject, rejection);
    }

    /// A concurrency limiter gave out a permit; `in_flight` counts it in.
    fn acquired(&self, limiter: &str, in_flight: u64) {
        let _ = (limiter, in_flight);
    }

    /// A permit came back.
    fn released(&self, limiter: &str) {
        let _ = limiter;
    }
}

/// What a decision was about.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Subject<'a> {
    /// What sort of limit decided: `"http"` for the rate of requests, `"http_concurrency"` for
    /// requests in flight, `"ws_connection"` and `"ws_message"` for WebSockets.
    pub limit_type: &'static str,
    /// The name of the limiter, as configured; may be empty.
    pub limiter: &'a str,
    /// Who was charged. For logs at most: a key in a metric's label is unbounded.
    pub key: Option<&'a Key>,
}

/// The observers of one layer.
#[derive(Clone, Default)]
pub(crate) struct Observers(Vec<Arc<dyn Observer>>);

impl Observers {
    pub(crate) fn add(&mut self, observer: impl Observer) {
        self.0.push(Arc::new(observer));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(crate) fn tell(&self, tell: impl Fn(&dyn Observer)) {
        for observer in &self.0 {
            tell(&**observer);
        }
    }
}

/// All of them as one, for a limiter.
impl Observer for Observers {
    fn acquired(&self, limiter: &str, in_flight: u64) {
        self.tell(|observer| observer.acquired(limiter, in_flight));
    }

    fn released(&self, limiter: &str) {
        self.tell(|observer| observer.released(limiter));
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} observers", self.0.len())
    }
}
