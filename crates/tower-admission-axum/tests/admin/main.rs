//! The admin endpoints and their page.

mod changes;
#[path = "../../../../tests/chromium/mod.rs"]
mod chromium;
mod described;
mod edits;
mod explain;
#[path = "../../../../tests/logged/mod.rs"]
mod logged;
mod looks;
mod now;
mod page;
mod resolve;
mod routes;
mod sign_in;
mod tabs;
mod typed;
mod undo;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use tower_admission::{
    ConcurrencyLimitLayer, ConcurrencyLimiter, Key, Limits, Policy, Quota, RateLimitLayer,
    RequestHead,
};
use tower_admission_axum::admin::{self, Recorder, Token};

pub(crate) const TOKEN: &str = "the-token-of-operators";

/// A service that admits two calls per hour and organisation, with admin endpoints.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) app: Router,
    pub(crate) limits: Limits,
    /// The limiter `chat`, with ten permits.
    pub(crate) chat: ConcurrencyLimiter,
}

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// Null if the body is not JSON.
    pub(crate) json: Value,
}

/// The key of a request: its organisation, or its token.
pub(crate) fn caller(head: RequestHead<'_>) -> Option<Key> {
    let header = |name: &str| head.headers.get(name)?.to_str().ok();
    match header("org") {
        Some(org) => Some(Key::id("org", org)),
        None => Some(Key::new("bearer", header("secret")?.as_bytes())),
    }
}

impl Service {
    pub(crate) fn new() -> Self {
        Self::with(Limits::new())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let recorder = Recorder::new();
        let calls = RateLimitLayer::by(caller, Policy::new("calls", Quota::per_hour(2)))
            .name("api")
            .limits(&limits)
            .observe(recorder.clone());
        let dry = RateLimitLayer::by(caller, Policy::new("dry", Quota::per_hour(1)))
            .name("tried")
            .dry_run(true)
            .observe(recorder.clone());
        let chat = ConcurrencyLimitLayer::new(10)
            .name("chat")
            .limits(&limits)
            .observe(recorder.clone());
        let limiter = chat.limiter();
        let token = Token::new(TOKEN).unwrap();
        Self {
            app: Router::new()
                .route("/call", get(|| async { "hello" }).layer(calls))
                .route("/dry", get(|| async { "hello" }).layer(dry))
                .route("/chat", get(|| async { "hello" }).layer(chat))
                .nest_service("/admin", admin::router(&limits, &recorder, token)),
            limits,
            chat: limiter,
        }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> http::Response<Body> {
        self.app.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn answer(&self, request: Request<Body>) -> Answer {
        let (head, body) = self.send(request).await.into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.into()).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let status = head.status.as_u16();
        if status >= 400 && head.headers.contains_key("cache-control") {
            assert_eq!(head.headers["content-type"], "application/problem+json");
            assert_eq!(Value::from(status), json["status"], "{text}");
        }
        Answer {
            status,
            headers: head.headers,
            text,
            json,
        }
    }

    /// The response to an operator.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let answer = self.answer(operator(method, path, body)).await;
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        answer
    }

    pub(crate) async fn put(&self, key: &str, limit: &str) -> Answer {
        let body = serde_json::json!({ "limit": limit }).to_string();
        self.ask("PUT", &format!("/limits/{}", encoded(key)), &body)
            .await
    }

    /// Whether an organisation may call.
    pub(crate) async fn calls(&self, org: &str) -> bool {
        let request = Request::get("/call").header("org", org);
        let response = self.send(request.body(Body::empty()).unwrap()).await;
        response.status() == StatusCode::OK
    }
}

/// A request of an operator.
pub(crate) fn operator(method: &str, path: &str, body: &str) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(format!("/admin{path}"))
        .header("authorization", format!("Bearer {TOKEN}"));
    let request = match body {
        "" => request,
        _ => request.header("content-type", "application/json"),
    };
    request.body(Body::from(body.to_owned())).unwrap()
}

/// Encodes at least what JavaScript's `encodeURIComponent` encodes.
pub(crate) fn encoded(key: &str) -> String {
    let bytes = key.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    bytes.collect()
}

/// The JSON without the times of changes.
pub(crate) fn untimed(json: &Value) -> Value {
    let mut json = json.clone();
    match &mut json {
        Value::Object(members) => {
            members.remove("changed_at");
            members
                .values_mut()
                .for_each(|value| *value = untimed(value));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = untimed(item)),
        _ => {}
    }
    json
}
