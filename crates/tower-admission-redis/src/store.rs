//! The Redis store and its settings.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_admission::store::overrides::{OverrideTable, StoreFuture};
use tower_admission::store::{
    FailureKind, FailureMode, LeaseSlots, LeaseStore, RateBuckets, RateStore, SharedStore,
    StoreError, StoreStatus,
};
use tower_admission::{Policy, Secret};

use super::client::{self, Client};
use super::events::{Events, StoreObserver};
use super::names::Names;
use super::overrides::RedisOverrides;
use super::rate::{self, RedisBuckets};
use super::script::Script;
#[cfg(feature = "tls")]
use super::tls::RedisTls;
use super::url::Target;
use super::{leases, named, ping};

/// A store in Redis: all replicas of a service share one limit.
///
/// A decision is one script call: one round trip, atomic over all quotas and keys, by the server's clock. The server is
/// Redis 6.2 or later, or Valkey: one server, a primary with replicas (behind Sentinel, or behind an address that follows
/// the primary), or a cluster.
///
/// ```no_run
/// use std::time::Duration;
/// use tower_admission::store::FailureMode;
/// use tower_admission::{Policy, Quota, RateLimitByTokenLayer, Secret};
/// use tower_admission_redis::RedisStore;
///
/// # fn secret_from_configuration() -> [u8; 16] { [7; 16] }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisStore::connect("redis://127.0.0.1:6379")?
///     .prefix("gateway")
///     .deadline(Duration::from_millis(25))
///     .on_failure(FailureMode::LocalShare { replicas: 3 })
///     .secret(Secret::new(secret_from_configuration()));
/// let policy = Policy::new("burst", Quota::per_second(10)).and("daily", Quota::per_day(50_000));
/// let layer = RateLimitByTokenLayer::new(policy).store(store);
/// # Ok(())
/// # }
/// ```
///
/// # When Redis is unavailable
///
/// A call waits at most for the [deadline](Self::deadline). Then the [failure mode](Self::on_failure) decides.
///
/// When Redis closes the connection, the store reconnects at once. Calls wait for that, and calls that lost their answer
/// are repeated once, except for refunds. When the reconnection fails, or three calls in a row get no answer, the store
/// makes no calls until a background task has connected again: the failure mode then decides within microseconds. In a
/// cluster this applies to each master separately.
///
/// The first call connects, so a service starts and serves while Redis is unavailable. [`ping`](Self::ping) checks the
/// connection at start.
///
/// # What replicas must agree on
///
/// - The [`prefix`](Self::prefix).
/// - The [`secret`](Self::secret), for keys of credentials.
/// - The names in the [`Policy`]: they name the buckets. A second limiter with the same names gets a number, in the order
///   in which the limiters of the store and of its clones with the same prefix are created. Give the policy of each
///   limiter its own name.
/// - Quotas may differ during a deployment: spent requests stay spent. A quota that becomes
///   [sliding](tower_admission::Quota::sliding), or stops being so, starts again, together with the other quotas of its
///   limiter. Until all replicas have changed, the replicas with each algorithm share a separate limit.
///
/// # What is stored
///
/// - Rates: one string for each key and policy, about 150 bytes of Redis memory. It expires when its buckets are full. Its
///   name contains an address in plain text, and nothing else that a client sent. Times are whole microseconds: above
///   100,000 requests per second on one key the rate may be more than a tenth too low.
/// - Concurrency: one sorted set for each limit, and one for each of its keys. They expire with the last permit.
/// - Leases by id: also a string with the holder; and for four deadlines after a release, a string that records it.
///
/// # Several keys in a cluster
///
/// On one server, a decision over several keys ([`and_by`](tower_admission::RateLimitLayer::and_by)) is one script. In a
/// cluster the keys are on different masters: the store charges them in turn, addresses first, and refunds them when a
/// later key rejects.
///
/// # Panics
///
/// Calls panic outside of a tokio runtime with time and I/O.
#[derive(Clone)]
#[must_use = "a store does nothing until a limiter counts in it"]
pub struct RedisStore {
    target: Target,
    /// Clones share the names, also with other settings: their data is side by side in Redis.
    names: Names,
    slots: leases::Opened,
    has_secret: bool,
    options: Options,
    /// Created with the first limiter, after the last setter; see `inner`.
    inner: Arc<OnceLock<Arc<Inner>>>,
}

// Sums of deadlines must not overflow.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);
const MIN_TTL: Duration = Duration::from_millis(100);
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
pub(super) struct Options {
    pub(super) on_failure: FailureMode,
    pub(super) lease_ttl: Duration,
    pub(super) client: client::Options,
}

/// What the limiters of one store share.
pub(super) struct Inner {
    pub(super) client: Client,
    pub(super) names: Names,
    pub(super) rates: Script,
    pub(super) leases: leases::Scripts,
    pub(super) named: named::Scripts,
    pub(super) options: Options,
}

impl RedisStore {
    /// The default deadline of a call: 25 milliseconds. That is ten times a round trip within a data centre, and short
    /// next to the time of a request.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_millis(25);

    /// The default prefix of keys in Redis.
    pub const DEFAULT_PREFIX: &str = "admission";

    /// The default number of concurrent calls: what a busy Redis answers in 25 milliseconds.
    pub const DEFAULT_MAX_IN_FLIGHT: usize = 2048;

    /// The default time to live of permits: 15 seconds.
    pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(15);

    /// Creates a store for a URL:
    ///
    /// - `redis://[user:password@]host[:6379][/db]`: one server
    /// - `unix:/path[?db=1&user=..&pass=..]`: one server on a unix socket
    /// - `redis+cluster://[user:password@]host,host`: a cluster
    /// - `redis+sentinel://[user:password@]host[:26379],host/service[/db]`: the master that Sentinel names
    /// - `rediss://`, `rediss+cluster://` and `rediss+sentinel://`: the same over TLS (feature `tls`). The default trusts
    ///   the CAs of the system; `tls` sets others
    ///
    /// `?protocol=resp3` selects RESP3 instead of RESP2. `?client_name=..` sets the [`client_name`](Self::client_name).
    /// [The chapter on replicas](tower_admission::guide::replicas#connecting) has more, such as the permissions of an ACL
    /// user.
    ///
    /// It does not connect; the first call does. With TLS it reads the CAs of the system.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Configuration`] when the URL cannot be used.
    pub fn connect(url: &str) -> Result<Self, StoreError> {
        Ok(Self::new(Target::parse(url)?))
    }

    /// Creates a store for the server of an existing client of the `redis` crate, without connecting.
    ///
    /// The store takes over the client's address, user, password, database and protocol. It opens a connection of its
    /// own, which it supervises. It does not take over:
    ///
    /// - the client's connections, timeouts and connection name
    /// - its TCP settings (`TcpSettings`), such as keepalive: the store finds a dead connection by its own calls
    /// - the library name and version for `CLIENT SETINFO`: the store sets only [`client_name`](Self::client_name)
    /// - a streaming credentials provider, which belongs to a connection's configuration and not to the client: use a user
    ///   with a password
    /// - the certificates of TLS, which a client does not expose: set them again with `tls`
    ///
    /// A client with TLS needs feature `tls`. A client of a cluster or of Sentinel exposes no configuration: use
    /// [`connect`](Self::connect) with its URL.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Configuration`] when the client has TLS without feature `tls`, insecure TLS, or a user without a
    /// password. When the client has certificates of its own, all calls fail with this kind until `tls` sets them again:
    /// [`ping`](Self::ping) shows it.
    pub fn from_client(client: &redis::Client) -> Result<Self, StoreError> {
        Self::from_connection_info(client.get_connection_info())
    }

    /// Creates a store from a configuration of the `redis` crate, as [`from_client`](Self::from_client) does.
    ///
    /// # Errors
    ///
    /// As [`from_client`](Self::from_client).
    pub fn from_connection_info(info: &redis::ConnectionInfo) -> Result<Self, StoreError> {
        Ok(Self::new(Target::from_info(info)?))
    }

    fn new(target: Target) -> Self {
        Self {
            target,
            names: Names::new(Self::DEFAULT_PREFIX),
            slots: leases::Opened::default(),
            has_secret: false,
            options: Options {
                on_failure: FailureMode::default(),
                lease_ttl: Self::DEFAULT_LEASE_TTL,
                client: client::Options {
                    deadline: Self::DEFAULT_DEADLINE,
                    max_in_flight: Self::DEFAULT_MAX_IN_FLIGHT,
                    events: Events::default(),
                },
            },
            inner: Arc::default(),
        }
    }

    /// Changes a setting. Limiters that exist keep their settings.
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self.inner = Arc::default();
        self
    }

    /// Sets the certificates of TLS connections. Default: trusts the CAs of the system, and shows no client certificate.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Configuration`] when a certificate or the key cannot be used, or the URL has no TLS (`redis://`
    /// instead of `rediss://`).
    #[cfg(feature = "tls")]
    pub fn tls(mut self, certificates: RedisTls) -> Result<Self, StoreError> {
        self.target.set_tls(&certificates)?;
        Ok(self.with(|_| {}))
    }

    /// Sets the name of the connections in `CLIENT LIST`. Default: `tower-admission`, or `?client_name=` of the URL.
    ///
    /// Characters that Redis does not accept in a name (spaces, and all but printable ASCII) become `_`.
    pub fn client_name(self, name: &str) -> Self {
        self.with(|store| store.target.set_client_name(name))
    }

    /// Sets the prefix of keys in Redis. Default: [`DEFAULT_PREFIX`](Self::DEFAULT_PREFIX).
    ///
    /// Set different prefixes for services that share a Redis but no limits. Braces are escaped, because they would select
    /// the part of a cluster.
    pub fn prefix(self, prefix: &str) -> Self {
        self.with(|store| store.names = Names::new(prefix))
    }

    /// Sets the deadline of a call, after which the failure mode decides. Default:
    /// [`DEFAULT_DEADLINE`](Self::DEFAULT_DEADLINE). Maximum: an hour.
    ///
    /// A longer deadline keeps requests waiting when Redis is slow; a shorter one lets the failure mode decide more often.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.with(|store| store.options.client.deadline = deadline.min(MAX_DEADLINE))
    }

    /// Sets the maximum number of concurrent calls, in a cluster for each master. Default:
    /// [`DEFAULT_MAX_IN_FLIGHT`](Self::DEFAULT_MAX_IN_FLIGHT).
    ///
    /// A call above the maximum waits for room until its deadline; then the failure mode decides.
    ///
    /// Heartbeats and releases do not count, so that requests cannot delay them. They are one call at a time for each
    /// concurrency limit; for [`Leases`](tower_admission::Leases) up to 64 calls for dropped leases, one for each lease
    /// that is kept alive, and one for each caller that sends a heartbeat or releases by id. Limit the number of these
    /// callers.
    pub fn max_in_flight(self, calls: usize) -> Self {
        self.with(|store| store.options.client.max_in_flight = calls)
    }

    /// Sets how requests are decided while Redis is unavailable. Default: [`FailureMode::Open`].
    pub fn on_failure(self, mode: FailureMode) -> Self {
        self.with(|store| store.options.on_failure = mode)
    }

    /// Sets the time to live of permits: how long a permit counts after its replica died. Default:
    /// [`DEFAULT_LEASE_TTL`](Self::DEFAULT_LEASE_TTL). From 100 milliseconds to a day.
    ///
    /// A replica extends its permits three times in this time, up to 256 of them with one call.
    pub fn lease_ttl(self, ttl: Duration) -> Self {
        self.with(|store| store.options.lease_ttl = ttl.clamp(MIN_TTL, MAX_TTL))
    }

    /// Sets the secret of the replicas, so that they compute the same keys for credentials. It is installed for the whole
    /// process, as [`Secret::install`] does.
    ///
    /// Without a secret, layers that key by credentials cannot use this store.
    ///
    /// # Panics
    ///
    /// When a different secret is installed in this process, or a [`Key`](tower_admission::Key) was made before. Call
    /// [`Secret::install`] first to get an error instead.
    #[track_caller]
    pub fn secret(self, secret: Secret) -> Self {
        if let Err(error) = secret.install() {
            panic!("{error}");
        }
        self.with(|store| store.has_secret = true)
    }

    /// Adds an observer of the store's health. Default: none.
    ///
    /// The observer sees the store and its clones as one store, which is reachable when each clone that has tried is
    /// connected. Add it before you clone the store: clones with other observers count as another store, with log lines of
    /// their own.
    pub fn observe(self, observer: impl StoreObserver) -> Self {
        self.with(|store| store.options.client.events.add(observer))
    }

    /// Connects and makes a rate decision, in a cluster on each master. Call it at start to find configuration errors, which
    /// would otherwise be left to the failure mode.
    ///
    /// It does not check permissions that only concurrency limits, leases and overrides need.
    ///
    /// # Errors
    ///
    /// The failure of the call: the server cannot be reached, rejects the credentials or is too old, for example.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(ping::ping(self.inner()).await?)
    }

    /// Waits until Redis has received the releases of all dropped permits. Without it, permits that are dropped at the end
    /// of a process count until their [time to live](Self::lease_ttl) is over.
    ///
    /// Call it after the server has shut down and its requests have ended, before the runtime ends. It covers the limiters
    /// of this store and of its clones. For leases by id use [`Leases::flush`](tower_admission::Leases::flush).
    ///
    /// # Errors
    ///
    /// The failure of the first call that fails.
    pub async fn flush(&self) -> Result<(), StoreError> {
        Ok(self.slots.flush().await?)
    }

    /// Whether Redis decides, or the [failure mode](Self::on_failure) does. Makes no call: it reports what the calls of this
    /// store and its clones have found.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        self.inner().status()
    }

    fn inner(&self) -> &Arc<Inner> {
        self.inner.get_or_init(|| {
            Arc::new(Inner {
                client: Client::new(self.target.clone(), self.options.client.clone()),
                names: self.names.clone(),
                rates: rate::script(),
                leases: leases::Scripts::new(),
                named: named::Scripts::new(),
                options: self.options.clone(),
            })
        })
    }
}

impl Inner {
    pub(super) fn status(&self) -> StoreStatus {
        self.client.events().status(self.options.on_failure)
    }
}

impl RateStore for RedisStore {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        Arc::new(RedisBuckets::new(self.inner().clone(), policies))
    }

    fn agrees_on_fingerprints(&self) -> bool {
        self.has_secret
    }
}

impl LeaseStore for RedisStore {
    fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots> {
        Arc::new(self.slots.open(self.inner().clone(), name))
    }

    fn agrees_on_fingerprints(&self) -> bool {
        self.has_secret
    }
}

impl SharedStore for RedisStore {
    fn overrides(&self) -> Arc<dyn OverrideTable> {
        Arc::new(RedisOverrides::new(self.inner().clone(), self.has_secret))
    }

    fn open_at(&self, place: &str, policies: &[Policy]) -> Option<Arc<dyn RateBuckets>> {
        let store = self.inner().clone();
        let name = store.names.at(place)?;
        Some(Arc::new(RedisBuckets::called(name, store, policies)))
    }

    fn diagnose(&self) -> StoreFuture<'_, StoreError> {
        Box::pin(async {
            let alive = self.ping().await;
            // It answers, but not to that call.
            alive.err().unwrap_or(StoreError::new(FailureKind::Other))
        })
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.names.prefix())
            .field("on_failure", &self.options.on_failure)
            .finish_non_exhaustive()
    }
}
