//! The layer: the configuration, and the limiter that all its services share.

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
/// `503 Service Unavailable` with `Retry-After`. The body is a problem (RFC 9457) with the detail
/// `AI Bridge is currently at capacity. Please try again later.`, unless the client accepts another
/// format. A gRPC client gets UNAVAILABLE. Above a [per-key](Self::per_key) limit the answer is
/// `429 Too Many Requests`, or RESOURCE_EXHAUSTED; for a key with `deny all` it is `403 Forbidden`,
/// or PERMISSION_DENIED.
///
/// # When a request counts
///
/// A request counts from the call until its response body has ended, so a streamed answer counts as
/// long as it streams; [`hold_until`](Self::hold_until) can end this sooner. The permit is also
/// released when the client disconnects, the body fails or the handler panics. For an upgraded
/// connection see [`UpgradePermit`](super::UpgradePermit).
///
/// # One limit per layer value
///
/// All clones of a layer and all services made with it share its limit. axum applies a router's
/// layer to every route; the limit is still one. For a separate budget make another layer.
///
/// # Deployment
///
/// Put it outside rate limits, so that a request rejected for capacity spends no quota. The limit
/// applies to this process. Several replicas have separate limits, unless they count in one
/// [store](Self::store).
#[derive(Clone)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct ConcurrencyLimitLayer {
    /// The configuration. Its limiter is not opened.
    pub(super) configuration: LayerState,
    /// The opened parts of the limiter, created on first use. Clones share them.
    opened: Arc<OnceLock<OpenedResources>>,
    /// The state of the services of this layer, built with the first of them.
    shared: OnceLock<Arc<LayerState>>,
}

/// The state that the services of one layer share.
#[derive(Clone)]
pub(super) struct LayerState {
    pub(super) store: Option<Arc<dyn LeaseStore>>,
    pub(super) limiter: ConcurrencyLimiter,
    /// One extractor for each per-key limit of the limiter. Empty if no key is limited.
    pub(super) keys: Vec<Extractor>,
    per_key: Vec<Extractor>,
    has_key_limits: bool,
    pub(super) wait: Option<WaitLimits>,
    pub(super) enforce: Enforcement,
    pub(super) hold_until: HoldUntil,
    pub(super) skip: Option<Skip>,
    pub(super) tier_by: Option<TierBy>,
    pub(super) answers: Answers,
    pub(super) observers: Observers,
    /// Joined limits. A request needs a permit of each of them as well.
    pub(super) others: Vec<Arc<LayerState>>,
    /// Whether a request needs only a permit.
    pub(super) is_plain: bool,
}

pub(crate) type Skip = Arc<dyn Fn(RequestHead<'_>) -> bool + Send + Sync>;
type TierBy = Arc<dyn for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync>;

/// Selects when a request stops counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HoldUntil {
    /// When its response body has ended.
    #[default]
    BodyEnd,
    /// When its response headers are ready, as with `tower::limit::ConcurrencyLimit`. Bodies that
    /// are still being sent do not count.
    Headers,
}

impl ConcurrencyLimitLayer {
    /// Admits at most `limit` requests at a time. 0 turns the limit off.
    pub fn new(limit: usize) -> Self {
        Self::with_limiter(ConcurrencyLimiter::new(limit))
    }

    /// Rejects every request, until [`set_limit`](ConcurrencyLimiter::set_limit) of its limiter
    /// changes that.
    pub fn deny_all() -> Self {
        Self::with_limiter(ConcurrencyLimiter::deny_all())
    }

    /// Uses an existing limiter, and charges the keys that these extractors find to its first
    /// per-key limit.
    pub(crate) fn resumed<E: KeyExtractor>(
        limiter: ConcurrencyLimiter,
        keys: impl IntoIterator<Item = E>,
    ) -> Self {
        let opened = limiter.reopen();
        let mut layer = Self::with_limiter(limiter);
        layer.opened = Arc::new(opened.into());
        layer.with(|shared| {
            shared.per_key = keys.into_iter().map(Extractor::new).collect();
            shared.has_key_limits = true;
        })
    }

    fn with_limiter(limiter: ConcurrencyLimiter) -> Self {
        Self {
            configuration: LayerState {
                store: None,
                limiter,
                keys: Vec::new(),
                per_key: Vec::new(),
                has_key_limits: false,
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

    pub(super) fn with(mut self, change: impl FnOnce(&mut LayerState)) -> Self {
        self.shared = OnceLock::new();
        let shared = &mut self.configuration;
        change(shared);
        shared.keys = match shared.has_key_limits {
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

    /// Starts a new limit, because a setting changes what is counted or where.
    #[track_caller]
    fn unopened(mut self, setter: &str) -> Self {
        assert!(
            self.opened.get().is_none(),
            "call `{setter}` before `limiter` and before the layer is applied: its limit is already counting"
        );
        self.opened = Arc::default();
        self
    }

    /// Sets the name of the limited service in answers, metrics and overrides. Default:
    /// `The service` in answers.
    ///
    /// # Panics
    ///
    /// Panics when the layer or a clone of it was applied, or its [`limiter`](Self::limiter) was
    /// taken.
    #[track_caller]
    pub fn name(self, name: &str) -> Self {
        let layer = self.unopened("name");
        layer.with(|shared| shared.limiter = shared.limiter.clone().named(name))
    }

    /// Counts in a store that replicas share, so that they have one limit together, and one for
    /// each [key](Self::per_key). Default: this process counts.
    ///
    /// Replicas recognise the limit by its [name](Self::name). Permits of a replica that dies are
    /// released after the store's time to live. Each replica also enforces the limit by itself, so
    /// a request that exceeds it there costs no call. [`wait`](Self::wait) waits only for this
    /// local capacity.
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
    /// Panics where [`try_store`](Self::try_store) returns an error or panics.
    #[track_caller]
    pub fn store(self, store: impl LeaseStore) -> Self {
        match self.try_store(store) {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`store`](Self::store). Use it for a store that is configured from outside.
    ///
    /// # Errors
    ///
    /// Returns an error when replicas share the store, the layer's keys may be fingerprints of
    /// credentials, and the store has no [`Secret`](crate::Secret) on which replicas agree.
    ///
    /// # Panics
    ///
    /// Panics when the layer or a clone of it was applied, or its [`limiter`](Self::limiter) was
    /// taken.
    #[track_caller]
    pub fn try_store(self, store: impl LeaseStore) -> Result<Self, SecretMissing> {
        let layer = self.unopened("store");
        let layer = layer.with(|shared| shared.store = Some(Arc::new(store)));
        layer.configuration.check_secret()?;
        Ok(layer)
    }

    /// Adds a limit for each key: at most `limit` requests at a time. 0 turns this limit off. Each
    /// call adds another limit.
    ///
    /// A key above its limit is answered 429. The request then takes nothing from the capacity of
    /// the service, nor from its other keys. Cost: memory for the keys that have a request in
    /// flight.
    ///
    /// A client can make up tokens, and each of them is a key. A second limit per address bounds
    /// them together:
    ///
    /// ```
    /// use tower_admission::{ByToken, ClientIp, ConcurrencyLimitLayer};
    ///
    /// let layer = ConcurrencyLimitLayer::new(64)
    ///     .per_key(ByToken::default(), 16)
    ///     .per_key(ClientIp::peer(), 32);
    /// ```
    ///
    /// Each limit counts separately. A request without a token is charged to its address twice
    /// here: as one of 16 without a token, and as one of 32 in total.
    ///
    /// # Panics
    ///
    /// Panics where [`try_store`](Self::try_store) returns an error or panics.
    #[track_caller]
    pub fn per_key(self, key: impl KeyExtractor, limit: usize) -> Self {
        let layer = self.unopened("per_key").with(|shared| {
            shared.limiter = shared.limiter.clone().per_key(limit);
            shared.per_key.push(Extractor::new(key));
            shared.has_key_limits |= limit > 0 || shared.limiter.has_limits();
        });
        if let Err(error) = layer.configuration.check_secret() {
            panic!("{error}");
        }
        layer
    }

    /// Sets overrides per key and tiers, changeable at run time. They replace the limit of
    /// [`per_key`](Self::per_key), which selects the keys. Default: none.
    ///
    /// With `per_key(.., 0)` only keys with an override or a tier that names this limiter are
    /// limited. An override of a key applies to each per-key limit that charges it.
    ///
    /// # Panics
    ///
    /// Panics where [`try_store`](Self::try_store) returns an error or panics.
    #[track_caller]
    pub fn limits(self, limits: &Limits) -> Self {
        let layer = self.unopened("limits").with(|shared| {
            shared.limiter = shared.limiter.clone().limits(limits);
            shared.has_key_limits = true;
        });
        if let Err(error) = layer.configuration.check_secret() {
            panic!("{error}");
        }
        layer
    }

    /// Returns the limiter of the layer. Use it to read what is in flight, to change the limit at
    /// run time, or to take permits for other work.
    ///
    /// This opens the limit: call [`name`](Self::name), [`store`](Self::store),
    /// [`per_key`](Self::per_key) and [`limits`](Self::limits) before. It shares the layer's count.
    /// Its observers and [`retry_after`](Self::retry_after) are those set so far.
    #[must_use]
    pub fn limiter(&self) -> ConcurrencyLimiter {
        self.shared().limiter.clone()
    }

    /// The state of the services. Opens the limit on first use.
    pub(super) fn shared(&self) -> &Arc<LayerState> {
        let configuration = &self.configuration;
        let opened = self.opened.get_or_init(|| {
            let store = configuration.store.as_deref();
            configuration.limiter.open(store)
        });
        self.shared.get_or_init(|| {
            let limiter = configuration.limiter.clone().opened(opened);
            (configuration.observers).attached("concurrency", limiter.name(), [""]);
            Arc::new(LayerState {
                limiter,
                ..configuration.clone()
            })
        })
    }
}

impl LayerState {
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
            .field("shared", &self.configuration)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LayerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerState")
            .field("limiter", &self.limiter)
            .field("wait", &self.wait)
            .field("hold_until", &self.hold_until)
            .finish_non_exhaustive()
    }
}
