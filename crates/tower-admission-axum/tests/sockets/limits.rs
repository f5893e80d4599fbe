//! Limits on connections and messages.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::Message as Sent;
use axum::extract::{Query, State, WebSocketUpgrade};
use axum::routing::any;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tower_admission::store::FailureMode;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, Limits, Policy, Quota, RateLimitByTokenLayer, Rejection};
use tower_admission_axum::ws::{LimitedSocket, RejectWith, SocketLimits};

use crate::common::{Away, PATIENCE, SECOND, Seen, store};
use crate::servers::{get, http1, serve};

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

#[derive(serde::Deserialize)]
struct Who {
    user: String,
}

/// A router that serves sockets at `/ws`.
pub(crate) fn routes<F, Fut>(limits: &SocketLimits, serve: F) -> Router
where
    F: FnOnce(LimitedSocket) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let handler = |State(limits): State<SocketLimits>,
                   Query(who): Query<Who>,
                   upgrade: WebSocketUpgrade| async move {
        let user = Key::id("user", &who.user);
        limits.upgrade(upgrade, user, serve).await
    };
    Router::new()
        .route("/ws", any(handler))
        .with_state(limits.clone())
}

pub(crate) async fn echo(mut socket: LimitedSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if !matches!(message, Sent::Text(_) | Sent::Binary(_)) {
            continue;
        }
        if message == Sent::text("panic") {
            panic!("the handler has a bug");
        }
        if socket.send(message).await.is_err() {
            break;
        }
    }
}

pub(crate) async fn server(limits: &SocketLimits) -> SocketAddr {
    serve(routes(limits, echo)).await
}

pub(crate) async fn try_connect(address: SocketAddr, user: &str) -> Result<Socket, u16> {
    match connect_async(format!("ws://{address}/ws?user={user}")).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(refused)) => Err(refused.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Opens a connection and exchanges a message, so that the connection counts.
pub(crate) async fn connect(address: SocketAddr, user: &str) -> Socket {
    let mut socket = try_connect(address, user).await.expect("let in");
    assert_eq!(exchange(&mut socket, "hello").await, "hello");
    socket
}

pub(crate) async fn exchange(socket: &mut Socket, text: &str) -> String {
    socket.send(Message::text(text)).await.unwrap();
    next(socket).await.to_text().unwrap().to_owned()
}

pub(crate) async fn next(socket: &mut Socket) -> Message {
    let next = tokio::time::timeout(PATIENCE, socket.next()).await;
    next.expect("in time")
        .expect("not at its end")
        .expect("whole")
}

pub(crate) async fn closed_with(socket: &mut Socket) -> CloseCode {
    match next(socket).await {
        Message::Close(Some(frame)) => frame.code,
        other => panic!("not closed: {other:?}"),
    }
}

pub(crate) async fn until_in_flight(limits: &SocketLimits, expected: usize) {
    let reached = async {
        while limits.limiter().in_flight() != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    reached.unwrap_or_else(|_| panic!("{:?}", limits.limiter()));
}

#[tokio::test]
async fn the_sixth_connection_is_rejected_until_one_of_five_closes() {
    let limits = SocketLimits::new().connections_per_key(5);
    let address = server(&limits).await;
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(connect(address, "alice").await);
    }
    assert_eq!(try_connect(address, "alice").await.err(), Some(429));
    connect(address, "bob").await;

    // A clean end.
    let mut socket = sockets.pop().unwrap();
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    until_in_flight(&limits, 4).await;
    sockets.push(connect(address, "alice").await);
    assert_eq!(try_connect(address, "alice").await.err(), Some(429));

    // A broken TCP connection.
    let socket = sockets.pop().unwrap();
    let MaybeTlsStream::Plain(stream) = socket.get_ref() else {
        panic!("no TLS here")
    };
    stream.set_zero_linger().unwrap();
    drop(socket);
    until_in_flight(&limits, 4).await;
    sockets.push(connect(address, "alice").await);

    // A panic in the handler.
    let mut socket = sockets.pop().unwrap();
    socket.send(Message::text("panic")).await.unwrap();
    until_in_flight(&limits, 4).await;
    connect(address, "alice").await;
}

#[tokio::test]
async fn a_rejected_browser_gets_a_close_code() {
    let limits = SocketLimits::new()
        .connections(2)
        .connections_per_key(1)
        .reject_with(RejectWith::Close);
    let address = server(&limits).await;
    let _alice = connect(address, "alice").await;
    let mut again = try_connect(address, "alice").await.expect("accepted");
    assert_eq!(closed_with(&mut again).await, CloseCode::Policy);
    assert!(again.next().await.is_none(), "and that is the end of it");

    let _bob = connect(address, "bob").await;
    let mut full = try_connect(address, "carol").await.expect("accepted");
    assert_eq!(closed_with(&mut full).await, CloseCode::Again);
    assert_eq!(
        limits.limiter().in_flight(),
        2,
        "who is refused does not count"
    );
}

#[tokio::test]
async fn capacity_is_503_before_the_upgrade() {
    let limits = SocketLimits::new().name("chat").connections(1);
    let address = server(&limits).await;
    let _held = connect(address, "alice").await;
    match connect_async(format!("ws://{address}/ws?user=bob")).await {
        Err(Error::Http(refused)) => {
            assert_eq!(refused.status(), 503);
            assert_eq!(refused.headers()["cache-control"], "no-store");
            assert_eq!(refused.headers()["retry-after"], "1");
            let problem: Value = serde_json::from_slice(refused.body().as_ref().unwrap()).unwrap();
            assert_eq!(
                problem["detail"],
                "chat is currently at capacity. Please try again later."
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_key_with_deny_all_is_denied_its_connections() {
    let limits = Limits::new();
    let (eve, deny_all) = ("user:eve".parse().unwrap(), "deny all".parse().unwrap());
    limits.set(&eve, deny_all).await.unwrap();
    let sockets = SocketLimits::new().connections_per_key(2).limits(&limits);
    let address = server(&sockets).await;
    assert_eq!(try_connect(address, "eve").await.err(), Some(403));
    connect(address, "alice").await;

    let closing = sockets.reject_with(RejectWith::Close);
    let address = server(&closing).await;
    let mut socket = try_connect(address, "eve").await.unwrap();
    let Message::Close(Some(frame)) = next(&mut socket).await else {
        panic!("a close frame");
    };
    assert_eq!((frame.code, &*frame.reason), (CloseCode::Policy, "denied"));
}

#[tokio::test]
async fn a_key_with_deny_all_is_denied_its_messages() {
    let limits = Limits::new();
    let (eve, no_posts) = (
        "user:eve".parse().unwrap(),
        "posts=deny all".parse().unwrap(),
    );
    limits.set(&eve, no_posts).await.unwrap();
    let sockets = SocketLimits::new()
        .messages_per_key(Policy::new("posts", Quota::per_hour(9)))
        .limits(&limits);
    let mut socket = try_connect(server(&sockets).await, "eve").await.unwrap();
    let answer: Value = serde_json::from_str(&exchange(&mut socket, "hello").await).unwrap();
    assert_eq!(
        (&answer["status"], &answer["retry-after"]),
        (&403.into(), &Value::Null)
    );
}

#[tokio::test]
async fn messages_above_the_limit_get_a_notice_and_do_not_reach_the_handler() {
    let limits = SocketLimits::new().messages(Policy::new("messages", Quota::per_hour(3)));
    let address = server(&limits).await;
    let mut socket = connect(address, "alice").await;
    for text in ["two", "three"] {
        assert_eq!(exchange(&mut socket, text).await, text);
    }
    for _ in 0..3 {
        let answer: Value = serde_json::from_str(&exchange(&mut socket, "four").await).unwrap();
        assert_eq!(answer["status"], 429);
        assert_eq!(answer["violated-policies"], serde_json::json!(["messages"]));
        let wait = answer["retry-after"].as_u64().unwrap();
        assert!((1..=1200).contains(&wait), "{wait}");
    }
    // Pings are neither counted nor rejected.
    socket.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong("p".into()));
    // Another connection has its own messages.
    connect(address, "alice").await;
}

#[tokio::test]
async fn messages_of_a_key_are_counted_over_its_connections() {
    let limits = SocketLimits::new()
        .messages_per_key(Quota::per_hour(3))
        .messages(Quota::per_hour(2));
    let address = server(&limits).await;
    let mut one = connect(address, "alice").await;
    let mut two = connect(address, "alice").await;
    assert_eq!(exchange(&mut one, "third").await, "third");
    assert!(exchange(&mut two, "fourth").await.contains("429"));
    connect(address, "bob").await;
}

#[tokio::test]
async fn the_connection_closes_with_1008_after_too_many_violations() {
    let limits = SocketLimits::new()
        .connections(1)
        .messages(Quota::per_hour(1))
        .close_after(3);
    let address = server(&limits).await;
    let mut socket = connect(address, "alice").await;
    for _ in 0..2 {
        assert!(exchange(&mut socket, "more").await.contains("429"));
    }
    socket.send(Message::binary(vec![0; 10])).await.unwrap();
    assert_eq!(closed_with(&mut socket).await, CloseCode::Policy);
    drop(socket);
    until_in_flight(&limits, 0).await;
    connect(address, "alice").await;
}

/// A client that floods sees the close code, although it sent more than the server read.
#[tokio::test]
async fn a_flood_closes_the_connection_with_1008() {
    let limits = SocketLimits::new()
        .connections(1)
        .messages(Quota::per_hour(1))
        .notice(|_: &Rejection| None)
        .close_after(1);
    let address = server(&limits).await;
    let mut socket = connect(address, "alice").await;
    for _ in 0..1000 {
        socket.feed(Message::text("more")).await.unwrap();
    }
    socket.flush().await.unwrap();
    assert_eq!(closed_with(&mut socket).await, CloseCode::Policy);
    drop(socket);
    until_in_flight(&limits, 0).await;
}

#[tokio::test]
async fn the_application_sets_the_notice_or_disables_it() {
    let limits =
        SocketLimits::new()
            .messages(Quota::per_hour(1))
            .notice(|rejection: &Rejection| {
                let text = format!("slow down: {}", rejection.reason().as_str());
                Some(Sent::text(text))
            });
    let mut socket = connect(server(&limits).await, "alice").await;
    let answer = exchange(&mut socket, "more").await;
    assert_eq!(answer, "slow down: quota_exceeded");

    let limits = SocketLimits::new()
        .messages(Quota::per_hour(1))
        .notice(|_: &Rejection| None);
    let mut socket = connect(server(&limits).await, "alice").await;
    socket.send(Message::text("more")).await.unwrap();
    socket.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong("p".into()));
}

#[tokio::test]
async fn observers_see_both_limit_types() {
    let (seen, _released) = Seen::new();
    let limits = SocketLimits::new()
        .name("chat")
        .connections_per_key(1)
        .messages(Quota::per_hour(1))
        .observe(seen.clone());
    let address = server(&limits).await;
    let mut socket = connect(address, "alice").await;
    exchange(&mut socket, "more").await;
    try_connect(address, "alice").await.unwrap_err();
    let seen = seen.take().join("\n");
    for expected in [
        "admitted ws_connection",
        "admitted ws_message",
        "rejected ws_message",
        "rejected ws_connection",
        "quota_exceeded",
        "key_at_capacity",
    ] {
        assert!(seen.contains(expected), "{seen}");
    }
}

#[tokio::test]
async fn a_split_socket_counts_until_its_permit_is_dropped() {
    let parting = |socket: LimitedSocket| async move {
        let parts = socket.into_parts();
        let (mut to, mut from) = parts.socket.split();
        while let Some(Ok(message)) = from.next().await {
            if to.send(message).await.is_err() {
                break;
            }
        }
        drop(parts.permit);
    };
    let limits = SocketLimits::new().connections(1);
    let address = serve(routes(&limits, parting)).await;
    let socket = connect(address, "alice").await;
    assert_eq!(try_connect(address, "alice").await.err(), Some(503));
    drop(socket);
    until_in_flight(&limits, 0).await;
}

/// One server admits requests and rejects connections.
#[tokio::test]
async fn different_stores_fail_differently() {
    for (refusal, told) in [(RejectWith::Status, Err(503)), (RejectWith::Close, Ok(()))] {
        let limits = SocketLimits::new()
            .connections_per_key(5)
            .reject_with(refusal)
            .store(Away(FailureMode::Closed));
        let http = RateLimitByTokenLayer::new(Quota::per_hour(1)).store(Away(FailureMode::Open));
        let hello = Router::new().route("/", any(|| async { "hello" }).layer(http));
        let address = serve(hello.merge(routes(&limits, echo))).await;
        for _ in 0..3 {
            assert_eq!(get(&http1(), address, "/", "abc").await.status(), 200);
        }
        let refused = try_connect(address, "alice").await;
        assert_eq!(refused.as_ref().map(drop).map_err(|status| *status), told);
        if let Ok(mut socket) = refused {
            assert_eq!(closed_with(&mut socket).await, CloseCode::Again);
        }
    }
}

/// A message that one limit rejects is not charged to the other.
#[tokio::test]
async fn a_message_rejected_by_the_key_is_not_charged_to_the_connection() {
    let clock = TestClock::default();
    let limits = SocketLimits::new()
        .messages(Policy::new("connection", Quota::per_hour(3)))
        .messages_per_key(Policy::new("key", Quota::per_second(1)))
        .message_store(store(&clock));
    let mut socket = connect(server(&limits).await, "alice").await;
    for _ in 0..3 {
        assert!(exchange(&mut socket, "more").await.contains("[\"key\"]"));
    }
    for text in ["two", "three"] {
        clock.advance(SECOND);
        assert_eq!(exchange(&mut socket, text).await, text);
    }
    clock.advance(SECOND);
    assert!(
        exchange(&mut socket, "four")
            .await
            .contains("[\"connection\"]")
    );
}

/// A failing store is no violation of the client.
#[tokio::test]
async fn an_outage_of_the_message_store_is_no_violation() {
    let limits = SocketLimits::new()
        .messages(Policy::new("connection", Quota::per_hour(2)))
        .messages_per_key(Quota::per_hour(1))
        .message_store(Away(FailureMode::Closed))
        .close_after(2);
    let address = server(&limits).await;
    let mut socket = try_connect(address, "alice").await.unwrap();
    for _ in 0..5 {
        let answer: Value = serde_json::from_str(&exchange(&mut socket, "fine").await).unwrap();
        assert_eq!(answer["status"], 503);
        assert_eq!(answer["retry-after"], 1);
    }
}

#[tokio::test]
async fn a_new_policy_of_messages_applies_to_open_connections() {
    let limits = SocketLimits::new()
        .messages(Quota::off())
        .limits(&Limits::new())
        .messages_per_key(Quota::off());
    let address = server(&limits).await;
    let mut socket = connect(address, "alice").await;
    limits.set_messages(Quota::per_hour(1)).unwrap();
    assert_eq!(exchange(&mut socket, "one").await, "one");
    let problem: Value = serde_json::from_str(&exchange(&mut socket, "two").await).unwrap();
    assert_eq!(problem["status"], 429);
    limits.set_messages(Quota::off()).unwrap();
    assert_eq!(exchange(&mut socket, "three").await, "three");

    limits.set_messages_per_key(Quota::per_hour(1)).unwrap();
    let mut other = try_connect(address, "alice").await.unwrap();
    assert_eq!(exchange(&mut other, "one").await, "one");
    let problem: Value = serde_json::from_str(&exchange(&mut socket, "two").await).unwrap();
    assert_eq!(problem["status"], 429);

    // A change of policy cannot change the algorithm.
    assert!(limits.set_messages(Quota::per_hour(1).sliding()).is_err());
    assert!(
        SocketLimits::new()
            .set_messages(Quota::per_hour(1))
            .is_err()
    );
}
