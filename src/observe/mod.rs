//! Hooks that observe the decisions of limiters.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::extract::{ClientIp, RequestHead};
use crate::key::Key;
use crate::rejection::Rejection;

#[cfg(feature = "metrics")]
mod metrics;
pub(crate) mod observers;
#[cfg(feature = "tracing")]
mod tracing;
#[cfg(feature = "tracing")]
mod warn_limiter;

#[cfg(feature = "metrics")]
pub use self::metrics::MetricsObserver;
pub(crate) use self::observers::Observers;
#[cfg(feature = "tracing")]
pub use self::tracing::TracingObserver;
/// Used by [`admission_span!`](crate::admission_span).
#[cfg(feature = "tracing")]
#[doc(hidden)]
pub use ::tracing as __tracing;

/// Observes the decisions of limiters. The default of each hook does nothing.
///
/// Hooks run while the request waits, so they must be fast and must not block.
///
/// ```
/// use tower_admission::{Quota, RateLimitByTokenLayer, Rejection};
/// use tower_admission::observe::{Observer, Subject};
///
/// struct RejectionLog;
///
/// impl Observer for RejectionLog {
///     fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
///         println!("{}: {}", subject.limit_type, rejection.reason().as_str());
///     }
/// }
///
/// let layer = RateLimitByTokenLayer::new(Quota::per_second(10)).observe(RejectionLog);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an observer",
    note = "implement `Observer` and write the hooks you need"
)]
pub trait Observer: Send + Sync + 'static {
    /// Called once for each quota of a limiter, before its first decision: when a layer is first
    /// applied, when a configuration is applied, and when [`Leases`](crate::Leases) or WebSocket
    /// limits with a name are created. The subject has no key and no request. Use it to create
    /// metrics before the first decision.
    fn attached(&self, subject: &Subject<'_>) {
        let _ = subject;
    }

    /// Called when a layer admits a request.
    fn admitted(&self, subject: &Subject<'_>) {
        let _ = subject;
    }

    /// Called when a layer rejects a request.
    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let _ = (subject, rejection);
    }

    /// Called once for each request that an [`AccessLayer`](crate::AccessLayer) exempts from rates
    /// and limits per key. Other hooks still report other decisions about the request, such as
    /// those about capacity.
    fn exempted(&self, subject: &Subject<'_>) {
        let _ = subject;
    }

    /// Called when a layer admits a request that does not fit, because it is on a dry run or
    /// [enforces](crate::RateLimitLayer::enforce) only some of its rejections.
    fn would_reject(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let _ = (subject, rejection);
    }

    /// Called after every decision, with its duration: extracting the key, asking the limiter, the
    /// round trip to its store, and the wait in the queue. Called after the hook for the decision
    /// itself.
    fn decided(&self, subject: &Subject<'_>, took: Duration) {
        let _ = (subject, took);
    }

    /// Called when a concurrency limiter grants a permit. `in_flight` includes it.
    fn acquired(&self, limiter: &str, in_flight: u64) {
        let _ = (limiter, in_flight);
    }

    /// Whether layers mark each request that they decide about, so that [`Subject::is_first`] is
    /// true only at the outermost of them. Default: false, which saves an entry in the extensions
    /// of each admitted request.
    fn counts_requests(&self) -> bool {
        false
    }

    /// Called with the capacity of a concurrency limiter, `None` for unlimited: with each permit
    /// that it grants, and whenever the capacity is [set](crate::ConcurrencyLimiter::set_limit).
    fn limit(&self, limiter: &str, limit: Option<u64>) {
        let _ = (limiter, limit);
    }

    /// Called when a concurrency limiter takes the permit of a response that its client has not
    /// read for `stalled`, because another request needed it. `key` is the key of the response, if
    /// the limiter counts keys; if it has several, the address. Called before or after
    /// [`released`](Self::released) for the same permit.
    fn reclaimed(&self, limiter: &str, key: Option<&Key>, stalled: Duration) {
        let _ = (limiter, key, stalled);
    }

    /// Called when a permit is released.
    fn released(&self, limiter: &str) {
        let _ = limiter;
    }

    /// Called when a permit is released, with the time that it was held.
    fn held(&self, limiter: &str, held: Duration) {
        let _ = (limiter, held);
    }
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn attached(&self, subject: &Subject<'_>) {
        (**self).attached(subject);
    }

    fn admitted(&self, subject: &Subject<'_>) {
        (**self).admitted(subject);
    }

    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        (**self).rejected(subject, rejection);
    }

    fn exempted(&self, subject: &Subject<'_>) {
        (**self).exempted(subject);
    }

    fn would_reject(&self, subject: &Subject<'_>, rejection: &Rejection) {
        (**self).would_reject(subject, rejection);
    }

    fn decided(&self, subject: &Subject<'_>, took: Duration) {
        (**self).decided(subject, took);
    }

    fn counts_requests(&self) -> bool {
        (**self).counts_requests()
    }

    fn acquired(&self, limiter: &str, in_flight: u64) {
        (**self).acquired(limiter, in_flight);
    }

    fn limit(&self, limiter: &str, limit: Option<u64>) {
        (**self).limit(limiter, limit);
    }

    fn reclaimed(&self, limiter: &str, key: Option<&Key>, stalled: Duration) {
        (**self).reclaimed(limiter, key, stalled);
    }

    fn released(&self, limiter: &str) {
        (**self).released(limiter);
    }

    fn held(&self, limiter: &str, held: Duration) {
        (**self).held(limiter, held);
    }
}

/// The subject of a decision.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Subject<'a> {
    /// The type of the limit: `"http"` for the rate of requests, `"concurrency"` for requests in
    /// flight, `"access"` for allow and deny lists, `"ws_connection"` and `"ws_message"` for
    /// WebSockets, `"lease"` for [`Leases`](crate::Leases).
    pub limit_type: &'static str,
    /// The configured name of the limiter. May be empty.
    pub limiter: &'a str,
    /// The name of the quota that binds: the first quota that a rejected request does not fit, or
    /// the quota with the least remaining for an admitted request. Empty if no quota decided. The
    /// program defines the names, so their number is bounded.
    pub policy: &'a str,
    /// The key whose quota or list entry decides; if there are several keys, the key that
    /// [`policy`](Self::policy) limits. Use it in logs, but not as the label of a metric: the
    /// number of keys is unbounded.
    pub key: Option<&'a Key>,
    /// The head of the request. `None` for leases, WebSockets and their messages, and for charges
    /// made by a handler.
    ///
    /// The client controls all of it: bound the length and check the characters of a value before
    /// you log it.
    pub request: Option<RequestHead<'a>>,
    /// The HTTP status of the response that rejects the request. 200 for gRPC, which reports its
    /// own status. `None` if the request is admitted, or if [`request`](Self::request) is `None`.
    pub status: Option<u16>,
    client_ip: Option<&'a ClientIp>,
}

impl<'a> Subject<'a> {
    /// Makes a subject without an HTTP request.
    #[must_use]
    pub const fn new(
        limit_type: &'static str,
        limiter: &'a str,
        policy: &'a str,
        key: Option<&'a Key>,
    ) -> Self {
        Self {
            limit_type,
            limiter,
            policy,
            key,
            request: None,
            status: None,
            client_ip: None,
        }
    }

    /// Adds the request, and how these observers find the client address.
    pub(crate) fn of(self, request: RequestHead<'a>, observers: &'a Observers) -> Self {
        Self {
            request: Some(request),
            client_ip: observers.client_ip.as_deref(),
            ..self
        }
    }

    /// The address of the client, as found by the layer's
    /// [`client_ip`](crate::RateLimitLayer::client_ip). `None` without a
    /// [`request`](Self::request), or if the server does not pass on the peer's address.
    #[must_use]
    pub fn client_address(&self) -> Option<IpAddr> {
        let head = self.request?;
        match self.client_ip {
            Some(client_ip) => client_ip.address(head),
            None => ClientIp::peer().address(head),
        }
    }

    /// Whether no outer layer has decided about the request. Of nested layers with an observer that
    /// [counts requests](Observer::counts_requests), it is true only at the outermost. False
    /// without a [`request`](Self::request).
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.request
            .is_some_and(|head| head.extensions.get::<DecidedMark>().is_none())
    }
}

/// Marks a request that a layer has decided about. It has no size, so boxing it does not allocate.
#[derive(Clone, Copy)]
pub(crate) struct DecidedMark;
