//! How connections end, and when their slots are free again.

use std::future::pending;
use std::sync::{Arc, Mutex};

use axum::BoxError;
use axum::extract::ws::Message as Sent;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tower_admission::ws::{LimitedSocket, Refusal, SocketLimits};
use tower_admission::{Quota, Rejection};

use crate::servers::serve;
use crate::sockets::{closed_with, connect, next, routes, server, try_connect, until_in_flight};

#[tokio::test]
async fn a_connection_that_has_ended_counts_no_more() {
    let limits = SocketLimits::new()
        .connections(1)
        .messages(Quota::per_hour(1))
        .close_after(1);
    // A handler that has more to do than to serve.
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
async fn a_close_of_the_handlers_own_is_not_disturbed_by_a_notice() {
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
    // The client's own close frame goes out when it reads on.
    assert!(socket.next().await.is_none());
    assert_eq!(told.await.unwrap(), "Some(Ok(Close(None)))");
}

#[tokio::test]
async fn who_is_refused_by_close_is_not_read_at_length() {
    let limits = SocketLimits::new().connections(1).refuse_by(Refusal::Close);
    let address = server(&limits).await;
    let _one = connect(address, "alice").await;
    let mut refused = try_connect(address, "bob").await.unwrap();
    let long = Message::binary(vec![0; 15 << 20]);
    assert!(refused.send(long).await.is_err(), "it was read to its end");
}

#[tokio::test]
async fn who_is_told_goodbye_is_not_read_at_length() {
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
