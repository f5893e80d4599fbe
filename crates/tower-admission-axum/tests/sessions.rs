//! The session endpoints, on a real server.

use std::net::SocketAddr;

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;
use tower_admission::store::FailureMode;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, Leases, Limits, MemoryStore, RequestHead};
use tower_admission_axum::sessions;

#[allow(dead_code, reason = "not all helpers are needed here")]
#[path = "../../../tests/http/common.rs"]
mod common;
#[allow(dead_code, reason = "not all helpers are needed here")]
#[path = "../../../tests/http/servers.rs"]
mod servers;

use self::common::{Away, SECOND, header};
use self::servers::{HttpClient, http1, serve};

/// The authentication of the application: `Bearer workspace-..`.
fn auth(head: RequestHead<'_>) -> Option<Key> {
    let value = head.headers.get("authorization")?.to_str().ok()?;
    let workspace = value.strip_prefix("Bearer workspace-")?;
    Some(Key::id("workspace", workspace))
}

struct Api {
    address: SocketAddr,
    client: HttpClient,
    clock: TestClock,
    leases: Leases,
}

/// A server whose tenants may have three sessions.
async fn api() -> Api {
    api_with(Leases::new().per_tenant(3).ttl(60 * SECOND)).await
}

async fn api_with(leases: Leases) -> Api {
    let clock = TestClock::default();
    let leases = leases.store(MemoryStore::new().clock(clock.clone()));
    let app = Router::new().merge(sessions::router(leases.clone(), auth));
    Api {
        address: serve(app).await,
        client: http1(),
        clock,
        leases,
    }
}

impl Api {
    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        self.client.request(request).await.unwrap()
    }

    fn request(&self, path: &str, workspace: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        Request::post(format!("http://{}/session/{path}", self.address))
            .header("authorization", format!("Bearer workspace-{workspace}"))
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap()
    }

    /// The status and the JSON body, if there is one.
    async fn post(&self, path: &str, workspace: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let response = self.send(self.request(path, workspace, body)).await;
        let status = response.status().as_u16();
        assert_eq!(header(&response, "cache-control"), Some("no-store"));
        (status, json(response).await)
    }

    async fn start(&self, workspace: &str) -> Result<String, Value> {
        match self.post("start", workspace, "").await {
            (201, session) => Ok(session["session_id"].as_str().unwrap().to_owned()),
            (429, problem) => Err(problem),
            other => panic!("{other:?}"),
        }
    }

    async fn about(&self, path: &str, workspace: &str, id: &str) -> u16 {
        let body = serde_json::json!({ "session_id": id }).to_string();
        self.post(path, workspace, body).await.0
    }
}

async fn json(response: Response<Incoming>) -> Value {
    let content_type = header(&response, "content-type").map(str::to_owned);
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    if body.is_empty() {
        return Value::Null;
    }
    let value: Value = serde_json::from_slice(&body).unwrap();
    if status >= 400 {
        assert_eq!(content_type.as_deref(), Some("application/problem+json"));
        assert_eq!(value["status"], status);
    }
    value
}

#[tokio::test]
async fn a_session_from_start_to_end() {
    let api = api().await;
    let (status, session) = api.post("start", "a", "{}").await;
    assert_eq!(status, 201);
    assert_eq!(session["ttl_seconds"], 60.0);
    assert_eq!(session["heartbeat_interval_seconds"], 30.0);
    let id = session["session_id"].as_str().unwrap();
    assert_eq!(id.len(), 32);

    let body = serde_json::json!({ "session_id": id }).to_string();
    let (status, beat) = api.post("heartbeat", "a", body).await;
    assert_eq!((status, &beat["session_id"]), (200, &session["session_id"]));
    assert_eq!(api.about("end", "a", id).await, 204);
    assert_eq!(api.about("end", "a", id).await, 404, "a second time");
    assert_eq!(api.about("heartbeat", "a", id).await, 404);
}

#[tokio::test]
async fn a_start_over_quota_is_429_with_the_reason() {
    let api = api_with(Leases::new().per_tenant(1).total(2)).await;
    api.start("a").await.unwrap();
    let problem = api.start("a").await.unwrap_err();
    assert_eq!(problem["exceeded"], "tenant");
    assert_eq!(
        (&problem["usage"], &problem["limit"]),
        (&1.into(), &1.into())
    );
    let of_quota = "https://iana.org/assignments/http-problem-types#quota-exceeded";
    assert_eq!(problem["type"], of_quota);

    api.start("b").await.unwrap();
    let problem = api.start("c").await.unwrap_err();
    assert_eq!(problem["exceeded"], "total");
    assert_eq!(
        (&problem["usage"], &problem["limit"]),
        (&2.into(), &2.into())
    );

    let refused = api.send(api.request("start", "c", "")).await;
    assert_eq!(header(&refused, "retry-after"), None, "it is not known");
}

#[tokio::test]
async fn a_tenant_with_deny_all_is_answered_403() {
    let limits = Limits::new();
    let (eve, deny_all) = (
        "workspace:eve".parse().unwrap(),
        "deny all".parse().unwrap(),
    );
    limits.set(&eve, deny_all).await.unwrap();
    let api = api_with(Leases::new().per_tenant(1).limits(&limits)).await;
    let (status, problem) = api.post("start", "eve", "").await;
    assert_eq!((status, &problem["title"]), (403, &"Forbidden".into()));
    assert_eq!(
        problem["detail"],
        "Access denied: no requests are admitted for this client."
    );
    api.start("a").await.unwrap();
}

/// Scenarios of earlier systems, with a quota of 3.
#[tokio::test]
async fn sequential_sessions_never_reach_the_limit() {
    let api = api().await;
    for _ in 0..5 {
        let id = api.start("a").await.unwrap();
        assert_eq!(api.about("end", "a", &id).await, 204);
    }
    for _ in 0..3 {
        api.start("a").await.unwrap();
    }
    api.start("a").await.unwrap_err();
    api.start("b").await.expect("another workspace's own quota");
}

#[tokio::test]
async fn a_session_with_heartbeats_outlives_its_time_to_live() {
    let api = api().await;
    let ids = [
        api.start("a").await.unwrap(),
        api.start("a").await.unwrap(),
        api.start("a").await.unwrap(),
    ];
    for _ in 0..16 {
        api.clock.advance(30 * SECOND);
        for id in &ids {
            assert_eq!(api.about("heartbeat", "a", id).await, 200);
        }
        api.start("a").await.unwrap_err();
    }
    api.clock.advance(60 * SECOND);
    for _ in 0..3 {
        api.start("a").await.unwrap();
    }
    for id in &ids {
        assert_eq!(api.about("heartbeat", "a", id).await, 404, "expired");
    }
    api.start("a").await.unwrap_err();
}

#[tokio::test]
async fn ended_sessions_make_room_for_as_many_new_ones() {
    let api = api().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(api.start("a").await.unwrap());
    }
    for id in ids.drain(..2) {
        assert_eq!(api.about("end", "a", &id).await, 204);
    }
    for _ in 0..2 {
        api.start("a").await.unwrap();
    }
    api.start("a").await.unwrap_err();
}

#[tokio::test]
async fn unknown_ended_expired_and_foreign_sessions_get_the_same_answer() {
    let api = api().await;
    let theirs = api.start("b").await.unwrap();
    let ended = api.start("a").await.unwrap();
    assert_eq!(api.about("end", "a", &ended).await, 204);
    let expired = api.start("a").await.unwrap();
    api.clock.advance(40 * SECOND);
    assert_eq!(api.about("heartbeat", "b", &theirs).await, 200);
    api.clock.advance(40 * SECOND);

    let mut answers = Vec::new();
    for id in ["0", "", "' or 1=1", &ended, &expired, &theirs] {
        let body = serde_json::json!({ "session_id": id }).to_string();
        for path in ["heartbeat", "end"] {
            let (status, problem) = api.post(path, "a", body.clone()).await;
            assert_eq!(status, 404);
            answers.push(problem.to_string());
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(api.about("heartbeat", "b", &theirs).await, 200, "untouched");
}

#[tokio::test]
async fn a_request_without_a_tenant_is_rejected() {
    let api = api().await;
    let id = api.start("a").await.unwrap();
    for path in ["start", "heartbeat", "end"] {
        for credentials in [None, Some("Bearer nonsense"), Some("Basic YTpi")] {
            let body = serde_json::json!({ "session_id": id }).to_string();
            let mut request = api.request(path, "", body);
            request.headers_mut().remove("authorization");
            if let Some(credentials) = credentials {
                let value = credentials.parse().unwrap();
                request.headers_mut().insert("authorization", value);
            }
            let response = api.send(request).await;
            assert_eq!(response.status(), 401);
            assert!(header(&response, "www-authenticate").is_some());
            json(response).await;
        }
    }
    assert_eq!(api.about("heartbeat", "a", &id).await, 200);
}

#[tokio::test]
async fn invalid_requests_get_a_4xx() {
    let api = api().await;
    let id = api.start("a").await.unwrap();
    let good = serde_json::json!({ "session_id": id }).to_string();
    for path in ["heartbeat", "end"] {
        for junk in ["", "{", "[]", "null", "{}", "\u{0}", "[\"1\"]", "\"1\""] {
            assert_eq!(api.post(path, "a", junk).await.0, 400, "{junk:?}");
        }
        for id in [Value::Null, 1.into(), true.into(), Value::Array(vec![])] {
            let body = serde_json::json!({ "session_id": id }).to_string();
            assert_eq!(api.post(path, "a", body).await.0, 400);
        }
        let not_utf_8 = Bytes::from_static(b"{\"session_id\":\"\xff\"}");
        assert_eq!(api.post(path, "a", not_utf_8).await.0, 400);
        let long = serde_json::json!({ "session_id": "x".repeat(5000) }).to_string();
        assert_eq!(api.post(path, "a", long).await.0, 413);
        let nested = "[".repeat(4000);
        assert_eq!(api.post(path, "a", nested).await.0, 400);

        for content_type in ["text/plain", "", "application/jsonx", "text/json", "\u{fe}"] {
            let mut request = api.request(path, "a", good.clone());
            let value = http::HeaderValue::from_bytes(content_type.as_bytes()).unwrap();
            request.headers_mut().insert("content-type", value);
            assert_eq!(api.send(request).await.status(), 415, "{content_type}");
        }
        let mut request = api.request(path, "a", good.clone());
        *request.method_mut() = http::Method::GET;
        let answer = api.send(request).await;
        assert_eq!(answer.status(), 405);
        assert_eq!(header(&answer, "allow"), Some("POST"));
        assert_eq!(header(&answer, "cache-control"), Some("no-store"));
        assert_eq!(json(answer).await["title"], "Method Not Allowed");
    }
    for junk in ["[]", "1", "{\"a\":", "null"] {
        assert_eq!(api.post("start", "a", junk).await.0, 400, "{junk:?}");
    }
    assert_eq!(api.post("start", "a", "x".repeat(5000)).await.0, 413);

    let mut request = api.request("heartbeat", "a", good);
    let value = "Application/JSON ; charset=utf-8".parse().unwrap();
    request.headers_mut().insert("content-type", value);
    assert_eq!(api.send(request).await.status(), 200);
    let usage = api.leases.usage(&Key::id("workspace", "a")).await.unwrap();
    assert_eq!(usage.key, Some(1), "junk starts nothing");
}

#[tokio::test]
async fn an_unavailable_store_is_503_and_not_404() {
    for (mode, start) in [(FailureMode::Open, 201), (FailureMode::Closed, 503)] {
        let leases = Leases::new().per_tenant(1).store(Away(mode));
        let api = Api {
            address: serve(sessions::router(leases.clone(), auth)).await,
            client: http1(),
            clock: TestClock::default(),
            leases,
        };
        assert_eq!(api.post("start", "a", "").await.0, start);
        let body = serde_json::json!({ "session_id": "1" }).to_string();
        for path in ["heartbeat", "end"] {
            let response = api.send(api.request(path, "a", body.clone())).await;
            assert_eq!(response.status(), 503);
            assert_eq!(header(&response, "retry-after"), Some("1"));
        }
    }
}

/// A client that disconnects during a start leaves no session.
#[tokio::test]
async fn an_aborted_start_takes_no_slot() {
    use tokio::io::AsyncWriteExt;

    let api = api().await;
    let mut stream = tokio::net::TcpStream::connect(api.address).await.unwrap();
    let head = "POST /session/start HTTP/1.1\r\nhost: a\r\n\
                authorization: Bearer workspace-a\r\ncontent-length: 2\r\n\
                content-type: application/json\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    for _ in 0..3 {
        api.start("a").await.unwrap();
    }
    api.start("a").await.unwrap_err();
}
