//! Groups at work, and how they change.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::changing::Changing;
use super::error::ConfigError;
use super::group::Stack;
use super::kept::Kept;
use super::key::NamedKeys;
use super::layer::AdmissionLayer;
use super::model::Config;
use super::path::{Prefix, has_dot_segments, readings};
use super::reloaded::Reloads;
use super::stores::Stores;
use crate::extract::{KeyExtractor, RequestHead};
use crate::limits::Limits;
#[cfg(feature = "metrics")]
use crate::observe::MetricsObserver;
use crate::observe::Observer;
#[cfg(feature = "redis")]
use crate::store::RedisStore;
#[cfg(feature = "redis")]
use crate::store::redis::StoreObserver;
use crate::sync::{Mutex, lock};

/// The limits of a service as configured, at work. Clones share them.
#[derive(Clone)]
pub struct Admission(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) groups: ArcSwap<Groups>,
    limits: Limits,
    stores: Stores,
    pub(super) says: Says,
    pub(super) reloads: Reloads,
    /// Held while they change.
    pub(super) changing: Mutex<Changing>,
}

/// What the application says and no file can.
#[derive(Default)]
pub(super) struct Says {
    pub(super) observers: Vec<Arc<dyn Observer>>,
    pub(super) tier_by: Option<TierBy>,
    pub(super) keys: NamedKeys,
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

/// All groups.
pub(super) struct Groups {
    by_name: BTreeMap<String, Arc<Stack>>,
    /// By their paths, the longest first.
    by_path: Vec<(Prefix, Arc<Stack>)>,
    /// For what is in no group.
    none: Arc<Stack>,
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
            says: Says::default(),
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
    ///
    /// This, and [`follow`](Self::follow), log which groups have neither a path nor a layer of their own: call them
    /// after [`layer_of`](Self::layer_of).
    pub fn layer(&self) -> AdmissionLayer {
        self.warn_of_groups();
        AdmissionLayer::new(self.clone(), None)
    }

    /// A layer of one group's limits, for a part of a router, whatever the path. It is the group that the file
    /// calls so, by the key of its table and not by its `name`. Once that is taken out of the
    /// configuration it passes everything on.
    ///
    /// # Errors
    ///
    /// There is no group of that name.
    pub fn layer_of(&self, group: &str) -> Result<AdmissionLayer, ConfigError> {
        if self.0.groups.load().by_name.contains_key(group) {
            lock(&self.0.changing).note_layer(group);
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
        self.0.reloads.publish();
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
        self.0.stores.of(None)
    }

    pub(super) fn groups(&self) -> arc_swap::Guard<Arc<Groups>> {
        self.0.groups.load()
    }
}

impl Inner {
    pub(super) fn groups_of(
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
                &self.says,
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
            None if has_dot_segments(path) => self.strictest(&readings(path)),
            None => self.covering(path),
        };
        found.unwrap_or(&self.none)
    }

    /// The group of an ambiguous path: one with all sorts of limits goes before one without, and then an
    /// earlier reading before a later one.
    fn strictest(&self, readings: &[String]) -> Option<&Arc<Stack>> {
        let covering = readings.iter().filter_map(|path| self.covering(path));
        // Of equals, `min_by_key` returns the first one.
        covering.min_by_key(|stack| std::cmp::Reverse(stack.sorts_of_limits))
    }

    fn covering(&self, path: &str) -> Option<&Arc<Stack>> {
        let mut paths = self.by_path.iter();
        let found = paths.find(|(prefix, _)| prefix.covers(path));
        found.map(|(_, stack)| stack)
    }
}

impl AdmissionBuilder<'_> {
    /// Adds an observer to all groups.
    pub fn observe(mut self, observer: impl Observer) -> Self {
        self.says.observers.push(Arc::new(observer));
        self
    }

    /// Which tier a request is of, as [`RateLimitLayer::tier_by`](crate::RateLimitLayer::tier_by) has it: one of
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
    /// An [absent](crate::Extracted::Absent) or [unusable](crate::Extracted::Unusable) key falls back to
    /// the client address of `[clients]`. Default: none; a configuration that refers to a name which is not
    /// there is an error.
    ///
    /// ```
    /// use tower_admission::config::{Admission, Config};
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
    /// # Ok::<_, tower_admission::config::ConfigError>(())
    /// ```
    pub fn key_by(mut self, name: &str, key: impl KeyExtractor) -> Self {
        self.says.keys.add(name, key);
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
    /// [secret](crate::Secret) already, a group has tiers and nothing says which a request is of, a group's
    /// `key` is not there, or a name of [`key_by`](Self::key_by) is built in or there twice.
    pub fn build(self) -> Result<Admission, ConfigError> {
        let config = self.config;
        self.build_inner().map_err(|error| config.wrong(error))
    }

    fn build_inner(self) -> Result<Admission, ConfigError> {
        self.says.keys.check()?;
        if self.says.denies_warnings {
            self.config.deny_warnings()?;
        }
        #[cfg(feature = "redis")]
        let stores = Stores::open(&self.config.store, &self.store_observers)?;
        #[cfg(not(feature = "redis"))]
        let stores = Stores::default();
        let changing = Changing::new(self.config);
        let inner = Inner {
            groups: ArcSwap::from_pointee(Groups::none()),
            limits: stores.limits(),
            stores,
            says: self.says,
            reloads: Reloads::new(),
            changing: Mutex::new(changing),
        };
        let groups = inner.groups_of(self.config, &Groups::none(), &mut Kept::default())?;
        inner.groups.store(Arc::new(groups));
        self.config.log_limits_off();
        lock(&inner.changing).warn_at_start(self.config);
        Ok(Admission(Arc::new(inner)))
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
