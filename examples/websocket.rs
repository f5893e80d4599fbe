//! A WebSocket echo with limits, and a page that shows rejected connections and messages.
//!
//! `cargo run --example websocket`, then open the address that it prints.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get};
use tokio::net::TcpListener;
use tower_admission::{Key, Policy, Quota};
use tower_admission_axum::ws::{LimitedSocket, RejectWith, SocketLimits};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let limits = SocketLimits::new()
        .name("The echo")
        .connections(100)
        .connections_per_key(3)
        // Pings find clients that are gone without a close frame, and release their permits.
        .ping(Duration::from_secs(30), Duration::from_secs(15))
        // A script in a browser cannot read the status of a handshake, but it can read a close code.
        .reject_with(RejectWith::Close)
        .messages(Policy::new(
            "messages",
            Quota::new(5, Duration::from_secs(60)),
        ))
        .close_after(10);
    let app = Router::new()
        .route("/", get(page))
        .route("/echo", any(echo))
        .with_state(limits);

    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(listen).await?;
    println!("Listening on http://{}", listener.local_addr()?);
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

/// Charges the address of the client. A service with users charges the user.
async fn echo(
    State(limits): State<SocketLimits>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    upgrade: WebSocketUpgrade,
) -> Response {
    limits.upgrade(upgrade, Key::ip(peer.ip()), serve).await
}

async fn serve(mut socket: LimitedSocket) {
    // The page counts the connection when this message arrives.
    let _ = socket.send(Message::text("welcome")).await;
    // `recv` returns only messages within the limits.
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            break;
        }
    }
}

async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'; img-src data:";
    let headers = [("content-security-policy", policy)];
    (headers, Html(include_str!("websocket.html")))
}
