//! Requests whose connection is upgraded.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::WebSocketUpgrade;
use axum::extract::ws::WebSocket;
use axum::response::Response;
use axum::routing::get as route;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request};
use http_body_util::BodyExt;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tower::{Layer, Service, ServiceExt};
use tower_admission::{ConcurrencyLimitLayer, PermitBody, UpgradePermit};

use crate::common::{Counting, Seen, answering, ok, request, send, status, streamed, upgrading};
use crate::servers::{get, http1, serve};

async fn echo(permit: UpgradePermit, upgrade: WebSocketUpgrade) -> Response {
    assert!(permit.is_held());
    upgrade.on_upgrade(|mut socket: WebSocket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                break;
            }
        }
        drop(permit);
    })
}

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

/// A connection that has been used, so the response to its request has ended.
async fn connect(address: SocketAddr) -> Socket {
    let (mut socket, response) = connect_async(format!("ws://{address}/ws")).await.unwrap();
    assert_eq!(response.status(), 101);
    socket.send(Message::text("hello")).await.unwrap();
    let echo = socket.next().await.unwrap().unwrap();
    assert_eq!(echo, Message::text("hello"));
    socket
}

#[tokio::test]
async fn a_websocket_counts_until_its_handler_is_done() {
    let (seen, mut released) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(2).observe(seen.clone());
    let app = Router::new()
        .route("/ws", route(echo))
        .route("/", route(|| async { "hello" }))
        .layer(layer.clone());
    let address = serve(app).await;
    let mut one = connect(address).await;
    let two = connect(address).await;
    assert_eq!(layer.limiter().in_flight(), 2);

    match connect_async(format!("ws://{address}/ws")).await {
        Err(Error::Http(refused)) => assert_eq!(refused.status(), 503),
        other => panic!("refused before the upgrade: {other:?}"),
    }
    assert_eq!(get(&http1(), address, "/", "t").await.status(), 503);

    one.close(None).await.unwrap();
    released.one().await;
    assert_eq!(layer.limiter().in_flight(), 1);
    assert_eq!(get(&http1(), address, "/", "t").await.status(), 200);
    released.one().await;
    drop(two);
    released.one().await;
    assert_eq!(layer.limiter().in_flight(), 0);
    assert_eq!(
        seen.take()
            .iter()
            .filter(|event| *event == "released ")
            .count(),
        3
    );
}

#[tokio::test]
async fn a_websocket_counts_for_every_layer_around_it() {
    let outer = ConcurrencyLimitLayer::new(5).name("outer");
    let inner = ConcurrencyLimitLayer::new(5).name("inner");
    let app = Router::new()
        .route("/ws", route(echo))
        .layer(inner.clone())
        .layer(outer.clone());
    let address = serve(app).await;
    let _socket = connect(address).await;
    assert_eq!(inner.limiter().in_flight(), 1);
    assert_eq!(outer.limiter().in_flight(), 1);
}

#[tokio::test]
async fn an_upgrade_header_on_an_ordinary_request_keeps_the_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (frames, body) = streamed();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    // The handler ignores upgrades, and drops its request at once.
    let streaming = layer.layer(answering(move |request: Request<()>| {
        drop(request);
        http::Response::new(body.lock().unwrap().take().unwrap())
    }));
    let mut response = send(&streaming, upgrading()).await;
    frames.send("some");
    assert!(response.frame().await.unwrap().is_ok());
    assert_eq!(layer.limiter().in_flight(), 1);
    assert_eq!(
        status(&layer.layer(Counting::default()), upgrading()).await,
        503
    );
    drop(frames);
    assert!(response.frame().await.is_none());
    assert_eq!(layer.limiter().in_flight(), 0);
}

type KeptPermits = tokio::sync::mpsc::UnboundedReceiver<UpgradePermit>;

/// A service whose handler keeps the permits of its requests and answers with a status.
fn keeping(
    layer: &ConcurrencyLimitLayer,
    status: u16,
) -> (
    impl Service<Request<()>, Response = Response200, Error = Infallible> + Clone,
    KeptPermits,
) {
    let (keep, kept) = tokio::sync::mpsc::unbounded_channel();
    let service = layer.layer(answering(move |request: Request<()>| {
        keep.send(UpgradePermit::of(request.extensions())).unwrap();
        let mut response = ok();
        *response.status_mut() = status.try_into().unwrap();
        response
    }));
    (service, kept)
}

type Response200 = http::Response<PermitBody<http_body_util::Full<bytes::Bytes>>>;

fn connecting() -> Request<()> {
    let mut connect = request();
    *connect.method_mut() = Method::CONNECT;
    connect
}

#[tokio::test]
async fn the_permit_of_an_upgrade_is_held_until_its_last_clone_is_dropped() {
    for (request, status) in [(upgrading(), 101), (connecting(), 200)] {
        let (seen, _) = Seen::new();
        let layer = ConcurrencyLimitLayer::new(1).observe(seen.clone());
        let (service, mut kept) = keeping(&layer, status);
        let response = send(&service, request).await;
        let permit = kept.recv().await.unwrap();
        assert!(permit.is_held());
        let clone = permit.clone();
        drop(response);
        assert_eq!(layer.limiter().in_flight(), 1);
        drop(permit);
        assert_eq!(layer.limiter().in_flight(), 1);
        drop(clone);
        assert_eq!(layer.limiter().in_flight(), 0);
        let released = seen.take().into_iter();
        let released = released.filter(|event| event == "released ");
        assert_eq!(released.count(), 1);
    }
}

#[tokio::test]
async fn a_response_without_an_upgrade_counts_as_usual() {
    for (request, status) in [
        (upgrading(), 200),
        (upgrading(), 426),
        (connecting(), 407),
        (request(), 101),
    ] {
        let layer = ConcurrencyLimitLayer::new(1);
        let (service, mut kept) = keeping(&layer, status);
        let response = send(&service, request).await;
        let permit = kept.recv().await.unwrap();
        assert_eq!(layer.limiter().in_flight(), 1);
        drop(response);
        assert_eq!(layer.limiter().in_flight(), 0, "{status}");
        drop(permit);
    }
}

#[tokio::test]
async fn an_upgrade_without_a_held_permit_ends_with_its_response() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (service, mut kept) = keeping(&layer, 101);
    let mut calls = tokio_test::task::spawn(service.oneshot(upgrading()));
    drop(kept.try_recv());
    let response = tokio_test::assert_ready!(calls.poll()).unwrap();
    drop(kept.try_recv());
    drop(response);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn only_requests_that_ask_for_an_upgrade_are_offered_a_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (service, mut kept) = keeping(&layer, 200);
    drop(send(&service, request()).await);
    assert!(!kept.recv().await.unwrap().is_held());
}

#[tokio::test]
async fn a_handler_that_drops_the_permit_releases_it() {
    let layer = ConcurrencyLimitLayer::new(1);
    let service = layer.layer(Counting::default());
    drop(send(&service, upgrading()).await);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn the_extractor_holds_no_permit_without_an_upgrade() {
    let handler = |permit: UpgradePermit| async move { permit.is_held().to_string() };
    let app = Router::new()
        .route("/limited", route(handler))
        .layer(ConcurrencyLimitLayer::new(1))
        .route("/free", route(handler));
    let address = serve(app).await;
    for path in ["/limited", "/free"] {
        let response = get(&http1(), address, path, "t").await;
        assert_eq!(crate::common::text(response).await, "false");
    }
}
