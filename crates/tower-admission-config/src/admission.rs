//! The running limits of a configuration.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use smallvec::SmallVec;
use tower_admission::Limits;
#[cfg(feature = "metrics")]
use tower_admission::RateLimiter;
use tower_admission::extract::RequestHead;
#[cfg(feature = "metrics")]
use tower_admission::observe::MetricsObserver;
use tower_admission::provider::{Gate, LimitsInternals};
#[cfg(feature = "redis")]
use tower_admission_redis::RedisStore;

use super::ambiguous::{MAX_HOSTS, Segments, has_dot_segments, is_ambiguous, readings};
use super::builder::{AdmissionBuilder, AppHooks};
use super::error::ConfigError;
#[cfg(feature = "metrics")]
use super::evictions::Evictions;
use super::group::RunningGroup;
use super::last_reload::ReloadStatus;
use super::layer::AdmissionLayer;
use super::leases::ConfiguredLeases;
use super::lists;
use super::model::Config;
use super::names::attach_switched_off;
use super::overrides::LimitsTable;
use super::reload_state::ReloadState;
use super::retired::RetiredLimiters;
use super::routes::Routes;
use super::selectors;
#[cfg(feature = "axum")]
use super::sockets::ConfiguredSockets;
use super::stores::Stores;
use super::sync::{Mutex, lock};

/// The running limits of a configuration. Clones share them.
#[derive(Clone)]
pub struct Admission(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) groups: ArcSwap<Groups>,
    limits: Limits,
    stores: Stores,
    pub(super) hooks: AppHooks,
    pub(super) reloads: ReloadStatus,
    #[cfg(feature = "metrics")]
    pub(super) evictions: Mutex<Evictions>,
    #[cfg(feature = "axum")]
    pub(super) admin: super::admin::AdminState,
    pub(super) leases: Mutex<ConfiguredLeases>,
    #[cfg(feature = "axum")]
    pub(super) sockets: Mutex<ConfiguredSockets>,
    /// Locked during a reload.
    pub(super) reload_state: Mutex<ReloadState>,
}

/// All running groups.
pub(super) struct Groups {
    by_name: BTreeMap<String, Arc<RunningGroup>>,
    routes: Routes<Arc<RunningGroup>>,
    /// For requests that no group selects. Limits nothing.
    none: Arc<RunningGroup>,
    /// The allow and deny lists, for all requests.
    gate: Gate,
}

impl Admission {
    /// Makes the limits of a configuration.
    ///
    /// # Errors
    ///
    /// As [`AdmissionBuilder::build`].
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        Self::builder(config).build()
    }

    /// Starts a builder, which adds observers and what a file cannot contain, such as extractors.
    pub fn builder(config: &Config) -> AdmissionBuilder<'_> {
        AdmissionBuilder::new(config)
    }

    pub(super) fn start(
        config: &Config,
        stores: Stores,
        hooks: AppHooks,
    ) -> Result<Self, ConfigError> {
        let inner = Inner {
            groups: ArcSwap::from_pointee(Groups::none()),
            limits: stores.limits(),
            stores,
            hooks,
            reloads: ReloadStatus::new(config.is_enabled(None)),
            #[cfg(feature = "metrics")]
            evictions: Mutex::default(),
            leases: Mutex::default(),
            #[cfg(feature = "axum")]
            sockets: Mutex::default(),
            #[cfg(feature = "axum")]
            admin: super::admin::AdminState::new(config)?,
            reload_state: Mutex::new(ReloadState::new(config)),
        };
        let base = config.read_limits()?;
        let groups = inner.groups_of(
            config,
            &Groups::none(),
            &mut RetiredLimiters::default(),
            &base,
        )?;
        lock(&inner.reload_state).base = base;
        lock(&inner.reload_state).switched_off = attach_switched_off(config, &inner.limits);
        inner.groups.store(Arc::new(groups));
        inner.apply_tables(config);
        config.log_limits_off();
        config.warn_of_switches();
        lock(&inner.reload_state).warn_at_start(config);
        Ok(Self(Arc::new(inner)))
    }

    /// A layer that applies the limits of [its group](crate#groups) to each request. A request that no group selects
    /// passes.
    ///
    /// Add the layer around the whole router, not inside a nested one: it must see the full path. It compares the path as
    /// the client sent it, percent-encoding included, as the router of axum does.
    ///
    /// This method and [`follow`](Self::follow) log the groups that have neither a path nor a layer of their own. Call
    /// both after [`layer_of`](Self::layer_of).
    pub fn layer(&self) -> AdmissionLayer {
        self.warn_of_groups();
        AdmissionLayer::new(self.clone(), None)
    }

    /// A layer with the limits of one group, for a part of a router, whatever the path. `group` is the key of the table in
    /// the file, not its `name`. When a reload removes the group, the layer passes all requests.
    ///
    /// # Errors
    ///
    /// The configuration has no group of that name.
    pub fn layer_of(&self, group: &str) -> Result<AdmissionLayer, ConfigError> {
        if self.0.groups.load().by_name.contains_key(group) {
            lock(&self.0.reload_state).note_layer(group);
            Ok(AdmissionLayer::new(self.clone(), Some(group.into())))
        } else {
            let field = format!("groups.{group}");
            Err(ConfigError::at(
                field,
                "the configuration has no such group",
            ))
        }
    }

    /// Records for each group the keys that it tracks and the keys that it evicted at the store's bound. Call it before
    /// each scrape.
    #[cfg(feature = "metrics")]
    pub fn publish(&self, metrics: &MetricsObserver) {
        let groups = self.0.groups.load();
        lock(&self.0.evictions).publish(groups.rates(), metrics);
        self.0.reloads.publish();
    }

    /// The overrides per key of these groups.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The store that replicas share, if one is configured. [`flush`](RedisStore::flush) it at shutdown.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn store(&self) -> Option<&RedisStore> {
        self.0.stores.of(None)
    }

    pub(super) fn groups(&self) -> arc_swap::Guard<Arc<Groups>> {
        self.0.groups.load()
    }

    #[cfg(feature = "axum")]
    pub(super) fn admin_state(&self) -> &super::admin::AdminState {
        &self.0.admin
    }
}

impl Inner {
    /// Checks that the overrides of a file can be set. An unknown tier is only a warning.
    fn check_base(&self, base: &LimitsTable) -> Result<(), ConfigError> {
        let checked = self.limits.check_base(base.overrides());
        checked.map_err(|error| ConfigError::at("limits", error).transient())
    }

    /// Replaces the overrides of the file. This can fail after the check: an operator may have used the last free rate
    /// in between.
    fn set_base(&self, base: &LimitsTable) -> Result<(), ConfigError> {
        let set = self.limits.replace_base(base.clone().into_iter().collect());
        set.map_err(|error| ConfigError::at("limits", error).transient())
    }

    /// Checks that the leases and sockets can change to a configuration.
    pub(super) fn check_tables(&self, config: &Config) -> Result<(), ConfigError> {
        lock(&self.leases).check(config)?;
        #[cfg(not(feature = "axum"))]
        config.check_sockets_can_run()?;
        #[cfg(feature = "axum")]
        lock(&self.sockets).check(config)?;
        Ok(())
    }

    /// Applies a configuration to the leases and sockets.
    pub(super) fn apply_tables(&self, config: &Config) {
        let (stores, limits, hooks) = (&self.stores, &self.limits, &self.hooks);
        lock(&self.leases).apply(config, stores, limits, hooks);
        #[cfg(feature = "axum")]
        lock(&self.sockets).apply(config, stores, limits, hooks);
    }

    pub(super) fn groups_of(
        &self,
        config: &Config,
        before: &Groups,
        retired: &mut RetiredLimiters,
        base: &LimitsTable,
    ) -> Result<Groups, ConfigError> {
        let mut groups = Groups::none();
        groups.gate = config.lists.gate(config, &self.limits, &self.hooks)?;
        let running = |group: &str| {
            let name = config.groups[group].name(group);
            before.running().find(|group| group.name == name)
        };
        // Check all groups before one is built: a replaced limiter releases its name in the store.
        for group in config.groups() {
            RunningGroup::check(config, group, &self.hooks, running(group))?;
        }
        self.check_base(base)?;
        let (mut built, mut updates) = (BTreeMap::new(), Vec::new());
        for group in config.groups() {
            let (new_group, update) = RunningGroup::new(
                config,
                group,
                &self.stores,
                &self.limits,
                &self.hooks,
                running(group),
                retired,
            )?;
            built.insert(group, new_group);
            updates.push((group, update));
        }
        for group in config.groups() {
            let also = config.also(group)?;
            let also: Vec<_> = also.iter().filter_map(|other| built.get(other)).collect();
            let joined = Arc::new(built[group].joined(group, &also)?);
            // `Config::check` has rejected conflicts.
            let _ = groups.routes.insert(&config.groups[group], &joined);
            groups.by_name.insert(group.to_owned(), joined);
        }
        self.set_base(base)?;
        // From here on nothing fails.
        lists::log_changes(&before.gate, &groups.gate);
        groups.gate.replace(&before.gate);
        groups.gate.tell_attached();
        for (group, update) in updates {
            groups.by_name[group].apply(update);
        }
        retired.update(&groups);
        Ok(groups)
    }
}

impl Groups {
    fn none() -> Self {
        Self {
            by_name: BTreeMap::new(),
            routes: Routes::default(),
            none: Arc::new(RunningGroup::off()),
            gate: Gate::new(&Limits::new()),
        }
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The rate limiters with the names of their groups.
    #[cfg(feature = "metrics")]
    pub(super) fn rates(&self) -> impl Iterator<Item = (&str, &RateLimiter)> {
        self.running().map(|group| (&*group.name, &group.limiter))
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &RunningGroup> {
        self.by_name.values().map(|group| &**group)
    }

    /// The group of a request.
    pub(super) fn find(&self, group: Option<&str>, head: RequestHead<'_>) -> &RunningGroup {
        let found = match group {
            Some(group) => self.by_name.get(group),
            None => self.of(head),
        };
        found.unwrap_or(&self.none)
    }

    fn of(&self, head: RequestHead<'_>) -> Option<&Arc<RunningGroup>> {
        let path = head.uri.path();
        let mut hosts = self.hosts(head);
        let host = hosts.next();
        let is_other = |other: &[u8]| !host.is_some_and(|host| host.eq_ignore_ascii_case(other));
        // The first host is consumed already, so the count starts at the second one.
        let has_several = hosts
            .enumerate()
            .any(|(before, other)| before + 1 == MAX_HOSTS || is_other(other));
        if !has_several && !is_ambiguous(path) {
            return self.routes.find(host, path, head.method);
        }
        self.strictest(head)
    }

    /// The hosts that a request names, if any group selects by host.
    fn hosts<'a>(&self, head: RequestHead<'a>) -> impl Iterator<Item = &'a [u8]> {
        let have_hosts = self.routes.have_hosts();
        let hosts = have_hosts.then(|| selectors::hosts(head));
        hosts.into_iter().flatten()
    }

    /// The strictest group of an ambiguous request, among all groups that some server may choose for it. Of equally
    /// strict groups, the first host and the likeliest path decide, then the name of the group. All replicas choose the
    /// same group.
    #[cold]
    fn strictest(&self, head: RequestHead<'_>) -> Option<&Arc<RunningGroup>> {
        let path = head.uri.path();
        let hosts: SmallVec<[_; MAX_HOSTS + 1]> = self.hosts(head).take(MAX_HOSTS + 1).collect();
        let names = hosts.iter().copied().map(Some);
        let names = names.chain(hosts.is_empty().then_some(None));
        let readings: Vec<Cow<'_, str>> = match is_ambiguous(path) {
            true => readings(path).map(Cow::Owned).into(),
            false => vec![path.into()],
        };
        let likely = names.flat_map(|host| {
            let paths = readings.iter();
            paths.filter_map(move |path| self.routes.find(host, path, head.method))
        });
        let of_any_host = hosts.len() > MAX_HOSTS;
        let segments = (of_any_host || has_dot_segments(path)).then(|| Segments::of(path));
        let hosts = (!of_any_host).then_some(&*hosts);
        let may_select = |group: &&Arc<RunningGroup>| {
            let segments = segments.as_ref();
            segments.is_some_and(|it| group.selectors.may_select(hosts, it, head.method))
        };
        let others = self.by_name.values().filter(may_select);
        // Of equals, `min_by_key` returns the first one.
        let found = likely.chain(others);
        found.min_by_key(|group| std::cmp::Reverse(group.strictness.strictness()))
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("groups", &self.0.groups.load().by_name.keys())
            .finish_non_exhaustive()
    }
}
