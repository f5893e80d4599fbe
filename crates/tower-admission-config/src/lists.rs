//! Allow and deny lists from the file.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use tower_admission::extract::{ApiKey, BearerToken, KeyExtractor, RequestHead, TrustedHeader};
use tower_admission::provider::{AllowHeader, Gate, LimitsInternals, check_key_name};
use tower_admission::{KeyName, KeyNameError, Limit, Limits, Override, Rejection};

use super::builder::AppHooks;
use super::error::ConfigError;
use super::key_checks::KeyChecks;
use super::model::{Config, KeySource};
use super::text::{FromText, list, optional_boolean, optional_text, shown};
use super::time::read_time;

/// What the gate is called in metrics and logs.
const NAME: &str = "lists";

const DENY: &str = "lists.deny";
const ALLOW: &str = "lists.allow";

/// The most names in one line of the log.
const MAX_LOGGED: usize = 20;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Lists {
    #[serde(deserialize_with = "optional_boolean")]
    enabled: Option<bool>,
    #[serde(deserialize_with = "list")]
    deny: Vec<Entry>,
    #[serde(deserialize_with = "list")]
    allow: Vec<Entry>,
    #[serde(deserialize_with = "optional_text")]
    allow_header: Option<ExemptHeader>,
}

/// The name of a key, and when the entry ends. The name becomes a key when the process has its secret, and may be a
/// credential until then.
#[derive(Clone)]
struct Entry {
    key: String,
    end: Option<SystemTime>,
}

/// `X-Internal: probe`
#[derive(Clone)]
struct ExemptHeader {
    name: HeaderName,
    value: String,
}

impl Lists {
    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let headers = config.identity_headers();
        for (field, list) in [(DENY, &self.deny), (ALLOW, &self.allow)] {
            let mut entries = KeyChecks::new(&headers);
            for entry in list {
                let key = entry.key.trim();
                let checked = match key {
                    "shared" | "unknown" => Err("no request is looked up by this key".to_owned()),
                    _ => entries.check(key),
                };
                let problem = |problem| format!("{}: {problem}", entry.shown());
                checked.map_err(|error| ConfigError::at(field, problem(error)))?;
            }
        }
        let clients = &config.clients;
        if self.allow_header.is_some() && !clients.trusts_proxies() {
            let problem = "a client can forge this header: list the proxies that write it in `clients.trusted_proxies`, \
                    or set `clients.trust_unix_socket`";
            return Err(ConfigError::at("lists.allow_header", problem));
        }
        for entry in &self.allow {
            entry.check_exempt()?;
        }
        Ok(())
    }

    /// The lists at work, next to those that change at run time. The secret of the process is there by now.
    pub(super) fn gate(
        &self,
        config: &Config,
        limits: &Limits,
        hooks: &AppHooks,
    ) -> Result<Gate, ConfigError> {
        if self.enabled == Some(false) {
            // Neither these lists nor the entries of run time apply.
            return Ok(Gate::new(&Limits::new()));
        }
        let clients = &config.clients;
        let mut gate = Gate::new(limits);
        for (field, list, limit) in [
            (DENY, &self.deny, Limit::deny_all()),
            (ALLOW, &self.allow, Limit::unlimited()),
        ] {
            gate.lists.push(listed(limits, field, list, &limit)?);
        }
        gate.set_client_ip(clients.ip());
        gate.name = NAME.into();
        gate.keys = keys(config, hooks)?;
        gate.allow_header = self
            .allow_header
            .as_ref()
            .map(|ExemptHeader { name, value }| {
                let proxies = clients.trusted_proxies.iter().copied();
                let mut header = TrustedHeader::of_kind("header", name.clone(), proxies);
                if clients.trust_unix_socket {
                    header = header.trust_unix_socket();
                }
                Arc::new(AllowHeader::new(header, value))
            });
        if let Some(responder) = &hooks.responder {
            let responder = responder.clone();
            gate.set_responder(move |rejection: &Rejection, head: RequestHead<'_>| {
                responder.respond(rejection, head)
            });
        }
        for observer in &hooks.observers {
            gate.observe(observer.clone());
        }
        Ok(gate)
    }
}

/// All keys that a request may have: its credentials, whatever a group charges, and what the application or a trusted
/// proxy says of it.
fn keys(config: &Config, hooks: &AppHooks) -> Result<Vec<Arc<dyn KeyExtractor>>, ConfigError> {
    let mut keys: Vec<Arc<dyn KeyExtractor>> =
        vec![Arc::new(BearerToken), Arc::new(ApiKey::default())];
    let named = hooks.keys.extractors();
    keys.extend(named.map(|key| Arc::new(key.clone()) as Arc<dyn KeyExtractor>));
    for name in config.identity_headers() {
        let source = KeySource::Header(name);
        let key = config.clients.key(&source, &hooks.keys);
        keys.push(Arc::new(key.map_err(ConfigError::new)?));
    }
    Ok(keys)
}

/// The entries of one list. They end by the clock of those that change at run time.
fn listed(
    limits: &Limits,
    field: &str,
    list: &[Entry],
    limit: &Limit,
) -> Result<Limits, ConfigError> {
    let (mut entries, mut keys) = (Vec::new(), HashSet::new());
    for entry in list {
        let name = entry.key.parse::<KeyName>();
        let name = name.map_err(|error| ConfigError::at(field, entry.no_name(error)))?;
        // As a credential and as its fingerprint.
        if !keys.insert(name.key()) {
            let problem = format!("{}: this key occurs twice", entry.shown());
            return Err(ConfigError::at(field, problem));
        }
        let listed = Override::new(limit.clone());
        let listed = match entry.end {
            Some(end) => listed.with_end(end),
            None => listed,
        };
        entries.push((name, listed));
    }
    let names: BTreeSet<_> = entries.iter().map(|(name, _)| name.clone()).collect();
    let limits = limits.with_same_clock();
    let set = limits.set_base(entries);
    set.map_err(|error| ConfigError::at(field, error))?;
    let (ended, more) = shortened(names.iter().filter(|name| limits.get(name).is_none()));
    if !ended.is_empty() {
        tracing::warn!(
            list = field,
            ended,
            more,
            "entries of a list have ended and have no effect"
        );
    }
    Ok(limits)
}

/// Logs what a reload adds to a list and removes from it.
pub(super) fn log_changes(before: &Gate, now: &Gate) {
    // The first are those of run time.
    for (place, list) in [(1, DENY), (2, ALLOW)] {
        let entries = |gate: &Gate| -> BTreeSet<_> {
            let entries = gate
                .lists
                .get(place)
                .map(|list| list.list_after(None, usize::MAX));
            let entries = entries.into_iter().flatten();
            entries.map(|(name, entry)| (name, entry.end())).collect()
        };
        let (before, now) = (entries(before), entries(now));
        for (names, what) in [
            (now.difference(&before), "entries were added to a list"),
            (before.difference(&now), "entries were removed from a list"),
        ] {
            let (entries, more) = shortened(names.map(|(name, _)| name));
            if !entries.is_empty() {
                tracing::info!(list, entries, more, "{what}");
            }
        }
    }
}

/// The first names, and how many more there are.
fn shortened<'a>(names: impl Iterator<Item = &'a KeyName>) -> (String, usize) {
    let names: Vec<_> = names.map(KeyName::as_str).collect();
    let (first, more) = names.split_at(names.len().min(MAX_LOGGED));
    (first.join(", "), more.len())
}

impl Entry {
    /// Whether it can be on the allow list, as far as that shows without the process's secret.
    fn check_exempt(&self) -> Result<(), ConfigError> {
        if !self.key.trim().starts_with("ip:") {
            return Ok(());
        }
        let wrong = |error: &dyn fmt::Display| ConfigError::at(ALLOW, error);
        let name = self.key.parse().map_err(|error| wrong(&error))?;
        Limits::check_network(&name, &Limit::unlimited()).map_err(|error| wrong(&error))
    }

    fn no_name(&self, error: KeyNameError) -> String {
        format!("{}: {error}", self.shown())
    }

    /// What of it may be shown: what stands behind another kind than that of addresses may be a credential.
    fn shown(&self) -> String {
        let text = self.key.trim();
        match text.split_once([':', '#']) {
            Some(("ip", _)) => format!("{text:?}"),
            Some((kind, _)) => format!("a key of the kind {}", shown(kind)),
            None if ["shared", "unknown"].contains(&text) => format!("{text:?}"),
            None => "this value".to_owned(),
        }
    }
}

/// What stands between a key and an end.
const UNTIL: &str = " until ";

impl FromText for Entry {
    fn read(text: &str) -> Result<Self, String> {
        let (key, end) = match text.rsplit_once(UNTIL) {
            Some((key, end)) => (key, Some(read_time(end.trim())?)),
            None => (text, None),
        };
        let entry = Self {
            key: key.to_owned(),
            end,
        };
        check_key_name(key).map_err(|error| entry.no_name(error))?;
        Ok(entry)
    }
}

impl FromText for ExemptHeader {
    fn read(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':');
        let parts = parts.and_then(|(name, value)| {
            let (name, value) = (name.trim().parse().ok()?, value.trim());
            let is_value = !value.is_empty() && HeaderValue::from_str(value).is_ok();
            is_value.then(|| Self {
                name,
                value: value.to_owned(),
            })
        });
        // What was written is not told: the value may be a secret.
        parts.ok_or_else(|| {
            "expected a header and its value, such as \"X-Internal: probe\"".to_owned()
        })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry(..)")
    }
}

impl fmt::Debug for ExemptHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ..", self.name)
    }
}
