//! The tables `[leases.<name>]`: limits on work that outlives its request.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tower_admission::provider::LeasesInternals;
use tower_admission::{Capacity, Leases, Limits};

use super::admission::Admission;
use super::builder::AppHooks;
use super::error::ConfigError;
use super::model::{Config, OnFailure};
use super::stores::Stores;
use super::sync::lock;
use super::text::{TimeSpan, integer, optional_boolean, optional_text};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LeaseTable {
    #[serde(deserialize_with = "optional_boolean")]
    pub(super) enabled: Option<bool>,
    #[serde(deserialize_with = "integer")]
    per_tenant: u64,
    #[serde(deserialize_with = "integer")]
    total: u64,
    #[serde(deserialize_with = "optional_text")]
    ttl: Option<TimeSpan>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) on_failure: Option<OnFailure>,
}

impl LeaseTable {
    fn ttl(&self) -> Duration {
        self.ttl.map_or(Leases::DEFAULT_TTL, |TimeSpan(ttl)| ttl)
    }

    pub(super) fn check(&self, name: &str) -> Result<(), ConfigError> {
        if self.ttl() > Leases::MAX_TTL {
            let problem = "a lease lives at most 365 days";
            return Err(ConfigError::at(format!("leases.{name}.ttl"), problem));
        }
        Ok(())
    }
}

/// The running leases of a configuration.
#[derive(Default)]
pub(super) struct ConfiguredLeases(BTreeMap<String, Configured>);

struct Configured {
    leases: Leases,
    on_failure: OnFailure,
}

impl ConfiguredLeases {
    /// Checks that a change is possible.
    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        for (name, table) in &config.leases {
            let on_failure = config.on_failure(table.on_failure);
            if (self.0.get(name)).is_some_and(|running| running.on_failure != on_failure) {
                let field = format!("leases.{name}.on_failure");
                return Err(ConfigError::at(field, CANNOT_CHANGE));
            }
        }
        Ok(())
    }

    /// Applies a configuration. Leases without a table are switched off.
    pub(super) fn apply(
        &mut self,
        config: &Config,
        stores: &Stores,
        limits: &Limits,
        hooks: &AppHooks,
    ) {
        for (name, table) in &config.leases {
            let configured = self.0.entry(name.clone()).or_insert_with(|| Configured {
                leases: open(name, table, stores, limits, hooks),
                on_failure: config.on_failure(table.on_failure),
            });
            let is_on = config.is_enabled(table.enabled);
            let capacity = |limit| match (is_on, limit) {
                (true, 1..) => Capacity::AtMost(usize::try_from(limit).unwrap_or(usize::MAX)),
                _ => Capacity::Unlimited,
            };
            configured.leases.set_per_tenant(capacity(table.per_tenant));
            configured.leases.set_total(capacity(table.total));
            configured.leases.set_ttl(table.ttl());
            configured.leases.set_suspended(!is_on);
        }
        for (name, configured) in &self.0 {
            if !config.leases.contains_key(name) {
                configured.leases.set_suspended(true);
                configured.leases.set_per_tenant(Capacity::Unlimited);
                configured.leases.set_total(Capacity::Unlimited);
            }
        }
    }
}

/// The error for a change of a failure mode.
pub(super) const CANNOT_CHANGE: &str =
    "this cannot change while the service runs: restart the service";

fn open(
    name: &str,
    table: &LeaseTable,
    stores: &Stores,
    limits: &Limits,
    hooks: &AppHooks,
) -> Leases {
    let leases = stores.leases(table.on_failure, Leases::new().name(name));
    let observers = hooks.observers.iter().cloned();
    observers.fold(leases.limits(limits), Leases::observe)
}

impl Admission {
    /// The [`Leases`] of `[leases.<name>]`, counted in the configured store under this name. A reload changes their limits
    /// at once, for all clones. Without the table, or with `enabled = false`, leases are counted but not limited.
    ///
    /// You can add an [observer](Leases::observe). Do not call other setters, such as [`ttl`](Leases::ttl): they make
    /// settings that neither a reload nor `enabled` changes. Write these in the file.
    ///
    /// ```
    /// use tower_admission::Key;
    /// use tower_admission_config::{Admission, Config};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = Config::from_toml("[leases.jobs]\nper_tenant = 5\ntotal = 50\nttl = '6h'")?;
    /// let admission = Admission::new(&config)?;
    /// let jobs = admission.leases("jobs")?;
    /// let lease = jobs.acquire(&Key::id("org", "acme"), "execution-42").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// No configuration since the start has this table.
    pub fn leases(&self, name: &str) -> Result<Leases, ConfigError> {
        let configured = lock(&self.0.leases);
        let found = configured.0.get(name).map(|found| found.leases.clone());
        found.ok_or_else(|| {
            ConfigError::at(
                format!("leases.{name}"),
                "the configuration has no such table",
            )
        })
    }
}
