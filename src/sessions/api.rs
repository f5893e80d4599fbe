//! What the endpoints do.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

use super::answer::{ended, no_session, no_tenant, problem, refused, session, unavailable};
use crate::extract::{Extractor, RequestHead};
use crate::key::Key;
use crate::limiter::Leases;
use crate::store::Standing;

/// What the endpoints share.
pub(super) struct Api {
    pub(super) leases: Leases,
    pub(super) auth: Extractor,
}

/// What a body is. Not a type with fields, which would be satisfied by an array.
type Object = serde_json::Map<String, serde_json::Value>;

pub(super) async fn start(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (tenant, body) = match api.admit(request).await {
        Ok(admitted) => admitted,
        Err(answer) => return answer,
    };
    if !body.is_empty() && serde_json::from_slice::<Object>(&body).is_err() {
        return problem(StatusCode::BAD_REQUEST, "The body is not a JSON object.");
    }
    match api.leases.acquire_new(&tenant).await {
        Ok(lease) => {
            let answer = session(StatusCode::CREATED, lease.id(), &api.leases);
            // From here on the worker answers for it.
            lease.detach();
            answer
        }
        Err(rejection) => refused(&rejection),
    }
}

pub(super) async fn heartbeat(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (tenant, id) = match api.about(request).await {
        Ok(about) => about,
        Err(answer) => return answer,
    };
    match api.leases.heartbeat(&tenant, &id).await {
        Standing::Live => session(StatusCode::OK, &id, &api.leases),
        Standing::Gone => no_session(),
        Standing::Unavailable | Standing::Failed => unavailable(),
    }
}

pub(super) async fn end(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (tenant, id) = match api.about(request).await {
        Ok(about) => about,
        Err(answer) => return answer,
    };
    match api.leases.release(&tenant, &id).await {
        Standing::Live => ended(),
        Standing::Gone => no_session(),
        Standing::Unavailable | Standing::Failed => unavailable(),
    }
}

impl Api {
    /// Whose request it is and what is in it, or the answer to one that cannot be served.
    async fn admit(&self, request: Request) -> Result<(Key, Bytes), Response> {
        let tenant = (self.auth.extract(RequestHead::from(&request))).ok_or_else(no_tenant)?;
        let is_json = is_json(request.headers());
        let body = Bytes::from_request(request, &()).await.map_err(|error| {
            let status = error.status();
            problem(status, "The body is too long or broke off.")
        })?;
        if !is_json && !body.is_empty() {
            let detail = "The body has to be application/json.";
            return Err(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        Ok((tenant, body))
    }

    /// Whose session a request is about, and which.
    async fn about(&self, request: Request) -> Result<(Key, String), Response> {
        let (tenant, body) = self.admit(request).await?;
        let object: Option<Object> = serde_json::from_slice(&body).ok();
        let id = object.as_ref().and_then(|object| object.get("session_id"));
        match id.and_then(|id| id.as_str()) {
            Some(id) => Ok((tenant, id.to_owned())),
            None => {
                let detail = "The body is not a JSON object with a `session_id`.";
                Err(problem(StatusCode::BAD_REQUEST, detail))
            }
        }
    }
}

/// `application/json`, with whatever parameters (RFC 9110 §8.3.1).
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let essence = value.as_bytes().split(|byte| *byte == b';').next();
    essence.is_some_and(|essence| {
        essence
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/json")
    })
}
