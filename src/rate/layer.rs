//! The layer: what is configured, and the limit that all its services share.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use tower_layer::Layer;

use super::service::RateLimit;
use super::shared::Shared;
use crate::enforce::Enforce;
use crate::extract::{ByToken, Extractor, KeyExtractor};
use crate::headers::{Headers, RateLimitHeaders};
use crate::limiter::RateLimiter;
use crate::limits::Limits;
use crate::observe::Observers;
use crate::policy::Policy;
use crate::respond::Answers;
use crate::store::{MemoryStore, RateStore, SecretMissing};

/// Limits the rate of requests by bearer token, else `X-Api-Key`, else client address.
///
/// ```
/// use tower_admission::{Quota, RateLimitByTokenLayer};
///
/// let layer = RateLimitByTokenLayer::new(Quota::per_second(10).burst(20));
/// ```
pub type RateLimitByTokenLayer = RateLimitLayer<ByToken>;

/// Limits the rate of requests by key, and refuses those above it.
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
/// # What a refused client sees
///
/// `429 Too Many Requests` with a `Retry-After` after which the same request fits, unless others
/// use the same key, and, unless it asks for something else, a problem (RFC 9457) that names the
/// quotas it violated. A gRPC client gets RESOURCE_EXHAUSTED with RetryInfo. A key with `deny all`
/// gets `403 Forbidden` without `Retry-After`, or PERMISSION_DENIED. Every response of a
/// limited request has [headers](Self::headers) that say what is left, but for those of a
/// [guard](Self::guard_by_ip).
///
/// Where two rate layers are around one route, each speaks for itself: what the inner one refuses
/// has been charged by the outer one. For one decision over both use [`and_by`](Self::and_by).
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
    pub(super) dialect: RateLimitHeaders,
    shared: Arc<Shared>,
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
        let policies = vec![policy.into()];
        let store = Arc::new(MemoryStore::new());
        let limiter = RateLimiter::with_policies(policies.clone(), &*store, None);
        let dialect = RateLimitHeaders::default();
        let layer = Self {
            shared: Arc::new(Shared {
                is_plain: false,
                tells: false,
                tells_clients: false,
                tells_handlers: false,
                keys: vec![Extractor::new(key)],
                headers: Headers::new(dialect, &limiter),
                nesting: limiter.nesting(),
                limiter,
                status: None,
                cost: None,
                skip: None,
                tier_by: None,
                tiers: Vec::new(),
                count_if: None,
                enforce: Enforce::default(),
                guard: None,
                name: "".into(),
                answers: Answers::default(),
                observers: Observers::default(),
            }),
            policies,
            store,
            limits: None,
            dialect,
            key: PhantomData,
        };
        layer.with(|_| {})
    }

    /// Changes what is configured, and works out what follows from it.
    pub(super) fn with(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        change(shared);
        shared.settle();
        self
    }

    /// Starts a new limit, after a change of what is counted or where.
    fn reopened(mut self) -> Result<Self, SecretMissing> {
        let shared = Arc::make_mut(&mut self.shared);
        let fingerprints = shared.keys.iter().any(Extractor::makes_fingerprints);
        if fingerprints && !self.store.agrees_on_fingerprints() {
            return Err(SecretMissing);
        }
        // The old limit goes first, so that a store which knows limits by name has its name free.
        shared.limiter = RateLimiter::off();
        shared.tiers.clear();
        let limits = self.limits.as_ref();
        let limiter = RateLimiter::with_policies(self.policies.clone(), &*self.store, limits);
        shared.headers = Headers::new(self.dialect, &limiter);
        shared.limiter = limiter;
        shared.settle();
        Ok(self)
    }

    /// Charges another key in the same decision: a request has to fit both, and one that does
    /// not takes nothing from either.
    ///
    /// Keys that are addresses are decided first, so that an address which is over its limit cannot fill the store
    /// with made-up tokens. A quota whose name is taken gets a number behind it in headers. Starts a new limit: what
    /// clones made before this have counted stays with them.
    ///
    /// # Panics
    ///
    /// When the layer has eight keys already, and where [`try_store`](Self::try_store) would return an
    /// error or panic.
    #[track_caller]
    pub fn and_by(mut self, key: impl KeyExtractor, policy: impl Into<Policy>) -> Self {
        assert!(
            self.policies.len() < MAX_KEYS,
            "a layer has at most {MAX_KEYS} keys"
        );
        let policy = policy.into().renamed_apart_from(&self.policies);
        self.policies.push(policy);
        self.with(|shared| shared.keys.push(Extractor::new(key)))
            .reopened()
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Where to count. Default: [`MemoryStore`], with its default bound on keys.
    ///
    /// Starts a new limit: what clones made before this have counted stays with them.
    ///
    /// # Panics
    ///
    /// Where [`try_store`](Self::try_store) returns an error or panics.
    #[track_caller]
    pub fn store(self, store: impl RateStore) -> Self {
        self.try_store(store)
            .unwrap_or_else(|error| panic!("{error}"))
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
    /// When a policy has [tiers](Policy::tier) and the store [has none](crate::store::RateBuckets::tier).
    pub fn try_store(mut self, store: impl RateStore) -> Result<Self, SecretMissing> {
        self.store = Arc::new(store);
        self.reopened()
    }

    /// What single keys may do, changed at run time. Default: what everybody may, for good.
    ///
    /// Also lets the layer's policy be changed for all, by [`RateLimiter::set_policy`]. A quota that is off is off
    /// for every key. Starts a new limit: what clones made before this have counted stays with them.
    ///
    /// # Panics
    ///
    /// When the layer's store [cannot change quotas](RateStore::open_adjustable).
    #[track_caller]
    pub fn limits(mut self, limits: &Limits) -> Self {
        self.limits = Some(limits.clone());
        self.reopened().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Goes on with a limit that is there already, of the same policies.
    #[cfg(feature = "config")]
    pub(crate) fn resumed(self, limiter: RateLimiter) -> Self {
        let dialect = self.dialect;
        self.with(|shared| {
            shared.headers = Headers::new(dialect, &limiter);
            shared.limiter = limiter;
        })
    }

    /// The limiter behind the layer, which shares its counts: to look at a key, to charge it for
    /// something else, or to give back.
    ///
    /// Take it when the layer is complete: [`store`](Self::store) and [`and_by`](Self::and_by) start a new limit. Its
    /// methods for one key are about the layer's own; those for the keys of `and_by` as well take several, as
    /// [`RateLimiter::decide`].
    #[must_use]
    pub fn limiter(&self) -> RateLimiter {
        self.shared.limiter.clone()
    }
}

/// Keys that one layer charges in one decision.
pub(super) const MAX_KEYS: usize = 8;

impl<S, K> Layer<S> for RateLimitLayer<K> {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        self.shared.nesting.apply();
        RateLimit::new(inner, self.shared.clone())
    }
}

// Not derived: that would ask it of `K`.
impl<K> Clone for RateLimitLayer<K> {
    fn clone(&self) -> Self {
        Self {
            policies: self.policies.clone(),
            store: self.store.clone(),
            limits: self.limits.clone(),
            dialect: self.dialect,
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
