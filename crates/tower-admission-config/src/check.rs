//! Checks a configuration as a whole, after each field was read.

use std::collections::BTreeMap;

use tower_admission::provider::{NAME_RULES, is_addressable};

use super::error::ConfigError;
use super::fields::{ConfigFields, LIMIT_FIELDS, PROXY_FIELDS};
use super::model::{Clients, Config, KeySource, OnFailure, Store};
use super::routes::Routes;

impl Config {
    /// Checks that the configuration can run.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.check_inner().map_err(|error| self.wrong(error))
    }

    /// Checks that no limits disappear by accident: the file may have been emptied or half-written. Compares only files,
    /// because variables would hide that.
    pub(super) fn check_loss(&self, running: &ConfigFields) -> Result<(), ConfigError> {
        let file = self.file();
        let is_meant = self.allow_empty && file.has_groups_table();
        // Variables may make the same groups.
        let is_lost = |group: &&str| {
            let selects = !running.has_selectors(group) || self.written.has_selectors(group);
            !selects || !self.written.has_limits(group)
        };
        let groups: Vec<_> = running.group_names().into_iter().filter(is_lost).collect();
        if !groups.is_empty() && file.group_names().is_empty() && !is_meant {
            let groups = groups.join(", ");
            let problem = format!(
                "the file has no groups, so these groups would lose their limits: {groups}. To remove all \
                        limits, write `allow_empty = true` and `groups = {{}}`"
            );
            return Err(ConfigError::at("groups", problem));
        }
        if self.origin.file.is_none() {
            return Ok(());
        }
        for table in ["leases", "limits", "lists", "sockets"] {
            if running.has_entries(table) && !file.0.contains_key(table) {
                let problem = format!(
                    "this table is missing, but it had entries: to remove them, write an empty table, `[{table}]`"
                );
                return Err(ConfigError::at(table, problem));
            }
        }
        // The header may be the last line of a truncated file.
        if running.has_entries("limits") && !file.has_entries("limits") && !self.allow_empty {
            let problem = "this table no longer has any of its overrides, including bans: to remove them, write \
                    `allow_empty = true`";
            return Err(ConfigError::at("limits", problem));
        }
        // Each line may be the last one of a truncated file.
        for (table, fields, off) in [
            ("lists", &["deny"][..], "deny = []"),
            ("clients", &PROXY_FIELDS, "trusted_proxies = []"),
        ] {
            if running.has_one_of(&[table], fields) && !file.names_one_of(table, fields) {
                let problem = format!(
                    "this table no longer has `{}`: to remove it, write `{off}`",
                    fields.join("`, `")
                );
                return Err(ConfigError::at(table, problem));
            }
        }
        for table in ["leases", "sockets"] {
            for name in file.names_in(table) {
                if running.has_one_of(&[table, name], &LIMIT_FIELDS)
                    && !file.has_one_of(&[table, name], &LIMIT_FIELDS)
                {
                    let problem = "this table no longer has any of its limits: to switch a limit off, write 0";
                    return Err(ConfigError::at(format!("{table}.{name}"), problem));
                }
            }
        }
        for group in file.group_names() {
            let field = format!("groups.{group}");
            if running.has_limits(group) && !file.has_limits(group) {
                let problem = "this group no longer has any of its limits: to switch a limit off, write 0, as in `rate = \
                        \"0\"`";
                return Err(ConfigError::at(field, problem));
            }
            if running.has_selectors(group) && !file.has_selectors(group) {
                let problem = "this group no longer selects any requests: to intend that, write `path = \"off\"`";
                return Err(ConfigError::at(field, problem));
            }
        }
        Ok(())
    }

    /// The fields of the file, without variables.
    pub(super) fn file(&self) -> ConfigFields {
        // The file was parsed before, so this does not fail.
        ConfigFields(self.origin.file_values().unwrap_or_default())
    }

    fn check_inner(&self) -> Result<(), ConfigError> {
        self.clients.check()?;
        self.admin.check()?;
        self.lists.check(self)?;
        self.store.check()?;
        let (mut routes, mut names) = (Routes::default(), BTreeMap::new());
        for (group, settings) in &self.groups {
            let at = |field: &str| format!("groups.{group}.{field}");
            let name = settings.name(group);
            if !is_addressable(name) {
                let field = match settings.name {
                    Some(_) => at("name"),
                    None => format!("groups.{group}"),
                };
                return Err(ConfigError::at(field, NAME_RULES));
            }
            settings.policies(group)?;
            if let Err(conflict) = routes.insert(settings, group) {
                return Err(ConfigError::at(at(conflict.field), conflict));
            }
            if let Some(other) = names.insert(name.to_owned(), format!("group `{group}`")) {
                let problem = format!("{other} already has the name `{name}`");
                return Err(ConfigError::at(at("name"), problem));
            }
            let is_identity = matches!(settings.key, KeySource::Header(_));
            if is_identity && !self.clients.trusts_proxies() {
                let problem = "a client can forge this header: list the proxies that write it in `clients.trusted_proxies`, \
                        or set `clients.trust_unix_socket`";
                return Err(ConfigError::at(at("key"), problem));
            }
            if settings.on_failure == Some(OnFailure::LocalShare) {
                self.store.check_replicas(&at("on_failure"))?;
            }
            if let Some(percent @ 101..) = settings.enforce {
                let problem = format!("this is a percentage: use 0 to 100, not {percent}");
                return Err(ConfigError::at(at("enforce"), problem));
            }
            if settings.dry_run && settings.enforce.is_some() {
                let problem =
                    "a dry run enforces nothing: use either `enforce` or `dry_run = true`";
                return Err(ConfigError::at(at("enforce"), problem));
            }
        }
        for group in self.groups() {
            self.check_also(group)?;
        }
        self.check_tables(&mut names)?;
        // Names are unique in overrides, metrics and Redis.
        for (group, settings) in &self.groups {
            let by_ip = settings.rate_per_ip.iter();
            let by_ip = by_ip.map(|_| (settings.name_by_ip(group), "rate_per_ip".to_owned()));
            for (name, field) in settings.names_in(group).into_iter().chain(by_ip) {
                let field = format!("groups.{group}.{field}");
                if let Some(other) = names.get(&name) {
                    let problem = format!("{other} already has the name `{name}`");
                    return Err(ConfigError::at(field, problem));
                }
                names.insert(name, format!("`{field}`"));
            }
        }
        Ok(())
    }
}

impl Config {
    /// Checks the tables of leases and sockets. Their names must differ from those of groups.
    fn check_tables(&self, names: &mut BTreeMap<String, String>) -> Result<(), ConfigError> {
        let leases = self.leases.iter();
        let leases = leases.map(|(name, table)| ("leases", name, table.on_failure));
        let sockets = self.sockets.iter();
        let sockets = sockets.map(|(name, table)| ("sockets", name, table.on_failure));
        for (table, name, on_failure) in leases.chain(sockets) {
            let field = format!("{table}.{name}");
            if !is_addressable(name) {
                return Err(ConfigError::at(field, NAME_RULES));
            }
            if on_failure == Some(OnFailure::LocalShare) {
                self.store.check_replicas(&format!("{field}.on_failure"))?;
            }
            if let Some(other) = names.insert(name.clone(), format!("`{field}`")) {
                let problem = format!("{other} already has the name `{name}`");
                return Err(ConfigError::at(field, problem));
            }
        }
        for (name, table) in &self.leases {
            table.check(name)?;
        }
        self.check_limits()
    }

    /// Checks that this program can apply the tables of sockets. A program that only checks files need not be able to.
    #[cfg(not(feature = "axum"))]
    pub(super) fn check_sockets_can_run(&self) -> Result<(), ConfigError> {
        match self.sockets.keys().next() {
            Some(name) => {
                let problem =
                    "this program was built without the feature `axum` of tower-admission-config";
                Err(ConfigError::at(format!("sockets.{name}"), problem))
            }
            None => Ok(()),
        }
    }
}

impl Clients {
    fn check(&self) -> Result<(), ConfigError> {
        if let Some(prefix @ 129..) = self.ipv6_prefix {
            let problem = format!("an IPv6 address has 128 bits: use 0 to 128, not {prefix}");
            return Err(ConfigError::at("clients.ipv6_prefix", problem));
        }
        if self.trusted_hops.is_some() && self.trusts_proxies() {
            let problem = "use either the number of proxies, or their networks in `clients.trusted_proxies` and \
                    `clients.trust_unix_socket`";
            return Err(ConfigError::at("clients.trusted_hops", problem));
        }
        Ok(())
    }
}

impl Store {
    fn check(&self) -> Result<(), ConfigError> {
        if self.on_failure == OnFailure::LocalShare {
            self.check_replicas("store.on_failure")?;
        }
        let Some(url) = &self.url else {
            return Ok(());
        };
        if url.0.is_empty() {
            let problem = "expected a URL of Redis, or no `url`";
            return Err(ConfigError::at("store.url", problem));
        }
        if self.secret.is_none() {
            let problem = "a shared store needs `store.secret`: 32 hexadecimal digits, the same in all replicas";
            return Err(ConfigError::at("store.secret", problem));
        }
        self.check_url(url)
    }

    fn check_replicas(&self, field: &str) -> Result<(), ConfigError> {
        match self.replicas {
            Some(1..) => Ok(()),
            _ => Err(ConfigError::at(
                field,
                "`local share` needs the number of replicas in `store.replicas`",
            )),
        }
    }
}

#[cfg(feature = "redis")]
mod redis {
    use super::{ConfigError, OnFailure, Store};
    use crate::text::Redacted;
    use tower_admission::store::FailureMode;
    use tower_admission_redis::RedisStore;

    impl Store {
        pub(super) fn check_url(&self, url: &Redacted) -> Result<(), ConfigError> {
            self.check_tls(self.connect(url)?)
        }

        /// Opens the store and reads its certificate files.
        pub(crate) fn redis(&self, url: &Redacted) -> Result<RedisStore, ConfigError> {
            self.with_tls(self.connect(url)?)
        }

        fn connect(&self, url: &Redacted) -> Result<RedisStore, ConfigError> {
            let mut store = RedisStore::connect(&url.0).map_err(|error| {
                // The URL may contain a password, so the error does not show it.
                let problem = "this is not a URL of Redis, such as \"redis://127.0.0.1:6379/0\" or \
                        \"redis+cluster://10.0.0.1:6379,10.0.0.2:6379\"";
                let reason = error.detail().unwrap_or_default();
                ConfigError::at("store.url", format!("{problem}: {reason}"))
            })?;
            if let Some(prefix) = &self.prefix {
                store = store.prefix(prefix);
            }
            if let Some(deadline) = self.deadline {
                store = store.deadline(deadline.0);
            }
            Ok(store)
        }

        pub(crate) fn mode(&self, mode: OnFailure) -> FailureMode {
            match mode {
                OnFailure::Open => FailureMode::Open,
                OnFailure::Closed => FailureMode::Closed,
                OnFailure::LocalShare => FailureMode::LocalShare {
                    replicas: self.replicas.unwrap_or(1),
                },
            }
        }
    }
}

#[cfg(feature = "redis")]
mod tls {
    use super::{ConfigError, Store};
    use tower_admission_redis::RedisStore;
    #[cfg(feature = "redis-tls")]
    use tower_admission_redis::RedisTls;

    impl Store {
        /// Checks that the fields are complete. Does not read their files: they may be gone or unreadable when a running
        /// service reloads its configuration.
        #[cfg(feature = "redis-tls")]
        pub(super) fn check_tls(&self, store: RedisStore) -> Result<(), ConfigError> {
            if let Some(name) = &self.tls_server_name {
                let tls = RedisTls::new().server_name(name);
                apply(store, &tls, "store.tls_server_name").map(drop)?;
            }
            match (&self.tls_certificate_file, &self.tls_key_file) {
                (Some(_), None) => {
                    let problem = "a certificate needs its key in `store.tls_key_file`";
                    Err(ConfigError::at("store.tls_certificate_file", problem))
                }
                (None, Some(_)) => {
                    let problem = "a key needs its certificate in `store.tls_certificate_file`";
                    Err(ConfigError::at("store.tls_key_file", problem))
                }
                _ => Ok(()),
            }
        }

        #[cfg(feature = "redis-tls")]
        pub(super) fn with_tls(&self, mut store: RedisStore) -> Result<RedisStore, ConfigError> {
            let (ca, certificate) = ("store.tls_ca_file", "store.tls_certificate_file");
            let mut tls = RedisTls::new();
            if let Some(file) = &self.tls_ca_file {
                tls = tls.ca(read(file, ca)?);
                // Apply each field separately, so that an error names it.
                store = apply(store, &tls, ca)?;
            }
            if let (Some(chain), Some(key)) = (&self.tls_certificate_file, &self.tls_key_file) {
                let (chain, key) = (read(chain, certificate)?, read(key, "store.tls_key_file")?);
                tls = tls.client_certificate(chain, key);
                store = apply(store, &tls, certificate)?;
            }
            if let Some(name) = &self.tls_server_name {
                tls = tls.server_name(name);
                store = apply(store, &tls, "store.tls_server_name")?;
            }
            Ok(store)
        }

        #[cfg(not(feature = "redis-tls"))]
        pub(super) fn with_tls(&self, store: RedisStore) -> Result<RedisStore, ConfigError> {
            Ok(store)
        }

        #[cfg(not(feature = "redis-tls"))]
        pub(super) fn check_tls(&self, _: RedisStore) -> Result<(), ConfigError> {
            for (field, value) in [
                ("store.tls_ca_file", &self.tls_ca_file),
                ("store.tls_certificate_file", &self.tls_certificate_file),
                ("store.tls_key_file", &self.tls_key_file),
                ("store.tls_server_name", &self.tls_server_name),
            ] {
                if value.is_some() {
                    let problem = "this program was built without the feature `redis-tls`";
                    return Err(ConfigError::at(field, problem));
                }
            }
            Ok(())
        }
    }

    #[cfg(feature = "redis-tls")]
    fn read(file: &str, field: &str) -> Result<Vec<u8>, ConfigError> {
        std::fs::read(file).map_err(|error| ConfigError::at(field, format!("{file}: {error}")))
    }

    #[cfg(feature = "redis-tls")]
    fn apply(store: RedisStore, tls: &RedisTls, field: &str) -> Result<RedisStore, ConfigError> {
        store.tls(tls.clone()).map_err(|error| {
            let reason = error.detail().unwrap_or("it cannot be used");
            ConfigError::at(field, reason)
        })
    }
}

#[cfg(not(feature = "redis"))]
impl Store {
    fn check_url(&self, _: &super::text::Redacted) -> Result<(), ConfigError> {
        let problem = "this program was built without the feature `redis`";
        Err(ConfigError::at("store.url", problem))
    }
}
