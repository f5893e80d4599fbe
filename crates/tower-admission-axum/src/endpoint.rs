//! Reads JSON bodies, and builds JSON and problem responses that no cache stores.

use std::borrow::Cow;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

/// The maximum size of a request body.
pub(crate) const MAX_BODY_BYTES: usize = 4 * 1024;

/// A request body. A struct with fields would also accept an array.
pub(crate) type JsonObject = serde_json::Map<String, serde_json::Value>;

pub(crate) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let json = serde_json::to_vec(value).expect("strings and numbers serialise");
    let mut response = http::Response::new(Bytes::from(json));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    no_store(response)
}

pub(crate) fn no_content() -> Response {
    let mut response = http::Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    no_store(response)
}

/// The result of an endpoint.
pub(crate) type EndpointResult = Result<Response, EndpointError>;

/// An error that becomes a response with problem details (RFC 9457).
pub(crate) struct EndpointError {
    status: StatusCode,
    detail: Cow<'static, str>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl EndpointError {
    pub(crate) fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            detail: detail.into(),
            header: None,
        }
    }

    /// Replaces the default header of the status.
    #[cfg(feature = "admin")]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "This endpoint requires credentials.",
        )
    }

    /// Status 503, with `Retry-After`.
    pub(crate) fn unavailable(detail: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }
}

/// A problem without extension members.
#[derive(Serialize)]
struct NoMembers {}

impl IntoResponse for EndpointError {
    fn into_response(self) -> Response {
        let mut response = problem_response(self.status, &self.detail, &NoMembers {});
        let default = |name, value| Some((name, HeaderValue::from_static(value)));
        let header = self.header.or_else(|| match self.status {
            // RFC 9110 §11.6.1: a 401 names a scheme.
            StatusCode::UNAUTHORIZED => default(WWW_AUTHENTICATE, "Bearer"),
            StatusCode::SERVICE_UNAVAILABLE => default(RETRY_AFTER, "1"),
            _ => None,
        });
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// Problem details with extension members (RFC 9457 §3.2).
pub(crate) fn problem_response(
    status: StatusCode,
    detail: &str,
    members: &impl Serialize,
) -> Response {
    #[derive(Serialize)]
    struct Problem<'a, M> {
        r#type: &'static str,
        title: &'a str,
        status: u16,
        detail: &'a str,
        #[serde(flatten)]
        members: &'a M,
    }
    let problem = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or_default(),
        status: status.as_u16(),
        detail,
        members,
    };
    let mut response = json_response(status, &problem);
    let content_type = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

pub(crate) fn no_store(response: http::Response<Bytes>) -> Response {
    let mut response = response.map(Body::from);
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    response
}

/// Reads a body that is empty or has the type `application/json`.
pub(crate) async fn read_body(request: Request) -> Result<Bytes, EndpointError> {
    let is_json = is_json(request.headers());
    let body = Bytes::from_request(request, &()).await.map_err(|error| {
        let status = error.status();
        EndpointError::new(status, "The body is too long or incomplete.")
    })?;
    if !is_json && !body.is_empty() {
        let detail = "The content type of the body is not application/json.";
        return Err(EndpointError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            detail,
        ));
    }
    Ok(body)
}

/// Reads a string member of a JSON object.
pub(crate) fn string_member(body: &[u8], name: &str) -> Result<String, EndpointError> {
    let object: Option<JsonObject> = serde_json::from_slice(body).ok();
    let member = object.as_ref().and_then(|object| object.get(name));
    match member.and_then(|member| member.as_str()) {
        Some(text) => Ok(text.to_owned()),
        None => {
            let detail = format!("The body is not a JSON object with a string `{name}`.");
            Err(EndpointError::new(StatusCode::BAD_REQUEST, detail))
        }
    }
}

/// Whether the type is `application/json`, with any parameters (RFC 9110 §8.3.1).
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
