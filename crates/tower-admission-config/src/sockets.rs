//! The tables `[sockets.<name>]`: limits on WebSockets.

use serde::Deserialize;
use tower_admission::Quota;

use super::model::OnFailure;
use super::text::{integer, optional_boolean, optional_text};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SocketTable {
    #[serde(deserialize_with = "optional_boolean")]
    pub(super) enabled: Option<bool>,
    #[serde(deserialize_with = "integer")]
    pub(super) connections: usize,
    #[serde(deserialize_with = "integer")]
    pub(super) connections_per_key: usize,
    #[serde(deserialize_with = "optional_text")]
    pub(super) messages: Option<Quota>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) messages_per_key: Option<Quota>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) on_failure: Option<OnFailure>,
}

#[cfg(feature = "axum")]
pub(super) use self::running::ConfiguredSockets;

#[cfg(feature = "axum")]
mod running {
    use std::collections::BTreeMap;

    use super::SocketTable;
    use crate::admission::Admission;
    use crate::builder::AppHooks;
    use crate::error::ConfigError;
    use crate::leases::CANNOT_CHANGE;
    use crate::model::{Config, OnFailure};
    use crate::stores::Stores;
    use crate::sync::lock;
    use tower_admission::Capacity;
    use tower_admission::Limits;
    use tower_admission::Policy;
    use tower_admission::Quota;
    use tower_admission_axum::ws::SocketLimits;

    /// The running limits on WebSockets of a configuration.
    #[derive(Default)]
    pub(crate) struct ConfiguredSockets(BTreeMap<String, Configured>);

    struct Configured {
        limits: SocketLimits,
        on_failure: OnFailure,
        /// For both message quotas.
        are_sliding: [Option<bool>; 2],
    }

    impl SocketTable {
        fn messages(&self) -> [Option<Quota>; 2] {
            [self.messages, self.messages_per_key]
        }

        fn are_sliding(&self) -> [Option<bool>; 2] {
            self.messages().map(|quota| {
                let quota = quota.filter(|quota| quota.period().is_some());
                quota.map(|quota| quota.is_sliding())
            })
        }
    }

    impl ConfiguredSockets {
        /// Checks that a change is possible.
        pub(crate) fn check(&self, config: &Config) -> Result<(), ConfigError> {
            for (name, table) in &config.sockets {
                let Some(running) = self.0.get(name) else {
                    continue;
                };
                let at = |field| format!("sockets.{name}.{field}");
                if running.on_failure != config.on_failure(table.on_failure) {
                    return Err(ConfigError::at(at("on_failure"), CANNOT_CHANGE));
                }
                let fields = ["messages", "messages_per_key"].into_iter();
                let both = running.are_sliding.into_iter().zip(table.are_sliding());
                for (field, (before, after)) in fields.zip(both) {
                    // A quota that was off at first counts as a bucket.
                    if after.is_some_and(|after| after != before.unwrap_or(false)) {
                        let problem = "a quota cannot change between bucket and sliding window while the service runs: restart the \
                                service";
                        return Err(ConfigError::at(at(field), problem));
                    }
                }
            }
            Ok(())
        }

        /// Applies a configuration. Limits without a table are switched off.
        pub(crate) fn apply(
            &mut self,
            config: &Config,
            stores: &Stores,
            limits: &Limits,
            hooks: &AppHooks,
        ) {
            for (name, table) in &config.sockets {
                let configured = self.0.entry(name.clone()).or_insert_with(|| Configured {
                    limits: open(name, table, stores, limits, hooks),
                    on_failure: config.on_failure(table.on_failure),
                    are_sliding: table.are_sliding(),
                });
                match config.is_enabled(table.enabled) {
                    true => {
                        set(name, &configured.limits, table);
                        configured.limits.set_suspended(false);
                    }
                    false => switch_off(name, &configured.limits),
                }
            }
            for (name, configured) in &self.0 {
                if !config.sockets.contains_key(name) {
                    switch_off(name, &configured.limits);
                }
            }
        }
    }

    /// Counts connections and messages without limits, also for keys with an override.
    fn switch_off(name: &str, sockets: &SocketLimits) {
        sockets.set_suspended(true);
        set(name, sockets, &SocketTable::default());
    }

    fn open(
        name: &str,
        table: &SocketTable,
        stores: &Stores,
        limits: &Limits,
        hooks: &AppHooks,
    ) -> SocketLimits {
        let [messages, per_key] = policies(name, table);
        let mut sockets = SocketLimits::new().name(name);
        for observer in &hooks.observers {
            sockets = sockets.observe(observer.clone());
        }
        let sockets = stores.sockets(table.on_failure, sockets.limits(limits));
        sockets.messages(messages).messages_per_key(per_key)
    }

    fn policies(name: &str, table: &SocketTable) -> [Policy; 2] {
        let policy = |quota: Option<Quota>| Policy::new(name, quota.unwrap_or(Quota::off()));
        table.messages().map(policy)
    }

    fn set(name: &str, sockets: &SocketLimits, table: &SocketTable) {
        let connections = sockets.limiter();
        connections.set_limit(Capacity::or_off(table.connections));
        connections.set_limit_per_key(0, Capacity::or_off(table.connections_per_key));
        let [messages, per_key] = policies(name, table);
        let set = sockets.set_messages(messages);
        if let Err(error) = set.and_then(|()| sockets.set_messages_per_key(per_key)) {
            tracing::error!(sockets = name, %error, "the quotas of messages cannot change");
        }
    }

    impl Admission {
        /// The [`SocketLimits`] of `[sockets.<name>]`, counted in the configured store under this name. A reload changes the
        /// limits at once, also for open connections. Without the table, or with `enabled = false`, connections are counted
        /// but not limited.
        ///
        /// You can add settings that the file does not have: [`close_after`](SocketLimits::close_after),
        /// [`ping`](SocketLimits::ping), [`notice`](SocketLimits::notice), [`reject_with`](SocketLimits::reject_with). Do not call
        /// other setters: they make a limit that reloads do not change.
        ///
        /// ```
        /// use tower_admission_config::{Admission, Config};
        /// use tower_admission_axum::ws::RejectWith;
        ///
        /// let config = Config::from_toml(
        ///     "[sockets.web]
        ///      connections_per_key = 5
        ///      messages = '100/min'",
        /// )?;
        /// let admission = Admission::new(&config)?;
        /// let sockets = admission.sockets("web")?.reject_with(RejectWith::Close);
        /// # Ok::<_, tower_admission_config::ConfigError>(())
        /// ```
        ///
        /// # Errors
        ///
        /// No configuration since the start has this table.
        pub fn sockets(&self, name: &str) -> Result<SocketLimits, ConfigError> {
            let configured = lock(&self.0.sockets);
            let found = configured.0.get(name).map(|found| found.limits.clone());
            found.ok_or_else(|| {
                ConfigError::at(
                    format!("sockets.{name}"),
                    "the configuration has no such table",
                )
            })
        }
    }
}
