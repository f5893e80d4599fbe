//! Auto traits and boxing of public types.

use std::convert::Infallible;
use std::future::Future;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service};
use tower_admission::respond::{Grpc, Negotiated, Plain, Problem};
use tower_admission::store::{RateBuckets, RateStore, Reply};
use tower_admission::{
    AccessLayer, ApiKey, BearerToken, ByToken, ClientIp, ConcurrencyLimit, ConcurrencyLimitLayer,
    ConcurrencyLimiter, Decision, HoldUntil, Key, Limits, MemoryStore, PeerAddr, Permit, Policy,
    Quota, QuotaError, RateLimit, RateLimitByTokenLayer, RateLimitHeaders, RateLimitLayer,
    RateLimitStatus, RateLimiter, Rejection, ResponseBody, Secret, Shared, UpgradePermit, Usage,
    access, concurrency, rate,
};

use crate::common::{ok, request, status};

fn shared<T: Send + Sync + 'static>() {}

fn sent<T: Send + 'static>() {}

#[test]
fn public_types_are_send_and_sync() {
    shared::<(
        AccessLayer,
        access::Access<()>,
        ConcurrencyLimitLayer,
        RateLimitByTokenLayer,
        RateLimitLayer<ClientIp>,
    )>();
    shared::<(
        ConcurrencyLimit<()>,
        RateLimit<()>,
        ResponseBody<Full<Bytes>>,
    )>();
    shared::<(
        ConcurrencyLimiter,
        RateLimiter,
        Permit,
        UpgradePermit,
        HoldUntil,
    )>();
    shared::<(
        Key,
        Secret,
        Quota,
        QuotaError,
        Policy,
        Decision,
        Usage,
        Rejection,
    )>();
    shared::<(
        ApiKey,
        BearerToken,
        ByToken,
        ClientIp,
        PeerAddr,
        Shared,
        RateLimitStatus,
    )>();
    shared::<(Grpc, Negotiated, Plain, Problem, RateLimitHeaders)>();
    shared::<(MemoryStore, Box<dyn RateStore>, Box<dyn RateBuckets>)>();
    sent::<Reply<Decision>>();
}

/// A service whose future is not `Sync`, as is common for an `async` block.
#[derive(Clone)]
struct OnlySend;

impl Service<Request<()>> for OnlySend {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        Box::pin(async { Ok(ok()) })
    }
}

#[test]
fn response_futures_of_send_services_are_send() {
    sent::<concurrency::ResponseFuture<OnlySend, (), Full<Bytes>>>();
    sent::<rate::ResponseFuture<OnlySend, (), Full<Bytes>>>();
    // A request body that is not `Sync`.
    type Body = Box<dyn Iterator<Item = u8> + Send>;
    type Inner = tower::util::BoxCloneService<Request<Body>, Response<Full<Bytes>>, Infallible>;
    sent::<concurrency::ResponseFuture<Inner, Body, Full<Bytes>>>();
    sent::<rate::ResponseFuture<Inner, Body, Full<Bytes>>>();
    type Answer = <Inner as Service<Request<Body>>>::Future;
    sent::<access::ResponseFuture<Answer, Body, Full<Bytes>>>();
}

#[tokio::test]
async fn services_can_be_boxed() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1));
    let inner = tower::service_fn(|_: Request<()>| async { Ok::<_, Infallible>(ok()) });
    let both = ConcurrencyLimitLayer::new(1).layer(layer.layer(inner));
    let boxed: BoxCloneSyncService<_, _, _> = BoxCloneSyncService::new(both);
    assert_eq!(status(&boxed, request()).await, 200);
    assert_eq!(status(&boxed, request()).await, 429);
}

#[test]
fn the_inner_service_is_accessible() {
    let mut one = ConcurrencyLimitLayer::new(1).layer(7);
    *one.get_mut() += 1;
    assert_eq!((*one.get_ref(), one.into_inner()), (8, 8));
    let mut two = RateLimitByTokenLayer::new(Quota::per_hour(1)).layer(7);
    *two.get_mut() += 1;
    assert_eq!((*two.get_ref(), two.into_inner()), (8, 8));
    let mut three = AccessLayer::new(&Limits::new()).layer(7);
    *three.get_mut() += 1;
    assert_eq!((*three.get_ref(), three.into_inner()), (8, 8));
}

#[test]
fn debug_output_contains_no_secret() {
    let layer = RateLimitByTokenLayer::new(Policy::new("name", Quota::per_hour(1)));
    let _ = layer
        .limiter()
        .check_now(&Key::new("bearer", b"hunter2"))
        .unwrap();
    let concurrency = ConcurrencyLimitLayer::new(3)
        .name("AI Bridge")
        .per_key(ByToken::default(), 2);
    let shown = format!(
        "{layer:?} {:?} {:?} {concurrency:?} {:?} {:?}",
        layer.limiter(),
        layer.layer(()),
        concurrency.limiter(),
        concurrency.layer(()),
    );
    assert!(!shown.contains("hunter2"));
    assert!(
        shown.contains("AI Bridge") && shown.contains("name"),
        "{shown}"
    );
}
