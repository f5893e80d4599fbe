//! Overrides as the table `[limits]` of a file has them: read, and written.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;

use toml::{Table, Value};
use tower_admission::provider::{LimitsInternals, check_key_name};
use tower_admission::{KeyName, KeyNameError, Limits, Override};

use super::document::Document;
use super::error::ConfigError;
use super::key_checks::KeyChecks;
use super::model::Config;

/// Overrides per key, as the table `[limits]` of a TOML file has them.
///
/// ```toml
/// [limits]
/// "org:acme" = "1000/min burst 50"
/// "ip:203.0.113.7" = { limit = "deny all", end = "2026-12-01T00:00:00Z", note = "ticket 4711", author = "anna" }
/// ```
///
/// `end` is a time in RFC 3339, in UTC. `note` and `author` are for operators.
///
/// ```
/// use tower_admission_config::LimitsTable;
///
/// let text = "[limits]\n\"org:acme\" = \"1000/min\"\n";
/// let table = LimitsTable::from_toml(text)?;
/// assert_eq!(table.overrides().count(), 1);
/// assert_eq!(table.to_toml(), text);
/// # Ok::<_, tower_admission_config::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsTable(BTreeMap<KeyName, Override>);

/// What the table is called.
const TABLE: &str = "limits";

/// What the keys of addresses and networks begin with.
const ADDRESS: &str = "ip:";

/// What keys begin with that are credentials.
const CREDENTIALS: [&str; 2] = ["bearer:", "api-key:"];

/// The most overrides of which a reload logs a line each.
const MAX_LOGGED: usize = 20;

/// The fields of an override that has more than a limit.
const FIELDS: [&str; 4] = ["limit", "end", "note", "author"];

impl LimitsTable {
    /// Reads the table `[limits]` of a file. Other tables are not looked at.
    ///
    /// # Errors
    ///
    /// The text is not TOML or has no table `[limits]`, or the table has what is no override in it.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let file: Table = text.parse().map_err(|error: toml::de::Error| {
            // Without the line itself, which may have a credential in it.
            let line = error.span().map(|span| line_of(text, span.start));
            let line = line.map_or(String::new(), |line| format!(" in line {line}"));
            ConfigError::new(format!("invalid TOML{line}: {}", error.message()))
        })?;
        match file.get(TABLE) {
            Some(Value::Table(table)) => Self::read(table).map_err(|wrong| {
                let document = Document::parse(text).ok();
                let place = document.and_then(|it| it.position_of_entry(TABLE, &wrong.key));
                wrong.error().at_position(place)
            }),
            Some(_) => Err(ConfigError::at(TABLE, "expected a table")),
            // An emptied file must not look like one without overrides.
            None => Err(ConfigError::new(
                "the table [limits] is missing: write an empty one for no overrides",
            )),
        }
    }

    /// Reads the table.
    fn read(table: &Table) -> Result<Self, WrongEntry> {
        let (mut overrides, mut keys) = (BTreeMap::new(), HashSet::new());
        for (key, value) in table {
            let wrong = |problem| WrongEntry::new(key, problem);
            let name: KeyName = key
                .parse()
                .map_err(|error: KeyNameError| wrong(error.to_string()))?;
            let own = read(value).map_err(wrong)?;
            Limits::check_network(&name, own.limit()).map_err(|error| wrong(error.to_string()))?;
            // Also as a credential and as its fingerprint.
            if !keys.insert(name.key()) {
                return Err(wrong("this key occurs twice".to_owned()));
            }
            overrides.insert(name, own);
        }
        Ok(Self(overrides))
    }

    /// Logs how this differs from what was before.
    pub(super) fn log_changes(&self, before: &Self) {
        let shown = |own: Option<&Override>| own.map(|own| own.limit().to_string());
        let names: BTreeSet<_> = before.0.keys().chain(self.0.keys()).collect();
        let changes = names.into_iter().filter_map(|name| {
            let (old, new) = (before.0.get(name), self.0.get(name));
            (old != new).then_some((name, old, new))
        });
        let changes: Vec<_> = changes.collect();
        for (name, old, new) in changes.iter().take(MAX_LOGGED) {
            tracing::info!(
                key = name.as_str(),
                before = shown(*old).as_deref().unwrap_or("none"),
                after = shown(*new).as_deref().unwrap_or("none"),
                "an override of the file changed"
            );
        }
        if let more @ 1.. = changes.len().saturating_sub(MAX_LOGGED) {
            tracing::info!(more, "more overrides of the file changed");
        }
    }

    /// The overrides, in the order of their keys.
    pub fn overrides(&self) -> impl Iterator<Item = (&KeyName, &Override)> {
        self.0.iter()
    }

    /// Writes the table, as [`from_toml`](Self::from_toml) reads it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = format!("[{TABLE}]\n");
        let string = |text: &str| Value::String(text.to_owned()).to_string();
        for (name, own) in &self.0 {
            let limit = string(&own.limit().to_string());
            let end = own.end().map(|end| format_time(end).to_string());
            let rest = [
                ("end", end.as_deref()),
                ("note", own.note()),
                ("author", own.author()),
            ];
            let rest = rest.map(|(field, value)| {
                value.map_or(String::new(), |value| {
                    format!(", {field} = {}", string(value))
                })
            });
            let rest = rest.concat();
            // Writing to a string does not fail.
            let _ = match &*rest {
                "" => writeln!(text, "{} = {limit}", string(name.as_str())),
                rest => writeln!(
                    text,
                    "{} = {{ limit = {limit}{rest} }}",
                    string(name.as_str())
                ),
            };
        }
        text
    }
}

/// An error of an entry, and the entry's key, which gives its place in the file.
struct WrongEntry {
    key: String,
    problem: String,
}

impl WrongEntry {
    fn new(key: &str, problem: String) -> Self {
        Self {
            key: key.to_owned(),
            problem,
        }
    }

    fn error(&self) -> ConfigError {
        ConfigError::at(field_of(&self.key), &self.problem)
    }
}

/// The overrides of a configuration, and their errors.
impl Config {
    /// Reads them. The secret of the process is there by now.
    pub(super) fn read_limits(&self) -> Result<LimitsTable, ConfigError> {
        LimitsTable::read(&self.limits.0)
            .map_err(|wrong| self.locate_limit(&wrong.key, wrong.error()))
    }

    /// Checks them without making keys, since these depend on a secret that may not be installed yet.
    pub(super) fn check_limits(&self) -> Result<(), ConfigError> {
        let headers = self.identity_headers();
        let mut entries = KeyChecks::new(&headers);
        for (key, value) in &self.limits.0 {
            let checked = check_key_name(key).map_err(|error| error.to_string());
            let checked = checked.and_then(|()| entries.check(key));
            let checked = checked.and_then(|()| read(value));
            // The key of an address needs no secret.
            let checked = checked.and_then(|own| match key.trim().parse::<KeyName>() {
                Ok(name) if key.trim().starts_with(ADDRESS) => {
                    Limits::check_network(&name, own.limit()).map_err(|error| error.to_string())
                }
                _ => Ok(()),
            });
            checked.map_err(|problem| {
                self.locate_limit(key, ConfigError::at(field_of(key), problem))
            })?;
        }
        Ok(())
    }

    /// The limits and the tiers that overrides name, each with the first key that does.
    pub(super) fn limits_named(&self) -> [BTreeMap<String, &str>; 2] {
        let (mut limits, mut tiers) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in &self.limits.0 {
            // They were checked.
            let Ok(own) = read(value) else { continue };
            for name in own.limit().names() {
                limits.entry(name.to_owned()).or_insert(&**key);
            }
            if let Some(tier) = own.limit().tier() {
                tiers.entry(tier.to_owned()).or_insert(&**key);
            }
        }
        [limits, tiers]
    }

    /// Adds the place of an entry to its error: the entry cannot be found by a field that does not name a
    /// credential.
    pub(super) fn locate_limit(&self, key: &str, error: ConfigError) -> ConfigError {
        match self.origin.position_of_entry(TABLE, key) {
            None => error,
            place => error
                .in_file(self.origin.file.as_deref())
                .at_position(place),
        }
    }
}

impl FromIterator<(KeyName, Override)> for LimitsTable {
    fn from_iter<I: IntoIterator<Item = (KeyName, Override)>>(overrides: I) -> Self {
        Self(overrides.into_iter().collect())
    }
}

impl IntoIterator for LimitsTable {
    type Item = (KeyName, Override);
    type IntoIter = std::collections::btree_map::IntoIter<KeyName, Override>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A time as it is written: RFC 3339 in UTC, in whole seconds.
fn format_time(time: std::time::SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time)
}

fn read(value: &Value) -> Result<Override, String> {
    let table = match value {
        Value::String(limit) => return Ok(Override::new(read_limit(limit)?)),
        Value::Table(table) => table,
        _ => return Err("write a limit, or a table with `limit`".to_owned()),
    };
    if let Some(unknown) = table.keys().find(|field| !FIELDS.contains(&&***field)) {
        let fields = FIELDS.join("`, `");
        return Err(format!(
            "unknown field `{unknown}`: the fields are `{fields}`"
        ));
    }
    let text = |field: &str| match table.get(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        // TOML has a type for it.
        Some(Value::Datetime(time)) if field == "end" => Ok(Some(time.to_string())),
        Some(_) => Err(format!("`{field}` must be text")),
    };
    let limit = text("limit")?.ok_or("`limit` is missing")?;
    let mut own = Override::new(read_limit(&limit)?);
    if let Some(end) = text("end")? {
        let end = humantime::parse_rfc3339(&end).map_err(|error| {
            format!("{end:?} is not a valid `end`: write it in UTC, as \"2026-12-01T00:00:00Z\": {error}")
        })?;
        own = own.with_end(end);
    }
    if let Some(note) = text("note")? {
        own = own.with_note(&note);
    }
    if let Some(author) = text("author")? {
        own = own.with_author(&author);
    }
    Ok(own)
}

fn read_limit(text: &str) -> Result<tower_admission::Limit, String> {
    text.parse().map_err(|error| match error {
        tower_admission::LimitError::Quota(quota) => {
            format!("{text:?} is not a valid limit: {quota}")
        }
        error => format!("{text:?} is not a valid limit: {error}"),
    })
}

/// The field of an override, without what may be a credential.
pub(super) fn field_of(key: &str) -> String {
    let is_credential = CREDENTIALS.iter().any(|kind| key.trim().starts_with(kind));
    match key.find([':', '#']) {
        Some(_) if !is_credential && check_key_name(key).is_ok() => {
            format!("{TABLE}.\"{}\"", key.trim())
        }
        Some(at) => format!("{TABLE}.\"{}..\"", &key[..=at]),
        None => format!("{TABLE}.\"..\""),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    before.matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_as_it_is_written() {
        let text = r#"[limits]
"ip:203.0.113.7" = { limit = "deny all", end = "2026-12-01T00:00:00Z", note = 'of "x"', author = "anna" }
"org:a 'b' c" = "1000/min burst 50"
"org:acme" = { limit = "tier=pro, 5/day", note = "ä" }
"#;
        let table = LimitsTable::from_toml(text).unwrap();
        assert_eq!(table.to_toml(), text);
        let banned = table.overrides().next().unwrap().1;
        assert_eq!(banned.author(), Some("anna"));
        assert_eq!(
            LimitsTable::from_toml("[limits]").unwrap(),
            LimitsTable::default()
        );
    }

    #[test]
    fn an_end_may_be_a_time_of_toml_and_other_tables_are_left_out() {
        let text =
            "[groups.api]\n[limits]\n\"org:a\" = { limit = '1/s', end = 2026-12-01T00:00:00Z }";
        let table = LimitsTable::from_toml(text).unwrap();
        let written = "[limits]\n\"org:a\" = { limit = \"1/s\", end = \"2026-12-01T00:00:00Z\" }\n";
        assert_eq!(table.to_toml(), written);
    }

    #[test]
    fn what_is_wrong_is_named_without_credentials() {
        for (text, told) in [
            ("", "there is no table [limits]"),
            ("limits = 7", "limits: expected a table"),
            ("[limits]\n\"a\" == 7", "no TOML in line 2"),
            ("[limits]\n'org:a' = 7", "limits.\"org:a\": write a limit"),
            ("[limits]\n'org:a' = '1/s x'", "\"1/s x\" is no limit"),
            (
                "[limits]\n'org:a' = { end = '2026-12-01T00:00:00Z' }",
                "`limit` is missing",
            ),
            (
                "[limits]\n'org:a' = { limit = '1/s', end = 'soon' }",
                "\"soon\" is no `end`",
            ),
            (
                "[limits]\n'org:a' = { limit = '1/s', until = '7' }",
                "unknown field `until`: the fields are `limit`",
            ),
            ("[limits]\n'Bearer:hunter2' = '1/s'", "limits.\"Bearer:..\""),
            ("[limits]\n'hunter2' = '1/s'", "limits.\"..\": a key is"),
            (
                "[limits]\n'bearer:hunter2' = '1/s'\n'bearer: hunter2' = '1/s'",
                "twice",
            ),
        ] {
            let error = LimitsTable::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
