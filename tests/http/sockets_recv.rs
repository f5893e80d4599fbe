//! `recv` that is dropped before it is ready, as `select!` does: what it began is gone on with.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use axum::extract::ws::Message as Sent;
use tower_admission::store::{RateBuckets, RateStore, Reply};
use tower_admission::ws::{LimitedSocket, SocketLimits};
use tower_admission::{Decision, Key, MemoryStore, Policy, Quota};

use crate::servers::serve;
use crate::sockets::{exchange, routes, try_connect};

/// Drops each `recv` that is not ready at once.
#[derive(Clone, Default)]
struct Impatient;

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
                () = tokio::task::yield_now() => {}
            }
        }
    }
}

/// A store that decides when it is asked and answers when it was looked at a hundred times.
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
    fn take(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let Reply::Ready(decision) = self.inner.take(keys, cost) else {
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

    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.inner.peek(keys, cost)
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        self.inner.refund(keys, cost)
    }
}

#[tokio::test]
async fn a_message_is_charged_once() {
    let store = Slow::default();
    let limits = SocketLimits::new()
        .messages(Quota::per_hour(3))
        .messages_per_key(Quota::per_hour(3))
        .message_store(store.clone());
    let impatient = Impatient;
    let address = serve(routes(&limits, |socket| impatient.echo(socket))).await;
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
