//! Hooks that see what limiters decide.

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
mod warned;

#[cfg(feature = "metrics")]
pub use self::metrics::MetricsObserver;
pub(crate) use self::observers::Observers;
#[cfg(feature = "tracing")]
pub use self::tracing::TracingObserver;
/// For [`admission_span!`](crate::admission_span).
#[cfg(feature = "tracing")]
#[doc(hidden)]
pub use ::tracing as __tracing;

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
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an observer",
    note = "implement `Observer` and write the hooks you need"
)]
pub trait Observer: Send + Sync + 'static {
    /// A limiter is ready to decide. Called before its first decision, once for each of its quotas: when a layer is
    /// first applied, when a configuration applies, and when [`Leases`](crate::Leases) or limits of WebSockets with a
    /// name are set up. The subject has no key and no request. For metrics that have to exist before the first decision.
    fn attached(&self, subject: &Subject<'_>) {
        let _ = subject;
    }

    /// A layer admitted a request.
    fn admitted(&self, subject: &Subject<'_>) {
        let _ = subject;
    }

    /// A layer refused a request.
    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let _ = (subject, rejection);
    }

    /// An [`AccessLayer`](crate::AccessLayer) exempted a request from rates and from limits per key: once for each
    /// such request. What is decided about it otherwise, such as capacity, other hooks see.
    fn exempted(&self, subject: &Subject<'_>) {
        let _ = subject;
    }

    /// A layer admitted a request that does not fit, because it is on a dry run or
    /// [enforces](crate::RateLimitLayer::enforce) only a part of its rejections.
    fn would_reject(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let _ = (subject, rejection);
    }

    /// A decision, whichever it was, took so long: to find the key and to ask the limiter, with the
    /// way to its store and back, and with a wait in line. Once for each request that is
    /// decided, after the hook that says what was decided.
    fn decided(&self, subject: &Subject<'_>, took: Duration) {
        let _ = (subject, took);
    }

    /// A concurrency limiter gave out a permit; `in_flight` counts it in.
    fn acquired(&self, limiter: &str, in_flight: u64) {
        let _ = (limiter, in_flight);
    }

    /// Whether layers mark each request that they decide about, so that
    /// [`Subject::is_first`] is true at the outermost of these layers only. Default: false, which
    /// spares each admitted request an entry in its extensions.
    fn counts_requests(&self) -> bool {
        false
    }

    /// How many a concurrency limiter lets in flight, `None` for any number: told with each permit
    /// that is given out, and whenever it is [set](crate::ConcurrencyLimiter::set_limit).
    fn limit(&self, limiter: &str, limit: Option<u64>) {
        let _ = (limiter, limit);
    }

    /// A concurrency limiter took the permit of a response that its client had not read for
    /// `stalled`, because a request needed it. `key` is that of the response, if the limiter counts
    /// keys: its address, if that is one of several. Called before [`released`](Self::released) for the same permit, or after it.
    fn reclaimed(&self, limiter: &str, key: Option<&Key>, stalled: Duration) {
        let _ = (limiter, key, stalled);
    }

    /// A permit came back.
    fn released(&self, limiter: &str) {
        let _ = limiter;
    }

    /// The permit that came back was held for so long.
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

/// What a decision was about.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Subject<'a> {
    /// What sort of limit decided: `"http"` for the rate of requests, `"concurrency"` for requests
    /// in flight, `"access"` for allow and deny lists, `"ws_connection"` and `"ws_message"` for WebSockets, `"lease"` for
    /// [`Leases`](crate::Leases).
    pub limit_type: &'static str,
    /// The name of the limiter, as configured; may be empty.
    pub limiter: &'a str,
    /// The name of the quota that binds: the first that a refused request did not fit, or of those
    /// that an admitted one fits the one with the least left. Empty where no quota decided. It is
    /// the program's word, so there are as many as quotas.
    pub policy: &'a str,
    /// The key whose quota decides, or whose entry of a list does: of several keys, the one that [`policy`](Self::policy) limits.
    /// Use it in logs, but not as the label of a metric: the number of keys is unbounded.
    pub key: Option<&'a Key>,
    /// The head of the request that a layer decides about. `None` for leases, WebSockets and their
    /// messages, and for what a handler charges itself.
    ///
    /// All of it comes from the client: bound its length and check its characters before it goes into
    /// a log.
    pub request: Option<RequestHead<'a>>,
    /// The HTTP status of the response that rejects the request: 200 for gRPC, whose status is
    /// elsewhere. `None` where the request is admitted, or [`request`](Self::request) is.
    pub status: Option<u16>,
    client_ip: Option<&'a ClientIp>,
}

impl<'a> Subject<'a> {
    /// A decision that is not about an HTTP request.
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

    /// The same about this request, of a layer with these observers.
    pub(crate) fn of(self, request: RequestHead<'a>, observers: &'a Observers) -> Self {
        Self {
            request: Some(request),
            client_ip: observers.client_ip.as_deref(),
            ..self
        }
    }

    /// The address of the client, found as the layer's
    /// [`client_ip`](crate::RateLimitLayer::client_ip) says. `None` without a
    /// [`request`](Self::request), or when the server does not pass the peer's address on.
    #[must_use]
    pub fn client_address(&self) -> Option<IpAddr> {
        let head = self.request?;
        match self.client_ip {
            Some(client_ip) => client_ip.address(head),
            None => ClientIp::peer().address(head),
        }
    }

    /// Whether the request has not been decided about further out, by a layer with an observer that
    /// [counts requests](Observer::counts_requests). Of several layers around one another, it is true
    /// at the outermost. False without a [`request`](Self::request).
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.request
            .is_some_and(|head| head.extensions.get::<Decided>().is_none())
    }
}

/// Marks a request that a layer has decided about. It has no size, so it takes no allocation of its own.
#[derive(Clone, Copy)]
pub(crate) struct Decided;
