//! Limits on work that outlives its request, by name: `[leases.jobs]`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tower_admission::provider::LeasesInternals;
use tower_admission::{Capacity, Leases, Limits};

use super::admission::Admission;
use super::builder::Says;
use super::error::ConfigError;
use super::model::{Config, OnFailure};
use super::stores::Stores;
use super::sync::lock;
use super::text::{Time, some_text, some_truth, whole};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LeaseTable {
    #[serde(deserialize_with = "some_truth")]
    pub(super) enabled: Option<bool>,
    #[serde(deserialize_with = "whole")]
    per_tenant: u64,
    #[serde(deserialize_with = "whole")]
    total: u64,
    #[serde(deserialize_with = "some_text")]
    ttl: Option<Time>,
    #[serde(deserialize_with = "some_text")]
    pub(super) on_failure: Option<OnFailure>,
}

impl LeaseTable {
    fn ttl(&self) -> Duration {
        self.ttl.map_or(Leases::DEFAULT_TTL, |Time(ttl)| ttl)
    }

    pub(super) fn check(&self, name: &str) -> Result<(), ConfigError> {
        if self.ttl() > Leases::MAX_TTL {
            let problem = "a lease lives for 365 days at most";
            return Err(ConfigError::at(format!("leases.{name}.ttl"), problem));
        }
        Ok(())
    }
}

/// The leases of a configuration, as they are at work.
#[derive(Default)]
pub(super) struct ConfiguredLeases(BTreeMap<String, Configured>);

struct Configured {
    leases: Leases,
    on_failure: OnFailure,
}

impl ConfiguredLeases {
    /// Whether a change is possible.
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

    /// Goes by a configuration. What is not in it any more is off.
    pub(super) fn apply(&mut self, config: &Config, stores: &Stores, limits: &Limits, says: &Says) {
        for (name, table) in &config.leases {
            let configured = self.0.entry(name.clone()).or_insert_with(|| Configured {
                leases: open(name, table, stores, limits, says),
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

/// What a change of a failure mode needs.
pub(super) const CANNOT_CHANGE: &str = "this cannot be changed while the service runs: restart it";

fn open(name: &str, table: &LeaseTable, stores: &Stores, limits: &Limits, says: &Says) -> Leases {
    let leases = stores.leases(table.on_failure, Leases::new().name(name));
    let observers = says.observers.iter().cloned();
    observers.fold(leases.limits(limits), Leases::observe)
}

impl Admission {
    /// The [`Leases`] of `[leases.<name>]`, counted in the configured store under this name. A reload changes their
    /// numbers at once, for all clones; without their table, or with `enabled = false`, they are only counted.
    ///
    /// [`observe`](Leases::observe) can follow. The other setters, as [`ttl`](Leases::ttl), start numbers of their own,
    /// which neither a reload nor `enabled` changes: write them in the file.
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
    /// No configuration since the start has had this table.
    pub fn leases(&self, name: &str) -> Result<Leases, ConfigError> {
        let configured = lock(&self.0.leases);
        let found = configured.0.get(name).map(|found| found.leases.clone());
        found.ok_or_else(|| ConfigError::at(format!("leases.{name}"), "there is no such table"))
    }
}
