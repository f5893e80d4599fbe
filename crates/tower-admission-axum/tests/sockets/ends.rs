//! The end of a connection, and the release of its permit.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::ws::Message as Sent;
use axum::extract::{State, WebSocketUpgrade};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::any;
use axum::{BoxError, Router};
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{pause, resume, sleep};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tower_admission::{Key, Quota, Rejection};
use tower_admission_axum::ws::{LimitedSocket, RejectWith, SocketLimits};
use tower_http::timeout::TimeoutLayer;

use crate::limits::{
    closed_with, connect, echo, exchange, next, routes, server, try_connect, until_in_flight,
};
use crate::servers::serve;

#[tokio::test]
async fn an_ended_connection_does_not_count() {
    let limits = SocketLimits::new()
        .connections(1)
        .messages(Quota::per_hour(1))
        .close_after(1);
    // The handler continues after the end of the connection.
    let serving = |mut socket: LimitedSocket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            let _ = socket.send(message).await;
        }
        pending::<()>().await;
        drop(socket);
    };
    let address = serve(routes(&limits, serving)).await;
    let mut socket = connect(address, "alice").await;
    socket.close(None).await.unwrap();
    until_in_flight(&limits, 0).await;

    let mut socket = connect(address, "alice").await;
    socket.send(Message::text("more")).await.unwrap();
    assert_eq!(closed_with(&mut socket).await, CloseCode::Policy);
    drop(socket);
    until_in_flight(&limits, 0).await;
    connect(address, "alice").await;
}

#[tokio::test]
async fn no_notice_follows_a_close_frame_of_the_handler() {
    let limits = SocketLimits::new()
        .messages(Quota::per_hour(1))
        .close_after(2);
    let (tell, told) = oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let serving = move |mut socket: LimitedSocket| async move {
        socket.recv().await.unwrap().unwrap();
        socket.send(Sent::Close(None)).await.unwrap();
        let next = socket.recv().await;
        let tell = tell.lock().unwrap().take().unwrap();
        tell.send(format!("{next:?}")).unwrap();
    };
    let address = serve(routes(&limits, serving)).await;
    let mut socket = try_connect(address, "alice").await.unwrap();
    for text in ["one", "two", "three", "four"] {
        socket.feed(Message::text(text)).await.unwrap();
    }
    socket.flush().await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Close(None));
    // The close frame of the client is sent when it reads again.
    assert!(socket.next().await.is_none());
    assert_eq!(told.await.unwrap(), "Some(Ok(Close(None)))");
}

#[tokio::test]
async fn a_client_rejected_by_close_is_read_within_bounds() {
    let limits = SocketLimits::new()
        .connections(1)
        .reject_with(RejectWith::Close);
    let address = server(&limits).await;
    let _one = connect(address, "alice").await;
    let mut refused = try_connect(address, "bob").await.unwrap();
    let long = Message::binary(vec![0; 15 << 20]);
    assert!(refused.send(long).await.is_err(), "it was read to its end");
}

#[tokio::test]
async fn a_client_of_a_closing_connection_is_read_within_bounds() {
    let limits = SocketLimits::new()
        .messages(Quota::per_hour(1))
        .notice(|_: &Rejection| None)
        .close_after(1);
    let mut socket = connect(server(&limits).await, "alice").await;
    let part = Message::binary(vec![0; 64 << 10]);
    let flood = async {
        for _ in 0..512 {
            socket.send(part.clone()).await?;
        }
        Ok::<_, BoxError>(())
    };
    assert!(flood.await.is_err(), "all of it was read");
}

pub(crate) const HANDSHAKE: &[u8] =
    b"GET /ws?user=alice HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// An endpoint that takes a minute between its decision and its response.
fn slow_to_answer(limits: &SocketLimits) -> Router {
    async fn handler(State(limits): State<SocketLimits>, upgrade: WebSocketUpgrade) -> Response {
        let response = limits
            .upgrade(upgrade, Key::id("user", "alice"), echo)
            .await;
        sleep(Duration::from_secs(60)).await;
        response
    }
    Router::new()
        .route("/ws", any(handler))
        .with_state(limits.clone())
}

/// The connection stays open for requests, so the upgrade might arrive at any time.
#[tokio::test]
async fn a_replaced_handshake_response_releases_the_permit() {
    let limits = SocketLimits::new().connections(1);
    let forbidden = map_response(|_: Response| async { StatusCode::FORBIDDEN });
    let hasty =
        TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(10));
    for (app, status) in [
        (routes(&limits, echo).layer(forbidden), "403"),
        (slow_to_answer(&limits).layer(hasty), "408"),
    ] {
        let address = serve(app).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = [0; 1000];
        stream.write_all(HANDSHAKE).await.unwrap();
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );

        pause();
        until_in_flight(&limits, 0).await;
        resume();
        drop(stream);
    }
}

#[tokio::test]
async fn a_handshake_response_may_be_late() {
    let limits = SocketLimits::new().connections(1);
    let address = serve(slow_to_answer(&limits)).await;
    pause();
    let mut socket = try_connect(address, "alice").await.unwrap();
    resume();
    assert_eq!(exchange(&mut socket, "late").await, "late");
    assert_eq!(limits.limiter().in_flight(), 1);
}

#[tokio::test]
async fn a_connection_without_a_permit_is_not_served() {
    /// Keeps the response of the handler, and delays it.
    async fn copied(answer: Response) -> Response {
        let mut copy = Response::default();
        *copy.status_mut() = answer.status();
        *copy.headers_mut() = answer.headers().clone();
        drop(answer);
        sleep(Duration::from_secs(60)).await;
        copy
    }
    let limits = SocketLimits::new().connections(1);
    let address = serve(routes(&limits, echo).layer(map_response(copied))).await;
    pause();
    let mut socket = try_connect(address, "alice").await.unwrap();
    resume();
    assert_eq!(limits.limiter().in_flight(), 0);
    assert!(matches!(socket.next().await, None | Some(Err(_))));
}
