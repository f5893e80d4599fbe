//! The layer: what is configured, and the limit that all its services share.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use tower_layer::Layer;

use super::service::RateLimit;
use super::shared::{Guard, Shared};
use crate::extract::{ByToken, ClientIp, Extractor, KeyExtractor, RequestHead};
use crate::headers::{Headers, RateLimitHeaders};
use crate::limiter::RateLimiter;
use crate::limits::Limits;
use crate::observe::{Observer, Observers};
use crate::policy::Policy;
use crate::respond::{Answers, Responder};
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
/// quotas it violated. A gRPC client gets RESOURCE_EXHAUSTED with RetryInfo. Every response of a
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
/// # Deployment
///
/// Addresses are those of the connection's peer: behind a proxy that is the proxy, so
/// [`ByToken::client_ip`] and [`ClientIp::forwarded_by`] have to say which proxies to trust.
/// axum tells the peer's address only to services made with
/// `into_make_service_with_connect_info::<SocketAddr>()`; without it all who have no token share
/// one bucket. Tokens are not checked here, see [`guard_by_ip`](Self::guard_by_ip).
#[must_use = "a layer does nothing until it is added to a service"]
pub struct RateLimitLayer<K> {
    policies: Vec<Policy>,
    store: Arc<dyn RateStore>,
    limits: Option<Limits>,
    dialect: RateLimitHeaders,
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
                limiter,
                status: None,
                cost: None,
                skip: None,
                tier_by: None,
                tiers: Vec::new(),
                dry_run: false,
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
    fn with(mut self, change: impl FnOnce(&mut Shared)) -> Self {
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

    /// Which headers tell clients what is left. Default: [`RateLimitHeaders::Draft`].
    pub fn headers(mut self, headers: RateLimitHeaders) -> Self {
        self.dialect = headers;
        self.with(|shared| shared.headers = Headers::new(headers, &shared.limiter))
    }

    /// Whether handlers find a [`RateLimitStatus`](super::RateLimitStatus) in the request's extensions. Default: they
    /// do unless headers are off. Costs an allocation or two.
    pub fn status(self, status: bool) -> Self {
        self.with(|shared| shared.status = Some(status))
    }

    /// What a request costs. Default: 1.
    ///
    /// A request of cost 0 is admitted and takes nothing. One that costs more than the burst of a quota is refused
    /// without `Retry-After`, because it can never fit, and takes nothing.
    pub fn cost(self, cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.with(|shared| shared.cost = Some(Arc::new(cost)))
    }

    /// Lets requests through that this says `true` to; they are not counted and get no headers.
    ///
    /// ```
    /// # use tower_admission::{Quota, RateLimitByTokenLayer};
    /// let layer = RateLimitByTokenLayer::new(Quota::per_second(10))
    ///     .skip(|head| matches!(head.uri.path(), "/health" | "/metrics"));
    /// ```
    pub fn skip(self, skip: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|shared| shared.skip = Some(Arc::new(skip)))
    }

    /// Which [tier](Policy::tier) of its policies a request is of. Default: none, as for `None` and for a name that
    /// no policy has.
    ///
    /// Say only what the application knows to be so: a plan that authentication found, or a path, but no header that
    /// the client may set. A request counts in every tier; a route with a budget that others do not
    /// use up has a layer of its own, and one that is dearer a [`cost`](Self::cost).
    ///
    /// ```
    /// # use tower_admission::{Policy, Quota, RateLimitByTokenLayer};
    /// #[derive(Clone)]
    /// struct Plan(String);
    ///
    /// let policy = Policy::from(Quota::per_minute(10)).tier("pro", Quota::per_minute(600));
    /// let layer = RateLimitByTokenLayer::new(policy)
    ///     .tier_by(|head| Some(&head.extensions.get::<Plan>()?.0));
    /// ```
    pub fn tier_by(
        self,
        tier: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.with(|shared| shared.tier_by = Some(Arc::new(tier)))
    }

    /// Refuses addresses that keep asking without credentials that the application accepts.
    ///
    /// A token is not checked before it is charged, and a made-up one has a full bucket. So each
    /// answer of 401 or 403 is charged to the client's address, and an address that has used up
    /// `quota` is refused (429) before its token is looked at. `quota` says how many such answers
    /// an address gets, whether it sent credentials or none; requests that are accepted cost it
    /// nothing. In gRPC these are UNAUTHENTICATED and PERMISSION_DENIED, where the service answers
    /// with nothing else (trailers-only).
    ///
    /// A client that goes away before it is answered is charged as well: hanging up would else be
    /// a way around. Charging happens when the answer is known, so requests in flight at one time
    /// can exceed the quota by their number. Where no address is known the guard does nothing, or
    /// one client could lock out all. Counted in memory, per replica, whatever the layer's store.
    /// A quota without a name is called `guard`.
    ///
    /// The address is the connection's peer; behind a proxy use [`guard_by`](Self::guard_by).
    ///
    /// ```
    /// # use tower_admission::{Quota, RateLimitByTokenLayer};
    /// let layer = RateLimitByTokenLayer::new(Quota::per_second(10))
    ///     .guard_by_ip(Quota::per_minute(20));
    /// ```
    pub fn guard_by_ip(self, quota: impl Into<Policy>) -> Self {
        self.guard_by(ClientIp::peer(), quota)
    }

    /// As [`guard_by_ip`](Self::guard_by_ip), with the address found as `client_ip` says.
    pub fn guard_by(self, client_ip: impl KeyExtractor, quota: impl Into<Policy>) -> Self {
        let store = MemoryStore::new();
        self.guard_in(&store, client_ip, quota)
    }

    /// As [`guard_by`](Self::guard_by), counting in `store`, which has to answer at once.
    pub fn guard_in(
        self,
        store: &MemoryStore,
        client_ip: impl KeyExtractor,
        quota: impl Into<Policy>,
    ) -> Self {
        let policy = quota.into().with_default_name("guard");
        let limiter = RateLimiter::with_store(policy, store);
        self.guard_resumed(client_ip, limiter)
    }

    /// Guards with a limiter that is there already, and that answers at once.
    pub(crate) fn guard_resumed(self, client_ip: impl KeyExtractor, limiter: RateLimiter) -> Self {
        self.with(|shared| {
            shared.guard = (!limiter.is_off()).then(|| Guard {
                client_ip: Extractor::new(client_ip),
                limiter,
            });
        })
    }

    /// Decides and tells observers, but admits everything and tells clients nothing. Default: off. To try out a limit.
    pub fn dry_run(self, dry_run: bool) -> Self {
        self.with(|shared| shared.dry_run = dry_run)
    }

    /// What the limiter is called in metrics and logs. Default: nothing.
    pub fn name(self, name: &str) -> Self {
        self.with(|shared| shared.name = name.into())
    }

    /// How refusals are said. Default: [`Negotiated`](crate::respond::Negotiated).
    pub fn respond(self, responder: impl Responder) -> Self {
        self.with(|shared| shared.answers.set_responder(responder))
    }

    /// Adds an observer. Default: none.
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with(|shared| shared.observers.add(observer))
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
