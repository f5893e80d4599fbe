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

/// Counts in Redis, so that replicas of a service share one limit.
///
/// A decision is one script call: one round trip, atomic over all quotas and keys, on the server's
/// clock. It takes Redis from 6.2 or Valkey: one server, a primary with replicas behind Sentinel or behind
/// an address that follows it, or a cluster.
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
/// # When Redis is away
///
/// A call waits for the [deadline](Self::deadline) at most, and then the
/// [failure mode](Self::on_failure) decides. When Redis closes the connection, the store connects
/// again at once, calls wait for that, and those whose answer is lost are made once more (but no
/// refunds). When that attempt fails, or three calls in a row are not answered, later calls are not
/// made until a task in the background has connected again: they are decided in microseconds. In a
/// cluster this is so for each master. The connection is lazy, so a service starts and serves while
/// Redis is down; [`ping`](Self::ping) finds out at start.
///
/// # What replicas have to agree on
///
/// - The [`prefix`](Self::prefix).
/// - The [`secret`](Self::secret), for keys of credentials.
/// - The names of the [`Policy`]: buckets are known by them, and a second limiter with the same
///   names by its number, in the order in which limiters are made with the store and its clones (as far as
///   they keep its prefix). Give each limiter's policy a name of its own.
/// - Quotas may differ for as long as a deployment takes: what is spent stays spent, in requests.
///   A quota that becomes [sliding](tower_admission::Quota::sliding), or no longer is, starts anew, together with
///   the others of its limiter; until all replicas have it, those of either kind share a limit.
///
/// # What is stored
///
/// Of rates one string for each key and policy, which expires when its buckets are full: about 150 bytes of
/// Redis's memory. Its name holds an address as it is, and nothing else that a client
/// sent. Times are whole microseconds: above 100,000 requests a second for one key the rate may
/// fall short by more than a tenth. Of concurrency one sorted set for each limit and one for each of its
/// keys, which expire with the last slot; and for each slot that is known by id a string that says who
/// holds it, and for four deadlines after it was given back one that says so.
///
/// # Several keys in a cluster
///
/// A decision over several keys ([`and_by`](tower_admission::RateLimitLayer::and_by)) is one script where
/// there is one server. In a cluster the keys lie in different parts, so they are charged in turn,
/// addresses first, and given back when a later one refuses.
///
/// # Panics
///
/// Calls panic outside of a tokio runtime with time and I/O.
#[derive(Clone)]
#[must_use = "a store does nothing until a limiter counts in it"]
pub struct RedisStore {
    target: Target,
    /// Shared by clones that are configured differently, as they lie next to each other in Redis.
    names: Names,
    slots: leases::Opened,
    has_secret: bool,
    options: Options,
    /// Made with the first limiter, when nothing is configured any more; see `inner`.
    inner: Arc<OnceLock<Arc<Inner>>>,
}

// Times can be added up without a thought of their end.
const LONGEST_DEADLINE: Duration = Duration::from_secs(3600);
const SHORTEST_TTL: Duration = Duration::from_millis(100);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);

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
    /// How long a call may take: ten times what a round trip in one data centre does, and little
    /// next to what a request takes.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_millis(25);

    /// What keys in Redis begin with.
    pub const DEFAULT_PREFIX: &str = "admission";

    /// Calls under way at a time: what 25 milliseconds of a busy Redis answer.
    pub const DEFAULT_MAX_IN_FLIGHT: usize = 2048;

    /// How long a slot stays taken by a replica that is gone.
    pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(15);

    /// A store at a URL:
    ///
    /// - `redis://[user:password@]host[:6379][/db]`: one server
    /// - `unix:/path[?db=1&user=..&pass=..]`: one server on a unix socket
    /// - `redis+cluster://[user:password@]host,host`: a cluster
    /// - `redis+sentinel://[user:password@]host[:26379],host/service[/db]`: the master that Sentinel
    ///   names
    /// - `rediss://`, `rediss+cluster://` and `rediss+sentinel://`: the same over TLS (feature
    ///   `tls`), which trusts the CAs of the system unless `tls` names others
    ///
    /// `?protocol=resp3` speaks RESP3 in place of RESP2, and `?client_name=..` is
    /// [`client_name`](Self::client_name). [The chapter on replicas](tower_admission::guide::replicas#connecting) has
    /// more, such as the permissions of an ACL user.
    ///
    /// Does not connect; the first call does. With TLS it reads the CAs of the system.
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
    /// own, which it supervises: the client's connections, timeouts and name are not used. A client with TLS needs
    /// feature `tls`, and its certificates must be set again with `tls`, because a client does not expose them. A client
    /// of a cluster or of Sentinel exposes no configuration: use [`connect`](Self::connect) with its URL.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Configuration`] when the client has TLS without feature `tls`, insecure TLS, or a user without a
    /// password.
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

    /// Changes what is configured. What was made before stays as it is.
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self.inner = Arc::default();
        self
    }

    /// The certificates of TLS connections. Default: the CAs of the system, and no certificate of
    /// our own.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Configuration`] when a certificate or the key cannot be used, or the URL has
    /// no TLS (`redis://` in place of `rediss://`).
    #[cfg(feature = "tls")]
    pub fn tls(mut self, certificates: RedisTls) -> Result<Self, StoreError> {
        self.target.set_tls(&certificates)?;
        Ok(self.with(|_| {}))
    }

    /// The name of the connections in `CLIENT LIST`. Default: `tower-admission`, or `?client_name=`
    /// of the URL.
    ///
    /// Characters that Redis does not take in a name (spaces, and what is not printable ASCII)
    /// become `_`.
    pub fn client_name(self, name: &str) -> Self {
        self.with(|store| store.target.set_client_name(name))
    }

    /// What keys in Redis begin with. Default: [`DEFAULT_PREFIX`](Self::DEFAULT_PREFIX).
    ///
    /// Services that share a Redis and no limits have prefixes of their own. Braces in it are escaped,
    /// as they would choose the part of a cluster.
    pub fn prefix(self, prefix: &str) -> Self {
        self.with(|store| store.names = Names::new(prefix))
    }

    /// How long a call may take before the failure mode decides. Default:
    /// [`DEFAULT_DEADLINE`](Self::DEFAULT_DEADLINE); at most an hour.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.with(|store| store.options.client.deadline = deadline.min(LONGEST_DEADLINE))
    }

    /// How many calls may be under way at a time, in a cluster for each master. A call above it waits
    /// for room until its deadline; then the failure mode decides. Default:
    /// [`DEFAULT_MAX_IN_FLIGHT`](Self::DEFAULT_MAX_IN_FLIGHT). What keeps slots alive and gives them
    /// back is not counted, so that requests do not keep it from being told in time. It is one
    /// call at a time for each concurrency limit; of [`Leases`](tower_admission::Leases) up to 64 for those that were
    /// dropped, one for each that is kept alive, and one for each caller who sends a heartbeat or
    /// releases by id: bound these callers where they come from.
    pub fn max_in_flight(self, calls: usize) -> Self {
        self.with(|store| store.options.client.max_in_flight = calls)
    }

    /// What becomes of requests when Redis cannot be asked. Default: [`FailureMode::Open`].
    pub fn on_failure(self, mode: FailureMode) -> Self {
        self.with(|store| store.options.on_failure = mode)
    }

    /// How long a slot of a concurrency limit stays taken by a replica that is gone. Default:
    /// [`DEFAULT_LEASE_TTL`](Self::DEFAULT_LEASE_TTL); at least 100 milliseconds and at most a day.
    ///
    /// A replica keeps its slots alive with one call for up to 256 of them, three times in this
    /// time.
    pub fn lease_ttl(self, ttl: Duration) -> Self {
        self.with(|store| store.options.lease_ttl = ttl.clamp(SHORTEST_TTL, LONGEST_TTL))
    }

    /// The secret that replicas share, so that they agree on the keys of credentials. It becomes
    /// the [process's](Secret::install).
    ///
    /// Without one, layers whose keys may be of credentials cannot be made with this store.
    ///
    /// # Panics
    ///
    /// When the process has another secret, because one was installed or because a key was made
    /// before. [`Secret::install`], called first, returns that as an error.
    #[track_caller]
    pub fn secret(self, secret: Secret) -> Self {
        if let Err(error) = secret.install() {
            panic!("{error}");
        }
        self.with(|store| store.has_secret = true)
    }

    /// Adds an observer of the store's health. Default: none.
    ///
    /// The store and its clones are one to it: they can be reached when each of them can that has
    /// tried. Add it before the store is cloned, because clones with other observers are another
    /// store to it, and have lines of their own in the log.
    pub fn observe(self, observer: impl StoreObserver) -> Self {
        self.with(|store| store.options.client.events.add(observer))
    }

    /// Connects and has a rate decision made, in a cluster by each master, to find out at start what would
    /// else be left to the failure mode. What only concurrency limits, leases and overrides may not do
    /// shows with their first call.
    ///
    /// # Errors
    ///
    /// What is wrong: a server that is not there, refuses the credentials or is too old.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(ping::ping(self.inner()).await?)
    }

    /// Waits until Redis has back the slots that were freed, for the end of a process: what is freed in
    /// its last moments would otherwise stay taken for the [time to live](Self::lease_ttl).
    ///
    /// For slots that are known by id it is [`Leases::flush`](tower_admission::Leases::flush).
    ///
    /// Call it when the server has shut down and its requests are gone, before the runtime ends. It
    /// does so for the limiters of this store and of its clones, however they are configured.
    ///
    /// # Errors
    ///
    /// Why Redis could not be told, at the first call that fails.
    pub async fn flush(&self) -> Result<(), StoreError> {
        Ok(self.slots.flush().await?)
    }

    /// Whether Redis decides about requests, or the [failure mode](Self::on_failure) does. Makes no call: it is what the
    /// calls of this store and its clones have found.
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
