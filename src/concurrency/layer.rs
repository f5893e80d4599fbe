//! The layer: what is configured, and the limit that all its services share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use super::service::ConcurrencyLimit;
use crate::drain::DrainRejectedLayer;
use crate::enforce::Enforce;
use crate::extract::{Extractor, KeyExtractor, RequestHead};
use crate::limiter::{ConcurrencyLimiter, Wait};
use crate::limits::Limits;
use crate::observe::{Observer, Observers};
use crate::respond::{Answers, Responder};
use crate::store::{LeaseStore, SecretMissing};

/// Limits how many requests a service handles at a time, and refuses the others.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_admission::ConcurrencyLimitLayer;
///
/// let app: Router = Router::new()
///     .route("/", get(|| async { "hello" }))
///     .layer(ConcurrencyLimitLayer::new(64).name("AI Bridge"));
/// ```
///
/// # What a refused client sees
///
/// `503 Service Unavailable` with `Retry-After` and, unless it asks for something else, a problem
/// (RFC 9457) whose detail reads `AI Bridge is currently at capacity. Please try again later.` A
/// gRPC client gets UNAVAILABLE. Over a [per-key](Self::per_key) limit it is `429 Too Many
/// Requests`, or RESOURCE_EXHAUSTED; for a key with `deny all` it is `403 Forbidden`, or
/// PERMISSION_DENIED.
///
/// # What counts
///
/// A request counts from when it is handled until the response body has ended, so that a
/// streamed answer counts as long as it streams; [`hold_until`](Self::hold_until) can end it
/// sooner. It is given back also when the client goes away, the body fails or the handler panics. For an
/// upgraded connection see [`UpgradePermit`](super::UpgradePermit).
///
/// # One limit per layer value
///
/// All clones of a layer and all services made with it share its limit. axum applies a router's
/// layer to every route; the limit is still one. For a budget of its own make another layer.
///
/// # Deployment
///
/// Put it outside of rate limits, so that a request which is refused for capacity spends no
/// quota. The limit is that of this process, and several replicas each have their own, unless
/// they count in one [store](Self::store).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct ConcurrencyLimitLayer {
    shared: Arc<Shared>,
}

/// What the services of a layer have in common.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) store: Option<Arc<dyn LeaseStore>>,
    pub(super) limiter: ConcurrencyLimiter,
    /// What is charged for each key, if anything is: one for each place of the limiter.
    pub(super) keys: Vec<Extractor>,
    per_key: Vec<Extractor>,
    limits_keys: bool,
    pub(super) wait: Option<Wait>,
    pub(super) enforce: Enforce,
    pub(super) hold_until: HoldUntil,
    pub(super) skip: Option<Skip>,
    pub(super) answers: Answers,
    pub(super) observers: Observers,
    /// Whether a permit is all that a request needs.
    pub(super) is_plain: bool,
}

pub(crate) type Skip = Arc<dyn Fn(RequestHead<'_>) -> bool + Send + Sync>;

/// How long a request counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HoldUntil {
    /// Until its response body has ended.
    #[default]
    BodyEnd,
    /// Until its response's headers are there, as with `tower::limit::ConcurrencyLimit`. Bodies
    /// that are still being sent do not count.
    Headers,
}

impl ConcurrencyLimitLayer {
    /// At most `limit` requests at a time; 0 turns the limit off.
    pub fn new(limit: usize) -> Self {
        Self::with_limiter(ConcurrencyLimiter::new(limit))
    }

    /// Refuses every request, until the limiter's
    /// [`set_limit`](ConcurrencyLimiter::set_limit) says otherwise.
    pub fn deny_all() -> Self {
        Self::with_limiter(ConcurrencyLimiter::deny_all())
    }

    /// Goes on with a limit that is there already, charging the keys that these find to the first of
    /// its limits for each key.
    #[cfg(feature = "config")]
    pub(crate) fn resumed<E: KeyExtractor>(
        limiter: ConcurrencyLimiter,
        keys: impl IntoIterator<Item = E>,
    ) -> Self {
        Self::with_limiter(limiter).with(|shared| {
            shared.per_key = keys.into_iter().map(Extractor::new).collect();
            shared.limits_keys = true;
        })
    }

    fn with_limiter(limiter: ConcurrencyLimiter) -> Self {
        Self {
            shared: Arc::new(Shared {
                store: None,
                limiter,
                keys: Vec::new(),
                per_key: Vec::new(),
                limits_keys: false,
                wait: None,
                enforce: Enforce::default(),
                hold_until: HoldUntil::default(),
                skip: None,
                answers: Answers::default(),
                observers: Observers::default(),
                is_plain: true,
            }),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        change(shared);
        shared.keys = match shared.limits_keys {
            true => shared.per_key.clone(),
            false => Vec::new(),
        };
        shared.is_plain = shared.keys.is_empty()
            && shared.skip.is_none()
            && shared.store.is_none()
            && shared.observers.is_empty();
        self
    }

    /// What is at capacity, in the words of the answer. Default: `The service`.
    pub fn name(self, name: &str) -> Self {
        self.with(|shared| {
            shared.limiter = shared.limiter.clone().named(name);
            shared.open();
        })
    }

    /// Counts in a store that replicas share, so that the limit, and that of a
    /// [key](Self::per_key), is one for all of them. Default: in this process.
    ///
    /// Replicas know the limit by its [name](Self::name). What a replica holds when it dies is
    /// free again after the store's time to live. Each replica also keeps to the limit by
    /// itself, so that what it has no room for costs no call; [`wait`](Self::wait) waits
    /// for that room alone.
    ///
    /// ```no_run
    /// use tower_admission::{ByToken, ConcurrencyLimitLayer, Secret};
    /// # use tower_admission::store::LeaseStore;
    ///
    /// # fn with(redis: impl LeaseStore) {
    /// let layer = ConcurrencyLimitLayer::new(64)
    ///     .name("AI Bridge")
    ///     .per_key(ByToken::default(), 4)
    ///     .store(redis);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Where [`try_store`](Self::try_store) returns an error.
    #[track_caller]
    pub fn store(self, store: impl LeaseStore) -> Self {
        self.try_store(store)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`store`](Self::store), for a store that is configured from outside.
    ///
    /// # Errors
    ///
    /// When replicas share the store, it has no [`Secret`](crate::Secret) by which they would
    /// agree on the keys of credentials, and the layer's keys may be such.
    pub fn try_store(self, store: impl LeaseStore) -> Result<Self, SecretMissing> {
        let layer = self.with(|shared| shared.store = Some(Arc::new(store)));
        layer.shared.check_secret()?;
        Ok(layer.with(Shared::open))
    }

    /// Adds a limit for each key: at most `limit` requests at a time; 0 turns this part off. Each call
    /// adds another one.
    ///
    /// A key over its limit is answered 429. The request then takes nothing from the service's
    /// capacity, nor from its other keys. Costs memory for the keys that have a request in flight.
    ///
    /// A client can make up tokens, and each of them is a key. A second limit per address bounds what
    /// all of them take together:
    ///
    /// ```
    /// use tower_admission::{ByToken, ClientIp, ConcurrencyLimitLayer};
    ///
    /// let layer = ConcurrencyLimitLayer::new(64)
    ///     .per_key(ByToken::default(), 16)
    ///     .per_key(ClientIp::peer(), 32);
    /// ```
    ///
    /// Each limit counts for itself. A request without a token is charged to its address twice here:
    /// as one of 16 without a token, and as one of 32 in all.
    ///
    /// # Panics
    ///
    /// Where [`try_store`](Self::try_store) would return an error.
    #[track_caller]
    pub fn per_key(self, key: impl KeyExtractor, limit: usize) -> Self {
        let layer = self.with(|shared| {
            shared.limiter = shared.limiter.clone().per_key(limit);
            shared.per_key.push(Extractor::new(key));
            shared.limits_keys |= limit > 0 || shared.limiter.has_limits();
        });
        if let Err(error) = layer.shared.check_secret() {
            panic!("{error}");
        }
        layer
    }

    /// What single keys may have in flight, changed at run time: in place of the limit of
    /// [`per_key`](Self::per_key), which has to be there to say who is charged. With a limit of 0 there
    /// only those keys are limited that have one of their own. A key has the same limit wherever it is
    /// charged.
    ///
    /// # Panics
    ///
    /// Where [`try_store`](Self::try_store) would return an error.
    #[track_caller]
    pub fn limits(self, limits: &Limits) -> Self {
        let layer = self.with(|shared| {
            shared.limiter = shared.limiter.clone().limits(limits);
            shared.limits_keys = true;
        });
        if let Err(error) = layer.shared.check_secret() {
            panic!("{error}");
        }
        layer
    }

    /// Lets up to `max_waiting` requests wait for capacity, each for up to `max_time`, first come
    /// first served. Default: none waits.
    ///
    /// When the line is full a request is refused at once. A client that goes away leaves the
    /// line. Keep it short: whoever waits holds a connection and its memory. A request that
    /// waits counts against its [key's limit](Self::per_key).
    ///
    /// # Panics
    ///
    /// A request that has to wait panics outside of a tokio runtime, or in one without time.
    pub fn wait(self, max_waiting: usize, max_time: Duration) -> Self {
        self.with(|shared| {
            shared.wait = Some(Wait {
                max_waiting,
                max_time,
            });
        })
    }

    /// When a request stops to count. Default: when its response body has ended.
    pub fn hold_until(self, hold_until: HoldUntil) -> Self {
        self.with(|shared| shared.hold_until = hold_until)
    }

    /// Reads the rest of a rejected request's body before it sends the rejection. Default: off.
    /// Call it last, as it returns another layer.
    ///
    /// Many clients write the whole body before they read. When a server answers earlier and closes
    /// the connection, such a client sees a connection error in place of the rejection: of
    /// 20 uploads of 4 MiB over HTTP/1, one client saw 0 rejections, and 20 of 20 with this. With
    /// bodies above 64 KiB, HTTP/2 clients are worse off.
    ///
    /// The rejection is sent when the body has ended, when more than `max_bytes` of it came, or after
    /// `max_time`. It is sent at once when the body is empty or is known to exceed `max_bytes`,
    /// when the client asks first (`Expect: 100-continue`), or while
    /// [64 bodies](DrainRejectedLayer::MAX_DRAINING) are being read. A request that is being read holds no
    /// permit, no quota and no task; it costs about 0.25 ms of processor time per MiB. Observers
    /// see the rejection before the body is read.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_admission::ConcurrencyLimitLayer;
    /// let layer = ConcurrencyLimitLayer::new(64)
    ///     .name("Uploads")
    ///     .drain_rejected(16 << 20, Duration::from_secs(10));
    /// ```
    ///
    /// # Panics
    ///
    /// A request whose body is read panics outside of a tokio runtime, or in one without time.
    pub fn drain_rejected(self, max_bytes: u64, max_time: Duration) -> DrainRejectedLayer<Self> {
        DrainRejectedLayer::new(self, max_bytes, max_time)
    }

    /// Sets after what time a response that its client does not read loses its permit to a request
    /// that needs it. Default: [one minute](ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER). `None`
    /// turns it off; then a client that stops reading holds its permit for as long as its connection
    /// lives.
    ///
    /// A response is *stalled* while it has handed over a frame and has not been asked for the next
    /// one. A response that waits for its handler is never stalled, however long that takes: a
    /// server-sent event stream that is silent for minutes keeps its permit. So does a response that
    /// was never asked for a frame, as with hyper before 1.10 when an HTTP/2 client has a window of 0.
    /// Nothing is taken
    /// while there is capacity. When a request finds none, or waits for it, the response that has been
    /// stalled for longest is ended with an error: HTTP/1 cuts the connection off, HTTP/2 resets the
    /// stream. For a [key](Self::per_key) at its limit it is a response of the same key.
    ///
    /// A client is not cut off as long as it reads one frame in this time over HTTP/2, and about
    /// 1.5 MB over HTTP/1, where the buffers of the server and the kernel hide slower reading: 25 KB/s
    /// with the default. A frame that is larger has to be read whole in this time. A smaller send
    /// buffer of the listener (`SO_SNDBUF` 64 KiB) makes that about 0.5 MB.
    ///
    /// The request that needs the permit drops the body of the ended response, so this drop must not
    /// wait for a lock that a caller of the limiter holds.
    ///
    /// A response whose first frame is its last one is never stalled, and costs nothing. Each
    /// further frame costs one look at the clock. What the server has buffered of an ended
    /// response, up to half a megabyte over HTTP/1, stays until its connection ends, so a server
    /// needs a write timeout as well; at most four times the limit, or 256 if that is more, are ended
    /// and not gone. Over HTTP/2 a write timeout ends nothing: see the
    /// [guide](crate::guide#clients-that-do-not-read).
    pub fn reclaim_after(self, stalled: Option<Duration>) -> Self {
        self.shared.limiter.set_reclaim_after(stalled);
        self
    }

    /// Sets the wait in the rejections of a service at capacity and of a key at its limit, in whole
    /// seconds, rounded up; `None` or zero for none.
    ///
    /// Default: [one second](ConcurrencyLimiter::DEFAULT_RETRY_AFTER), as the time until capacity is
    /// free cannot be known.
    pub fn retry_after(self, wait: Option<Duration>) -> Self {
        self.with(|shared| shared.limiter = shared.limiter.clone().retry_after(wait))
    }

    /// Adds a random time of at most `jitter` to the wait of each rejection at capacity (503), so that
    /// clients which are rejected together do not come back together. Default: zero.
    ///
    /// Use several seconds: `Retry-After` has whole ones. A rejection without a
    /// [wait](Self::retry_after) stays without.
    pub fn retry_after_jitter(self, jitter: Duration) -> Self {
        self.with(|shared| shared.limiter = shared.limiter.clone().retry_after_jitter(jitter))
    }

    /// Sets whether a rejection with a `Retry-After` also has `retry-after-ms`; see
    /// [`RateLimitLayer::retry_after_ms`](crate::RateLimitLayer::retry_after_ms). Default: false.
    pub fn retry_after_ms(self, retry_after_ms: bool) -> Self {
        self.with(|shared| shared.answers.set_retry_after_ms(retry_after_ms))
    }

    /// Enforces only `percent` of the rejections, to introduce a limit gradually. Default: 100.
    ///
    /// The other requests above the limit are admitted and not counted, and observers get
    /// [`would_reject`](Observer::would_reject) for them. Over a [per-key](Self::per_key) limit the
    /// key decides whether the limit is enforced, as in
    /// [`RateLimitLayer::enforce`](crate::RateLimitLayer::enforce): a key that is not enforced and is
    /// over its limit is not bounded by the total either. At capacity, requests are taken in turn: at
    /// 25, every fourth rejection is enforced. At every percentage above 0, responses that clients do
    /// not read are [ended](Self::reclaim_after) for requests that need their permits.
    ///
    /// 0 is a [dry run](Self::dry_run).
    ///
    /// # Panics
    ///
    /// When `percent` is above 100.
    #[track_caller]
    pub fn enforce(self, percent: u8) -> Self {
        let enforce = Enforce::new(percent);
        self.with(|shared| {
            let is_dry_run = enforce.is_dry_run();
            shared.limiter = shared.limiter.clone().spares_stalled(is_dry_run);
            shared.enforce = enforce;
        })
    }

    /// Decides and tells observers, but admits every request. Default: off. To try out a limit.
    ///
    /// No request [waits](Self::wait) then. What is counted is what the limit would have admitted, so
    /// `in_flight` stays within it.
    /// A response that its client does not read is not ended: it goes on and counts no more.
    ///
    /// `true` is [`enforce(0)`](Self::enforce), `false` is `enforce(100)`: the last of the two
    /// settings applies.
    pub fn dry_run(self, dry_run: bool) -> Self {
        self.enforce(if dry_run {
            Enforce::DRY_RUN
        } else {
            Enforce::ALL
        })
    }

    /// Lets requests through that this says `true` to; they are not counted.
    pub fn skip(self, skip: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|shared| shared.skip = Some(Arc::new(skip)))
    }

    /// Sets how rejected requests are answered. Default: [`Negotiated`](crate::respond::Negotiated).
    pub fn respond(self, responder: impl Responder) -> Self {
        self.with(|shared| shared.answers.set_responder(responder))
    }

    /// Adds an observer. Default: none.
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with(|shared| {
            shared.observers.add(observer);
            let observers = Arc::new(shared.observers.clone());
            shared.limiter = shared.limiter.clone().observed(observers);
        })
    }

    /// The limiter behind the layer: to see what is in flight, to change the limit at run time,
    /// or to take permits for work that comes in another way.
    ///
    /// Shares the layer's count. Its name, keys and observers are those set so far.
    #[must_use]
    pub fn limiter(&self) -> ConcurrencyLimiter {
        self.shared.limiter.clone()
    }
}

impl Shared {
    /// Opens the limiter's slots in the store, under its name.
    fn open(&mut self) {
        if let Some(store) = &self.store {
            self.limiter = self.limiter.clone().stored(&**store);
        }
    }

    fn check_secret(&self) -> Result<(), SecretMissing> {
        let fingerprints = self.keys.iter().any(Extractor::makes_fingerprints);
        let store = self.store.as_ref();
        if fingerprints && store.is_some_and(|store| !store.agrees_on_fingerprints()) {
            return Err(SecretMissing);
        }
        Ok(())
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        self.shared.limiter.nesting().apply();
        ConcurrencyLimit::new(inner, self.shared.clone())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("limiter", &self.limiter)
            .field("wait", &self.wait)
            .field("hold_until", &self.hold_until)
            .finish_non_exhaustive()
    }
}
