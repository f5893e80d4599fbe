//! The names of a configuration's limits and tiers, which overrides refer to.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;

use super::model::Config;
use crate::key::Key;
use crate::limit::Limit;
use crate::limits::{BoxFuture, LimitExplanation, LimitTarget, LimitUsage, Limits};

/// The names of limits and tiers, also of groups that are switched off: an override of such a group is no error.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) limits: BTreeSet<String>,
    pub(super) tiers: BTreeSet<String>,
}

impl Names {
    /// Those of a configuration whose groups still have their limits.
    pub(super) fn of(config: &Config) -> Self {
        let tables = config.leases.keys().chain(config.sockets.keys()).cloned();
        let of_groups = config.groups.iter().flat_map(|(group, settings)| {
            let by_ip = settings.rate_per_ip.map(|_| settings.name_by_ip(group));
            let names = settings.names_in(group).into_keys().chain(by_ip);
            names.chain([settings.name(group).to_owned()])
        });
        let tiers = config.groups.values().flat_map(|group| group.tiers.keys());
        Self {
            limits: tables.chain(of_groups).collect(),
            tiers: tiers.cloned().collect(),
        }
    }
}

/// The names of a configuration with something that is switched off. No limiter may run that has them, and operators set
/// and import overrides of them all the same.
pub(super) struct SwitchedOff(Names);

impl SwitchedOff {
    /// Tells limits of the names for as long as the target lives. `None` if all is on.
    pub(super) fn attach(config: &Config, limits: &Limits) -> Option<Arc<dyn LimitTarget>> {
        if config.is_enabled(None) && config.tables_off().is_empty() {
            return None;
        }
        let target: Arc<dyn LimitTarget> = Arc::new(Self(config.names.clone()));
        limits.attach(&target);
        Some(target)
    }
}

impl LimitTarget for SwitchedOff {
    fn tiers(&self) -> Vec<Arc<str>> {
        self.0
            .tiers
            .iter()
            .map(|tier| tier.as_str().into())
            .collect()
    }

    fn usage(&self, _: Key) -> BoxFuture<Vec<LimitUsage>> {
        Box::pin(ready(Vec::new()))
    }

    fn explain(&self, _: Key, _: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>> {
        Box::pin(ready(Vec::new()))
    }

    fn total(&self) -> BoxFuture<Option<LimitUsage>> {
        Box::pin(ready(None))
    }

    fn names(&self) -> Vec<Arc<str>> {
        self.0
            .limits
            .iter()
            .map(|name| name.as_str().into())
            .collect()
    }

    /// Once it is on again.
    fn applies(&self, limit: &Limit) -> bool {
        let mut names = limit.names();
        names.all(|name| self.0.limits.contains(name))
    }
}
