//! The layer: what is configured, and the limit that all its services share, which is opened once.

use std::fmt;
use std::sync::{Arc, OnceLock};

use tower_layer::Layer;

use super::service::ConcurrencyLimit;
use crate::enforce::Enforcement;
use crate::extract::{Extractor, KeyExtractor, RequestHead};
use crate::limiter::{ConcurrencyLimiter, OpenedResources, WaitLimits};
use crate::limits::Limits;
use crate::observe::Observers;
use crate::respond::Answers;
use crate::store::{LeaseStore, SecretMissing};

/// Limits how many requests a service handles at a time, and rejects the others.
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
/// # What a rejected client sees
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
/// Put it outside of rate limits, so that a request which is rejected for capacity spends no
/// quota. The limit is that of this process, and several replicas each have their own, unless
/// they count in one [store](Self::store).
#[derive(Clone)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct ConcurrencyLimitLayer {
    /// What is configured. Its limiter is not opened.
    pub(super) described: Shared,
    /// What the limiter opened when it was first needed. Clones share it.
    opened: Arc<OnceLock<OpenedResources>>,
    /// What the services of this layer share, made from the rest with the first of them.
    shared: OnceLock<Arc<Shared>>,
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
    pub(super) wait: Option<WaitLimits>,
    pub(super) enforce: Enforcement,
    pub(super) hold_until: HoldUntil,
    pub(super) skip: Option<Skip>,
    pub(super) tier_by: Option<TierBy>,
    pub(super) answers: Answers,
    pub(super) observers: Observers,
    /// The limits whose permits a request needs as well.
    pub(super) others: Vec<Arc<Shared>>,
    /// Whether a permit is all that a request needs.
    pub(super) is_plain: bool,
}

pub(crate) type Skip = Arc<dyn Fn(RequestHead<'_>) -> bool + Send + Sync>;
type TierBy = Arc<dyn for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync>;

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

    /// Rejects every request, until the limiter's
    /// [`set_limit`](ConcurrencyLimiter::set_limit) says otherwise.
    pub fn deny_all() -> Self {
        Self::with_limiter(ConcurrencyLimiter::deny_all())
    }

    /// Goes on with a limit that is there already, charging the keys that these find to the first of
    /// its limits for each key.
    pub(crate) fn resumed<E: KeyExtractor>(
        limiter: ConcurrencyLimiter,
        keys: impl IntoIterator<Item = E>,
    ) -> Self {
        let opened = limiter.reopen();
        let mut layer = Self::with_limiter(limiter);
        layer.opened = Arc::new(opened.into());
        layer.with(|shared| {
            shared.per_key = keys.into_iter().map(Extractor::new).collect();
            shared.limits_keys = true;
        })
    }

    fn with_limiter(limiter: ConcurrencyLimiter) -> Self {
        Self {
            described: Shared {
                store: None,
                limiter,
                keys: Vec::new(),
                per_key: Vec::new(),
                limits_keys: false,
                wait: None,
                enforce: Enforcement::default(),
                hold_until: HoldUntil::default(),
                skip: None,
                tier_by: None,
                answers: Answers::default(),
                observers: Observers::default(),
                others: Vec::new(),
                is_plain: true,
            },
            opened: Arc::default(),
            shared: OnceLock::new(),
        }
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        self.shared = OnceLock::new();
        let shared = &mut self.described;
        change(shared);
        shared.keys = match shared.limits_keys {
            true => shared.per_key.clone(),
            false => Vec::new(),
        };
        shared.is_plain = shared.keys.is_empty()
            && shared.skip.is_none()
            && shared.store.is_none()
            && shared.others.is_empty()
            && shared.observers.is_empty();
        self
    }

    /// Starts a new limit, as what is counted or where is about to change.
    #[track_caller]
    fn unopened(mut self, setter: &str) -> Self {
        assert!(
            self.opened.get().is_none(),
            "`{setter}` has to come before `limiter` and before the layer is applied: its limit counts already"
        );
        self.opened = Arc::default();
        self
    }

    /// What is at capacity, in the words of the answer. Default: `The service`.
    ///
    /// # Panics
    ///
    /// When the layer or a clone of it was applied, or its [`limiter`](Self::limiter) was taken.
    #[track_caller]
    pub fn name(self, name: &str) -> Self {
        let layer = self.unopened("name");
        layer.with(|shared| shared.limiter = shared.limiter.clone().named(name))
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
    /// Where [`try_store`](Self::try_store) returns an error or panics.
    #[track_caller]
    pub fn store(self, store: impl LeaseStore) -> Self {
        match self.try_store(store) {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`store`](Self::store), for a store that is configured from outside.
    ///
    /// # Errors
    ///
    /// When replicas share the store, it has no [`Secret`](crate::Secret) by which they would
    /// agree on the keys of credentials, and the layer's keys may be such.
    ///
    /// # Panics
    ///
    /// When the layer or a clone of it was applied, or its [`limiter`](Self::limiter) was taken.
    #[track_caller]
    pub fn try_store(self, store: impl LeaseStore) -> Result<Self, SecretMissing> {
        let layer = self.unopened("store");
        let layer = layer.with(|shared| shared.store = Some(Arc::new(store)));
        layer.described.check_secret()?;
        Ok(layer)
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
    /// Where [`try_store`](Self::try_store) would return an error or panic.
    #[track_caller]
    pub fn per_key(self, key: impl KeyExtractor, limit: usize) -> Self {
        let layer = self.unopened("per_key").with(|shared| {
            shared.limiter = shared.limiter.clone().per_key(limit);
            shared.per_key.push(Extractor::new(key));
            shared.limits_keys |= limit > 0 || shared.limiter.has_limits();
        });
        if let Err(error) = layer.described.check_secret() {
            panic!("{error}");
        }
        layer
    }

    /// Overrides per key and tiers, changeable at run time: numbers that replace the limit of
    /// [`per_key`](Self::per_key), which selects the keys. Default: none.
    ///
    /// With `per_key(.., 0)` only keys with an override or in a tier that names this limiter are limited. A key has
    /// the same limit wherever it is charged.
    ///
    /// # Panics
    ///
    /// Where [`try_store`](Self::try_store) would return an error or panic.
    #[track_caller]
    pub fn limits(self, limits: &Limits) -> Self {
        let layer = self.unopened("limits").with(|shared| {
            shared.limiter = shared.limiter.clone().limits(limits);
            shared.limits_keys = true;
        });
        if let Err(error) = layer.described.check_secret() {
            panic!("{error}");
        }
        layer
    }

    /// The limiter behind the layer: to see what is in flight, to change the limit at run time,
    /// or to take permits for work that comes in another way.
    ///
    /// Opens the limit: [`name`](Self::name), [`store`](Self::store), [`per_key`](Self::per_key) and
    /// [`limits`](Self::limits) have to come before. Shares the layer's count; its observers and
    /// [waits](Self::retry_after) are those set so far.
    #[must_use]
    pub fn limiter(&self) -> ConcurrencyLimiter {
        self.shared().limiter.clone()
    }

    /// What the services share; the limit is opened here, if the layer is used for the first time.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        let described = &self.described;
        let opened = self.opened.get_or_init(|| {
            let store = described.store.as_deref();
            described.limiter.open(store)
        });
        self.shared.get_or_init(|| {
            let limiter = described.limiter.clone().opened(opened);
            (described.observers).attached("concurrency", limiter.name(), [""]);
            Arc::new(Shared {
                limiter,
                ..described.clone()
            })
        })
    }
}

impl Shared {
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
        let shared = self.shared();
        shared.limiter.nesting().apply();
        ConcurrencyLimit::new(inner, shared.clone())
    }
}

impl fmt::Debug for ConcurrencyLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimitLayer")
            .field("shared", &self.described)
            .finish_non_exhaustive()
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
