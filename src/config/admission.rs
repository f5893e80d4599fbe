//! Groups at work, and how they change.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::changing::Changing;
use super::error::ConfigError;
use super::group::{GroupKey, Stack};
use super::kept::Kept;
use super::layer::AdmissionLayer;
use super::model::{Config, OnFailure};
use super::text::Prefix;
use crate::concurrency::ConcurrencyLimitLayer;
use crate::limits::Limits;
#[cfg(feature = "metrics")]
use crate::observe::MetricsObserver;
use crate::observe::Observer;
use crate::rate::RateLimitLayer;
#[cfg(feature = "redis")]
use crate::store::RedisStore;
#[cfg(feature = "redis")]
use crate::store::redis::StoreObserver;
use crate::sync::{Mutex, lock};

/// The limits of a service as configured, at work. Clones share them.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    groups: ArcSwap<Groups>,
    limits: Limits,
    stores: Stores,
    observers: Vec<Arc<dyn Observer>>,
    /// Held while they change.
    changing: Mutex<Changing>,
}

/// What is to be known before the limits are made.
#[must_use = "a builder makes nothing until `build` is called"]
pub struct AdmissionBuilder<'a> {
    config: &'a Config,
    observers: Vec<Arc<dyn Observer>>,
    #[cfg(feature = "redis")]
    store_observers: Vec<Arc<dyn StoreObserver>>,
}

/// All groups.
pub(super) struct Groups {
    by_name: BTreeMap<String, Arc<Stack>>,
    /// By their paths, the longest first.
    by_path: Vec<(Prefix, Arc<Stack>)>,
    /// For what is in no group.
    none: Arc<Stack>,
}

/// Where is counted: in memory, or in Redis in a client for each way to fail.
pub(super) struct Stores {
    #[cfg(feature = "redis")]
    redis: Option<BTreeMap<OnFailure, RedisStore>>,
    #[cfg(feature = "redis")]
    default: OnFailure,
}

impl Admission {
    /// The limits of a configuration.
    ///
    /// # Errors
    ///
    /// As [`AdmissionBuilder::build`].
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        Self::builder(config).build()
    }

    /// The same, with observers.
    pub fn builder(config: &Config) -> AdmissionBuilder<'_> {
        AdmissionBuilder {
            config,
            observers: Vec::new(),
            #[cfg(feature = "redis")]
            store_observers: Vec::new(),
        }
    }

    /// A layer that puts each request under the limits of the group whose path it begins with;
    /// a request of none is passed on.
    ///
    /// It has to see the path that the configuration is about: around the router of a service, not
    /// inside of what is nested. It looks at the path as the client wrote it, escapes and all, as
    /// axum's router does.
    pub fn layer(&self) -> AdmissionLayer {
        AdmissionLayer::new(self.clone(), None)
    }

    /// A layer of one group's limits, for a part of a router, whatever the path. Once the group is
    /// taken out of the configuration it passes everything on.
    ///
    /// # Errors
    ///
    /// There is no group of that name.
    pub fn layer_of(&self, group: &str) -> Result<AdmissionLayer, ConfigError> {
        if self.0.groups.load().by_name.contains_key(group) {
            Ok(AdmissionLayer::new(self.clone(), Some(group.into())))
        } else {
            let field = format!("groups.{group}");
            Err(ConfigError::at(field, "there is no such group"))
        }
    }

    /// Tells metrics how many keys each group holds, and how many it gave up at the store's bound: before
    /// each scrape.
    #[cfg(feature = "metrics")]
    pub fn publish(&self, metrics: &MetricsObserver) {
        for stack in self.0.groups.load().stacks() {
            if let Some(stats) = stack.rate.limiter().stats() {
                metrics.publish(&stack.name, stats);
            }
        }
    }

    /// What single keys may do in these groups.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The store that replicas share, if one is configured: to [`flush`](RedisStore::flush) it at the end.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn store(&self) -> Option<&RedisStore> {
        let stores = &self.0.stores;
        stores.redis.as_ref()?.get(&stores.default)
    }

    /// Changes what is running to another configuration, whole or not at all.
    ///
    /// # Errors
    ///
    /// Something in it is wrong, or its `store` is not that of the start. What is running goes on then.
    pub fn reload(&self, config: &Config) -> Result<(), ConfigError> {
        self.reload_inner(config)
            .map_err(|error| config.wrong(error))
    }

    fn reload_inner(&self, config: &Config) -> Result<(), ConfigError> {
        let mut running = lock(&self.0.changing);
        running.note(&config.origin);
        if running.store != config.store {
            let problem = "the store cannot be changed while the service runs: restart it";
            return Err(ConfigError::at("store", problem));
        }
        let before = self.0.groups.load_full();
        let mut kept = running.kept.with(&before);
        let groups = self.0.groups_of(config, &before, &mut kept)?;
        self.0.groups.store(Arc::new(groups));
        running.kept = kept;
        Ok(())
    }

    /// Whether this is what was read last of a file.
    pub(super) fn has_read(&self, file: &Path, text: &str) -> bool {
        lock(&self.0.changing).has_read(file, text)
    }

    /// Applies what was read of a file, with the variables that went before the last one.
    pub(super) fn apply(&self, file: &Path, text: String) -> Result<(), ConfigError> {
        // Noted here as well, since what is wrong does not come to be reloaded.
        let origin = lock(&self.0.changing).reads(file, text);
        self.reload(&Config::read(origin)?)
    }

    pub(super) fn groups(&self) -> arc_swap::Guard<Arc<Groups>> {
        self.0.groups.load()
    }
}

impl Inner {
    fn groups_of(
        &self,
        config: &Config,
        before: &Groups,
        kept: &mut Kept,
    ) -> Result<Groups, ConfigError> {
        let mut groups = Groups::none();
        let mut changes = Vec::new();
        for group in config.groups() {
            let name = config.groups[group].name(group);
            let (stack, change) = Stack::new(
                config,
                group,
                &self.stores,
                &self.limits,
                &self.observers,
                before.stacks().find(|stack| stack.name == name),
                kept,
            )?;
            let stack = Arc::new(stack);
            changes.push((stack.clone(), change));
            let paths = stack.paths.iter();
            groups
                .by_path
                .extend(paths.map(|path| (path.clone(), stack.clone())));
            groups.by_name.insert(group.to_owned(), stack);
        }
        groups
            .by_path
            .sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        // Nothing can go wrong any more.
        for (stack, change) in changes {
            stack.apply(change);
        }
        kept.settle(&groups);
        Ok(groups)
    }
}

impl Groups {
    fn none() -> Self {
        Self {
            by_name: BTreeMap::new(),
            by_path: Vec::new(),
            none: Arc::new(Stack::off()),
        }
    }

    pub(super) fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.by_name.values().map(|stack| &**stack)
    }

    /// The limits of a request.
    pub(super) fn find(&self, group: Option<&str>, path: &str) -> &Stack {
        let found = match group {
            Some(group) => self.by_name.get(group),
            None => {
                let mut paths = self.by_path.iter();
                paths
                    .find(|(prefix, _)| prefix.covers(path))
                    .map(|(_, stack)| stack)
            }
        };
        found.unwrap_or(&self.none)
    }
}

impl AdmissionBuilder<'_> {
    /// Adds an observer to all groups.
    pub fn observe(mut self, observer: impl Observer) -> Self {
        self.observers.push(Arc::new(observer));
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
    /// The store's URL cannot be used, or the process has another
    /// [secret](crate::Secret) already.
    pub fn build(self) -> Result<Admission, ConfigError> {
        let config = self.config;
        self.build_inner().map_err(|error| config.wrong(error))
    }

    fn build_inner(self) -> Result<Admission, ConfigError> {
        let stores = self.stores()?;
        let changing = Changing::new(self.config);
        let inner = Inner {
            groups: ArcSwap::from_pointee(Groups::none()),
            limits: stores.limits(),
            stores,
            observers: self.observers,
            changing: Mutex::new(changing),
        };
        let groups = inner.groups_of(self.config, &Groups::none(), &mut Kept::default())?;
        inner.groups.store(Arc::new(groups));
        Ok(Admission(Arc::new(inner)))
    }

    #[cfg(not(feature = "redis"))]
    fn stores(&self) -> Result<Stores, ConfigError> {
        Ok(Stores {})
    }

    #[cfg(feature = "redis")]
    fn stores(&self) -> Result<Stores, ConfigError> {
        let config = &self.config.store;
        let default = config.on_failure;
        let (Some(url), Some(secret)) = (&config.url, config.secret) else {
            return Ok(Stores {
                redis: None,
                default,
            });
        };
        let mut store = config.redis(url)?;
        let secret = crate::key::Secret::new(secret.0);
        secret
            .install()
            .map_err(|error| ConfigError::at("store.secret", error))?;
        store = store.secret(secret);
        for observer in &self.store_observers {
            store = store.observe(observer.clone());
        }
        let modes = [OnFailure::Open, OnFailure::Closed, OnFailure::LocalShare];
        let stores = modes.map(|mode| {
            let store = store.clone().on_failure(config.mode(mode));
            (mode, store)
        });
        Ok(Stores {
            redis: Some(stores.into()),
            default,
        })
    }
}

impl Stores {
    #[cfg(feature = "redis")]
    fn of(&self, on_failure: Option<OnFailure>) -> Option<&RedisStore> {
        self.redis
            .as_ref()?
            .get(&on_failure.unwrap_or(self.default))
    }

    pub(super) fn rate(
        &self,
        on_failure: Option<OnFailure>,
        layer: RateLimitLayer<GroupKey>,
    ) -> RateLimitLayer<GroupKey> {
        #[cfg(feature = "redis")]
        if let Some(store) = self.of(on_failure) {
            return layer.store(store.clone());
        }
        let _ = on_failure;
        layer
    }

    pub(super) fn concurrency(
        &self,
        on_failure: Option<OnFailure>,
        layer: ConcurrencyLimitLayer,
    ) -> ConcurrencyLimitLayer {
        #[cfg(feature = "redis")]
        if let Some(store) = self.of(on_failure) {
            return layer.store(store.clone());
        }
        let _ = on_failure;
        layer
    }

    fn limits(&self) -> Limits {
        #[cfg(feature = "redis")]
        if let Some(store) = self.of(None) {
            return Limits::in_store(store);
        }
        Limits::new()
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("groups", &self.0.groups.load().by_name.keys())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AdmissionBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
