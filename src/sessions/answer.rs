//! What the endpoints answer.

use axum::body::{Body, Bytes};
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::limiter::Leases;
use crate::rejection::{Reason, Rejection};
use crate::respond::{over_quota, plain_problem};

/// A session that is alive, and how to keep it so.
#[derive(Serialize)]
struct Session<'a> {
    session_id: &'a str,
    ttl_seconds: f64,
    /// Half the time to live: one heartbeat may get lost.
    heartbeat_interval_seconds: f64,
}

pub(super) fn session(status: StatusCode, id: &str, leases: &Leases) -> Response {
    let ttl = leases.time_to_live();
    let session = Session {
        session_id: id,
        ttl_seconds: ttl.as_secs_f64(),
        heartbeat_interval_seconds: (ttl / 2).as_secs_f64(),
    };
    let json = serde_json::to_vec(&session).expect("strings and numbers serialise");
    let mut response = http::Response::new(Bytes::from(json));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    not_stored(response)
}

pub(super) fn ended() -> Response {
    let mut response = http::Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    not_stored(response)
}

pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    not_stored(plain_problem(status, detail))
}

/// Unknown, ended, expired or another tenant's: which of them is nobody's business.
pub(super) fn no_session() -> Response {
    problem(StatusCode::NOT_FOUND, "There is no such session.")
}

/// Its `Allow` comes from the router.
pub(super) fn not_a_post() -> Response {
    let detail = "This endpoint takes POST.";
    problem(StatusCode::METHOD_NOT_ALLOWED, detail)
}

pub(super) fn no_tenant() -> Response {
    let mut response = problem(StatusCode::UNAUTHORIZED, "Credentials are needed.");
    // RFC 9110 §11.6.1: a 401 names a scheme.
    let scheme = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    response
}

pub(super) fn refused(rejection: &Rejection) -> Response {
    match rejection.reason() {
        Reason::Unavailable => unavailable(),
        _ => not_stored(over_quota(rejection)),
    }
}

pub(super) fn unavailable() -> Response {
    let detail = "Sessions cannot be counted right now. Please try again later.";
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, detail);
    let second = HeaderValue::from_static("1");
    response.headers_mut().insert(RETRY_AFTER, second);
    response
}

fn not_stored(response: http::Response<Bytes>) -> Response {
    let mut response = response.map(Body::from);
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    response
}
