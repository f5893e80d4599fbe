//! What is configured.

use std::collections::BTreeMap;

use http::Method;
use serde::Deserialize;
use tower_admission::extract::{ForwardingHeader, IpNet};
use tower_admission::{Quota, RateLimitHeaders};
#[cfg(feature = "redis")]
use tower_admission_redis::RedisStore;

use super::admin::Admin;
use super::costs::CostSource;
use super::fields::ConfigFields;
use super::leases::LeaseTable;
use super::lists::Lists;
use super::names::LimitNames;
use super::origin::Origin;
use super::path::{Prefix, paths};
use super::selectors::{GrpcPattern, HostPattern};
use super::sockets::SocketTable;
use super::status_filter::StatusFilter;
use super::text::{
    FromText, OrOff, Redacted, SecretBits, TimeSpan, boolean, integer, list, non_empty_list,
    optional_boolean, optional_integer, optional_text, shown, table, tables, text, texts,
};

/// A configuration that was read; the fields are in the documentation of [the module](super).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    #[serde(deserialize_with = "table")]
    pub(super) store: Store,
    #[serde(deserialize_with = "table")]
    pub(super) clients: Clients,
    #[serde(deserialize_with = "table")]
    pub(super) admin: Admin,
    #[serde(deserialize_with = "table")]
    pub(super) lists: Lists,
    #[serde(deserialize_with = "tables")]
    pub(super) groups: BTreeMap<String, Group>,
    #[serde(deserialize_with = "tables")]
    pub(super) leases: BTreeMap<String, LeaseTable>,
    #[serde(deserialize_with = "tables")]
    pub(super) sockets: BTreeMap<String, SocketTable>,
    /// Read once the secret is known by which credentials become keys.
    #[serde(deserialize_with = "table")]
    pub(super) limits: RedactedTable,
    #[serde(deserialize_with = "optional_boolean")]
    enabled: Option<bool>,
    #[serde(deserialize_with = "boolean")]
    pub(super) allow_empty: bool,
    #[serde(skip)]
    pub(super) origin: Origin,
    #[serde(skip)]
    pub(super) written: ConfigFields,
    #[serde(skip)]
    pub(super) names: LimitNames,
}

/// A table that may have credentials in it.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct RedactedTable(pub(super) toml::Table);

impl std::fmt::Debug for RedactedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedactedTable(..)")
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Store {
    #[serde(deserialize_with = "optional_text")]
    pub(super) url: Option<Redacted>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) tls_ca_file: Option<String>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) tls_certificate_file: Option<String>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) tls_key_file: Option<String>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) tls_server_name: Option<String>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) secret: Option<SecretBits>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) prefix: Option<String>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) deadline: Option<TimeSpan>,
    #[serde(deserialize_with = "text")]
    pub(super) on_failure: OnFailure,
    #[serde(deserialize_with = "optional_integer")]
    pub(super) replicas: Option<u32>,
}

impl Store {
    /// Whether it is the same when what is not written is what it is by default.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.with_defaults() == other.with_defaults()
    }

    fn with_defaults(&self) -> Self {
        let mut store = self.clone();
        store.replicas.get_or_insert(1);
        #[cfg(feature = "redis")]
        {
            let (prefix, deadline) = (RedisStore::DEFAULT_PREFIX, RedisStore::DEFAULT_DEADLINE);
            store.prefix.get_or_insert_with(|| prefix.to_owned());
            store.deadline.get_or_insert(TimeSpan(deadline));
        }
        store
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Clients {
    #[serde(deserialize_with = "list")]
    pub(super) trusted_proxies: Vec<IpNet>,
    #[serde(deserialize_with = "boolean")]
    pub(super) trust_unix_socket: bool,
    #[serde(deserialize_with = "optional_integer")]
    pub(super) trusted_hops: Option<u8>,
    #[serde(deserialize_with = "text")]
    pub(super) forwarded_header: ForwardedHeader,
    #[serde(deserialize_with = "optional_integer")]
    pub(super) ipv6_prefix: Option<u8>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Group {
    #[serde(deserialize_with = "paths")]
    pub(super) path: Vec<Prefix>,
    #[serde(deserialize_with = "non_empty_list")]
    pub(super) methods: Vec<Method>,
    #[serde(deserialize_with = "non_empty_list")]
    pub(super) hosts: Vec<HostPattern>,
    #[serde(deserialize_with = "non_empty_list")]
    pub(super) grpc: Vec<GrpcPattern>,
    #[serde(deserialize_with = "list")]
    pub(super) also: Vec<String>,
    #[serde(deserialize_with = "optional_boolean")]
    pub(super) enabled: Option<bool>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) name: Option<String>,
    #[serde(deserialize_with = "integer")]
    pub(super) concurrency: usize,
    #[serde(deserialize_with = "integer")]
    pub(super) concurrency_per_key: usize,
    #[serde(deserialize_with = "optional_text")]
    pub(super) reclaim_after: Option<OrOff<TimeSpan>>,
    #[serde(deserialize_with = "integer")]
    pub(super) concurrency_per_ip: usize,
    #[serde(deserialize_with = "optional_text")]
    pub(super) rate: Option<Quota>,
    #[serde(deserialize_with = "texts")]
    pub(super) rates: BTreeMap<String, Quota>,
    #[serde(deserialize_with = "tables")]
    pub(super) tiers: BTreeMap<String, Tier>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) rate_per_ip: Option<Quota>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) bad_credentials_per_ip: Option<Quota>,
    #[serde(deserialize_with = "text")]
    pub(super) key: KeySource,
    #[serde(deserialize_with = "list")]
    pub(super) exclude: Vec<Prefix>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) cost: Option<CostSource>,
    #[serde(deserialize_with = "text")]
    pub(super) headers: HeaderStyle,
    #[serde(deserialize_with = "boolean")]
    pub(super) retry_after_ms: bool,
    #[serde(deserialize_with = "optional_text")]
    pub(super) on_failure: Option<OnFailure>,
    #[serde(deserialize_with = "boolean")]
    pub(super) dry_run: bool,
    #[serde(deserialize_with = "optional_integer")]
    pub(super) enforce: Option<u8>,
    #[serde(deserialize_with = "non_empty_list")]
    pub(super) count: Vec<StatusFilter>,
}

impl Group {
    fn switch_off(&mut self) {
        self.concurrency = 0;
        self.concurrency_per_key = 0;
        self.concurrency_per_ip = 0;
        self.rate = None;
        self.rates.clear();
        self.tiers.clear();
        self.rate_per_ip = None;
        self.bad_credentials_per_ip = None;
    }
}

/// What other numbers some requests have. A rate that is not named keeps the group's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tier {
    #[serde(deserialize_with = "optional_text")]
    pub(super) rate: Option<Quota>,
    #[serde(deserialize_with = "texts")]
    pub(super) rates: BTreeMap<String, Quota>,
}

/// One of a few words.
pub(super) trait Keywords: Copy + 'static {
    const WORDS: &[(&str, Self)];
}

impl<T: Keywords> FromText for T {
    fn read(text: &str) -> Result<Self, String> {
        // `local_share` and `local-share` are the same as `local share`.
        let plain = |text: &str| text.replace(['_', '-'], " ");
        let found = T::WORDS.iter().find(|(word, _)| plain(word) == plain(text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = T::WORDS
                .iter()
                .map(|(word, _)| format!("`{word}`"))
                .collect();
            format!("{} is not one of {}", shown(text), words.join(", "))
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum OnFailure {
    #[default]
    Open,
    Closed,
    LocalShare,
}

impl Keywords for OnFailure {
    const WORDS: &[(&str, Self)] = &[
        ("open", Self::Open),
        ("closed", Self::Closed),
        ("local share", Self::LocalShare),
    ];
}

/// The header that trusted proxies write.
#[derive(Clone, Debug)]
pub(super) struct ForwardedHeader(pub(super) ForwardingHeader);

impl Default for ForwardedHeader {
    fn default() -> Self {
        Self(ForwardingHeader::XForwardedFor)
    }
}

impl FromText for ForwardedHeader {
    fn read(text: &str) -> Result<Self, String> {
        let single = text.strip_prefix("single ");
        let single = single.and_then(|name| name.trim().parse().ok());
        Ok(Self(match (&*text.to_ascii_lowercase(), single) {
            ("x-forwarded-for", _) => ForwardingHeader::XForwardedFor,
            ("forwarded", _) => ForwardingHeader::Forwarded,
            (_, Some(name)) => ForwardingHeader::SingleAddress(name),
            _ => {
                let text = shown(text);
                return Err(format!(
                    "{text} is not one of `x-forwarded-for`, `forwarded`, `single X-Real-IP`"
                ));
            }
        }))
    }
}

/// What a group charges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum KeySource {
    #[default]
    Token,
    Bearer,
    ApiKey,
    Ip,
    Shared,
    /// A header that trusted proxies write.
    Header(&'static str),
    /// What the application calls so.
    Named(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HeaderStyle {
    #[default]
    Draft,
    Draft6,
    Legacy,
    LegacyEpoch,
    Off,
}

impl Keywords for HeaderStyle {
    const WORDS: &[(&str, Self)] = &[
        ("draft", Self::Draft),
        ("draft-6", Self::Draft6),
        ("legacy", Self::Legacy),
        ("legacy-epoch", Self::LegacyEpoch),
        ("off", Self::Off),
    ];
}

impl From<HeaderStyle> for RateLimitHeaders {
    fn from(dialect: HeaderStyle) -> Self {
        match dialect {
            HeaderStyle::Draft => Self::Draft,
            HeaderStyle::Draft6 => Self::Draft6,
            HeaderStyle::Legacy => Self::Legacy,
            HeaderStyle::LegacyEpoch => Self::LegacyEpoch,
            HeaderStyle::Off => Self::Off,
        }
    }
}

impl Config {
    /// The store that limits are counted in; `None` if that is in memory. It is for checks before a service starts,
    /// such as [`ping`](RedisStore::ping): an [`Admission`](super::Admission) opens its own.
    ///
    /// # Errors
    ///
    /// When the URL or a certificate cannot be used.
    #[cfg(feature = "redis")]
    pub fn store(&self) -> Result<Option<RedisStore>, super::ConfigError> {
        let url = self.store.url.as_ref();
        url.map(|url| self.store.redis(url)).transpose()
    }

    /// The names of the tables and fields at the top.
    pub(super) fn tables() -> Vec<String> {
        // What is expected in place of a field that there is none of.
        let none = toml::Table::from_iter([(String::new(), toml::Value::Boolean(true))]);
        let expected = none.try_into::<Self>().err();
        let expected = expected.map(|error| error.message().to_owned());
        let expected = expected
            .iter()
            .flat_map(|problem| problem.split('`').skip(3).step_by(2));
        expected.map(str::to_owned).collect()
    }

    /// Whether limits are on, which may be said of all and of one table.
    pub(super) fn is_enabled(&self, table: Option<bool>) -> bool {
        self.enabled.unwrap_or(true) && table.unwrap_or(true)
    }

    /// Switches off the limits of groups that are not enabled.
    pub(super) fn switch_off(&mut self) {
        let is_on = self.enabled.unwrap_or(true);
        for group in self.groups.values_mut() {
            if !(is_on && group.enabled.unwrap_or(true)) {
                group.switch_off();
            }
        }
    }

    /// What becomes of limits when the store is away.
    pub(super) fn on_failure(&self, table: Option<OnFailure>) -> OnFailure {
        match &self.store.url {
            Some(_) => table.unwrap_or(self.store.on_failure),
            // Nothing fails in memory.
            None => OnFailure::default(),
        }
    }

    /// The names of the groups, in alphabetical order.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }
}
