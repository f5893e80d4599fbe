//! One layer value around an outer and an inner service.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get as route;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt};
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, Key, Quota, RateLimitHeaders, RateLimitLayer, RateLimitStatus,
    Shared,
};

use crate::common::{Counting, Seen, boxed, from_peer, header, request, send, status};
use crate::servers::{get, http1, serve};

#[tokio::test]
async fn nested_routers_count_a_request_once() {
    let (seen, _released) = Seen::new();
    let concurrency = ConcurrencyLimitLayer::new(1).observe(seen.clone());
    let rate = RateLimitLayer::by(Shared, Quota::per_hour(10));
    let inner = Router::new()
        .route("/inner", route(|| async { "inner" }))
        .layer(rate.clone())
        .layer(concurrency.clone());
    let app = Router::new()
        .nest("/nested", inner)
        .route("/outer", route(|| async { "outer" }))
        .layer(rate.clone())
        .layer(concurrency.clone());
    let address = serve(app).await;
    for (number, path) in ["/nested/inner", "/outer", "/nested/inner", "/outer"]
        .into_iter()
        .enumerate()
    {
        let response = get(&http1(), address, path, "t").await;
        assert_eq!(response.status(), 200, "{path}");
        let left = format!("\"default\";r={};t=", 9 - number);
        let fields = header(&response, "ratelimit").unwrap();
        assert!(fields.starts_with(&left), "{path}: {fields}");
    }
    assert_eq!(
        rate.limiter().peek(&Key::SHARED).now().unwrap().remaining(),
        Some(6)
    );
    let acquired = seen
        .take()
        .into_iter()
        .filter(|event| event == "acquired  1");
    assert_eq!(acquired.count(), 4);
}

#[tokio::test]
async fn a_nested_router_at_capacity_rejects_with_the_outer_layer() {
    let layer = ConcurrencyLimitLayer::new(1);
    let app = Router::new()
        .nest(
            "/nested",
            Router::new()
                .route("/", route(|| async { "inner" }))
                .layer(layer.clone()),
        )
        .layer(layer.clone());
    let permit = layer.limiter().try_acquire().unwrap();
    let call = |path: &'static str| {
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        app.clone().oneshot(request)
    };
    assert_eq!(call("/nested").await.unwrap().status(), 503);
    drop(permit);
    assert_eq!(call("/nested").await.unwrap().status(), 200);
    assert_eq!(layer.limiter().in_flight(), 0);
}

type Boxed = BoxCloneSyncService<Request<()>, Response<crate::common::BoxedBody>, Infallible>;

fn boxing<S>(service: S) -> Boxed
where
    S: Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    BoxCloneSyncService::new(service.map_response(boxed))
}

/// The same limit three times, with other layers in between.
fn thrice(layer: &ConcurrencyLimitLayer, rate: &RateLimitLayer<Shared>, inner: Boxed) -> Boxed {
    let mut service = inner;
    for _ in 0..3 {
        let limited = layer.layer(rate.layer(service));
        service = BoxCloneSyncService::new(limited.map_response(boxed));
    }
    service
}

#[tokio::test]
async fn three_levels_count_a_request_once() {
    let layer = ConcurrencyLimitLayer::new(1);
    let rate = RateLimitLayer::by(Shared, Quota::per_hour(10));
    let service = thrice(&layer, &rate, boxing(Counting::default()));
    for _ in 0..3 {
        let response = send(&service, request()).await;
        assert_eq!(response.status(), 200);
        assert!(header(&response, "ratelimit-policy").is_some(), "once");
    }
    assert_eq!(
        rate.limiter().peek(&Key::SHARED).now().unwrap().remaining(),
        Some(7)
    );
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn a_request_that_is_polled_often_counts_once() {
    let layer = ConcurrencyLimitLayer::new(1);
    let rate = RateLimitLayer::by(Shared, Quota::per_hour(10));
    // The inner services are called in a later poll of the outer ones.
    let (go, going) = tokio::sync::watch::channel(false);
    let (inner, gate) = (rate.layer(Counting::default()), going);
    let inner = tower::service_fn(move |request: Request<()>| {
        let (inner, mut gate) = (inner.clone(), gate.clone());
        async move {
            gate.wait_for(|go| *go).await.unwrap();
            inner.oneshot(request).await
        }
    });
    let inner = layer.layer(inner);
    let mut call = task::spawn(layer.layer(rate.layer(inner)).oneshot(request()));
    assert_pending!(call.poll());
    assert_pending!(call.poll());
    go.send(true).unwrap();
    let response = assert_ready_ok!(call.poll());
    assert_eq!(response.status(), 200);
    assert!(header(&response, "ratelimit").is_some());
    assert_eq!(
        rate.limiter().peek(&Key::SHARED).now().unwrap().remaining(),
        Some(9)
    );
}

/// A handler that sends more requests through the same limit: they count separately.
#[tokio::test]
async fn requests_that_a_handler_sends_are_counted() {
    let rate = RateLimitLayer::by(Shared, Quota::per_hour(10));
    let inner = Counting::default();
    let admitted = Arc::new(AtomicUsize::new(0));
    let single = rate.layer(inner.clone());
    let batch = {
        let admitted = admitted.clone();
        tower::service_fn(move |_: Request<()>| {
            let (single, admitted) = (single.clone(), admitted.clone());
            async move {
                for _ in 0..20 {
                    let is_admitted = status(&single, request()).await == 200;
                    admitted.fetch_add(usize::from(is_admitted), Ordering::SeqCst);
                }
                Ok::<_, Infallible>(crate::common::ok())
            }
        })
    };
    let batch = rate.layer(batch);
    assert_eq!(status(&batch, request()).await, 200);
    // One for the batch, which covers one of its requests, and nine more.
    assert_eq!(admitted.load(Ordering::SeqCst), 10);
    assert_eq!(status(&batch, request()).await, 429);
}

#[tokio::test]
async fn a_skipped_request_is_counted_by_an_inner_layer() {
    let rate = RateLimitLayer::by(Shared, Quota::per_hour(10));
    let skipping = rate.clone().skip(|_| true);
    let service = skipping.layer(rate.layer(Counting::default()));
    drop(skipping.layer(()));
    assert_eq!(status(&service, request()).await, 200);
    assert_eq!(
        rate.limiter().peek(&Key::SHARED).now().unwrap().remaining(),
        Some(9)
    );
}

#[tokio::test]
async fn the_settings_of_the_outer_service_apply() {
    let limit = || RateLimitLayer::by(Shared, Quota::per_hour(20));
    let left = |limit: &RateLimitLayer<Shared>| {
        limit
            .limiter()
            .peek(&Key::SHARED)
            .now()
            .unwrap()
            .remaining()
    };
    for (outer, expected) in [
        (limit(), 19),
        (limit().dry_run(true), 19),
        (limit().skip(|_| true), 10),
    ] {
        let inner = outer.clone().skip(|_| false).dry_run(false).cost(|_| 10);
        let service = outer.layer(inner.layer(Counting::default()));
        assert_eq!(status(&service, request()).await, 200);
        assert_eq!(left(&outer), Some(expected));
    }
}

#[tokio::test]
async fn different_limits_each_count_a_request() {
    let rates = [(); 3].map(|()| RateLimitLayer::by(Shared, Quota::per_hour(10)));
    for rate in &rates {
        // Applied twice, so that it could be nested.
        drop(rate.layer(()));
    }
    let [a, b, c] = &rates;
    let service = a.layer(b.layer(c.layer(Counting::default())));
    assert_eq!(status(&service, request()).await, 200);
    for rate in &rates {
        assert_eq!(
            rate.limiter().peek(&Key::SHARED).now().unwrap().remaining(),
            Some(9)
        );
    }
}

#[tokio::test]
async fn the_handler_of_a_nested_router_has_the_status() {
    let rate = RateLimitLayer::by(Shared, Quota::per_hour(10));
    let handler = |status: RateLimitStatus| async move { status.remaining().unwrap().to_string() };
    let inner = Router::new().route("/", route(handler)).layer(rate.clone());
    let address = serve(Router::new().nest("/nested", inner).layer(rate)).await;
    let response = get(&http1(), address, "/nested", "t").await;
    assert_eq!(crate::common::text(response).await, "9");
}

/// Without numbers to report, and with common keys, which are found inline.
#[tokio::test]
async fn the_fast_path_counts_a_request_once() {
    let alice = || {
        let mut request = from_peer("192.0.2.1");
        let bearer = http::HeaderValue::from_static("Bearer alice");
        request.headers_mut().insert("authorization", bearer);
        request
    };
    let by_token = RateLimitLayer::new(Quota::per_hour(4)).headers(RateLimitHeaders::Off);
    counts_once(&by_token, alice).await;
    // A key that is looked for further.
    let by_token = RateLimitLayer::new(Quota::per_hour(4)).headers(RateLimitHeaders::Off);
    counts_once(&by_token, || from_peer("192.0.2.1")).await;
    let by_ip = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(4));
    counts_once(&by_ip.headers(RateLimitHeaders::Off), alice).await;
    let told = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(4));
    counts_once(&told, alice).await;
}

/// Four cases: one request through two services, one that panics in the inner service, and two by a
/// handler that sends three.
async fn counts_once<K>(layer: &RateLimitLayer<K>, request: impl Fn() -> Request<()> + Copy) {
    let inner = layer.layer(Counting::default());
    let nested = layer.layer(inner.clone());
    assert_eq!(status(&nested, request()).await, 200);

    let panics = layer.layer(crate::common::answering(
        |_: Request<()>| -> Response<Full<Bytes>> { panic!("the handler") },
    ));
    let panics = layer.layer(panics);
    let panicked = tokio::spawn(panics.oneshot(request())).await;
    assert!(panicked.is_err());

    let admitted = Arc::new(AtomicUsize::new(0));
    let counter = admitted.clone();
    let batch = tower::service_fn(move |_: Request<()>| {
        let (inner, counter) = (inner.clone(), counter.clone());
        async move {
            for _ in 0..4 {
                tokio::task::yield_now().await;
                let is_admitted = status(&inner, request()).await == 200;
                counter.fetch_add(usize::from(is_admitted), Ordering::SeqCst);
            }
            Ok::<_, Infallible>(crate::common::ok())
        }
    });
    assert_eq!(status(&layer.layer(batch), request()).await, 200);
    assert_eq!(admitted.load(Ordering::SeqCst), 2);
    assert_eq!(status(&nested, request()).await, 429);
}
