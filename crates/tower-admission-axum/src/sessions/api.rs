//! What the endpoints do.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use tower_admission::store::LeaseStatus;
use tower_admission::{Key, KeyExtractor, Leases, RequestHead};

use super::answer::{no_session, refused, session, unavailable};
use crate::endpoint::{Failed, Object, body, member, no_content};

/// What the endpoints share.
pub(super) struct Api {
    pub(super) leases: Leases,
    pub(super) auth: Box<dyn KeyExtractor>,
}

type Answer = Result<Response, Failed>;

pub(super) async fn start(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let (tenant, body) = api.admit(request).await?;
    if !body.is_empty() && serde_json::from_slice::<Object>(&body).is_err() {
        let detail = "The body is not a JSON object.";
        return Err(Failed::new(StatusCode::BAD_REQUEST, detail));
    }
    match api.leases.acquire_new(&tenant).await {
        Ok(lease) => {
            let answer = session(StatusCode::CREATED, lease.id(), &api.leases);
            // From here on the worker answers for it.
            lease.detach();
            Ok(answer)
        }
        Err(rejection) => refused(rejection),
    }
}

pub(super) async fn heartbeat(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let (tenant, id) = api.about(request).await?;
    match api.leases.heartbeat(&tenant, &id).await {
        LeaseStatus::Live => Ok(session(StatusCode::OK, &id, &api.leases)),
        LeaseStatus::Gone => Err(no_session()),
        _ => Err(unavailable()),
    }
}

pub(super) async fn end(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let (tenant, id) = api.about(request).await?;
    match api.leases.release(&tenant, &id).await {
        LeaseStatus::Live => Ok(no_content()),
        LeaseStatus::Gone => Err(no_session()),
        _ => Err(unavailable()),
    }
}

impl Api {
    /// Whose request it is and what is in it.
    async fn admit(&self, request: Request) -> Result<(Key, Bytes), Failed> {
        let tenant = self.auth.extract(RequestHead::from(&request));
        let tenant = tenant.key().ok_or_else(Failed::unauthorized)?;
        Ok((tenant, body(request).await?))
    }

    /// Whose session a request is about, and which.
    async fn about(&self, request: Request) -> Result<(Key, String), Failed> {
        let (tenant, body) = self.admit(request).await?;
        Ok((tenant, member(&body, "session_id")?))
    }
}
