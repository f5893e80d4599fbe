//! The builder of the limits: adds what a file cannot contain, such as extractors and observers.

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
use super::costs::Costs;
use super::error::ConfigError;
use super::keys::NamedKeys;
use super::model::Config;
use super::stores::Stores;

/// The hooks of the application.
#[derive(Default)]
pub(super) struct AppHooks {
    pub(super) observers: Vec<Arc<dyn Observer>>,
    pub(super) tier_by: Option<TierBy>,
    pub(super) keys: NamedKeys,
    pub(super) costs: Costs,
    pub(super) responder: Option<Arc<dyn Responder>>,
    /// Whether warnings are errors.
    pub(super) denies_warnings: bool,
}

type TierBy = Arc<dyn for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync>;

/// Builds an [`Admission`]. Made by [`Admission::builder`].
#[must_use = "a builder makes nothing until `build` is called"]
pub struct AdmissionBuilder<'a> {
    config: &'a Config,
    hooks: AppHooks,
    #[cfg(feature = "redis")]
    store_observers: Vec<Arc<dyn StoreObserver>>,
}

impl<'a> AdmissionBuilder<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self {
            config,
            hooks: AppHooks::default(),
            #[cfg(feature = "redis")]
            store_observers: Vec::new(),
        }
    }
}

impl AdmissionBuilder<'_> {
    /// Adds an observer to all limits.
    pub fn observe(mut self, observer: impl Observer) -> Self {
        self.hooks.observers.push(Arc::new(observer));
        self
    }

    /// Selects the tier of a request, as [`RateLimitLayer::tier_by`](tower_admission::RateLimitLayer::tier_by): a tier of
    /// a group, or one that is declared on [the limits](Admission::limits). Default: none; a configuration with tiers is an
    /// error.
    pub fn tier_by(
        mut self,
        tier: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.tier_by = Some(Arc::new(tier));
        self
    }

    /// Adds a key that the configuration can use as `key = "name"`, such as the user that an outer authentication layer
    /// has put into the extensions of the request.
    ///
    /// An [absent](tower_admission::Extracted::Absent) or [unusable](tower_admission::Extracted::Unusable) key falls back to
    /// the client address of `[clients]`. Default: none; a configuration with an unknown name is an error.
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
        self.hooks.keys.add(name, key);
        self
    }

    /// Sets the cost of a request in groups without a `cost`. Default: 1.
    ///
    /// The cost applies to rates, as in [`RateLimitLayer::cost`](tower_admission::RateLimitLayer::cost). Each request takes
    /// one permit.
    pub fn cost(mut self, cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.hooks.costs.default = Some(Arc::new(cost));
        self
    }

    /// Adds a cost that the configuration can use as `cost = "name"`. Default: none; a configuration with an unknown name is
    /// an error.
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
        self.hooks.costs.add(name, Arc::new(cost));
        self
    }

    /// Sets how rejected and banned requests are answered. [`Rejection::limiter`](tower_admission::Rejection::limiter) is the
    /// name of the group, or `lists` for a ban. Default: [`Negotiated`](tower_admission::respond::Negotiated).
    pub fn respond(mut self, responder: impl Responder) -> Self {
        self.hooks.responder = Some(Arc::new(responder));
        self
    }

    /// Rejects a configuration with [warnings](Config::warnings), at start and in a reload. Default: warnings are only
    /// logged.
    pub fn deny_warnings(mut self) -> Self {
        self.hooks.denies_warnings = true;
        self
    }

    /// Adds an observer of the store's health, if there is a store.
    #[cfg(feature = "redis")]
    pub fn observe_store(mut self, observer: impl StoreObserver) -> Self {
        self.store_observers.push(Arc::new(observer));
        self
    }

    /// Makes the limits. With a store, call this in a tokio runtime; otherwise call [`Limits::refresh`] in one to read the
    /// overrides.
    ///
    /// # Errors
    ///
    /// - The URL of the store is invalid.
    /// - Another [secret](tower_admission::Secret) is already installed.
    /// - A group has tiers, but [`tier_by`](Self::tier_by) is not set.
    /// - The `key` or `cost` of a group is unknown.
    /// - A name in [`key_by`](Self::key_by) or [`cost_by`](Self::cost_by) is built in or occurs twice.
    /// - The configuration has warnings, and [`deny_warnings`](Self::deny_warnings) is set.
    pub fn build(self) -> Result<Admission, ConfigError> {
        let config = self.config;
        self.build_inner().map_err(|error| config.wrong(error))
    }

    fn build_inner(self) -> Result<Admission, ConfigError> {
        self.hooks.keys.check()?;
        self.hooks.costs.check()?;
        self.config.check_start()?;
        #[cfg(not(feature = "axum"))]
        self.config.check_sockets_can_run()?;
        if self.hooks.denies_warnings {
            self.config.deny_warnings()?;
        }
        #[cfg(feature = "redis")]
        let stores = Stores::open(&self.config.store, &self.store_observers)?;
        #[cfg(not(feature = "redis"))]
        let stores = Stores::default();
        Admission::start(self.config, stores, self.hooks)
    }
}

impl fmt::Debug for AdmissionBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
