//! Logs which limits are off, so that a limit that is missing is seen at start, and one that was switched off.

use std::collections::BTreeMap;

use tower_admission::Quota;

use super::model::{Config, Group};

impl Config {
    /// Logs one line for each group that has a limit which is off.
    pub(super) fn log_limits_off(&self) {
        let groups = self.groups.iter();
        for (group, settings) in groups.filter(|(_, group)| self.is_enabled(group.enabled)) {
            let off = settings.limits_off();
            if !off.is_empty() {
                tracing::info!(group, off = off.join(", "), "these limits are off");
            }
        }
    }
}

impl Config {
    /// Warns of what `enabled = false` switches off, at start and in each reload: it may be left from an incident.
    pub(super) fn warn_of_switches(&self) {
        if !self.is_enabled(None) {
            tracing::warn!(
                "`enabled = false`: all limits of the configuration are off; bans are not"
            );
            return;
        }
        for (table, name) in self.tables_off() {
            tracing::warn!(
                table,
                name,
                "`enabled = false`: the limits of this table are off"
            );
        }
    }

    /// The tables with `enabled = false`.
    pub(super) fn tables_off(&self) -> Vec<(&str, &str)> {
        let groups = self
            .groups
            .iter()
            .map(|(name, it)| ("groups", name, it.enabled));
        let leases = self
            .leases
            .iter()
            .map(|(name, it)| ("leases", name, it.enabled));
        let sockets = self
            .sockets
            .iter()
            .map(|(name, it)| ("sockets", name, it.enabled));
        let tables = groups.chain(leases).chain(sockets);
        let off = tables.filter(|(.., enabled)| *enabled == Some(false));
        off.map(|(table, name, _)| (table, name.as_str())).collect()
    }
}

impl Group {
    /// The fields of limits that are 0 or not there.
    fn limits_off(&self) -> Vec<String> {
        let mut off = Vec::new();
        let mut check = |field: &str, is_off: bool| {
            if is_off {
                off.push(field.to_owned());
            }
        };
        let is_off = |quota: Option<Quota>| quota.is_none_or(|quota| quota.is_off());
        check("concurrency", self.concurrency == 0);
        check("concurrency_per_key", self.concurrency_per_key == 0);
        check("concurrency_per_ip", self.concurrency_per_ip == 0);
        let mut rates = |at: &str, rate: bool, rates: &BTreeMap<String, Quota>| {
            if rates.is_empty() {
                check(&format!("{at}rate"), rate);
            }
            for (name, quota) in rates {
                check(&format!("{at}rates.{name}"), quota.is_off());
            }
        };
        rates("", is_off(self.rate), &self.rates);
        for (tier, settings) in &self.tiers {
            // Without one of its own a tier has the default.
            let is_off = settings.rate.is_some_and(|quota| quota.is_off());
            rates(&format!("tiers.{tier}."), is_off, &settings.rates);
        }
        check("rate_per_ip", is_off(self.rate_per_ip));
        check(
            "bad_credentials_per_ip",
            is_off(self.bad_credentials_per_ip),
        );
        off
    }
}
