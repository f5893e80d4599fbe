//! Responses of the session endpoints.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use tower_admission::provider::quota_problem;
use tower_admission::{Leases, Reason, Rejection};

use crate::endpoint::{EndpointError, json_response, no_store};

/// A live session.
#[derive(Serialize)]
struct Session<'a> {
    session_id: &'a str,
    ttl_seconds: f64,
    /// Half the time to live, so that one heartbeat may get lost.
    heartbeat_interval_seconds: f64,
}

pub(super) fn session(status: StatusCode, id: &str, leases: &Leases) -> Response {
    let ttl = leases.time_to_live();
    let session = Session {
        session_id: id,
        ttl_seconds: ttl.as_secs_f64(),
        heartbeat_interval_seconds: (ttl / 2).as_secs_f64(),
    };
    json_response(status, &session)
}

/// One answer for unknown, ended and expired sessions, and for those of another tenant: it reveals nothing about them.
pub(super) fn unknown_session() -> EndpointError {
    EndpointError::new(StatusCode::NOT_FOUND, "There is no such session.")
}

/// The router adds `Allow`.
pub(super) fn method_not_allowed() -> EndpointError {
    EndpointError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "This endpoint accepts POST only.",
    )
}

pub(super) fn unavailable() -> EndpointError {
    EndpointError::unavailable("Sessions cannot be counted right now. Please try again later.")
}

/// The response to a rejected start; an error if the store failed.
pub(super) fn rejected(rejection: Rejection) -> Result<Response, EndpointError> {
    match rejection.reason() {
        Reason::Unavailable => Err(unavailable()),
        Reason::Denied => Ok(rejection.into_response()),
        _ => Ok(no_store(quota_problem(&rejection))),
    }
}
