//! Explanations: the limits of a key, the sources of their numbers, and the verdict.

use axum::Router;
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::{Layer, ServiceExt};
use tower_admission::store::MemoryStore;
use tower_admission::{
    AccessLayer, ClientIp, ConcurrencyLimitLayer, ConcurrencyLimiter, Key, Limits, Policy, Quota,
    RateLimitLayer, RateLimiter, RequestHead,
};
use tower_admission_axum::admin::{AdminRouter, Recorder, RequestGroup, Token};

use super::{Service, TOKEN, operator};

async fn explain(app: &Router, body: Value) -> (u16, Value) {
    let request = operator("POST", "/explain", &body.to_string());
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let json = serde_json::from_slice(&body).unwrap_or_default();
    (head.status.as_u16(), json)
}

#[tokio::test]
async fn a_key_is_explained_before_and_after_it_is_rejected() {
    let service = Service::new();
    let ask = async || {
        let body = json!({ "key": "org:acme" }).to_string();
        service.ask("POST", "/explain", &body).await.json
    };
    let usage = service.ask("GET", "/usage", "").await.json;
    let expected = json!({
        "replica": usage["replica"],
        "store": null,
        "key": "org:acme",
        "address": null,
        "limit": null,
        "listed": null,
        "scope": "all_paths",
        "limits": [
            { "name": "chat", "sort": "concurrency", "key": null, "limit": "10 concurrent",
              "source": "default", "tier": null, "used": 0, "counted_in": "this process",
              "verdict": "admitted", "remaining": 9 },
            { "name": "calls", "sort": "rate", "key": "org:acme", "limit": "2/h", "source": "default",
              "tier": null, "used": 0, "counted_in": "this process", "verdict": "admitted", "remaining": 1 },
        ],
        "address_limits": [],
        "now": { "verdict": "admitted", "limit": "calls", "remaining": 1 },
    });
    assert_eq!(ask().await, expected);
    assert!(service.calls("acme").await && service.calls("acme").await);
    let explained = ask().await;
    assert!(!service.calls("acme").await);
    // A request may pass either limit, or both.
    assert_eq!(explained["now"], Value::Null);
    let rejects = &explained["limits"][1];
    assert_eq!(rejects["verdict"], "rejected");
    assert_eq!(rejects["reason"], "quota_exceeded");
    let wait = rejects["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1_800_000).contains(&wait), "{wait}");
    assert_eq!(explained["limits"][1]["used"], 2);

    service.put("org:acme", "calls=5/h").await;
    let explained = ask().await;
    assert_eq!(explained["limit"], "calls=5/h");
    assert_eq!(explained["limits"][1]["source"], "override");
    assert_eq!(explained["now"]["remaining"], 2);
    assert!(service.calls("acme").await);
    // This service does not know the paths of any limit.
    let body = json!({ "key": "org:acme", "path": "/call" }).to_string();
    assert_eq!(service.ask("POST", "/explain", &body).await.status, 422);
}

/// A service whose `/api` has a rate per key, a rate per address, and permits.
struct Gateway {
    app: Router,
    limits: Limits,
    calls: RateLimiter,
    permits: ConcurrencyLimiter,
    /// The limits of other paths.
    _other: RateLimiter,
}

impl Gateway {
    fn new() -> Self {
        let limits = Limits::new().tier("pro", "calls=5/h");
        let user = |head: RequestHead<'_>| {
            let user = head.headers.get("user")?.to_str().ok()?;
            Some(Key::id("user", user))
        };
        let calls = RateLimitLayer::by(user, Policy::new("calls", Quota::per_hour(2)))
            .and_by(
                ClientIp::peer(),
                Policy::new("addresses", Quota::per_hour(3)),
            )
            .limits(&limits);
        let permits = ConcurrencyLimitLayer::new(9)
            .name("permits")
            .per_key(user, 1)
            .per_key(ClientIp::peer(), 2)
            .limits(&limits);
        let other = RateLimitLayer::by(user, Policy::new("other", Quota::per_hour(1)));
        let other = other.limits(&limits);
        let groups = |head: RequestHead<'_>| {
            let path = head.uri.path();
            let api = RequestGroup::new("api")
                .limit("calls")
                .limit("permits")
                .address_limit("addresses", 1)
                .address_limit("permits", 1)
                .enforce(if head.method == http::Method::PUT {
                    0
                } else {
                    100
                });
            let host = head.headers.get("host");
            match path.strip_prefix("/api") {
                _ if host.is_some_and(|host| host == "free.example") => Vec::new(),
                Some("/status") => vec![api.excluded(true)],
                Some(_) => vec![api],
                None => Vec::new(),
            }
        };
        let token = Token::new(TOKEN).unwrap();
        let admin = AdminRouter::new(&limits, &Recorder::new(), token)
            .groups(groups)
            .build();
        // The limiters are explained for as long as one clone exists.
        let (calls, permits) = (calls.limiter(), permits.limiter());
        Self {
            app: Router::new().nest("/admin", admin),
            _other: other.limiter(),
            limits,
            calls,
            permits,
        }
    }

    async fn names(&self, body: Value) -> Vec<String> {
        let (status, explained) = explain(&self.app, body).await;
        assert_eq!(status, 200, "{explained}");
        let limits = explained["limits"].as_array().unwrap().iter();
        let shown = limits.map(|limit| {
            let key = limit["key"].as_str().unwrap_or("all");
            let limits = limit["limit"].as_str().unwrap();
            format!("{} of {key}: {limits}", limit["name"].as_str().unwrap())
        });
        shown.collect()
    }
}

#[tokio::test]
async fn a_path_selects_the_limits_and_an_address_has_its_own() {
    let gateway = Gateway::new();
    let of_anna = [
        "calls of user:anna: 2/h",
        "permits of user:anna: 1 concurrent",
        "permits of all: 9 concurrent",
    ];
    let anna = |path: &str| json!({ "key": "user:anna", "path": path });
    assert_eq!(gateway.names(anna("/api/chat")).await, of_anna);
    let (_, explained) = explain(&gateway.app, anna("/api/chat")).await;
    let group = json!({ "name": "api", "enforce": 100, "is_excluded": false });
    assert_eq!(explained["groups"], json!([group]));
    assert_eq!(explained["address_limits"], json!(["addresses", "permits"]));
    assert_eq!(explained["limits"][0]["group"], "api");

    let mut with_address = anna("/api/chat");
    with_address["address"] = json!("192.0.2.1");
    let of_address = [
        "addresses of ip:192.0.2.1: 3/h",
        "permits of ip:192.0.2.1: 2 concurrent",
    ];
    let all: Vec<_> = of_anna.iter().chain(&of_address).collect();
    assert_eq!(
        gateway.names(with_address).await.iter().collect::<Vec<_>>(),
        all
    );
    // A request without a user is charged to its address at each place.
    let alone = gateway
        .names(json!({ "key": "ip:192.0.2.1", "path": "/api" }))
        .await;
    assert_eq!(
        alone,
        [
            "calls of ip:192.0.2.1: 2/h",
            "permits of ip:192.0.2.1: 1 concurrent",
            "permits of all: 9 concurrent",
            "addresses of ip:192.0.2.1: 3/h",
            "permits of ip:192.0.2.1: 2 concurrent",
        ]
    );

    for (body, groups) in [
        (
            anna("/api/status"),
            json!([{ "name": "api", "enforce": 100, "is_excluded": true }]),
        ),
        (anna("/other"), json!([])),
        (
            json!({ "key": "user:anna", "path": "/api", "host": "free.example" }),
            json!([]),
        ),
    ] {
        let (_, explained) = explain(&gateway.app, body).await;
        assert_eq!(explained["groups"], groups);
        assert_eq!(explained["limits"], json!([]));
        assert_eq!(explained["now"], json!({ "verdict": "admitted" }));
    }
}

#[tokio::test]
async fn a_request_gets_the_explained_verdict() {
    let gateway = Gateway::new();
    let anna = Key::id("user", "anna");
    let peer = Key::ip("192.0.2.1".parse().unwrap());
    let body = |method: &str| json!({ "key": "user:anna", "address": "192.0.2.1", "path": "/api", "method": method });
    let now = async |method: &str| {
        let (_, explained) = explain(&gateway.app, body(method)).await;
        let now = &explained["now"];
        let limit = now["limit"].as_str().unwrap().to_owned();
        (
            limit,
            now["reason"].as_str().map(str::to_owned),
            now["is_enforced"].as_bool(),
        )
    };
    for _ in 0..2 {
        assert_eq!(now("GET").await.1, None);
        assert!(
            gateway
                .calls
                .decide(&[anna, peer], 1)
                .now()
                .unwrap()
                .is_admitted()
        );
    }
    assert!(
        !gateway
            .calls
            .decide(&[anna, peer], 1)
            .now()
            .unwrap()
            .is_admitted()
    );
    let over = |limit: &str, reason: &str, enforced| {
        (limit.to_owned(), Some(reason.to_owned()), Some(enforced))
    };
    assert_eq!(now("GET").await, over("calls", "quota_exceeded", true));
    assert_eq!(now("PUT").await, over("calls", "quota_exceeded", false));
    // The layers acquire a permit before they charge a rate.
    let permit = gateway.permits.try_acquire_for_all(&[anna, peer]).unwrap();
    assert_eq!(now("GET").await, over("permits", "key_at_capacity", true));
    drop(permit);
    let deny = "deny all".parse().unwrap();
    gateway
        .limits
        .set(&"ip:192.0.2.1".parse().unwrap(), deny)
        .await
        .unwrap();
    assert_eq!(now("GET").await, over("permits", "denied", true));

    let tier = json!({ "key": "user:ben", "tier": "pro", "path": "/api" });
    let (_, explained) = explain(&gateway.app, tier).await;
    let calls = &explained["limits"][0];
    assert_eq!(
        (&calls["limit"], &calls["tier"]),
        (&json!("5/h"), &json!("pro"))
    );
    assert_eq!(calls["source"], "request_tier");
}

#[tokio::test]
async fn an_invalid_explain_request_is_an_error() {
    let gateway = Gateway::new();
    for (body, status) in [
        (json!({}), 400),
        (json!({ "key": 1 }), 400),
        (json!({ "key": "user:anna", "teir": "pro" }), 400),
        (json!({ "key": "anna" }), 422),
        (json!({ "key": "user:anna", "tier": "prro" }), 422),
        (json!({ "key": "user:anna", "method": "GET" }), 422),
        (json!({ "key": "user:anna", "path": "api" }), 422),
        (json!({ "key": "user:anna", "path": "/a b" }), 422),
        (
            json!({ "key": "user:anna", "path": "/api", "method": "G T" }),
            422,
        ),
        (
            json!({ "key": "user:anna", "path": "/api", "host": "\n" }),
            422,
        ),
        (json!({ "key": "user:anna", "address": "nowhere" }), 422),
        (json!({ "key": "user:anna", "address": "192.0.2.1" }), 422),
    ] {
        let (answered, answer) = explain(&gateway.app, body.clone()).await;
        assert_eq!(answered, status, "{body} {answer}");
    }
    let request = Request::post("/admin/explain").body(Body::empty()).unwrap();
    let response = gateway.app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 401);
}

/// Layers without a configuration: the lists of the router's own limits decide.
#[tokio::test]
async fn lists_of_layers_made_by_hand_are_explained() {
    let limits = Limits::new();
    let calls = RateLimiter::with_limits(
        Policy::new("calls", Quota::per_hour(2)),
        &MemoryStore::new(),
        &limits,
    );
    let token = Token::new(TOKEN).unwrap();
    let admin = AdminRouter::new(&limits, &Recorder::new(), token).build();
    let app = Router::new().nest("/admin", admin);
    for (key, limit) in [
        ("ip:203.0.113.0/24", "deny all"),
        ("user:eve", "deny all"),
        ("user:ben", "unlimited"),
    ] {
        limits
            .set(&key.parse().unwrap(), limit.parse().unwrap())
            .await
            .unwrap();
    }
    let now = async |key: &str| {
        let (status, explained) = explain(&app, json!({ "key": key })).await;
        assert_eq!(status, 200, "{explained}");
        let listed = explained["listed"]["key"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (
            listed,
            explained["now"]["verdict"].as_str().unwrap().to_owned(),
        )
    };
    let expected = |listed: &str, verdict: &str| (listed.to_owned(), verdict.to_owned());
    // No layer looks up lists.
    assert_eq!(now("ip:203.0.113.7").await, expected("", "admitted"));
    let service = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
    });
    let _addresses = AccessLayer::new(&limits).layer(service);
    assert_eq!(
        now("ip:203.0.113.7").await,
        expected("ip:203.0.113.0/24", "rejected")
    );
    // The layer looks up addresses only, so the limit of this key decides.
    assert_eq!(now("user:eve").await, expected("", "rejected"));
    let user = |_: RequestHead<'_>| Some(Key::id("user", "anna"));
    let _keys = AccessLayer::new(&limits).key(user).layer(service);
    assert_eq!(now("user:eve").await, expected("user:eve", "rejected"));
    assert_eq!(now("user:ben").await, expected("user:ben", "admitted"));
    drop(calls);
}
