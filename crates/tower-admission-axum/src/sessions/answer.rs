//! What the endpoints answer.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use tower_admission::provider::quota_problem;
use tower_admission::{Leases, Reason, Rejection};

use crate::endpoint::{Failed, json, not_stored};

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
    json(status, &session)
}

/// Unknown, ended, expired or another tenant's: which of them is nobody's business.
pub(super) fn no_session() -> Failed {
    Failed::new(StatusCode::NOT_FOUND, "There is no such session.")
}

/// Its `Allow` comes from the router.
pub(super) fn not_a_post() -> Failed {
    Failed::new(StatusCode::METHOD_NOT_ALLOWED, "This endpoint takes POST.")
}

pub(super) fn unavailable() -> Failed {
    Failed::unavailable("Sessions cannot be counted right now. Please try again later.")
}

/// The answer to who is over a limit, unless none was reached.
pub(super) fn refused(rejection: Rejection) -> Result<Response, Failed> {
    match rejection.reason() {
        Reason::Unavailable => Err(unavailable()),
        Reason::Denied => Ok(rejection.into_response()),
        _ => Ok(not_stored(quota_problem(&rejection))),
    }
}
