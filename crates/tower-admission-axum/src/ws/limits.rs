//! Limits connections, and rejects those above the limit.

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

use super::closing::close;
use super::handshake;
use super::message_limiter::{MessageLimiter, MessageLimits};
use super::pings::PingInterval;
use super::reject_with::RejectWith;
use super::socket::LimitedSocket;

/// Limits on the WebSockets of one endpoint: connections in total and per key, and messages. Clones share the limits.
///
/// ```
/// use axum::extract::State;
/// use axum::extract::ws::WebSocketUpgrade;
/// use axum::response::Response;
/// use axum::{Router, routing::any};
/// use tower_admission::{Key, Quota};
/// use tower_admission_axum::ws::{RejectWith, SocketLimits};
///
/// async fn chat(State(limits): State<SocketLimits>, upgrade: WebSocketUpgrade) -> Response {
///     let user = Key::id("user", "alice"); // from authentication
///     limits
///         .upgrade(upgrade, user, |mut socket| async move {
///             // `recv` returns only messages within the limits.
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
///     .reject_with(RejectWith::Close);
/// let app: Router = Router::new().route("/chat", any(chat)).with_state(limits);
/// ```
///
/// # What a rejected client sees
///
/// The handshake of a rejected connection gets a response with problem details (RFC 9457): 429 at the limit per key, 503
/// at the total limit, 403 if the limit of the key is `deny all`. A script in a browser cannot read this response. With
/// [`RejectWith::Close`] the connection is accepted and closed at once instead, with code 1008 (policy violation) or 1013
/// (try again later).
///
/// The handler does not receive a message above a limit. The client receives a text message: the same problem details as
/// JSON, with `retry-after` in seconds. After a [number](Self::close_after) of such messages the connection is closed with
/// code 1008. A message that only the limit per key rejects, or that arrives while the store fails, is not charged to the
/// limit per connection.
///
/// # What counts
///
/// A connection counts until its socket is dropped, also on an error or a panic of the handler, or until
/// [`recv`](LimitedSocket::recv) has returned `None`. Text and binary messages count; pings and pongs do not. A client
/// that is gone without a close frame counts until a [`ping`](Self::ping) times out.
///
/// # Stores that fail differently
///
/// Each limit has its own store, and each store its own failure mode. For example, connections can fail closed while
/// requests fail open:
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
pub struct SocketLimits(pub(super) Arc<SocketLimitsInner>);

#[derive(Clone)]
pub(super) struct SocketLimitsInner {
    name: Arc<str>,
    limit: usize,
    per_key: usize,
    store: Option<Arc<dyn LeaseStore>>,
    /// Built from the fields above, again after each change of them.
    connections: ConcurrencyLimiter,
    reject_with: RejectWith,
    /// Limits the rejected connections that are being closed.
    closing: ConcurrencyLimiter,
    pub(super) messages: MessageLimits,
    /// The policy of `messages.per_key`.
    pub(super) messages_of_key: Option<Policy>,
    pub(super) message_store: Arc<dyn RateStore>,
    /// The overrides of both limits per key.
    pub(super) limits: Option<Limits>,
    pings: Option<PingInterval>,
    observers: Observers,
}

/// The maximum number of rejected connections that are being closed.
const MAX_CLOSING: usize = 1000;

impl SocketLimits {
    /// No limits.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(SocketLimitsInner {
            name: "".into(),
            limit: 0,
            per_key: 0,
            store: None,
            connections: ConcurrencyLimiter::new(0),
            reject_with: RejectWith::default(),
            closing: ConcurrencyLimiter::new(MAX_CLOSING),
            messages: MessageLimits::default(),
            messages_of_key: None,
            message_store: Arc::new(MemoryStore::new()),
            limits: None,
            pings: None,
            observers: Observers::default(),
        }))
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut SocketLimitsInner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Changes a setting of the limiter of connections, which then starts to count anew.
    fn with_new_limiter(self, change: impl FnOnce(&mut SocketLimitsInner)) -> Self {
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
            // `attached` needs a name, which may be set later.
            if !shared.name.is_empty() {
                (shared.observers).attached("ws_connection", &shared.name, [""]);
            }
        })
    }

    /// Sets the name, which responses, metrics and overrides use. Default: none; responses then say `The service`.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.with_new_limiter(|shared| shared.name = name.into())
    }

    /// Sets the maximum number of connections in total. Default: 0, which means no limit.
    #[must_use]
    pub fn connections(self, limit: usize) -> Self {
        self.with_new_limiter(|shared| shared.limit = limit)
    }

    /// Sets the maximum number of connections per key. Default: 0, which means no limit.
    #[must_use]
    pub fn connections_per_key(self, limit: usize) -> Self {
        self.with_new_limiter(|shared| shared.per_key = limit)
    }

    /// Counts connections in a store that replicas share, like
    /// [`ConcurrencyLimitLayer::store`](tower_admission::ConcurrencyLimitLayer::store). Default: in this process.
    ///
    /// # Panics
    ///
    /// If replicas share the store and it has no [`Secret`](tower_admission::Secret), without which replicas make
    /// different keys of the same credential.
    #[must_use]
    #[track_caller]
    pub fn store(self, store: impl LeaseStore) -> Self {
        assert!(store.agrees_on_fingerprints(), "{}", SECRET_MISSING);
        self.with_new_limiter(|shared| shared.store = Some(Arc::new(store)))
    }

    /// Sets overrides per key, changeable at run time: of [connections](Self::connections_per_key),
    /// by the [name](Self::name), and of [messages](Self::messages_per_key), by the quota's name.
    /// Default: none.
    ///
    /// Like each setting of connections, this starts a new limit: set it before the first connection.
    ///
    /// # Panics
    ///
    /// If the limits or the policy of messages have [tiers](Limits::tier), and the store of messages
    /// [does not support them](tower_admission::store::RateBuckets::add_tier).
    #[must_use]
    #[track_caller]
    pub fn limits(self, limits: &Limits) -> Self {
        self.with_new_limiter(|shared| shared.limits = Some(limits.clone()))
            .with_messages_counted()
    }

    /// Sets how connections are rejected. Default: [`RejectWith::Status`].
    #[must_use]
    pub fn reject_with(self, reject_with: RejectWith) -> Self {
        self.with(|shared| shared.reject_with = reject_with)
    }

    /// Sends a ping at intervals of `every`, and ends the connection if the client sends nothing for `within` after a ping.
    /// Default: no pings, because each ping wakes the radio of a phone. An interval of 0 turns pings off.
    ///
    /// Any complete message counts as an answer, not only a pong. The time includes sending the ping, which takes long if
    /// the client does not read. After the timeout [`recv`](LimitedSocket::recv) returns an error, the permit is released,
    /// and close code 1011 is sent if that is possible at once. So a client that is gone counts for at most
    /// `every + within`, while the handler waits in `recv`.
    ///
    /// 30 and 15 seconds suit most services: many proxies close a connection that is idle for a minute, and `within` must
    /// allow the client to send or read the longest message. Cost: a timer per connection.
    #[must_use]
    pub fn ping(self, every: Duration, within: Duration) -> Self {
        self.with(|shared| shared.pings = PingInterval::new(every, within))
    }

    /// Adds an observer. It sees the limit types `"ws_connection"` and `"ws_message"`. Default: none.
    ///
    /// Like each setting of connections, this starts a new limit: set it before the first connection.
    #[must_use]
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with_new_limiter(|shared| shared.observers.add(observer))
    }

    /// The limiter of connections. Use it to read the number of connections, or to change the limit at run time.
    #[must_use]
    pub fn limiter(&self) -> ConcurrencyLimiter {
        self.0.connections.clone()
    }

    /// Charges a connection to `key`, and runs `serve` with its socket; or rejects the connection.
    ///
    /// Returns the response to the handshake. Keep its extensions. If a layer drops the response or its extensions, the
    /// connection must arrive within five seconds; after that its permit is released and the connection is closed.
    ///
    /// Needs a tokio runtime with a timer.
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
                let SocketLimitsInner {
                    messages,
                    name,
                    observers,
                    pings,
                    ..
                } = &*self.0;
                let pings = *pings;
                let messages =
                    MessageLimiter::new(messages.clone(), name.clone(), key, observers.clone());
                handshake::upgrade(upgrade, permit, move |socket, permit| {
                    serve(LimitedSocket::new(socket, permit, messages, pings))
                })
            }
            Err(rejection) => {
                (self.0.observers).decided(begun, &subject, |observer| {
                    observer.rejected(&subject, &rejection);
                });
                match (self.0.reject_with, self.0.closing.try_acquire()) {
                    (RejectWith::Close, Ok(permit)) => close(upgrade, rejection, permit),
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
