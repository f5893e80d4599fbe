//! The layer: what is configured, and the limit that all its services share, which is opened once.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use tower_layer::Layer;

use super::service::RateLimit;
use super::shared::{Settings, Shared};
use crate::extract::{ByToken, Extractor, KeyExtractor};
use crate::limiter::{RateLimiter, TiersUnsupported};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::store::{MemoryStore, RateStore, SecretMissing};

/// Limits the rate of requests by bearer token, else `X-Api-Key`, else client address.
///
/// ```
/// use tower_admission::{Quota, RateLimitByTokenLayer};
///
/// let layer = RateLimitByTokenLayer::new(Quota::per_second(10).burst(20));
/// ```
pub type RateLimitByTokenLayer = RateLimitLayer<ByToken>;

/// Limits the rate of requests by key, and rejects those above it.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_admission::{Policy, Quota, RateLimitLayer};
/// use tower_admission::extract::{ByToken, ClientIp};
///
/// let policy = Policy::new("burst", Quota::per_second(10)).and("daily", Quota::per_day(50_000));
/// let app: Router = Router::new()
///     .route("/", get(|| async { "hello" }))
///     .layer(
///         RateLimitLayer::by(ByToken::default(), policy)
///             .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_second(50))),
///     );
/// ```
///
/// # What a rejected client sees
///
/// `429 Too Many Requests` with a `Retry-After` after which the same request fits, unless others
/// use the same key, and, unless it asks for something else, a problem (RFC 9457) that names the
/// quotas it violated. A gRPC client gets RESOURCE_EXHAUSTED with RetryInfo. A key with `deny all`
/// gets `403 Forbidden` without `Retry-After`, or PERMISSION_DENIED. Every response of a
/// limited request has [headers](Self::headers) that say what is left, but for those of a
/// [guard](Self::guard_by_ip).
///
/// Where two rate layers are around one route, each decides alone: the outer one has charged what the inner one
/// rejects. For one decision over both use [`and_by`](Self::and_by).
///
/// # One limit per layer value
///
/// All clones of a layer and all services made with it share its limit, be they axum routes,
/// tonic services or both. For a budget of its own make another layer, and name its
/// [`Policy`]: where two layers are around one route, clients tell their quotas apart by name.
///
/// Where a service of the limit is inside of another one, as with nested routers, the outer service counts the
/// request, and only its settings apply. A cost, a guard or a `count_if` that you set on a clone
/// for the inner service has no effect, and inside of a dry run the inner service enforces nothing. Have the
/// outer layer [`skip`](Self::skip) these requests, or make another layer for the inner route.
///
/// # Deployment
///
/// Addresses are those of the connection's peer: behind a proxy that is the proxy, so
/// [`ByToken::client_ip`] and
/// [`ClientIp::forwarded_by`](crate::extract::ClientIp::forwarded_by) have to say which proxies to trust.
/// axum tells the peer's address only to services made with
/// `into_make_service_with_connect_info::<SocketAddr>()`; without it all who have no token share
/// one bucket. Tokens are not checked here, see [`guard_by_ip`](Self::guard_by_ip).
#[must_use = "a layer does nothing until it is added to a service"]
pub struct RateLimitLayer<K> {
    policies: Vec<Policy>,
    store: Arc<dyn RateStore>,
    limits: Option<Limits>,
    settings: Settings,
    /// The limit, opened when it is first needed. Clones share it.
    limiter: Arc<OnceLock<Result<RateLimiter, TiersUnsupported>>>,
    /// What the services of this layer share, made from the rest with the first of them.
    shared: OnceLock<Arc<Shared>>,
    key: PhantomData<fn() -> K>,
}

impl RateLimitByTokenLayer {
    /// Limits each bearer token, else `X-Api-Key`, else client address to `policy`, in memory.
    ///
    /// A quota of 0 is off, and a layer whose quotas are all off passes everything on.
    pub fn new(policy: impl Into<Policy>) -> Self {
        Self::by(ByToken::default(), policy)
    }
}

impl<K: KeyExtractor> RateLimitLayer<K> {
    /// Limits each key to `policy`, in memory.
    ///
    /// A quota of 0 is off, and a layer whose quotas are all off passes everything on. Requests
    /// without a key share [`Key::UNKNOWN`](crate::Key::UNKNOWN).
    pub fn by(key: K, policy: impl Into<Policy>) -> Self {
        Self {
            policies: vec![policy.into()],
            store: Arc::new(MemoryStore::new()),
            limits: None,
            settings: Settings::new(Extractor::new(key)),
            limiter: Arc::default(),
            shared: OnceLock::new(),
            key: PhantomData,
        }
    }

    /// Changes what is configured.
    pub(super) fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.shared = OnceLock::new();
        self
    }

    /// Starts a new limit, as what is counted or where is about to change.
    #[track_caller]
    fn unopened(mut self, setter: &str) -> Self {
        assert!(
            self.limiter.get().is_none(),
            "`{setter}` has to come before `limiter` and before the layer is applied: its limit counts already"
        );
        self.limiter = Arc::default();
        self.with(|_| {})
    }

    fn check_secret(self) -> Result<Self, SecretMissing> {
        let mut keys = self.settings.keys.iter();
        if keys.any(Extractor::makes_fingerprints) && !self.store.agrees_on_fingerprints() {
            return Err(SecretMissing);
        }
        Ok(self)
    }

    /// Charges another key in the same decision: a request has to fit both, and one that does
    /// not takes nothing from either.
    ///
    /// Keys that are addresses are decided first, so that an address which is over its limit cannot fill the store
    /// with made-up tokens. A quota whose name is taken gets a number behind it in headers.
    ///
    /// # Panics
    ///
    /// When the layer has eight keys already; when it or a clone of it was applied, or its [`limiter`](Self::limiter) was
    /// taken; where
    /// [`try_store`](Self::try_store) would return an error.
    #[track_caller]
    pub fn and_by(self, key: impl KeyExtractor, policy: impl Into<Policy>) -> Self {
        assert!(
            self.policies.len() < MAX_KEYS,
            "a layer has at most {MAX_KEYS} keys"
        );
        let mut layer = self.unopened("and_by");
        let policy = policy.into().with_unique_names(&layer.policies);
        layer.policies.push(policy);
        let layer = layer.with(|settings| settings.keys.push(Extractor::new(key)));
        match layer.check_secret() {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// Where to count. Default: [`MemoryStore`], with its default bound on keys.
    ///
    /// # Panics
    ///
    /// Where [`try_store`](Self::try_store) returns an error or panics.
    #[track_caller]
    pub fn store(self, store: impl RateStore) -> Self {
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
    pub fn try_store(self, store: impl RateStore) -> Result<Self, SecretMissing> {
        let mut layer = self.unopened("store");
        layer.store = Arc::new(store);
        layer.check_secret()
    }

    /// Overrides per key and tiers, changeable at run time. Default: none.
    ///
    /// A quota that is off can be switched on by an override or a tier.
    ///
    /// # Panics
    ///
    /// When the layer or a clone of it was applied, or its [`limiter`](Self::limiter) was taken.
    #[track_caller]
    pub fn limits(self, limits: &Limits) -> Self {
        let mut layer = self.unopened("limits");
        layer.limits = Some(limits.clone());
        layer
    }

    /// Goes on with a limit that is there already, of the same policies.
    pub(crate) fn resumed(self, limiter: RateLimiter) -> Self {
        let mut layer = self.unopened("resumed");
        layer.limiter = Arc::new(Ok(limiter).into());
        layer
    }

    /// Decides by a limiter that is there already.
    pub(super) fn decided_by(mut self, limiter: RateLimiter) -> Self {
        self.limiter = Arc::new(Ok(limiter).into());
        self
    }

    /// What is configured.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The limiter behind the layer, which shares its counts: to look at a key, to charge it for
    /// something else, or to give back.
    ///
    /// Opens the limit: [`store`](Self::store), [`limits`](Self::limits) and [`and_by`](Self::and_by) have to come
    /// before. Its methods for one key are about the layer's own; those for the keys of `and_by` as well take several, as
    /// [`RateLimiter::decide`].
    ///
    /// # Panics
    ///
    /// When there are [tiers](Policy::tier) and the store [has none](crate::store::RateBuckets::add_tier).
    #[must_use]
    #[track_caller]
    pub fn limiter(&self) -> RateLimiter {
        self.opened().clone()
    }
}

impl<K> RateLimitLayer<K> {
    /// Tells observers that the limit is ready to decide, unless they know it.
    pub(crate) fn tell_attached(&self) {
        self.shared();
    }

    /// The limit; opened here, if the layer is used for the first time.
    #[track_caller]
    fn opened(&self) -> &RateLimiter {
        let opened = self.limiter.get_or_init(|| {
            let limits = self.limits.as_ref();
            RateLimiter::try_with_policies(self.policies.clone(), &*self.store, limits)
        });
        match opened {
            Ok(limiter) => limiter,
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    fn shared(&self) -> &Arc<Shared> {
        let limiter = self.opened();
        self.shared.get_or_init(|| {
            self.settings.tell_attached(limiter);
            Arc::new(self.settings.with_limiter(limiter.clone()))
        })
    }
}

/// Keys that one layer charges in one decision.
pub(super) const MAX_KEYS: usize = 8;

impl<S, K> Layer<S> for RateLimitLayer<K> {
    type Service = RateLimit<S>;

    /// # Panics
    ///
    /// As [`limiter`](Self::limiter).
    #[track_caller]
    fn layer(&self, inner: S) -> Self::Service {
        let shared = self.shared();
        shared.nesting.apply();
        RateLimit::new(inner, shared.clone())
    }
}

// Not derived: that would ask it of `K`.
impl<K> Clone for RateLimitLayer<K> {
    fn clone(&self) -> Self {
        Self {
            policies: self.policies.clone(),
            store: self.store.clone(),
            limits: self.limits.clone(),
            settings: self.settings.clone(),
            limiter: self.limiter.clone(),
            shared: self.shared.clone(),
            key: PhantomData,
        }
    }
}

impl<K> fmt::Debug for RateLimitLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("policies", &self.policies)
            .finish_non_exhaustive()
    }
}
