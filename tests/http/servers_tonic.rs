//! The layers on a real tonic server.

use std::net::SocketAddr;

use axum::Router;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::health_reporter;
use tonic_types::StatusExt;
use tower::Layer;
use tower_admission::{
    AccessLayer, ByToken, ClientIp, ConcurrencyLimitLayer, Key, Limit, Limits, Quota,
    RateLimitByTokenLayer, RateLimitLayer,
};

use crate::common::{Seen, timed};
use crate::servers::{get, http1, listen, serve};

fn health() -> HealthServer<impl Health> {
    let (_, service) = health_reporter();
    service
}

/// Serves a tonic router with any layers.
macro_rules! serve_grpc {
    ($router:expr) => {{
        let (listener, address) = listen().await;
        let server = $router.serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(server);
        address
    }};
}

async fn client(address: SocketAddr) -> HealthClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

fn check(token: &str) -> Request<HealthCheckRequest> {
    let mut request = Request::new(HealthCheckRequest::default());
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn a_rate_limit_wraps_the_whole_server() {
    let (layer, _clock) = timed(ByToken::default(), Quota::per_minute(2));
    let address = serve_grpc!(Server::builder().layer(layer).add_service(health()));
    let mut client = client(address).await;
    for _ in 0..2 {
        let response = client.check(check("a")).await.unwrap();
        assert!(response.metadata().contains_key("ratelimit"));
    }
    let refused = client.check(check("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "Rate limit exceeded. Please try again later."
    );
    assert_eq!(
        refused.metadata().get("grpc-retry-pushback-ms").unwrap(),
        "30000"
    );
    let info = refused.get_details_retry_info().expect("a RetryInfo");
    assert_eq!(info.retry_delay.unwrap().as_secs(), 30);
    client.check(check("b")).await.unwrap();
}

#[tokio::test]
async fn a_concurrency_limit_wraps_a_single_service() {
    let layer = ConcurrencyLimitLayer::deny_all().name("Health");
    let address = serve_grpc!(Server::builder().add_service(layer.layer(health())));
    let mut client = client(address).await;
    let refused = client.check(check("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(
        refused.message(),
        "Health is currently at capacity. Please try again later."
    );
    layer.limiter().set_limit(1);
    client.check(check("a")).await.unwrap();
}

#[tokio::test]
async fn both_limits_wrap_a_single_service() {
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(1));
    let full = ConcurrencyLimitLayer::new(1);
    let service = full.layer(rate.layer(health()));
    let address = serve_grpc!(Server::builder().add_service(service));
    let mut client = client(address).await;
    client.check(check("a")).await.unwrap();
    let refused = client.check(check("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(full.limiter().in_flight(), 0);
}

#[tokio::test]
async fn a_stream_holds_its_permit() {
    let (seen, mut released) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(1).observe(seen.clone());
    let address = serve_grpc!(Server::builder().layer(layer.clone()).add_service(health()));
    let mut client = client(address).await;
    let mut watching = client.watch(check("a")).await.unwrap().into_inner();
    watching.message().await.unwrap().expect("a first message");
    assert_eq!(layer.limiter().in_flight(), 1);
    let refused = client.check(check("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    drop(watching);
    released.one().await;
    assert_eq!(layer.limiter().in_flight(), 0);
    client.check(check("a")).await.unwrap();
    assert_eq!(layer.limiter().in_flight(), 0);
    assert_eq!(
        seen.take()
            .iter()
            .filter(|event| *event == "released ")
            .count(),
        2
    );
}

#[tokio::test]
async fn an_error_of_the_service_releases_the_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let address = serve_grpc!(Server::builder().layer(layer.clone()).add_service(health()));
    let mut client = client(address).await;
    for _ in 0..3 {
        let service = "no.such.Service".to_owned();
        let missing = client
            .check(HealthCheckRequest { service })
            .await
            .unwrap_err();
        assert_eq!(missing.code(), Code::NotFound);
        assert_eq!(layer.limiter().in_flight(), 0);
    }
}

#[tokio::test]
async fn the_peers_address_is_charged() {
    let layer = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(5));
    let address = serve_grpc!(Server::builder().layer(layer.clone()).add_service(health()));
    client(address).await.check(check("a")).await.unwrap();
    let local = Key::ip([127, 0, 0, 1].into());
    assert_eq!(
        layer.limiter().peek(&local).now().unwrap().remaining(),
        Some(4)
    );
    assert_eq!(
        layer
            .limiter()
            .peek(&Key::UNKNOWN)
            .now()
            .unwrap()
            .remaining(),
        Some(5)
    );
}

#[tokio::test]
async fn lists_wrap_a_server_or_a_single_service() {
    let limits = Limits::new();
    let network = "ip:127.0.0.0/8".parse().unwrap();
    let layer = AccessLayer::new(&limits).key(ByToken::default());
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(1));
    let mut whole = Server::builder().layer(layer.clone());
    let whole = serve_grpc!(whole.add_service(rate.layer(health())));
    let single = layer.layer(rate.layer(health()));
    let single = serve_grpc!(Server::builder().add_service(single));
    let probe = "bearer:probe".parse().unwrap();
    limits.set(&probe, Limit::unlimited()).await.unwrap();
    limits.set(&network, Limit::deny_all()).await.unwrap();
    for address in [whole, single] {
        let mut client = client(address).await;
        let refused = client.check(check("made-up")).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(refused.message(), "Access denied: this client is banned.");
        for _ in 0..3 {
            client.check(check("probe")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn axum_and_tonic_can_share_one_budget() {
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(3));
    let full = ConcurrencyLimitLayer::new(1);
    let app = Router::new()
        .route("/", axum::routing::get(|| async { "hello" }))
        .layer(rate.clone())
        .layer(full.clone());
    let http = serve(app).await;
    let limits = tower::ServiceBuilder::new()
        .layer(full.clone())
        .layer(rate.clone());
    let grpc = serve_grpc!(
        Server::builder()
            .layer(limits.into_inner())
            .add_service(health())
    );
    let mut client = client(grpc).await;
    let http_client = http1();

    let mut watching = client.watch(check("a")).await.unwrap().into_inner();
    watching.message().await.unwrap().expect("a first message");
    let refused = get(&http_client, http, "/", "a").await;
    assert_eq!(refused.status(), 503, "capacity is that of both");
    full.limiter().set_limit(2);

    assert_eq!(get(&http_client, http, "/", "a").await.status(), 200);
    client.check(check("a")).await.unwrap();
    assert_eq!(get(&http_client, http, "/", "a").await.status(), 429);
    let refused = client.check(check("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    client.check(check("b")).await.unwrap();
}

/// A unary answer is two frames: a message that waits for the client's window, and trailers.
#[tokio::test]
async fn grpc_clients_with_a_window_of_0_do_not_hold_all_capacity() {
    use std::time::Duration;

    use http_body_util::Full;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    let layer = ConcurrencyLimitLayer::new(2).reclaim_after(Some(Duration::from_millis(50)));
    let limiter = layer.limiter();
    let address = serve_grpc!(Server::builder().layer(layer).add_service(health()));
    let stuck: Client<_, Full<bytes::Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .http2_initial_stream_window_size(0)
        .build_http();
    let mut held = Vec::new();
    for method in ["Check", "Watch"] {
        let request =
            http::Request::post(format!("http://{address}/grpc.health.v1.Health/{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::from(&[0; 5][..]))
                .unwrap();
        held.push(stuck.request(request).await.unwrap());
    }
    assert_eq!(limiter.in_flight(), 2);
    let mut client = client(address).await;
    let admitted = async {
        while client.check(check("a")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    let admitted = tokio::time::timeout(crate::common::PATIENCE, admitted).await;
    admitted.expect("a response that is not read gives way");
    drop(held);
}
