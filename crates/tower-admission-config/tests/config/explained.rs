//! What `POST /explain` says of a client that is on a list, or is guarded against, is what its next request gets.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::ServiceExt;
use tower_admission::{KeyName, Override, PeerAddr};
use tower_admission_axum::admin::Recorder;
use tower_admission_config::Admission;

use super::config;

const TOKEN: &str = "the-token-of-anna";

struct Service {
    admission: Admission,
    app: Router,
    admin: Router,
    /// Ends requests for `/api/wait`.
    end: Arc<Notify>,
}

/// A client that asks for a path.
#[derive(Clone, Copy, Debug)]
struct Client {
    token: Option<&'static str>,
    ip: &'static str,
    path: &'static str,
}

const fn client(token: Option<&'static str>, ip: &'static str, path: &'static str) -> Client {
    Client { token, ip, path }
}

impl Service {
    fn new(text: &str) -> Self {
        let text = format!("{text}\n[admin]\ntoken = '{TOKEN}'");
        let admission = Admission::new(&config(&text)).unwrap();
        let end = Arc::new(Notify::new());
        let ended = end.clone();
        let app = Router::new()
            .route("/{*path}", any(|| async { "ok" }))
            .route("/api/login", any(|| async { StatusCode::UNAUTHORIZED }))
            .route("/api/wait", any(async move || ended.notified().await))
            .layer(admission.layer());
        Self {
            admin: admission.admin(&Recorder::new()).build(),
            admission,
            app,
            end,
        }
    }

    async fn set(&self, key: &str, limit: &str) {
        let key: KeyName = key.parse().unwrap();
        let limits = self.admission.limits();
        limits.set(&key, limit.parse().unwrap()).await.unwrap();
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .body(Body::from(body.to_owned()));
        let response = self.admin.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await;
        (status, serde_json::from_slice(&body.unwrap()).unwrap())
    }

    async fn explain(&self, body: Value) -> Value {
        let (status, explained) = self.ask("POST", "/explain", &body.to_string()).await;
        assert_eq!(status, 200, "{explained}");
        explained
    }

    fn request(client: Client) -> Request<Body> {
        let address: IpAddr = client.ip.parse().unwrap();
        let peer = PeerAddr(SocketAddr::new(address, 1));
        let mut request = Request::get(client.path).extension(peer);
        if let Some(token) = client.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Body::empty()).unwrap()
    }

    /// What is explained of a client, of which its next request gets the same.
    async fn agree(&self, client: Client) -> Value {
        let mut body = json!({ "path": client.path });
        match client.token {
            Some(token) => {
                body["key"] = json!(format!("bearer:{token}"));
                body["address"] = json!(client.ip);
            }
            None => body["key"] = json!(format!("ip:{}", client.ip)),
        }
        let explained = self.explain(body).await;
        let response = self.app.clone().oneshot(Self::request(client)).await;
        let response = response.unwrap();
        let now = &explained["now"];
        let reason = now["reason"].as_str();
        let status = match reason.filter(|_| now["is_enforced"] != false) {
            None => 200,
            Some("banned" | "denied") => 403,
            Some("at_capacity") => 503,
            Some(_) => 429,
        };
        assert_eq!(response.status(), status, "{client:?} {explained}");
        if status != 200 {
            let explained = now["retry_after_ms"].as_u64().map(|ms| ms.div_ceil(1000));
            let told = response.headers().get("retry-after");
            let told = told.map(|told| told.to_str().unwrap().parse::<u64>().unwrap());
            assert_eq!(explained.is_some(), told.is_some(), "{client:?} {now}");
            // Time passes between the two.
            let apart = explained.unwrap_or(0).abs_diff(told.unwrap_or(0));
            assert!(apart < 60, "{client:?} {now}");
        }
        explained
    }
}

fn listed(key: &str, list: &str, source: &str) -> Value {
    json!({ "key": key, "list": list, "source": source })
}

#[tokio::test]
async fn a_banned_client_is_explained_as_banned() {
    let service = Service::new(
        "[lists]
        deny = ['ip:203.0.113.0/24', 'bearer:stolen', 'ip:192.0.2.7']
        allow = 'ip:203.0.113.7'
        [limits]
        'ip:192.0.2.8' = 'deny all'
        [groups.api]
        path = '/api'
        exclude = '/api/status'
        rate = '9/h'",
    );
    service.set("ip:198.51.100.0/24", "deny all").await;
    service.set("bearer:eve", "deny all").await;
    service.set("ip:2001:db8::7/128", "deny all").await;
    service.set("ip:192.0.2.9", "1/s").await;
    for path in ["/api/chat", "/api/status", "/other"] {
        for (token, ip, key, source) in [
            (Some("a"), "203.0.113.9", "ip:203.0.113.0/24", "file"),
            (None, "203.0.113.9", "ip:203.0.113.0/24", "file"),
            (Some("a"), "192.0.2.7", "ip:192.0.2.7", "file"),
            (Some("a"), "192.0.2.8", "ip:192.0.2.8", "file"),
            (Some("a"), "198.51.100.1", "ip:198.51.100.0/24", "override"),
            (None, "198.51.100.1", "ip:198.51.100.0/24", "override"),
            (Some("a"), "2001:db8::7", "ip:2001:db8::7/128", "override"),
            (None, "2001:db8::7", "ip:2001:db8::7/128", "override"),
            // By a relay, whose client has the address inside.
            (None, "2002:c633:6401::1", "ip:198.51.100.0/24", "override"),
            (None, "::ffff:203.0.113.9", "ip:203.0.113.0/24", "file"),
        ] {
            let explained = service.agree(client(token, ip, path)).await;
            assert_eq!(explained["now"]["reason"], "banned", "{ip} {explained}");
            assert_eq!(explained["listed"], listed(key, "deny", source), "{ip}");
            let limits = explained["limits"].as_array().unwrap().iter();
            let is_skipped = |limit: &Value| limit["is_skipped"] == true;
            assert!(limits.into_iter().all(is_skipped), "{explained}");
        }
        for (token, source) in [("stolen", "file"), ("eve", "override")] {
            let explained = service.agree(client(Some(token), "192.0.2.1", path)).await;
            assert_eq!(explained["listed"]["source"], source);
            assert_eq!(explained["now"]["reason"], "banned");
        }
        for (token, ip) in [
            (Some("a"), "192.0.2.1"),
            (Some("a"), "192.0.2.9"),
            (None, "2001:db8::8"),
            (Some("a"), "203.0.113.7"),
        ] {
            let explained = service.agree(client(token, ip, path)).await;
            assert_eq!(explained["now"]["verdict"], "admitted", "{ip}");
        }
    }
}

#[tokio::test]
async fn the_end_of_a_ban_is_its_retry_after() {
    let service = Service::new("[groups.api]\npath = '/api'\nrate = '9/h'");
    let until = std::time::UNIX_EPOCH + std::time::Duration::from_secs(7_000_000_000);
    let ban = Override::new("deny all".parse().unwrap()).with_end(until);
    let key = "ip:203.0.113.0/24".parse().unwrap();
    let edit = service.admission.limits().edit(&key);
    edit.set(ban).await.unwrap();
    let explained = service.explain(json!({ "key": "ip:203.0.113.7" })).await;
    assert_eq!(explained["listed"]["end"], 7_000_000_000_u64);
    // A ban needs no path.
    assert_eq!(explained["now"]["reason"], "banned");
    assert!(explained["now"]["retry_after_ms"].as_u64() > Some(1_000_000_000));
    let usage = service.ask("GET", "/usage/ip:203.0.113.7", "").await.1;
    assert_eq!(usage["listed"], explained["listed"]);
    let body = json!({ "key": "ip:203.0.113.7" }).to_string();
    let resolved = service.ask("POST", "/keys/resolve", &body).await.1;
    assert_eq!(resolved["keys"][0]["listed"], explained["listed"]);
    let body = json!({ "key": "ip:203.0.112.7" }).to_string();
    let resolved = service.ask("POST", "/keys/resolve", &body).await.1;
    assert_eq!(resolved["keys"][0]["listed"], Value::Null);
}

/// Of two bans of one network, that of the file and that of run time, the client waits for both.
#[tokio::test]
async fn the_ban_that_ends_last_is_reported() {
    let service = Service::new("[lists]\ndeny = 'ip:203.0.113.0/24 until 2126-01-01T00:00:00Z'");
    let banned = client(None, "203.0.113.7", "/api");
    let explained = service.agree(banned).await;
    assert!(explained["now"]["retry_after_ms"].is_u64(), "{explained}");
    service.set("ip:203.0.113.0/24", "deny all").await;
    let explained = service.agree(banned).await;
    assert_eq!(
        explained["listed"],
        listed("ip:203.0.113.0/24", "deny", "override")
    );
    assert_eq!(explained["now"]["retry_after_ms"], Value::Null);
}

#[tokio::test]
async fn an_exempt_client_is_explained_as_exempt() {
    let service = Service::new(
        "[lists]
        allow = ['bearer:probe', 'ip:203.0.113.0/24']
        [groups.api]
        path = '/api'
        rate = '1/h'
        rate_per_ip = '2/h'
        concurrency = 1
        concurrency_per_key = 1",
    );
    for _ in 0..2 {
        service.agree(client(Some("a"), "192.0.2.1", "/api")).await;
        service.agree(client(None, "192.0.2.1", "/api")).await;
    }
    let over = service.agree(client(Some("b"), "192.0.2.1", "/api")).await;
    assert_eq!(over["now"]["limit"], "api.ip");
    let probe = client(Some("probe"), "192.0.2.1", "/api");
    for _ in 0..3 {
        let exempt = service.agree(probe).await;
        assert_eq!(exempt["now"]["verdict"], "admitted");
        let name = &exempt["listed"]["key"];
        assert!(name.as_str().unwrap().starts_with("bearer#"), "{name}");
        let near = service.agree(client(Some("a"), "203.0.113.9", "/api"));
        assert_eq!(
            near.await["listed"],
            listed("ip:203.0.113.0/24", "allow", "file")
        );
    }
    // The capacity of the service counts an exempt request as well.
    let waiting = Service::request(client(Some("c"), "192.0.2.3", "/api/wait"));
    let mut waiting = Box::pin(service.app.clone().oneshot(waiting));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    let full = service.agree(probe).await;
    assert_eq!(full["now"]["reason"], "at_capacity");
    service.end.notify_one();
    drop(waiting.await.unwrap());
    assert_eq!(service.agree(probe).await["now"]["verdict"], "admitted");
}

#[tokio::test]
async fn the_guard_is_explained_for_an_address() {
    let service = Service::new(
        "[groups.api]
        path = '/api'
        rate = '99/h'
        bad_credentials_per_ip = '2/h'
        [groups.tried]
        path = '/tried'
        dry_run = true
        rate = '99/h'
        bad_credentials_per_ip = '2/h'",
    );
    let asked = client(Some("a"), "192.0.2.1", "/api");
    let guessing = || Service::request(client(Some("guess"), "192.0.2.1", "/api/login"));
    for used in 0..2 {
        let explained = service.agree(asked).await;
        let limits = explained["limits"].as_array().unwrap();
        let guard = limits.iter().find(|limit| limit["sort"] == "guard");
        assert_eq!(guard.unwrap()["used"], used);
        let _ = service.app.clone().oneshot(guessing()).await.unwrap();
    }
    let guarded = service.agree(asked).await;
    assert_eq!(guarded["now"]["limit"], "guard");
    assert_eq!(guarded["now"]["reason"], "abnormal_usage");
    // A request without a credential is not guarded against.
    let without = service.agree(client(None, "192.0.2.1", "/api")).await;
    assert_eq!(without["now"]["verdict"], "admitted");
    let other = service.agree(client(Some("a"), "192.0.2.2", "/api")).await;
    assert_eq!(other["now"]["verdict"], "admitted");
    let key = json!({ "key": "bearer:a", "path": "/api" });
    assert_eq!(
        service.explain(key).await["address_limits"],
        json!(["guard"])
    );
    // It counts for each group.
    let tried = service
        .agree(client(Some("a"), "192.0.2.1", "/tried"))
        .await;
    assert_eq!(tried["now"]["verdict"], "admitted");
}

#[tokio::test]
async fn lists_that_are_switched_off_decide_nothing() {
    let text = |enabled: bool| {
        format!(
            "[lists]
            enabled = {enabled}
            deny = 'ip:198.51.100.0/24'
            [groups.api]
            path = '/api'
            rate = '9/h'"
        )
    };
    let service = Service::new(&text(false));
    service.set("ip:203.0.113.0/24", "deny all").await;
    let put = async || {
        let body = json!({ "limit": "deny all" }).to_string();
        let put = service.ask("PUT", "/limits/ip:192.0.2.0%2F24", &body);
        put.await.0
    };
    for enabled in [false, true, false, true] {
        let text = format!("{}\n[admin]\ntoken = '{TOKEN}'", text(enabled));
        service.admission.reload(&config(&text)).unwrap();
        for ip in ["203.0.113.7", "198.51.100.7"] {
            let explained = service.agree(client(None, ip, "/api")).await;
            assert_eq!(explained["listed"].is_object(), enabled, "{ip}");
        }
        assert_eq!(put().await, if enabled { 200 } else { 422 });
    }
}

#[tokio::test]
async fn an_address_is_charged_as_the_file_says() {
    let service = Service::new(
        "[clients]
        ipv6_prefix = 56
        [groups.api]
        path = '/api'
        rate_per_ip = '2/h'",
    );
    for ip in ["2001:db8:0:1::7", "2001:db8:0:2::7", "2001:db8:0:3::7"] {
        service.agree(client(Some("a"), ip, "/api")).await;
        service.agree(client(None, ip, "/api")).await;
    }
    let other = service.agree(client(None, "2001:db8:1::7", "/api")).await;
    assert_eq!(other["key"], "ip:2001:db8:1::/56");
    assert_eq!(other["now"]["verdict"], "admitted");
}

#[tokio::test]
async fn an_enforced_limit_goes_before_one_that_is_tried() {
    let service = Service::new(
        "[groups.api]
        path = '/api'
        rate = '1/day'
        dry_run = true
        also = 'global'
        [groups.global]
        path = 'off'
        rate = '2/h'",
    );
    let asked = client(Some("a"), "192.0.2.1", "/api");
    for _ in 0..2 {
        service.agree(asked).await;
    }
    let rejected = service.agree(asked).await;
    assert_eq!(rejected["now"]["limit"], "global");
    assert_eq!(rejected["now"]["is_enforced"], true);
}

#[tokio::test]
async fn without_a_path_there_is_no_verdict_over_all_groups() {
    let service = Service::new(
        "[groups.api]\npath = '/api'\nrate = '1/h'\n[groups.other]\npath = '/other'\nrate = '9/h'",
    );
    service.agree(client(Some("a"), "192.0.2.1", "/api")).await;
    let explained = service.explain(json!({ "key": "bearer:a" })).await;
    assert_eq!(explained["scope"], "all_paths");
    assert_eq!(explained["now"], Value::Null);
    assert_eq!(explained["limits"].as_array().unwrap().len(), 2);
    let explained = service
        .explain(json!({ "key": "bearer:a", "path": "/api" }))
        .await;
    assert_eq!(explained["scope"], "path");
    assert_eq!(explained["now"]["verdict"], "rejected");
    assert_eq!(explained["address_limits"], json!([]));
    // An address without a path is looked up on the lists.
    service.set("ip:203.0.113.0/24", "deny all").await;
    let explained = service.explain(json!({ "key": "bearer:a" })).await;
    assert_eq!(explained["address_limits"], json!(["lists"]));
    let body = json!({ "key": "bearer:a", "address": "203.0.113.7" });
    assert_eq!(service.explain(body).await["now"]["reason"], "banned");
}

#[tokio::test]
async fn a_service_without_lists_takes_no_network() {
    let text = format!("[groups.api]\npath = '/api'\nrate = '1/h'\n[admin]\ntoken = '{TOKEN}'");
    let admission = Admission::new(&config(&text)).unwrap();
    let service = Service {
        admin: admission.admin(&Recorder::new()).build(),
        app: Router::new(),
        end: Arc::default(),
        admission,
    };
    let ban = json!({ "limit": "deny all" }).to_string();
    let put = async |path: &str| service.ask("PUT", path, &ban).await;
    let network = "/limits/ip:203.0.113.0%2F24";
    let (status, answer) = put(network).await;
    assert_eq!(status, 422);
    let detail = answer["detail"].as_str().unwrap();
    assert!(detail.contains("a network has no effect"), "{detail}");
    assert!(service.admission.limits().is_empty());
    // An address may be charged.
    assert_eq!(put("/limits/ip:203.0.113.7").await.0, 200);
    // Without lists an address says nothing where no path is known.
    let body = json!({ "key": "bearer:a", "address": "203.0.113.7" }).to_string();
    let (status, answer) = service.ask("POST", "/explain", &body).await;
    assert_eq!(status, 422, "{answer}");
    let body = json!({ "key": "ip:203.0.113.7" }).to_string();
    let explained = service.ask("POST", "/explain", &body).await.1;
    assert_eq!(explained["listed"], Value::Null);

    let _layer = service.admission.layer();
    assert_eq!(put(network).await.0, 200);
    let explained = service.ask("POST", "/explain", &body).await.1;
    assert_eq!(explained["listed"]["list"], "deny");
}
