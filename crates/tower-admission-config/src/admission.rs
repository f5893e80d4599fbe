//! Groups at work, and how they change.

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
use super::builder::{AdmissionBuilder, Says};
use super::changing::Changing;
use super::error::ConfigError;
#[cfg(feature = "metrics")]
use super::evictions::Evictions;
use super::group::Stack;
use super::kept::Kept;
use super::layer::AdmissionLayer;
use super::leases::ConfiguredLeases;
use super::lists;
use super::model::Config;
use super::names::attach_switched_off;
use super::overrides::LimitsTable;
use super::reloaded::Reloads;
use super::routes::Routes;
use super::selectors;
#[cfg(feature = "axum")]
use super::sockets::ConfiguredSockets;
use super::stores::Stores;
use super::sync::{Mutex, lock};

/// The limits of a service as configured, at work. Clones share them.
#[derive(Clone)]
pub struct Admission(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) groups: ArcSwap<Groups>,
    limits: Limits,
    stores: Stores,
    pub(super) says: Says,
    pub(super) reloads: Reloads,
    #[cfg(feature = "metrics")]
    pub(super) evictions: Mutex<Evictions>,
    #[cfg(feature = "axum")]
    pub(super) admin: super::admin::AdminState,
    pub(super) leases: Mutex<ConfiguredLeases>,
    #[cfg(feature = "axum")]
    pub(super) sockets: Mutex<ConfiguredSockets>,
    /// Held while they change.
    pub(super) changing: Mutex<Changing>,
}

/// All groups.
pub(super) struct Groups {
    by_name: BTreeMap<String, Arc<Stack>>,
    routes: Routes<Arc<Stack>>,
    /// For what is in no group.
    none: Arc<Stack>,
    /// Allow and deny lists, for all requests.
    gate: Gate,
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
        AdmissionBuilder::new(config)
    }

    pub(super) fn start(config: &Config, stores: Stores, says: Says) -> Result<Self, ConfigError> {
        let inner = Inner {
            groups: ArcSwap::from_pointee(Groups::none()),
            limits: stores.limits(),
            stores,
            says,
            reloads: Reloads::new(config.is_enabled(None)),
            #[cfg(feature = "metrics")]
            evictions: Mutex::default(),
            leases: Mutex::default(),
            #[cfg(feature = "axum")]
            sockets: Mutex::default(),
            #[cfg(feature = "axum")]
            admin: super::admin::AdminState::new(config)?,
            changing: Mutex::new(Changing::new(config)),
        };
        let base = config.read_limits()?;
        let groups = inner.groups_of(config, &Groups::none(), &mut Kept::default(), &base)?;
        lock(&inner.changing).base = base;
        lock(&inner.changing).switched_off = attach_switched_off(config, &inner.limits);
        inner.groups.store(Arc::new(groups));
        inner.apply_tables(config);
        config.log_limits_off();
        config.warn_of_switches();
        lock(&inner.changing).warn_at_start(config);
        Ok(Self(Arc::new(inner)))
    }

    /// A layer that puts each request under the limits of [its group](super#groups); a request of none is passed on.
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
        let groups = self.0.groups.load();
        lock(&self.0.evictions).publish(groups.rates(), metrics);
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

    #[cfg(feature = "axum")]
    pub(super) fn admin_state(&self) -> &super::admin::AdminState {
        &self.0.admin
    }
}

impl Inner {
    /// Whether the overrides of a file can be set. A tier that is not known is a warning.
    fn check_base(&self, base: &LimitsTable) -> Result<(), ConfigError> {
        let checked = self.limits.check_base(base.overrides());
        checked.map_err(|error| ConfigError::at("limits", error).that_may_pass())
    }

    /// Replaces the overrides of the file. It may fail though it was checked: an operator may have set the last rate
    /// that there was room for in between.
    fn set_base(&self, base: &LimitsTable) -> Result<(), ConfigError> {
        let set = self.limits.replace_base(base.clone().into_iter().collect());
        set.map_err(|error| ConfigError::at("limits", error).that_may_pass())
    }

    /// Whether what is no group can change to this.
    pub(super) fn check_tables(&self, config: &Config) -> Result<(), ConfigError> {
        lock(&self.leases).check(config)?;
        #[cfg(feature = "axum")]
        lock(&self.sockets).check(config)?;
        Ok(())
    }

    /// Goes by the tables of what is no group.
    pub(super) fn apply_tables(&self, config: &Config) {
        let (stores, limits, says) = (&self.stores, &self.limits, &self.says);
        lock(&self.leases).apply(config, stores, limits, says);
        #[cfg(feature = "axum")]
        lock(&self.sockets).apply(config, stores, limits, says);
    }

    pub(super) fn groups_of(
        &self,
        config: &Config,
        before: &Groups,
        kept: &mut Kept,
        base: &LimitsTable,
    ) -> Result<Groups, ConfigError> {
        let mut groups = Groups::none();
        groups.gate = config.lists.gate(config, &self.limits, &self.says)?;
        let running = |group: &str| {
            let name = config.groups[group].name(group);
            before.stacks().find(|stack| stack.name == name)
        };
        // First, because a replaced limiter gives up its name in the store.
        for group in config.groups() {
            Stack::check(config, group, &self.says, running(group))?;
        }
        self.check_base(base)?;
        let (mut stacks, mut changes) = (BTreeMap::new(), Vec::new());
        for group in config.groups() {
            let (stack, change) = Stack::new(
                config,
                group,
                &self.stores,
                &self.limits,
                &self.says,
                running(group),
                kept,
            )?;
            stacks.insert(group, stack);
            changes.push((group, change));
        }
        for group in config.groups() {
            let also = config.also(group)?;
            let also: Vec<_> = also.iter().filter_map(|other| stacks.get(other)).collect();
            let stack = Arc::new(stacks[group].joined(group, &also)?);
            // A configuration with a conflict is not read.
            let _ = groups.routes.insert(&config.groups[group], &stack);
            groups.by_name.insert(group.to_owned(), stack);
        }
        self.set_base(base)?;
        // Nothing can go wrong any more.
        lists::log_changes(&before.gate, &groups.gate);
        groups.gate.replace(&before.gate);
        groups.gate.tell_attached();
        for (group, change) in changes {
            groups.by_name[group].apply(change);
        }
        kept.settle(&groups);
        Ok(groups)
    }
}

impl Groups {
    fn none() -> Self {
        Self {
            by_name: BTreeMap::new(),
            routes: Routes::default(),
            none: Arc::new(Stack::off()),
            gate: Gate::new(&Limits::new()),
        }
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The limiters of rates, with the names of their groups.
    #[cfg(feature = "metrics")]
    pub(super) fn rates(&self) -> impl Iterator<Item = (&str, &RateLimiter)> {
        self.stacks().map(|stack| (&*stack.name, &stack.limiter))
    }

    pub(super) fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.by_name.values().map(|stack| &**stack)
    }

    /// The limits of a request.
    pub(super) fn find(&self, group: Option<&str>, head: RequestHead<'_>) -> &Stack {
        let found = match group {
            Some(group) => self.by_name.get(group),
            None => self.of(head),
        };
        found.unwrap_or(&self.none)
    }

    fn of(&self, head: RequestHead<'_>) -> Option<&Arc<Stack>> {
        let path = head.uri.path();
        let mut hosts = self.hosts(head);
        let host = hosts.next();
        let is_other = |other: &[u8]| !host.is_some_and(|host| host.eq_ignore_ascii_case(other));
        // The first one is taken out, so that one above the bound is the last that is looked at.
        let has_several = hosts
            .enumerate()
            .any(|(before, other)| before + 1 == MAX_HOSTS || is_other(other));
        if !has_several && !is_ambiguous(path) {
            return self.routes.find(host, path, head.method);
        }
        self.strictest(head)
    }

    /// The hosts that a request names, if any group selects by them.
    fn hosts<'a>(&self, head: RequestHead<'a>) -> impl Iterator<Item = &'a [u8]> {
        let have_hosts = self.routes.have_hosts();
        let hosts = have_hosts.then(|| selectors::hosts(head));
        hosts.into_iter().flatten()
    }

    /// The group of an ambiguous request: of all that some server may take it for, one with all sorts of limits goes
    /// before one without. Of equals the one of the earliest host and of the likeliest path is the first, and the
    /// others are in the order of their names, so that all replicas find the same.
    #[cold]
    fn strictest(&self, head: RequestHead<'_>) -> Option<&Arc<Stack>> {
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
        let may_select = |stack: &&Arc<Stack>| {
            let segments = segments.as_ref();
            segments.is_some_and(|it| stack.selectors.may_select(hosts, it, head.method))
        };
        let others = self.by_name.values().filter(may_select);
        // Of equals, `min_by_key` returns the first one.
        let found = likely.chain(others);
        found.min_by_key(|stack| std::cmp::Reverse(stack.sorts_of_limits.strictness()))
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("groups", &self.0.groups.load().by_name.keys())
            .finish_non_exhaustive()
    }
}
