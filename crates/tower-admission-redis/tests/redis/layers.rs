//! Layers that count in Redis, around real services.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use tower::{Layer, ServiceExt, service_fn};
use tower_admission::extract::{ClientIp, Shared};
use tower_admission::store::{FailureMode, RateStore};
use tower_admission::{
    Key, Quota, RateLimitByTokenLayer, RateLimitLayer, RateLimitStatus, RateLimiter,
};
use tower_admission_redis::RedisStore;

use crate::server::{Server, free_port, store, until};
use crate::user;

async fn handler(_: Request<()>) -> Result<Response<Empty<Bytes>>, Infallible> {
    Ok(Response::new(Empty::new()))
}

async fn ask<K>(layer: &RateLimitLayer<K>, token: &str) -> Response<()> {
    let request = Request::builder().header("authorization", format!("Bearer {token}"));
    let service = layer.layer(service_fn(handler));
    let response = service.oneshot(request.body(()).unwrap()).await;
    response.unwrap().map(|_| ())
}

#[tokio::test]
async fn a_layer_counts_in_redis() {
    let server = Server::start().await;
    let layer = || RateLimitByTokenLayer::new(Quota::per_hour(2)).store(server.store());
    let replicas = [layer(), layer()];
    for (replica, left) in [(0, "1"), (1, "0")] {
        let response = ask(&replicas[replica], "alice").await;
        assert_eq!(response.status(), StatusCode::OK);
        let told = response.headers()["ratelimit"].to_str().unwrap();
        assert!(told.contains(&format!("r={left}")), "{told}");
    }
    let rejected = ask(&replicas[0], "alice").await;
    assert_eq!(rejected.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(rejected.headers().contains_key("retry-after"));
    assert_eq!(ask(&replicas[0], "bob").await.status(), StatusCode::OK);
}

/// Asks with a handler that answers with this status, after it did this with its own.
async fn answered<K>(layer: &RateLimitLayer<K>, code: u16, charge: u32) -> Response<()> {
    let handler = service_fn(move |request: Request<()>| async move {
        let status: RateLimitStatus = request.extensions().get().cloned().unwrap();
        let charged = status.charge(charge).await;
        let code = if charged.is_ok() { code } else { 429 };
        let response = Response::builder().status(code).body(Empty::<Bytes>::new());
        Ok::<_, Infallible>(response.unwrap())
    });
    let request = Request::builder().header("authorization", "Bearer alice");
    let response = layer.layer(handler).oneshot(request.body(()).unwrap());
    response.await.unwrap().map(|_| ())
}

fn remaining(response: &Response<()>) -> &str {
    let told = response.headers()["ratelimit"].to_str().unwrap();
    told.split(';').nth(1).unwrap()
}

#[tokio::test]
async fn a_response_that_does_not_count_is_refunded_in_redis() {
    let server = Server::start().await;
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(10))
        .and_by(Shared, Quota::per_hour(1000))
        .store(server.store())
        .count_if(|response| response.status == 401);
    for (code, charge, left) in [
        (200, 0, "r=10"),
        (401, 0, "r=9"),
        (200, 4, "r=9"),
        (401, 4, "r=4"),
        (200, 0, "r=4"),
    ] {
        let response = answered(&layer, code, charge).await;
        assert_eq!(response.status(), code);
        assert_eq!(remaining(&response), left);
    }
    // Charged before the call, it does not fit.
    assert_eq!(answered(&layer, 200, 4).await.status(), 429);
    let keys = [Key::new("bearer", b"alice"), Key::SHARED];
    let left = layer.limiter().peek_all(&keys, 0).await;
    let left = left.usages().iter().map(|usage| usage.remaining());
    assert_eq!(left.collect::<Vec<_>>(), [4, 994]);
}

/// The refund is lost, and the response is sent all the same with the numbers that are known.
#[tokio::test]
async fn a_refund_does_not_wait_longer_than_the_deadline() {
    let server = Server::start().await;
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(10))
        .store(server.store().deadline(Duration::from_millis(200)))
        .count_if(|_| false);
    assert_eq!(remaining(&answered(&layer, 200, 0).await), "r=10");
    let handler = service_fn(|_: Request<()>| {
        server.signal("STOP");
        handler(Request::new(()))
    });
    let request = Request::builder().header("authorization", "Bearer alice");
    let response = layer.layer(handler).oneshot(request.body(()).unwrap());
    let response = response.await.unwrap().map(|_| ());
    server.signal("CONT");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(remaining(&response), "r=9");
}

#[tokio::test]
async fn without_redis_the_failure_mode_decides() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let layer = |mode| {
        let store = store(&url).on_failure(mode);
        RateLimitByTokenLayer::new(Quota::per_hour(4)).store(store)
    };
    let open = layer(FailureMode::Open);
    for _ in 0..10 {
        let response = ask(&open, "alice").await;
        assert_eq!(response.status(), StatusCode::OK);
        // The remaining requests are unknown, so no header reports them.
        assert!(!response.headers().contains_key("ratelimit"));
    }
    let closed = ask(&layer(FailureMode::Closed), "alice").await;
    assert_eq!(closed.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(closed.headers()["retry-after"], "1");
    let share = layer(FailureMode::LocalShare { replicas: 2 });
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(ask(&share, "alice").await.status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
}

/// A cost above the share is rejected for now; a cost above the bucket is rejected always.
#[tokio::test]
async fn a_cost_above_a_share_is_rejected_as_unavailable() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let share = FailureMode::LocalShare { replicas: 3 };
    let buckets = store(&url)
        .on_failure(share)
        .open(&[Quota::per_hour(10).into()]);
    let alice = user("alice");
    for _ in 0..2 {
        // First without the news that Redis is away, then with it.
        let decision = buckets.take(&alice, 5).await;
        assert!(decision.is_unavailable(), "{decision:?}");
        assert!(buckets.peek(&alice, 5).await.is_unavailable());
        assert!(buckets.take(&alice, 11).await.can_never_fit());
    }
    assert!(buckets.take(&alice, 3).await.is_admitted());
}

#[tokio::test]
async fn a_rate_layer_for_credentials_needs_a_secret() {
    let no_secret = || RedisStore::connect("redis://127.0.0.1:1").unwrap();
    let by_token = RateLimitByTokenLayer::new(Quota::per_hour(1));
    let error = by_token.try_store(no_secret()).unwrap_err();
    assert!(error.to_string().contains("secret"), "{error}");
    let error = RateLimiter::try_with_store(Quota::per_hour(1), &no_secret()).unwrap_err();
    assert!(error.to_string().contains("secret"), "{error}");
    // Addresses, and one key for all, are the same everywhere.
    let by_ip = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(1));
    assert!(by_ip.try_store(no_secret()).is_ok());
    let shared = RateLimitLayer::by(Shared, Quota::per_hour(1));
    assert!(shared.try_store(no_secret()).is_ok());
    assert!(!no_secret().agrees_on_fingerprints());
}

#[test]
fn an_unusable_url_is_an_error() {
    for url in [
        "redis://127.0.0.1:6379",
        "redis://user:password@localhost/2",
        "unix:/run/redis.sock",
        "redis+cluster://127.0.0.1:7000,127.0.0.1:7001",
        "redis+cluster://user:password@localhost",
    ] {
        assert!(RedisStore::connect(url).is_ok(), "{url}");
    }
    for url in [
        "",
        "http://localhost",
        "redis+cluster://",
        "redis://[::1",
        "redis://h:99999",
    ] {
        let error = RedisStore::connect(url).unwrap_err();
        assert_eq!(error.kind().as_str(), "configuration", "{url}");
    }
}

/// A service may be made before there is a runtime.
#[test]
fn a_layer_can_be_built_without_a_runtime() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1))
        .store(store("redis://127.0.0.1:1").deadline(Duration::from_millis(20)));
    // And outlives one.
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let response = runtime.block_on(ask(&layer, "alice"));
        assert_eq!(response.status(), StatusCode::OK);
    }
}

/// The runtime that connected still exists, but does not run.
#[test]
fn a_stalled_runtime_delays_no_request() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, second) = (runtime(), runtime());
    let server = first.block_on(Server::start());
    let store = server.store().deadline(Duration::from_millis(200));
    let buckets = store.open(&[Quota::per_hour(1000).into()]);
    let alice = user("alice");
    let is_counted = async || buckets.take(&alice, 1).await.remaining().is_some();
    first.block_on(until("Redis decides", is_counted));
    second.block_on(until("Redis decides again", is_counted));
    // The state that the first runtime left behind affects no request.
    first.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    drop(first);
    assert!(second.block_on(is_counted()));
}
