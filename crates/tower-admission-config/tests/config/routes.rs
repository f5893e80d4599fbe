//! Which requests are under which limits.

use axum::Router;
use axum::body::Body;
use axum::routing::{any, get};
use http::{Request, Response, StatusCode};
use tower::ServiceExt;
use tower_admission::{Key, PeerAddr};
use tower_admission_config::{Admission, Config};

fn admission(text: &str) -> Admission {
    super::agree();
    Admission::new(&Config::from_toml(text).unwrap()).unwrap()
}

async fn send(app: &Router, path: &str, token: &str) -> Response<Body> {
    let peer: std::net::SocketAddr = "192.0.2.1:1".parse().unwrap();
    let request = Request::get(path)
        .header("authorization", format!("Bearer {token}"))
        .extension(PeerAddr(peer))
        .body(Body::empty());
    app.clone().oneshot(request.unwrap()).await.unwrap()
}

/// How many of ten are admitted.
async fn admitted(app: &Router, path: &str, token: &str) -> usize {
    let mut admitted = 0;
    for _ in 0..10 {
        let status = send(app, path, token).await.status();
        admitted += usize::from(status == StatusCode::OK);
    }
    admitted
}

fn everywhere() -> Router {
    Router::new().route("/{*path}", any(|| async { "ok" }))
}

#[tokio::test]
async fn the_longest_path_decides() {
    let admission = admission(
        r#"
        [groups.api]
        path = "/api"
        rate = "3/h"
        exclude = ["/api/health"]

        [groups.batch]
        path = ["/api/batch", "/grpc.Batch"]
        rate = "1/h"

        [groups.by_name_only]
        rate = "2/h"
        "#,
    );
    let app = everywhere().layer(admission.layer());
    assert_eq!(admitted(&app, "/api/batch/x", "alice").await, 1);
    assert_eq!(admitted(&app, "/grpc.Batch/Run", "alice").await, 0);
    assert_eq!(admitted(&app, "/api/chat", "alice").await, 3);
    assert_eq!(admitted(&app, "/api/batches", "bob").await, 3);
    assert_eq!(admitted(&app, "/api/health", "alice").await, 10);
    assert_eq!(admitted(&app, "/api/health/deep", "alice").await, 10);
    assert_eq!(admitted(&app, "/apis", "alice").await, 10);
    let excluded = send(&app, "/api/health", "alice").await;
    assert!(!excluded.headers().contains_key("ratelimit"));

    // By name: one budget with others of the name, whatever the path.
    let parts = Router::new()
        .merge(
            Router::new()
                .route("/one", get(|| async {}))
                .layer(admission.layer_of("by_name_only").unwrap()),
        )
        .merge(
            Router::new()
                .route("/two", get(|| async {}))
                .layer(admission.layer_of("by_name_only").unwrap()),
        );
    assert_eq!(admitted(&parts, "/one", "alice").await, 2);
    assert_eq!(admitted(&parts, "/two", "alice").await, 0);
    assert_eq!(admitted(&parts, "/two", "bob").await, 2);
}

#[tokio::test]
async fn settings_are_those_of_the_layers() {
    let admission = admission(
        r#"
        [clients]
        trusted_proxies = ["192.0.2.0/24"]

        [groups.several]
        path = "/several"
        rates = { burst = "5/h", daily = "9/day" }
        rate_per_ip = "7/h"

        [groups.legacy]
        path = "/legacy"
        rate = "5/h"
        headers = "legacy"
        retry_after_ms = true
        key = "ip"

        [groups.six]
        path = "/six"
        rate = "5/h"
        headers = "draft-6"

        [groups.epoch]
        path = "/epoch"
        rate = "5/h"
        headers = "legacy-epoch"

        [groups.dry]
        path = "/dry"
        rate = "5/h"
        dry_run = true
        headers = "off"

        [groups.full]
        path = "/full"
        name = "AI Bridge"
        concurrency = 1
        retry_after_ms = true

        [groups.login]
        path = "/login"
        bad_credentials_per_ip = "2/h"
        "#,
    );
    let app = Router::new()
        .route("/login", get(|| async { StatusCode::UNAUTHORIZED }))
        .route("/{*path}", any(|| async { "ok" }))
        .layer(admission.layer());
    let told = send(&app, "/several", "alice").await;
    let policy = told.headers()["ratelimit-policy"].to_str().unwrap();
    assert_eq!(
        policy,
        "\"several.burst\";q=5;w=3600, \"several.daily\";q=9;w=86400, \"several.ip\";q=7;w=3600"
    );
    assert_eq!(admitted(&app, "/several", "alice").await, 4);
    // The address has two left.
    assert_eq!(admitted(&app, "/several", "bob").await, 2);
    assert_eq!(admitted(&app, "/legacy", "alice").await, 5);
    assert_eq!(admitted(&app, "/legacy", "bob").await, 0);
    let told = send(&app, "/legacy", "alice").await;
    assert_eq!(told.headers()["x-ratelimit-limit"], "5");
    let number = |name: &str| -> u64 { told.headers()[name].to_str().unwrap().parse().unwrap() };
    assert_eq!(
        number("retry-after-ms").div_ceil(1000),
        number("retry-after")
    );
    let told = send(&app, "/six", "alice").await;
    assert_eq!(told.headers()["ratelimit-limit"], "5");
    assert_eq!(told.headers()["ratelimit-policy"], "5;w=3600");
    let told = send(&app, "/epoch", "alice").await;
    let reset = told.headers()["x-ratelimit-reset"].to_str().unwrap();
    assert!(reset.parse::<u64>().unwrap() > 1_700_000_000);
    assert_eq!(admitted(&app, "/dry", "alice").await, 10);

    let held = send(&app, "/full", "alice").await;
    let rejected = send(&app, "/full", "bob").await;
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rejected.headers()["retry-after-ms"], "1000");
    let body = axum::body::to_bytes(rejected.into_body(), 1000)
        .await
        .unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(
        body.contains("AI Bridge is currently at capacity."),
        "{body}"
    );
    drop(held);
    assert_eq!(send(&app, "/full", "bob").await.status(), StatusCode::OK);

    for expected in [401, 401, 429] {
        assert_eq!(send(&app, "/login", "guess").await.status(), expected);
    }
}

#[tokio::test]
async fn single_keys_have_overrides() {
    let admission = admission("[groups.api]\npath = '/api'\nrate = '2/h'\nconcurrency = 9");
    let app = everywhere().layer(admission.layer());
    let limits = admission.limits();
    let alice = Key::new("bearer", b"alice").into();
    limits
        .set(&alice, "api=4/h".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(admitted(&app, "/api/x", "alice").await, 4);
    assert_eq!(admitted(&app, "/api/x", "bob").await, 2);
    let usage = limits.usage(&alice).await;
    let used: Vec<_> = usage
        .iter()
        .map(|usage| (&*usage.name, usage.used))
        .collect();
    assert_eq!(used, [("api", 4)]);
    let totals = limits.totals().await;
    assert_eq!((&*totals[0].name, totals[0].limit), ("api", Some(9)));
}
