//! The layers on a real axum server.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get as route;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_admission::test_util::TestClock;
use tower_admission::{
    Capacity, ClientIp, ConcurrencyLimitLayer, Key, Policy, Quota, RateLimitByTokenLayer,
    RateLimitLayer, RateLimitStatus,
};
use tower_http::compression::CompressionLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

use crate::common::{Frames, PATIENCE, Seen, header, retry_after, store, streamed, text};
use crate::servers::{get, http1, http2, serve};

/// A handler that streams the frames of the test.
fn streaming() -> (Frames, axum::routing::MethodRouter) {
    let (frames, body) = streamed();
    let body = Arc::new(Mutex::new(Some(body)));
    let handler = route(move || async move { Body::new(body.lock().unwrap().take().unwrap()) });
    (frames, handler)
}

#[tokio::test]
async fn both_limits_work_over_http_1_and_2() {
    for client in [http1(), http2()] {
        let app = Router::new()
            .route("/", route(|| async { "hello" }))
            .layer(RateLimitByTokenLayer::new(Quota::per_hour(2)))
            .layer(ConcurrencyLimitLayer::new(1));
        let address = serve(app).await;
        for expected in [200, 200, 429, 429] {
            let response = get(&client, address, "/", "abc").await;
            assert_eq!(response.status(), expected);
            assert!(header(&response, "ratelimit").is_some());
            assert_eq!(retry_after(&response).is_some(), expected == 429);
            text(response).await;
        }
        let response = get(&client, address, "/", "other").await;
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await, "hello");
    }
}

/// The layers of the README's first snippet, with a stopped clock, so that the address regains no
/// quota while the requests are sent.
#[tokio::test]
async fn the_first_snippet_withstands_made_up_tokens() {
    let clock = TestClock::default();
    let limits = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(64).name("AI Bridge"))
        .layer(
            RateLimitByTokenLayer::new(Quota::per_second(10).burst(20))
                .and_by(ClientIp::peer(), Quota::per_second(50))
                .store(store(&clock)),
        );
    let app = Router::new()
        .route("/api/chat", route(|| async { "hello" }))
        .layer(limits);
    let address = serve(app).await;
    let client = http1();
    let mut admitted = 0;
    for number in 0..200 {
        let token = format!("made-up-{number}");
        let response = get(&client, address, "/api/chat", &token).await;
        assert!([200, 429].contains(&response.status().as_u16()));
        admitted += usize::from(response.status() == 200);
        text(response).await;
    }
    assert_eq!(admitted, 50);
}

#[tokio::test]
async fn a_limit_of_one_applies_to_all_routes_together() {
    let (frames, slow) = streaming();
    let layer = ConcurrencyLimitLayer::new(1).name("AI Bridge");
    let nested = Router::new()
        .route("/c", route(|| async { "c" }))
        .layer(layer.clone());
    let app = Router::new()
        .route("/slow", slow)
        .route("/a", route(|| async { "a" }))
        .route("/b", route(|| async { "b" }))
        .layer(layer)
        .merge(nested)
        .route("/open", route(|| async { "open" }));
    let address = serve(app).await;
    let client = http1();
    let slow = get(&client, address, "/slow", "t").await;
    assert_eq!(slow.status(), 200);
    for path in ["/a", "/b", "/c"] {
        let refused = get(&client, address, path, "t").await;
        assert_eq!(refused.status(), 503);
        let problem: serde_json::Value = serde_json::from_str(&text(refused).await).unwrap();
        assert_eq!(
            problem["detail"],
            "AI Bridge is currently at capacity. Please try again later."
        );
    }
    assert_eq!(get(&client, address, "/open", "t").await.status(), 200);
    drop(frames);
    assert_eq!(text(slow).await, "");
    for path in ["/a", "/b", "/c"] {
        assert_eq!(get(&client, address, path, "t").await.status(), 200);
    }
}

#[tokio::test]
async fn a_client_that_disconnects_midway_frees_its_permit() {
    for http2_only in [false, true] {
        let (seen, mut released) = Seen::new();
        let layer = ConcurrencyLimitLayer::new(1).observe(seen);
        let (frames, handler) = streaming();
        let address = serve(Router::new().route("/", handler).layer(layer.clone())).await;
        let client = if http2_only { http2() } else { http1() };
        let mut response = get(&client, address, "/", "t").await;
        frames.send("some");
        let some = response.frame().await.unwrap().unwrap();
        assert_eq!(some.into_data().unwrap(), "some");
        assert_eq!(layer.limiter().in_flight(), 1);
        drop((response, client));
        released.one().await;
        assert_eq!(layer.limiter().in_flight(), 0);
    }
}

#[tokio::test]
async fn a_client_that_disconnects_before_the_response_frees_its_permit() {
    let (seen, mut released) = Seen::new();
    let (entered, mut handling) = tokio::sync::mpsc::unbounded_channel();
    let layer = ConcurrencyLimitLayer::new(1).observe(seen);
    let handler = move || {
        entered.send(()).unwrap();
        std::future::pending::<&'static str>()
    };
    let address = serve(
        Router::new()
            .route("/", route(handler))
            .layer(layer.clone()),
    )
    .await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let entered = tokio::time::timeout(PATIENCE, handling.recv()).await;
    entered.unwrap().unwrap();
    assert_eq!(layer.limiter().in_flight(), 1);
    drop(stream);
    released.one().await;
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn an_idle_connection_holds_no_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let app = Router::new()
        .route("/", route(|| async { "hello" }))
        .layer(layer.clone());
    let address = serve(app).await;
    let mut idle = Vec::new();
    for _ in 0..5 {
        // Served once each and kept alive.
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut response = Vec::new();
        let whole = async {
            while !response.ends_with(b"hello") {
                assert_ne!(stream.read_buf(&mut response).await.unwrap(), 0);
            }
        };
        tokio::time::timeout(PATIENCE, whole).await.unwrap();
        assert!(response.starts_with(b"HTTP/1.1 200"));
        idle.push(stream);
        assert_eq!(layer.limiter().in_flight(), 0);
    }
}

#[tokio::test]
async fn head_requests_release_their_permit() {
    let (seen, mut released) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(1).observe(seen);
    // Answers HEAD with a body that never ends, as a careless handler does.
    let (_frames, body) = streamed();
    let body = Mutex::new(Some(body));
    let handler = move || {
        let body = body.lock().unwrap().take().unwrap();
        async move { Body::new(body) }
    };
    let handler = Arc::new(handler);
    let any = axum::routing::any(move || handler());
    let address = serve(Router::new().route("/", any).layer(layer.clone())).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    released.one().await;
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn the_peers_address_is_charged() {
    let layer = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(5));
    let app = Router::new()
        .route("/", route(|| async {}))
        .layer(layer.clone());
    let address = serve(app).await;
    get(&http1(), address, "/", "t").await;
    let local = Key::ip([127, 0, 0, 1].into());
    assert_eq!(
        layer.limiter().peek(&local).now().unwrap().remaining(),
        Some(4)
    );
}

#[tokio::test]
async fn a_rejection_at_capacity_spends_no_quota() {
    let full = ConcurrencyLimitLayer::deny_all();
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(1));
    let app = Router::new()
        .route("/", route(|| async {}))
        .layer(rate)
        .layer(full.clone());
    let address = serve(app).await;
    let client = http1();
    for _ in 0..3 {
        assert_eq!(get(&client, address, "/", "t").await.status(), 503);
    }
    full.limiter().set_limit(Capacity::Unlimited);
    assert_eq!(get(&client, address, "/", "t").await.status(), 200);
    assert_eq!(get(&client, address, "/", "t").await.status(), 429);
}

#[tokio::test]
async fn the_status_is_an_extractor() {
    let handler = |status: RateLimitStatus| async move {
        let told = status
            .usages()
            .map(|(name, usage)| format!("{name} {}", usage.remaining()));
        told.collect::<Vec<_>>().join(", ")
    };
    let policy = Policy::new("hour", Quota::per_hour(9)).and("day", Quota::per_day(99));
    let limited = Router::new()
        .route("/", route(handler))
        .layer(RateLimitByTokenLayer::new(policy));
    let app = limited.route("/none", route(handler));
    let address = serve(app).await;
    let client = http1();
    assert_eq!(
        text(get(&client, address, "/", "t").await).await,
        "hour 8, day 98"
    );
    assert_eq!(get(&client, address, "/none", "t").await.status(), 500);
}

#[tokio::test]
async fn the_layers_work_next_to_tower_http_in_either_order() {
    let rate = || RateLimitByTokenLayer::new(Quota::per_hour(2));
    let full = || ConcurrencyLimitLayer::new(9);
    let timeout =
        || TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(60));
    let hello = || Router::new().route("/", route(|| async { "hello".repeat(100) }));
    let inside = hello()
        .layer(rate())
        .layer(full())
        .layer(CompressionLayer::new())
        .layer(timeout())
        .layer(TraceLayer::new_for_http());
    let outside = hello()
        .layer(TraceLayer::new_for_http())
        .layer(timeout())
        .layer(CompressionLayer::new())
        .layer(full())
        .layer(rate());
    let between = hello().layer(
        ServiceBuilder::new()
            .layer(TraceLayer::new_for_http())
            .layer(rate())
            .layer(CompressionLayer::new())
            .layer(full())
            .layer(timeout()),
    );
    for app in [inside, outside, between] {
        let address = serve(app).await;
        let client = http1();
        for expected in [200, 200, 429] {
            let request = Request::get(format!("http://{address}/"))
                .header("accept-encoding", "gzip")
                .body(Full::default())
                .unwrap();
            let response = client.request(request).await.unwrap();
            assert_eq!(response.status(), expected);
            if expected == 200 {
                assert_eq!(header(&response, "content-encoding"), Some("gzip"));
            }
            assert!(header(&response, "ratelimit").is_some());
            response.into_body().collect().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_compressed_body_holds_its_permit_to_the_end() {
    let (frames, handler) = streaming();
    let limit = ConcurrencyLimitLayer::new(1);
    let app = Router::new()
        .route("/", handler)
        .layer(limit.clone())
        .layer(CompressionLayer::new());
    let request = Request::get("/").header("accept-encoding", "gzip");
    let response = app
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    frames.send("some");
    assert_eq!(limit.limiter().in_flight(), 1);
    drop(frames);
    response.into_body().collect().await.unwrap();
    assert_eq!(limit.limiter().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_releases_the_permit() {
    let limit = ConcurrencyLimitLayer::new(1);
    let hangs = tower::service_fn(|_: Request<()>| {
        std::future::pending::<Result<http::Response<Full<bytes::Bytes>>, Infallible>>()
    });
    let timeout =
        TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, crate::common::SECOND);
    let service = timeout.layer(limit.layer(hangs));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), 408);
    assert_eq!(limit.limiter().in_flight(), 0);
}
