//! Checks the names of keys in `[lists]` and `[limits]`, without the secret by which credentials become keys.

use std::collections::BTreeSet;

use tower_admission::KeyName;

use super::model::{Config, KeySource};

/// The names of keys that were checked in one list or table.
pub(super) struct KeyChecks<'a> {
    /// The headers that groups have as `header X-User`, in lowercase: the kinds of their keys.
    headers: &'a BTreeSet<&'static str>,
    seen: BTreeSet<String>,
}

impl<'a> KeyChecks<'a> {
    pub(super) fn new(headers: &'a BTreeSet<&'static str>) -> Self {
        Self {
            headers,
            seen: BTreeSet::new(),
        }
    }

    /// Why an entry is wrong next to those before it, without what may be a credential.
    pub(super) fn check(&mut self, key: &str) -> Result<(), String> {
        let key = key.trim();
        let kind = key.split([':', '#']).next().unwrap_or(key);
        let header = self
            .headers
            .iter()
            .find(|header| kind.eq_ignore_ascii_case(header));
        if let Some(header) = header.filter(|header| **header != kind) {
            return Err(format!(
                "keys of `header {kind}` have lowercase names: write `{header}:..`"
            ));
        }
        // An address can be written in several ways, and a name may have spaces in front.
        let name = match (kind, key.split_at_checked(kind.len() + 1)) {
            ("ip", _) => key.parse::<KeyName>().map(|name| name.to_string()).ok(),
            (_, Some((kind, name))) => Some(format!("{kind}{}", name.trim())),
            _ => None,
        };
        if !self.seen.insert(name.unwrap_or_else(|| key.to_owned())) {
            return Err("this key occurs twice".to_owned());
        }
        Ok(())
    }
}

impl Config {
    /// The headers by which groups know clients.
    pub(super) fn identity_headers(&self) -> BTreeSet<&'static str> {
        let sources = self.groups.values().map(|group| &group.key);
        let headers = sources.filter_map(|source| match source {
            KeySource::Header(name) => Some(*name),
            _ => None,
        });
        headers.collect()
    }
}
