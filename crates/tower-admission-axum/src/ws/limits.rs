//! How many connections there may be, and what becomes of those above.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::WebSocketUpgrade;
use axum::response::{IntoResponse, Response};
use tower_admission::observe::Subject;
use tower_admission::provider::{
    ConcurrencyLimiterInternals, ConcurrencySettings, Observers, SECRET_MISSING,
};
use tower_admission::store::{LeaseStore, RateStore};
use tower_admission::{ConcurrencyLimiter, Key, Limits, MemoryStore, Observer, Policy};

use super::goodbye::close;
use super::handshake;
use super::messages::{MessageLimits, Messages};
use super::pings::PingInterval;
use super::refusal::Refusal;
use super::socket::LimitedSocket;

/// Limits on the WebSockets of one endpoint: connections in all and for each key, and messages.
/// Clones share them.
///
/// ```
/// use axum::extract::State;
/// use axum::extract::ws::WebSocketUpgrade;
/// use axum::response::{IntoResponse, Response};
/// use axum::{Router, routing::any};
/// use tower_admission_axum::ws::{Refusal, SocketLimits};
/// use tower_admission::{Key, Quota};
///
/// async fn chat(State(limits): State<SocketLimits>, upgrade: WebSocketUpgrade) -> Response {
///     let user = Key::id("user", "alice"); // as authentication has it
///     limits
///         .upgrade(upgrade, user, |mut socket| async move {
///             // Only messages within the limits get here.
///             while let Some(Ok(message)) = socket.recv().await {
///                 if socket.send(message).await.is_err() {
///                     break;
///                 }
///             }
///         })
///         .await
/// }
///
/// let limits = SocketLimits::new()
///     .name("chat")
///     .connections(10_000)
///     .connections_per_key(5)
///     .messages(Quota::per_minute(100))
///     .refuse_by(Refusal::Close);
/// let app: Router = Router::new().route("/chat", any(chat)).with_state(limits);
/// ```
///
/// # What a refused client sees
///
/// Above a limit on connections the handshake is answered 429 (the key's) or 503 (that of all)
/// with a problem (RFC 9457), as for any request; a key whose limit is `deny all` is answered 403. A script in a browser cannot read that, so
/// with [`Refusal::Close`] the connection is accepted and at once closed, with code 1008 (policy
/// violation) or 1013 (try again later) instead.
///
/// A message above a limit on messages is not passed on. It is answered with a text message, the
/// same problem as JSON with `retry-after` in seconds, and after so many of them, if that is
/// [configured](Self::close_after), the connection is closed with 1008. A message that is above the
/// key's limit only, or comes while the store is away, takes nothing from the connection's.
///
/// # What counts
///
/// A connection counts until its socket is dropped, also by an error or because the handler
/// panics, or until [`recv`](LimitedSocket::recv) has returned `None`, whatever the handler still
/// does then. Text and binary messages count; pings and pongs do not. A client that is gone without
/// a close frame counts until [`ping`](Self::ping) finds out.
///
/// # Stores that fail differently
///
/// Connections are often worth protecting where requests are not. Each limit has its own store,
/// and a store its own failure mode, so requests can be admitted while connections are refused:
///
/// ```no_run
/// # fn limits(redis: tower_admission_redis::RedisStore) {
/// use tower_admission::store::FailureMode;
/// use tower_admission::{Quota, RateLimitByTokenLayer};
/// use tower_admission_axum::ws::SocketLimits;
///
/// let http = RateLimitByTokenLayer::new(Quota::per_minute(60).burst(10))
///     .store(redis.clone().on_failure(FailureMode::Open));
/// let sockets = SocketLimits::new()
///     .connections_per_key(5)
///     .store(redis.on_failure(FailureMode::Closed));
/// # }
/// ```
#[derive(Clone)]
pub struct SocketLimits(pub(super) Arc<Shared>);

#[derive(Clone)]
pub(super) struct Shared {
    name: Arc<str>,
    limit: usize,
    per_key: usize,
    store: Option<Arc<dyn LeaseStore>>,
    /// Made anew of those above when one of them changes.
    connections: ConcurrencyLimiter,
    refusal: Refusal,
    /// Those who are told by a close frame that they are refused.
    closing: ConcurrencyLimiter,
    pub(super) messages: MessageLimits,
    /// What `messages.per_key` is made of.
    pub(super) messages_of_key: Option<Policy>,
    pub(super) message_store: Arc<dyn RateStore>,
    /// The overrides per key of both.
    pub(super) limits: Option<Limits>,
    pings: Option<PingInterval>,
    observers: Observers,
}

/// Connections that are being closed at a time.
const MOST_CLOSING: usize = 1000;

impl SocketLimits {
    /// Without limits.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            name: "".into(),
            limit: 0,
            per_key: 0,
            store: None,
            connections: ConcurrencyLimiter::new(0),
            refusal: Refusal::default(),
            closing: ConcurrencyLimiter::new(MOST_CLOSING),
            messages: MessageLimits::default(),
            messages_of_key: None,
            message_store: Arc::new(MemoryStore::new()),
            limits: None,
            pings: None,
            observers: Observers::default(),
        }))
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Changes what is counted, which starts a new limit.
    fn reopened(self, change: impl FnOnce(&mut Shared)) -> Self {
        self.with(|shared| {
            change(shared);
            let observers: Arc<dyn Observer> = Arc::new(shared.observers.clone());
            shared.connections = ConcurrencyLimiter::with_settings(ConcurrencySettings {
                name: &shared.name,
                limit: shared.limit,
                per_key: shared.per_key,
                store: shared.store.as_deref(),
                limits: shared.limits.as_ref(),
                observer: (!shared.observers.is_empty()).then_some(&observers),
            });
            // The name may be set later.
            if !shared.name.is_empty() {
                (shared.observers).attached("ws_connection", &shared.name, [""]);
            }
        })
    }

    /// What is at capacity, in the words of the answer and in metrics. Default: `The service`.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.reopened(|shared| shared.name = name.into())
    }

    /// At most so many connections in all; 0 turns this part off, which is the default.
    #[must_use]
    pub fn connections(self, limit: usize) -> Self {
        self.reopened(|shared| shared.limit = limit)
    }

    /// At most so many connections for each key; 0 turns this part off, which is the default.
    #[must_use]
    pub fn connections_per_key(self, limit: usize) -> Self {
        self.reopened(|shared| shared.per_key = limit)
    }

    /// Counts connections in a store that replicas share, as
    /// [`ConcurrencyLimitLayer::store`](tower_admission::ConcurrencyLimitLayer::store) does. Default: in
    /// this process.
    ///
    /// # Panics
    ///
    /// When replicas share the store and it has no [`Secret`](tower_admission::Secret) by which they would
    /// agree on keys.
    #[must_use]
    #[track_caller]
    pub fn store(self, store: impl LeaseStore) -> Self {
        assert!(store.agrees_on_fingerprints(), "{}", SECRET_MISSING);
        self.reopened(|shared| shared.store = Some(Arc::new(store)))
    }

    /// Sets overrides per key, changeable at run time: of [connections](Self::connections_per_key),
    /// by the [name](Self::name), and of [messages](Self::messages_per_key), by the quota's name.
    /// Default: none.
    ///
    /// Starts a new limit, as the other settings about connections do.
    ///
    /// # Panics
    ///
    /// When these or the policy of messages have [tiers](Limits::tier) and the store of messages
    /// [has none](tower_admission::store::RateBuckets::add_tier).
    #[must_use]
    #[track_caller]
    pub fn limits(self, limits: &Limits) -> Self {
        self.reopened(|shared| shared.limits = Some(limits.clone()))
            .with_messages_counted()
    }

    /// How connections are refused. Default: [`Refusal::Status`].
    #[must_use]
    pub fn refuse_by(self, refusal: Refusal) -> Self {
        self.with(|shared| shared.refusal = refusal)
    }

    /// Sends a ping at intervals of `every`, and ends a connection whose client sends nothing for
    /// `within` after one. Default: no pings, as each wakes a phone's radio. 0 turns them off.
    ///
    /// Any message counts as an answer, not only a pong; a part of a message does not. A ping that
    /// cannot be sent, because the client does not read, is not answered either. At the end
    /// [`recv`](LimitedSocket::recv) returns an error, the slot is free, and close code 1011 is sent
    /// if the connection takes it at once. So a client that is gone holds a slot for at most
    /// `every + within`, while the handler waits in `recv`.
    ///
    /// 30 and 15 seconds suit most: many proxies close what is idle for a minute, and `within` has to
    /// be enough to send or to read the longest message. Costs a timer for each connection.
    #[must_use]
    pub fn ping(self, every: Duration, within: Duration) -> Self {
        self.with(|shared| shared.pings = PingInterval::new(every, within))
    }

    /// Adds an observer, who sees the limit types `"ws_connection"` and `"ws_message"`. Default:
    /// none. To be set before the first connection: like all that is said about connections it
    /// starts a new limit.
    #[must_use]
    pub fn observe(self, observer: impl Observer) -> Self {
        self.reopened(|shared| shared.observers.add(observer))
    }

    /// The limiter of connections: to see how many there are, or to change the limit at run time.
    #[must_use]
    pub fn limiter(&self) -> ConcurrencyLimiter {
        self.0.connections.clone()
    }

    /// Lets a client connect that is charged to `key`, and `serve` it; or refuses it.
    ///
    /// Returns the answer to the handshake. When it is not sent, because a layer answers something
    /// else, the connection's slot is free five seconds after it was dropped. Its extensions
    /// have to stay with it: without them the connection has five seconds from then to be there, or
    /// is dropped.
    ///
    /// Needs a tokio runtime with its timer.
    pub async fn upgrade<F, Fut>(&self, upgrade: WebSocketUpgrade, key: Key, serve: F) -> Response
    where
        F: FnOnce(LimitedSocket) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let subject = self.subject(&key);
        let begun = self.0.observers.begin();
        match self.0.connections.acquire_for(&[key]).await {
            Ok(permit) => {
                (self.0.observers).decided(begun, &subject, |observer| observer.admitted(&subject));
                let Shared {
                    messages,
                    name,
                    observers,
                    pings,
                    ..
                } = &*self.0;
                let pings = *pings;
                let messages =
                    Messages::new(messages.clone(), name.clone(), key, observers.clone());
                handshake::upgrade(upgrade, permit, move |socket, permit| {
                    serve(LimitedSocket::new(socket, permit, messages, pings))
                })
            }
            Err(rejection) => {
                (self.0.observers).decided(begun, &subject, |observer| {
                    observer.rejected(&subject, &rejection);
                });
                match (self.0.refusal, self.0.closing.try_acquire()) {
                    (Refusal::Close, Ok(permit)) => close(upgrade, rejection, permit),
                    _ => rejection.into_response(),
                }
            }
        }
    }

    fn subject<'a>(&'a self, key: &'a Key) -> Subject<'a> {
        Subject::new("ws_connection", &self.0.name, "", Some(key))
    }
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SocketLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketLimits")
            .field("connections", &self.0.connections)
            .finish_non_exhaustive()
    }
}
