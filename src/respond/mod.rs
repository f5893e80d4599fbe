//! What the client is told, in the language of its request.

mod grpc;
mod plain;
mod problem;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderValue, Response, StatusCode};

use crate::extract::RequestHead;
use crate::headers::tell_retry_after;
use crate::rejection::{Reason, Rejection};

pub use grpc::Grpc;
pub use plain::Plain;
pub use problem::Problem;
#[cfg(feature = "axum")]
pub(crate) use problem::{over_quota, plain_problem};
#[cfg(feature = "ws")]
pub(crate) use problem::{problem, problem_text};

/// Turns a [`Rejection`] into a response. Closures are responders too.
///
/// The layer adds `Retry-After` and the rate limit headers, and `Cache-Control: no-store` where
/// the responder says nothing of caching.
///
/// ```
/// use bytes::Bytes;
/// use http::{Response, StatusCode};
/// use tower_admission::{Quota, RateLimitByTokenLayer, Rejection};
/// use tower_admission::extract::RequestHead;
///
/// let layer = RateLimitByTokenLayer::new(Quota::per_second(10)).respond(
///     |rejection: &Rejection, _: RequestHead<'_>| {
///         let mut response = Response::new(Bytes::from(format!("slow down: {rejection}")));
///         *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
///         response
///     },
/// );
/// ```
#[diagnostic::on_unimplemented(
    note = "a responder is a type of `tower_admission::respond`, or a closure `|rejection: &Rejection, head: RequestHead<'_>| -> Response<Bytes>`"
)]
pub trait Responder: Send + Sync + 'static {
    /// The response to the request whose head this is.
    fn respond(&self, rejection: &Rejection, head: RequestHead<'_>) -> Response<Bytes>;
}

impl<F> Responder for F
where
    F: Fn(&Rejection, RequestHead<'_>) -> Response<Bytes> + Send + Sync + 'static,
{
    fn respond(&self, rejection: &Rejection, head: RequestHead<'_>) -> Response<Bytes> {
        self(rejection, head)
    }
}

/// What layers use unless told otherwise: gRPC to gRPC requests, plain text to clients that
/// accept it and no JSON, else problem details.
#[derive(Clone, Debug, Default)]
pub struct Negotiated {
    grpc: Grpc,
}

impl Negotiated {
    /// With other gRPC status codes than the usual ones.
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

/// Whether `Accept` has plain text and nothing that JSON would do for (RFC 9110 §12.5.1).
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

/// The HTTP status for a reason. Its gRPC code is in [`Grpc`].
fn status(reason: Reason) -> StatusCode {
    if reason.is_callers() {
        StatusCode::TOO_MANY_REQUESTS
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// A layer's responder.
#[derive(Clone)]
pub(crate) struct Answers(Arc<dyn Responder>);

impl Answers {
    pub(crate) fn new(responder: impl Responder) -> Self {
        Self(Arc::new(responder))
    }

    /// The response to a refused request.
    pub(crate) fn answer(&self, rejection: &Rejection, head: RequestHead<'_>) -> Response<Bytes> {
        let mut response = self.0.respond(rejection, head);
        let headers = response.headers_mut();
        tell_retry_after(rejection.retry_after_seconds(), headers);
        // RFC 6585 §4: a 429 must not be stored by a cache; nor should a passing 503.
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        response
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self::new(Negotiated::default())
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answers")
    }
}
