//! What is to be known before limits are made: what the application adds to a configuration.

use std::fmt;
use std::sync::Arc;

#[cfg(doc)]
use tower_admission::Limits;
use tower_admission::extract::{KeyExtractor, RequestHead};
use tower_admission::observe::Observer;
use tower_admission::respond::Responder;
#[cfg(feature = "redis")]
use tower_admission_redis::StoreObserver;

use super::admission::Admission;
use super::cost::Costs;
use super::error::ConfigError;
use super::key::NamedKeys;
use super::model::Config;
use super::stores::Stores;

/// What the application says and no file can.
#[derive(Default)]
pub(super) struct Says {
    pub(super) observers: Vec<Arc<dyn Observer>>,
    pub(super) tier_by: Option<TierBy>,
    pub(super) keys: NamedKeys,
    pub(super) costs: Costs,
    pub(super) responder: Option<Arc<dyn Responder>>,
    /// Whether a configuration with warnings is rejected.
    pub(super) denies_warnings: bool,
}

type TierBy = Arc<dyn for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync>;

/// What is to be known before the limits are made.
#[must_use = "a builder makes nothing until `build` is called"]
pub struct AdmissionBuilder<'a> {
    config: &'a Config,
    says: Says,
    #[cfg(feature = "redis")]
    store_observers: Vec<Arc<dyn StoreObserver>>,
}

impl<'a> AdmissionBuilder<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self {
            config,
            says: Says::default(),
            #[cfg(feature = "redis")]
            store_observers: Vec::new(),
        }
    }
}

impl AdmissionBuilder<'_> {
    /// Adds an observer to all groups.
    pub fn observe(mut self, observer: impl Observer) -> Self {
        self.says.observers.push(Arc::new(observer));
        self
    }

    /// Which tier a request is of, as [`RateLimitLayer::tier_by`](tower_admission::RateLimitLayer::tier_by) has it: one of
    /// those that the configuration has for the rates of a group, or that are declared on
    /// [the limits](Admission::limits). Default: a configuration with tiers is an error.
    pub fn tier_by(
        mut self,
        tier: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.says.tier_by = Some(Arc::new(tier));
        self
    }

    /// Names a key that configuration refers to as `key = "name"`, such as the user that an
    /// authentication layer outside of this one has put into the request's extensions.
    ///
    /// An [absent](tower_admission::Extracted::Absent) or [unusable](tower_admission::Extracted::Unusable) key falls back to
    /// the client address of `[clients]`. Default: none; a configuration that refers to a name which is not
    /// there is an error.
    ///
    /// ```
    /// use tower_admission_config::{Admission, Config};
    /// use tower_admission::{Key, RequestHead};
    ///
    /// #[derive(Clone)]
    /// struct User { id: String }
    ///
    /// let config = Config::from_toml("[groups.api]\npath = '/api'\nrate = '10/s'\nkey = 'user'")?;
    /// let admission = Admission::builder(&config)
    ///     .key_by("user", |head: RequestHead<'_>| {
    ///         head.extensions.get::<User>().map(|user| Key::id("user", &user.id))
    ///     })
    ///     .build()?;
    /// # Ok::<_, tower_admission_config::ConfigError>(())
    /// ```
    pub fn key_by(mut self, name: &str, key: impl KeyExtractor) -> Self {
        self.says.keys.add(name, key);
        self
    }

    /// Sets what a request costs, in groups without a `cost`. Default: 1.
    ///
    /// As [`RateLimitLayer::cost`](tower_admission::RateLimitLayer::cost): for rates; a permit is one for each request.
    pub fn cost(mut self, cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.says.costs.default = Some(Arc::new(cost));
        self
    }

    /// Names a cost that configuration refers to as `cost = "name"`. Default: none; a configuration that refers to
    /// a name which is not there is an error.
    ///
    /// ```
    /// use tower_admission_config::{Admission, Config};
    ///
    /// let config = Config::from_toml("[groups.api]\npath = '/api'\nrate = '100/s'\ncost = 'kilobytes'")?;
    /// let admission = Admission::builder(&config)
    ///     .cost_by("kilobytes", |head| {
    ///         let length = head.headers.get("content-length");
    ///         let length = length.and_then(|length| length.to_str().ok()?.parse::<u32>().ok());
    ///         1 + length.unwrap_or(0) / 1_000
    ///     })
    ///     .build()?;
    /// # Ok::<_, tower_admission_config::ConfigError>(())
    /// ```
    pub fn cost_by(
        mut self,
        name: &str,
        cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.says.costs.add(name, Arc::new(cost));
        self
    }

    /// Sets how rejected requests of all groups are answered, and banned ones; [`Rejection::limiter`](tower_admission::Rejection::limiter)
    /// is the name of the group, and `lists` of a ban. Default: [`Negotiated`](tower_admission::respond::Negotiated).
    pub fn respond(mut self, responder: impl Responder) -> Self {
        self.says.responder = Some(Arc::new(responder));
        self
    }

    /// Rejects a configuration that has [warnings](Config::warnings), here and when it is changed. Default: they
    /// are logged.
    pub fn deny_warnings(mut self) -> Self {
        self.says.denies_warnings = true;
        self
    }

    /// Adds an observer of the store's health, if there is a store.
    #[cfg(feature = "redis")]
    pub fn observe_store(mut self, observer: impl StoreObserver) -> Self {
        self.store_observers.push(Arc::new(observer));
        self
    }

    /// Makes the limits. With a store this has to be in a tokio runtime, or
    /// [`Limits::refresh`] has to be called in one, for limits of single keys to be read.
    ///
    /// # Errors
    ///
    /// The store's URL cannot be used, the process has another
    /// [secret](tower_admission::Secret) already, a group has tiers and nothing says which a request is of, a group's
    /// `key` or `cost` is not there, or a name of [`key_by`](Self::key_by) or [`cost_by`](Self::cost_by) is built in
    /// or there twice.
    pub fn build(self) -> Result<Admission, ConfigError> {
        let config = self.config;
        self.build_inner().map_err(|error| config.wrong(error))
    }

    fn build_inner(self) -> Result<Admission, ConfigError> {
        self.says.keys.check()?;
        self.says.costs.check()?;
        self.config.check_start()?;
        if self.says.denies_warnings {
            self.config.deny_warnings()?;
        }
        #[cfg(feature = "redis")]
        let stores = Stores::open(&self.config.store, &self.store_observers)?;
        #[cfg(not(feature = "redis"))]
        let stores = Stores::default();
        Admission::start(self.config, stores, self.says)
    }
}

impl fmt::Debug for AdmissionBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
