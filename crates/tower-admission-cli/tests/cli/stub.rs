//! A service's admin endpoints, as far as they are promised.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde_json::{Value, json};
use tower_admission::Limit;

/// A service that runs until this is dropped.
pub(crate) struct Stub {
    pub(crate) url: String,
    pub(crate) held: Held,
    serving: tokio::task::JoinHandle<()>,
}

#[derive(Clone, Default)]
pub(crate) struct Held {
    /// What keys have of their own, by key.
    pub(crate) limits: Arc<Mutex<BTreeMap<String, Value>>>,
    /// What was asked, with the paths as they were sent.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    pub(crate) async fn start() -> Self {
        let held = Held::default();
        let admin = Router::new()
            .route("/limits", get(list))
            .route("/limits/{key}", get(one).put(set).delete(delete))
            .route("/usage", get(totals))
            .route("/usage/{key}", get(usage))
            .route("/keys/resolve", post(resolve))
            .route("/explain", post(explain))
            .route("/changes", get(changes))
            .route("/cache/clear", post(async || StatusCode::NO_CONTENT))
            .route("/now", get(async || Json(json!({"lost_overrides": 0}))))
            .route("/loss/accept", post(async || StatusCode::NO_CONTENT))
            .layer(from_fn_with_state(held.clone(), admit))
            .with_state(held.clone());
        let app = Router::new()
            .nest("/admin", admin)
            .route("/text/{*rest}", get("hello"))
            .route("/old/keys/resolve", post(resolve))
            .route(
                "/old/limits/{key}",
                put(async |Path(key): Path<String>, Json(body): Json<Value>| {
                    Json(json!({"key": key, "limit": body["limit"], "before": null}))
                }),
            )
            .route("/odd/limits", get(async || Json(json!({"limits": 7}))))
            .route("/odd/cache/clear", post(async || Json(json!({"hello": 1}))))
            .route(
                "/wide/limits",
                get(async || {
                    let long = "a".repeat(70_000);
                    let limit = "\u{9b}31m\u{202e}1/min";
                    let entries = [json!({"key": format!("org:{long}"), "limit": limit})];
                    Json(json!({"limits": entries, "names": [], "next": null}))
                }),
            )
            .route(
                "/wide/usage",
                get(async || {
                    let usage =
                        json!({"name": "a".repeat(70_000), "sort": "rate", "used": 1, "limit": 2});
                    Json(json!({ "usage": [usage] }))
                }),
            )
            .route(
                "/failing/usage",
                get(async || {
                    let usage = json!({
                        "name": "jobs", "sort": "lease", "used": 1, "here": 1,
                        "counted_in": "this process", "limit": 2,
                    });
                    let store = json!({
                        "status": "failing", "failure_mode": "closed", "since": 1,
                        "cause": "timeout: no answer",
                    });
                    let replica = json!({"id": "a1", "host": "gw-1", "pid": 4711});
                    Json(json!({"replica": replica, "store": store, "usage": [usage]}))
                }),
            )
            .route(
                "/loop/limits",
                get(async || Json(json!({"limits": [], "names": [], "next": "org:a"}))),
            )
            .route(
                "/down/limits",
                get(async || problem(StatusCode::SERVICE_UNAVAILABLE, "redis is\naway")),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self {
            url: format!("http://{address}"),
            held,
            serving,
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn problem(status: StatusCode, detail: &str) -> Response {
    let body = json!({"status": status.as_u16(), "detail": detail}).to_string();
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, body).into_response()
}

async fn admit(
    State(held): State<Held>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let asked = format!("{} {}", request.method(), request.uri());
    held.asked.lock().unwrap().push(asked);
    let token = headers.get(header::AUTHORIZATION);
    if token.is_none_or(|token| token != "Bearer hunter2") {
        return problem(StatusCode::UNAUTHORIZED, "who are you");
    }
    next.run(request).await
}

async fn list(
    State(held): State<Held>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Json<Value> {
    let limits = held.limits.lock().unwrap();
    let after = query.get("after").map_or("", String::as_str);
    // Fewer than are asked for.
    let page: Vec<_> = limits
        .iter()
        .filter(|(key, _)| &***key > after)
        .take(2)
        .collect();
    let last = page.last().map(|(key, _)| key.to_string());
    let next = last.filter(|last| limits.keys().any(|key| key > last));
    let page: Vec<_> = page.iter().map(|(key, own)| entry(key, own)).collect();
    Json(json!({"limits": page, "names": ["calls"], "next": next}))
}

async fn one(State(held): State<Held>, Path(key): Path<String>) -> Response {
    match held.limits.lock().unwrap().get(&key) {
        Some(own) => ([(header::ETAG, tag(own))], Json(entry(&key, own))).into_response(),
        None => problem(StatusCode::NOT_FOUND, "none"),
    }
}

fn tag(own: &Value) -> String {
    format!("\"{}\"", own.to_string().replace('"', "'"))
}

/// Whether a change is made to what its author has seen.
fn admits(headers: &HeaderMap, current: Option<&Value>) -> bool {
    let has = |name, tag: String| headers.get(name).is_none_or(|one| *one == *tag);
    has(header::IF_MATCH, current.map(tag).unwrap_or_default())
        && !(headers.contains_key(header::IF_NONE_MATCH) && current.is_some())
}

async fn set(
    State(held): State<Held>,
    Path(key): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if key == "org:nobody" {
        return problem(StatusCode::UNPROCESSABLE_ENTITY, "no limit is called so");
    }
    if key == "org:down" {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "redis is away");
    }
    let mut own = body.clone();
    if let Some(seconds) = own.as_object_mut().unwrap().remove("for_seconds") {
        // By a clock of its own.
        own["end"] = json!(4_000_000_000 + seconds.as_u64().unwrap());
    }
    match body["limit"].as_str().unwrap().parse::<Limit>() {
        Ok(limit) => own["limit"] = json!(limit.to_string()),
        Err(error) => return problem(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
    }
    let mut limits = held.limits.lock().unwrap();
    if !admits(&headers, limits.get(&key)) {
        return problem(StatusCode::PRECONDITION_FAILED, "another one");
    }
    let before = limits.insert(key.clone(), own.clone());
    let before = before.filter(|before| before["source"] != "file");
    let mut answer = entry(&key, &own);
    answer["before"] = json!(before.map(|before| before["limit"].clone()));
    Json(answer).into_response()
}

fn entry(key: &str, own: &Value) -> Value {
    let mut entry = own.clone();
    entry["key"] = json!(key);
    entry
}

/// A service that knows its own secret, and its application's names.
async fn resolve(Json(body): Json<Value>) -> Json<Value> {
    let key = match body["key"].as_str().unwrap() {
        "Acme Inc." => "org:acme".to_owned(),
        text if text.starts_with("bearer:") => format!("bearer#{}", "07".repeat(16)),
        text => text.to_owned(),
    };
    Json(json!({"keys": [{"key": key, "limit": null, "usage": []}]}))
}

async fn explain(State(held): State<Held>, Json(body): Json<Value>) -> Json<Value> {
    let key = &body["key"];
    let own = held.limits.lock().unwrap();
    let own = own.get(key.as_str().unwrap());
    let limit = own.map_or(json!("10/min"), |own| own["limit"].clone());
    let source = if own.is_some() { "override" } else { "default" };
    let calls = json!({
        "name": "calls", "sort": "rate", "key": key, "limit": limit, "source": source,
        "tier": body["tier"], "used": 7, "verdict": "admitted", "remaining": 2,
    });
    if body["path"].is_null() {
        let now = json!({"limit": "calls", "verdict": "admitted", "remaining": 2});
        return Json(json!({
            "key": key, "address": null, "limit": own.map(|own| &own["limit"]), "limits": [calls],
            "address_limits": [], "now": now,
        }));
    }
    let jobs = json!({
        "name": "jobs", "sort": "concurrency", "key": key, "limit": "2 concurrent", "source": "default",
        "tier": null, "used": 2, "verdict": "rejected", "reason": "key_at_capacity",
        "retry_after_ms": 1500,
    });
    let all = json!({
        "name": "all", "sort": "concurrency", "key": null, "limit": "64 concurrent",
        "source": "default", "tier": null, "used": 2, "verdict": "admitted",
    });
    let now = json!({
        "limit": "jobs", "verdict": "rejected", "reason": "key_at_capacity",
        "retry_after_ms": 1500, "is_enforced": true,
    });
    Json(json!({
        "key": key, "address": null, "limit": null,
        "groups": [{"name": "api", "enforce": 100, "is_excluded": false}],
        "limits": [calls, jobs, all], "address_limits": ["calls.ip"], "now": now,
    }))
}

async fn changes() -> Json<Value> {
    Json(json!({"changes": [
        {
            "at": "2026-11-28T04:32:13Z", "key": "org:acme", "before": null,
            "after": {"limit": "deny all", "end": "2026-12-01T00:00:00Z", "note": "spam"},
            "author": "anna", "origin": "192.0.2.7", "has_ended": false,
        },
        {
            "at": "2026-11-28T04:30:00Z", "key": "org:b", "before": "5/min", "after": null,
            "author": null, "origin": null, "has_ended": true,
        },
    ]}))
}

async fn delete(State(held): State<Held>, Path(key): Path<String>, headers: HeaderMap) -> Response {
    let mut limits = held.limits.lock().unwrap();
    if !admits(&headers, limits.get(&key)) {
        return problem(StatusCode::PRECONDITION_FAILED, "another one");
    }
    match limits.remove(&key) {
        Some(before) => Json(json!({"key": key, "before": before["limit"]})).into_response(),
        None => problem(StatusCode::NOT_FOUND, "none"),
    }
}

async fn totals() -> Json<Value> {
    let jobs = json!({
        "name": "jobs", "sort": "concurrency", "used": 3, "here": 1, "counted_in": "store",
        "limit": null,
    });
    let replica = json!({"id": "a1", "host": "gw-1", "pid": 4711});
    Json(json!({"replica": replica, "store": {"status": "ok"}, "usage": [jobs]}))
}

async fn usage(State(held): State<Held>, Path(key): Path<String>) -> Json<Value> {
    let own = held.limits.lock().unwrap().get(&key).cloned();
    let own = own.map(|own| own["limit"].clone());
    let calls = json!({
        "name": "calls", "sort": "rate", "used": 7, "limit": 10, "is_override": own.is_some()
    });
    Json(json!({"key": key, "limit": own, "usage": [calls]}))
}
