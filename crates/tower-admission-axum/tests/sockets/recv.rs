//! A dropped `recv`, as in `select!`: the next call continues it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use axum::extract::ws::Message as Sent;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::{Semaphore, watch};
use tokio::time::{pause, resume, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tower_admission::store::{Charge, RateBuckets, RateStore, Reply};
use tower_admission::{Decision, MemoryStore, Policy, Quota, Rejection};
use tower_admission_axum::ws::{LimitedSocket, SocketLimits};

use crate::common::PATIENCE;
use crate::limits::{closed_with, connect, exchange, next, routes, try_connect, until_in_flight};
use crate::servers::serve;

/// An echo that drops each pending `recv`, and counts the drops.
#[derive(Clone, Default)]
struct Impatient {
    dropped: watch::Sender<u64>,
    /// Whether it sends a message of its own after each hundred drops.
    pushes: bool,
}

impl Impatient {
    async fn echo(self, mut socket: LimitedSocket) {
        loop {
            tokio::select! {
                biased;
                message = socket.recv() => match message {
                    Some(Ok(message @ Sent::Text(_))) => socket.send(message).await.unwrap(),
                    Some(Ok(_)) => {}
                    _ => break,
                },
                () = tokio::task::yield_now() => {
                    self.dropped.send_modify(|dropped| *dropped += 1);
                    if self.pushes
                        && self.dropped.borrow().is_multiple_of(100)
                        && socket.send(Sent::text("push")).await.is_err()
                    {
                        break;
                    }
                }
            }
        }
    }

    /// Waits for a thousand more drops.
    async fn busy(&self) {
        let mut dropped = self.dropped.subscribe();
        let before = *dropped.borrow();
        let busy = dropped.wait_for(|dropped| *dropped >= before + 1000);
        timeout(PATIENCE, busy).await.expect("in time").unwrap();
    }
}

/// A store that decides at once and answers at the hundredth poll.
#[derive(Clone, Default)]
struct Slow {
    inner: MemoryStore,
    asked: Arc<AtomicU64>,
}

impl Slow {
    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl RateStore for Slow {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        Arc::new(SlowBuckets {
            inner: self.inner.open(policies),
            asked: self.asked.clone(),
        })
    }
}

struct SlowBuckets {
    inner: Arc<dyn RateBuckets>,
    asked: Arc<AtomicU64>,
}

impl RateBuckets for SlowBuckets {
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let Reply::Ready(decision) = self.inner.take(charges, cost) else {
            panic!("memory answers at once");
        };
        let mut looks = 0;
        Reply::Pending(Box::pin(poll_fn(move |cx| {
            looks += 1;
            if looks < 100 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(decision.clone())
        })))
    }

    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        self.inner.peek(charges, cost)
    }

    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()> {
        self.inner.refund(charges, cost)
    }
}

#[tokio::test]
async fn a_message_is_charged_once() {
    let store = Slow::default();
    let limits = SocketLimits::new()
        .messages(Quota::per_hour(3))
        .messages_per_key(Quota::per_hour(3))
        .message_store(store.clone());
    let serving = Impatient::default();
    let address = serve(routes(&limits, |socket| serving.echo(socket))).await;
    let mut socket = try_connect(address, "alice").await.unwrap();
    for (text, asked) in [("one", 1), ("two", 2), ("three", 3)] {
        assert_eq!(exchange(&mut socket, text).await, text);
        assert_eq!(store.asked(), asked);
    }
    assert!(exchange(&mut socket, "four").await.contains("429"));
    assert_eq!(
        store.asked(),
        3,
        "the connection's own limit spares the store"
    );
}

/// The notices are large, so that a few of them fill the buffers between server and client.
#[tokio::test]
async fn a_late_reader_gets_every_notice_and_the_close_code() {
    let limits = SocketLimits::new()
        .messages(Quota::per_hour(1))
        .notice(|_: &Rejection| Some(Sent::text("x".repeat(1 << 20))))
        .close_after(20);
    let impatient = Impatient::default();
    let serving = impatient.clone();
    let address = serve(routes(&limits, |socket| serving.echo(socket))).await;
    let mut socket = connect(address, "alice").await;
    for _ in 0..20 {
        socket.send(Message::text("more")).await.unwrap();
    }
    impatient.busy().await;
    for notice in 1..20 {
        assert_eq!(next(&mut socket).await.len(), 1 << 20, "notice {notice}");
    }
    assert_eq!(closed_with(&mut socket).await, CloseCode::Policy);
}

/// The close frame of the client is sent when it reads again.
#[tokio::test]
async fn a_closing_connection_waits_for_the_client() {
    for pushes in [false, true] {
        let limits = SocketLimits::new()
            .connections(1)
            .messages(Quota::per_hour(1))
            .close_after(1);
        let serving = Impatient {
            pushes,
            ..Impatient::default()
        };
        let address = serve(routes(&limits, |socket| serving.echo(socket))).await;
        let mut socket = connect(address, "alice").await;
        pause();
        socket.send(Message::text("more")).await.unwrap();
        let code = loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Close(Some(frame)) => break frame.code,
                other => assert_eq!(other, Message::text("push")),
            }
        };
        assert_eq!(code, CloseCode::Policy);
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(limits.limiter().in_flight(), 1, "pushes: {pushes}");
        assert!(socket.next().await.is_none());
        resume();
        until_in_flight(&limits, 0).await;
    }
}

#[tokio::test]
async fn splitting_a_socket_keeps_the_received_message() {
    let store = Slow::default();
    let limits = SocketLimits::new()
        .messages_per_key(Quota::per_hour(1))
        .message_store(store.clone());
    let parting = |mut socket: LimitedSocket| async move {
        while store.asked() == 0 {
            tokio::select! {
                biased;
                _ = socket.recv() => panic!("nothing was answered"),
                () = tokio::task::yield_now() => {}
            }
        }
        let mut parts = socket.into_parts();
        let received = parts.received.expect("the message in hand");
        assert!(parts.unsent.is_none());
        parts.socket.send(received).await.unwrap();
    };
    let address = serve(routes(&limits, parting)).await;
    let mut socket = try_connect(address, "alice").await.unwrap();
    assert_eq!(exchange(&mut socket, "one").await, "one");
}

/// The flood has arrived before it is read, so that reading never waits.
#[tokio::test]
async fn a_flood_above_the_limit_does_not_starve_other_branches() {
    const FLOOD: u64 = 10_000;
    let refused = Arc::new(AtomicU64::new(0));
    let counting = refused.clone();
    let limits = SocketLimits::new()
        .messages(Quota::per_hour(1))
        .notice(move |_: &Rejection| {
            counting.fetch_add(1, Ordering::SeqCst);
            None
        });
    let flooded = Arc::new(Semaphore::new(0));
    let waiting = flooded.clone();
    let serving = |mut socket: LimitedSocket| async move {
        let _all = waiting.acquire().await.unwrap();
        let (mut before, mut most) = (0, 0);
        let mut is_over = false;
        while !is_over {
            tokio::select! {
                biased;
                message = socket.recv() => {
                    is_over = matches!(message, Some(Ok(Sent::Ping(_))));
                }
                () = tokio::task::yield_now() => {}
            }
            let now = refused.load(Ordering::SeqCst);
            most = most.max(now - before);
            before = now;
        }
        assert_eq!(before, FLOOD - 1);
        socket.send(Sent::text(most.to_string())).await.unwrap();
    };
    let address = serve(routes(&limits, serving)).await;
    let mut socket = try_connect(address, "alice").await.unwrap();
    for _ in 0..FLOOD {
        socket.feed(Message::text("")).await.unwrap();
    }
    socket.send(Message::Ping("last".into())).await.unwrap();
    flooded.add_permits(1);
    let most = loop {
        if let Message::Text(most) = next(&mut socket).await {
            break most.parse::<u64>().unwrap();
        }
    };
    assert!(most <= 200, "{most} were refused in one go");
}
