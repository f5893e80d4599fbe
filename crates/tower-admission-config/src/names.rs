//! The names of a configuration's limits and tiers, which overrides refer to.

use std::collections::BTreeSet;
use std::sync::Arc;

use tower_admission::Limits;
use tower_admission::provider::{KnownNames, LimitsInternals};

use super::model::Config;

/// The names of limits and tiers, also of groups that are switched off: an override of such a group is no error.
#[derive(Clone, Debug, Default)]
pub(super) struct LimitNames {
    pub(super) limits: BTreeSet<String>,
    pub(super) tiers: BTreeSet<String>,
}

impl LimitNames {
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

/// Accepts overrides of all limits and tiers of a configuration in which some are switched off, for as long as the returned
/// value lives. `None` if all are on.
pub(super) fn attach_switched_off(config: &Config, limits: &Limits) -> Option<Arc<KnownNames>> {
    if config.is_enabled(None) && config.tables_off().is_empty() {
        return None;
    }
    let names = &config.names;
    let [limits_named, tiers] =
        [&names.limits, &names.tiers].map(|names| names.iter().map(String::as_str));
    Some(limits.attach_names(KnownNames::new(limits_named, tiers)))
}
