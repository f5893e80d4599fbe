//! The layer: the configuration, and the limiter that all its services share.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use tower_layer::Layer;

use super::service::RateLimit;
use super::state::{LayerState, Settings};
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

/// Limits the rate of requests per key, and rejects requests above it.
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
/// `429 Too Many Requests` with a `Retry-After` after which the same request fits, unless other
/// requests use the key meanwhile. The body is a problem (RFC 9457) that names the violated quotas,
/// unless the client accepts another format. A gRPC client gets RESOURCE_EXHAUSTED with RetryInfo.
/// A key with `deny all` gets `403 Forbidden` without `Retry-After`, or PERMISSION_DENIED. Every
/// response to a limited request has [fields](Self::headers) with the remaining requests, except
/// for the rejections of a [guard](Self::guard_by_ip).
///
/// Two rate layers around one route decide separately: the outer one has charged a request that the
/// inner one rejects. For a joint decision use [`and_by`](Self::and_by).
///
/// # One limit per layer value
///
/// All clones of a layer and all services made with it share its limit: axum routes, tonic
/// services, or both. For a separate budget make another layer, and name its [`Policy`]: where two
/// layers wrap one route, clients distinguish their quotas by name.
///
/// If services of one limit are nested, as with nested routers, the outer service counts the
/// request, and only its settings apply. A cost, a guard or a `count_if` set on a clone for the
/// inner service has no effect, and inside a dry run the inner service enforces nothing. Let the
/// outer layer [`skip`](Self::skip) these requests, or make another layer for the inner route.
///
/// # Deployment
///
/// The default address is the peer of the connection, which behind a proxy is the proxy. Set the
/// trusted proxies with [`ByToken::client_ip`] and
/// [`ClientIp::forwarded_by`](crate::extract::ClientIp::forwarded_by). axum passes on the peer's
/// address only to services made with `into_make_service_with_connect_info::<SocketAddr>()`;
/// without it all clients without a token share one bucket. Tokens are not verified here, see
/// [`guard_by_ip`](Self::guard_by_ip).
#[must_use = "a layer does nothing until it is added to a service"]
pub struct RateLimitLayer<K> {
    policies: Vec<Policy>,
    store: Arc<dyn RateStore>,
    limits: Option<Limits>,
    settings: Settings,
    /// The limiter, opened on first use. Clones share it.
    limiter: Arc<OnceLock<Result<RateLimiter, TiersUnsupported>>>,
    /// The state of the services of this layer, built with the first of them.
    shared: OnceLock<Arc<LayerState>>,
    key: PhantomData<fn() -> K>,
}

impl RateLimitByTokenLayer {
    /// Limits each bearer token, else `X-Api-Key`, else client address to `policy`, counted in
    /// memory.
    ///
    /// A quota of 0 is off. A layer whose quotas are all off passes every request on.
    pub fn new(policy: impl Into<Policy>) -> Self {
        Self::by(ByToken::default(), policy)
    }
}

impl<K: KeyExtractor> RateLimitLayer<K> {
    /// Limits each key to `policy`, counted in memory.
    ///
    /// A quota of 0 is off. A layer whose quotas are all off passes every request on. Requests
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

    /// Changes the settings.
    pub(super) fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.shared = OnceLock::new();
        self
    }

    /// Starts a new limit, because a setting changes what is counted or where.
    #[track_caller]
    fn unopened(mut self, setter: &str) -> Self {
        assert!(
            self.limiter.get().is_none(),
            "call `{setter}` before `limiter` and before the layer is applied: its limit is already counting"
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

    /// Charges another key in the same decision. A request must fit both, and a request that does
    /// not is charged to neither.
    ///
    /// Keys that are addresses are decided first, so that an address over its limit cannot fill the
    /// store with made-up tokens. A quota whose name is taken gets a number after its name in
    /// headers.
    ///
    /// # Panics
    ///
    /// Panics when the layer already has eight keys; when the layer or a clone of it was applied,
    /// or its [`limiter`](Self::limiter) was taken; and where [`try_store`](Self::try_store)
    /// returns an error.
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

    /// Sets the store that counts. Default: [`MemoryStore`], with its default bound on keys.
    ///
    /// # Panics
    ///
    /// Panics where [`try_store`](Self::try_store) returns an error or panics.
    #[track_caller]
    pub fn store(self, store: impl RateStore) -> Self {
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
    pub fn try_store(self, store: impl RateStore) -> Result<Self, SecretMissing> {
        let mut layer = self.unopened("store");
        layer.store = Arc::new(store);
        layer.check_secret()
    }

    /// Overrides per key and tiers, changeable at run time. Default: none.
    ///
    /// An override or a tier can turn on a quota that is off.
    ///
    /// # Panics
    ///
    /// Panics when the layer or a clone of it was applied, or its [`limiter`](Self::limiter) was
    /// taken.
    #[track_caller]
    pub fn limits(self, limits: &Limits) -> Self {
        let mut layer = self.unopened("limits");
        layer.limits = Some(limits.clone());
        layer
    }

    /// Uses an existing limiter, which has the same policies.
    pub(crate) fn resumed(self, limiter: RateLimiter) -> Self {
        let mut layer = self.unopened("resumed");
        layer.limiter = Arc::new(Ok(limiter).into());
        layer
    }

    /// Decides with an existing limiter.
    pub(super) fn decided_by(mut self, limiter: RateLimiter) -> Self {
        self.limiter = Arc::new(Ok(limiter).into());
        self
    }

    /// The settings of the layer.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the limiter of the layer, which shares its counts. Use it to inspect a key, to
    /// charge it for other work, or to refund it.
    ///
    /// This opens the limit: call [`store`](Self::store), [`limits`](Self::limits) and
    /// [`and_by`](Self::and_by) before. Methods of the limiter that take one key apply to the
    /// layer's first key. Methods that take several keys, such as [`RateLimiter::decide`], apply to
    /// those of `and_by` as well.
    ///
    /// # Panics
    ///
    /// Panics when there are [tiers](Policy::tier) and the store [does not support
    /// them](crate::store::RateBuckets::add_tier).
    #[must_use]
    #[track_caller]
    pub fn limiter(&self) -> RateLimiter {
        self.opened().clone()
    }
}

impl<K> RateLimitLayer<K> {
    /// Reports to observers that the limit is ready to decide, once.
    pub(crate) fn tell_attached(&self) {
        self.shared();
    }

    /// The limiter, opened on first use.
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
    fn shared(&self) -> &Arc<LayerState> {
        let limiter = self.opened();
        self.shared.get_or_init(|| {
            self.settings.tell_attached(limiter);
            Arc::new(self.settings.with_limiter(limiter.clone()))
        })
    }
}

/// The maximum number of keys that one layer charges in one decision.
pub(super) const MAX_KEYS: usize = 8;

impl<S, K> Layer<S> for RateLimitLayer<K> {
    type Service = RateLimit<S>;

    /// # Panics
    ///
    /// Panics where [`limiter`](Self::limiter) panics.
    #[track_caller]
    fn layer(&self, inner: S) -> Self::Service {
        let shared = self.shared();
        shared.nesting.apply();
        RateLimit::new(inner, shared.clone())
    }
}

// Not derived, because the derive would require `K: Clone`.
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
