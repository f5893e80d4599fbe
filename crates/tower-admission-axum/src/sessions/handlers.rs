//! Handlers of the session endpoints.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use http::StatusCode;
use tower_admission::store::LeaseStatus;
use tower_admission::{Key, KeyExtractor, Leases, RequestHead};

use super::responses::{rejected, session, unavailable, unknown_session};
use crate::endpoint::{
    EndpointError, EndpointResult, JsonObject, no_content, read_body, string_member,
};

/// The state of the session endpoints.
pub(super) struct SessionsState {
    pub(super) leases: Leases,
    pub(super) auth: Box<dyn KeyExtractor>,
}

pub(super) async fn start(
    State(state): State<Arc<SessionsState>>,
    request: Request,
) -> EndpointResult {
    let (tenant, body) = state.authenticate(request).await?;
    if !body.is_empty() && serde_json::from_slice::<JsonObject>(&body).is_err() {
        let detail = "The body is not a JSON object.";
        return Err(EndpointError::new(StatusCode::BAD_REQUEST, detail));
    }
    match state.leases.acquire_new(&tenant).await {
        Ok(lease) => {
            let response = session(StatusCode::CREATED, lease.id(), &state.leases);
            // The worker keeps it alive from now on.
            lease.detach();
            Ok(response)
        }
        Err(rejection) => rejected(rejection),
    }
}

pub(super) async fn heartbeat(
    State(state): State<Arc<SessionsState>>,
    request: Request,
) -> EndpointResult {
    let (tenant, id) = state.session_of(request).await?;
    match state.leases.heartbeat(&tenant, &id).await {
        LeaseStatus::Live => Ok(session(StatusCode::OK, &id, &state.leases)),
        LeaseStatus::Gone => Err(unknown_session()),
        _ => Err(unavailable()),
    }
}

pub(super) async fn end(
    State(state): State<Arc<SessionsState>>,
    request: Request,
) -> EndpointResult {
    let (tenant, id) = state.session_of(request).await?;
    match state.leases.release(&tenant, &id).await {
        LeaseStatus::Live => Ok(no_content()),
        LeaseStatus::Gone => Err(unknown_session()),
        _ => Err(unavailable()),
    }
}

impl SessionsState {
    /// The tenant and the body of a request.
    async fn authenticate(&self, request: Request) -> Result<(Key, Bytes), EndpointError> {
        let tenant = self.auth.extract(RequestHead::from(&request));
        let tenant = tenant.key().ok_or_else(EndpointError::unauthorized)?;
        Ok((tenant, read_body(request).await?))
    }

    /// The tenant and the session id of a request.
    async fn session_of(&self, request: Request) -> Result<(Key, String), EndpointError> {
        let (tenant, body) = self.authenticate(request).await?;
        Ok((tenant, string_member(&body, "session_id")?))
    }
}
