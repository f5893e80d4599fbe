//! Answers to rejected requests, in the protocol and format of the request.

mod details;
mod grpc;
mod json;
mod plain;
pub(crate) mod problem;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::extract::RequestHead;
use crate::headers::{add_retry_after, add_retry_after_ms};
use crate::rejection::{Reason, Rejection};

pub use grpc::Grpc;
pub use plain::Plain;
pub use problem::Problem;
#[cfg(feature = "axum")]
use problem::problem;

/// Turns a [`Rejection`] into a response. A closure is a responder too; its body can be any type
/// that converts into [`Bytes`], such as `String`, `Vec<u8>` or `&'static str`.
///
/// The layer adds `Retry-After` and the rate-limit fields, and `Cache-Control: no-store` unless the
/// responder sets `Cache-Control`.
///
/// ```
/// use http::Response;
/// use tower_admission::{Quota, RateLimitByTokenLayer, Rejection};
/// use tower_admission::extract::RequestHead;
///
/// let layer = RateLimitByTokenLayer::new(Quota::per_second(10)).respond(
///     |rejection: &Rejection, _: RequestHead<'_>| {
///         let mut response = Response::new(format!("slow down: {rejection}"));
///         *response.status_mut() = rejection.reason().status();
///         response
///     },
/// );
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not answer a rejection",
    note = "a responder is a type of `tower_admission::respond`, or a closure `|rejection: &Rejection, head: RequestHead<'_>| -> http::Response<T>` whose body `T` is `Into<Bytes>`, such as `String`"
)]
pub trait Responder: Send + Sync + 'static {
    /// Builds the response to a rejected request.
    fn respond(&self, rejection: &Rejection, head: RequestHead<'_>) -> Response<Bytes>;
}

// Without it, the compiler names the bounds of this impl in place of the note above.
#[diagnostic::do_not_recommend]
impl<F, T> Responder for F
where
    F: Fn(&Rejection, RequestHead<'_>) -> Response<T> + Send + Sync + 'static,
    T: Into<Bytes>,
{
    fn respond(&self, rejection: &Rejection, head: RequestHead<'_>) -> Response<Bytes> {
        self(rejection, head).map(Into::into)
    }
}

/// The default responder of layers: gRPC for gRPC requests, plain text for clients that accept it
/// and do not accept JSON, else problem details.
#[derive(Clone, Debug, Default)]
pub struct Negotiated {
    grpc: Grpc,
}

impl Negotiated {
    /// Sets the responder for gRPC requests, to change the status codes.
    #[must_use]
    pub fn grpc(mut self, grpc: Grpc) -> Self {
        self.grpc = grpc;
        self
    }
}

impl Responder for Negotiated {
    fn respond(&self, rejection: &Rejection, head: RequestHead<'_>) -> Response<Bytes> {
        if grpc::is_grpc(head.headers) {
            self.grpc.respond(rejection, head)
        } else if prefers_plain(head) {
            Plain.respond(rejection, head)
        } else {
            Problem.respond(rejection, head)
        }
    }
}

/// Whether `Accept` includes plain text but no JSON (RFC 9110 §12.5.1).
fn prefers_plain(head: RequestHead<'_>) -> bool {
    let mut plain = false;
    for accept in head.headers.get_all(ACCEPT) {
        for range in accept.as_bytes().split(|b| *b == b',') {
            let mut parts = range.split(|b| *b == b';').map(<[u8]>::trim_ascii);
            let range = parts.next().unwrap_or_default();
            let is_any_of = |ranges: &[&str]| {
                ranges
                    .iter()
                    .any(|known| range.eq_ignore_ascii_case(known.as_bytes()))
            };
            if parts.any(is_weight_of_zero) {
                continue;
            }
            if is_any_of(&JSON_RANGES) {
                return false;
            }
            plain |= is_any_of(&["text/plain", "text/*"]);
        }
    }
    plain
}

const JSON_RANGES: [&str; 4] = [
    "*/*",
    "application/*",
    "application/json",
    "application/problem+json",
];

/// `q=0`, `q=0.000`: not acceptable (RFC 9110 §12.4.2).
fn is_weight_of_zero(parameter: &[u8]) -> bool {
    match parameter {
        [b'q' | b'Q', b'=', b'0', rest @ ..] => rest.iter().all(|b| matches!(b, b'.' | b'0')),
        _ => false,
    }
}

// Here and not in `rejection`, which is independent of protocols.
impl Reason {
    /// The HTTP status for this reason: 403, 429 or 503.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.codes().0
    }

    /// The gRPC status code for this reason: PERMISSION_DENIED (7), RESOURCE_EXHAUSTED (8) or
    /// UNAVAILABLE (14).
    #[must_use]
    pub fn grpc_code(self) -> u8 {
        self.codes().1
    }

    fn codes(self) -> (StatusCode, u8) {
        match self {
            Self::Denied | Self::Banned => (StatusCode::FORBIDDEN, 7),
            Self::KeyAtCapacity
            | Self::QuotaExceeded
            | Self::CostExceedsQuota
            | Self::AbnormalUsage => (StatusCode::TOO_MANY_REQUESTS, 8),
            Self::AtCapacity | Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, 14),
        }
    }
}

/// The responder of a layer, with its settings.
#[derive(Clone)]
pub(crate) struct Answers {
    responder: Arc<dyn Responder>,
    retry_after_ms: bool,
}

impl Answers {
    pub(crate) fn set_responder(&mut self, responder: impl Responder) {
        self.responder = Arc::new(responder);
    }

    /// Sets whether responses also have the field `retry-after-ms`.
    pub(crate) fn set_retry_after_ms(&mut self, retry_after_ms: bool) {
        self.retry_after_ms = retry_after_ms;
    }

    /// Builds the complete response to a rejected request.
    pub(crate) fn answer(&self, rejection: &Rejection, head: RequestHead<'_>) -> Response<Bytes> {
        let mut response = self.responder.respond(rejection, head);
        // A `Retry-After` set by the responder takes precedence.
        if self.retry_after_ms && !response.headers().contains_key(RETRY_AFTER) {
            add_retry_after_ms(rejection.retry_after(), response.headers_mut());
        }
        complete(rejection, &mut response);
        response
    }
}

/// Adds the fields that every response to a rejected request has.
pub(crate) fn complete<B>(rejection: &Rejection, response: &mut Response<B>) {
    let headers = response.headers_mut();
    add_retry_after(rejection.retry_after_seconds(), headers);
    // RFC 6585 §4: a cache must not store a 429; a temporary 503 should not be stored either.
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    if matches!(rejection.reason(), Reason::Denied | Reason::Banned) {
        response.extensions_mut().insert(Denied);
    }
}

/// Marks a 403 of this crate, so that outer guards do not take it for an answer to credentials.
#[derive(Clone)]
struct Denied;

/// Whether a limit of this crate denied the request.
pub(crate) fn is_denied<B>(response: &Response<B>) -> bool {
    response.extensions().get::<Denied>().is_some()
}

/// Makes a problem response (RFC 9457) with the status of its [reason](Reason::status),
/// `Retry-After` and `Cache-Control: no-store`.
///
/// ```
/// use axum::extract::State;
/// use tower_admission::{Key, RateLimiter, Rejection};
///
/// async fn send_mail(State(mails): State<RateLimiter>) -> Result<&'static str, Rejection> {
///     let user = Key::id("user", "alice"); // from authentication
///     mails.check(&user).await.into_result()?;
///     Ok("sent")
/// }
/// ```
#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for Rejection {
    fn into_response(self) -> axum_core::response::Response {
        let mut response = problem(&self).map(axum_core::body::Body::from);
        complete(&self, &mut response);
        response
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            responder: Arc::new(Negotiated::default()),
            retry_after_ms: false,
        }
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answers")
    }
}
