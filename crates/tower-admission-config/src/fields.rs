//! What is written in a configuration, as it is compared with the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use toml::{Table, Value};

use super::origin::TABLES_WITHOUT_SECRETS;
use super::text::shown;
use super::variables::{Variables, value_at};

/// Fields that limit requests. A group without any of them limits nothing.
const GROUP_LIMIT_FIELDS: [&str; 9] = [
    "also",
    "bad_credentials_per_ip",
    "concurrency",
    "concurrency_per_ip",
    "concurrency_per_key",
    "rate",
    "rate_per_ip",
    "rates",
    "tiers",
];

/// Fields that limit leases and sockets.
pub(super) const LIMIT_FIELDS: [&str; 6] = [
    "per_tenant",
    "total",
    "connections",
    "connections_per_key",
    "messages",
    "messages_per_key",
];

/// Fields that say which peers are proxies.
pub(super) const PROXY_FIELDS: [&str; 3] = ["trusted_proxies", "trust_unix_socket", "trusted_hops"];

/// The fields by which a group selects requests.
pub(super) const SELECTOR_FIELDS: [&str; 4] = ["path", "methods", "hosts", "grpc"];

/// The fields of a file, with those of variables over them.
#[derive(Clone, Default)]
pub(super) struct ConfigFields(pub(super) Table);

impl ConfigFields {
    /// Whether a group has a limit, were it 0.
    pub(super) fn has_limits(&self, group: &str) -> bool {
        self.has_one_of(&["groups", group], &GROUP_LIMIT_FIELDS)
    }

    /// Whether a group says which requests it selects, were it `off`.
    pub(super) fn has_selectors(&self, group: &str) -> bool {
        self.has_one_of(&["groups", group], &SELECTOR_FIELDS)
    }

    /// Whether a table has a value in one of these fields, were it 0.
    pub(super) fn has_one_of(&self, table: &[&str], fields: &[&str]) -> bool {
        let table = value_at(&self.0, table).and_then(Value::as_table);
        let has = |table: &Table| {
            fields
                .iter()
                .any(|field| table.get(*field).is_some_and(has_value))
        };
        table.is_some_and(has)
    }

    /// Whether a table has one of these fields, were it an empty list.
    pub(super) fn names_one_of(&self, table: &str, fields: &[&str]) -> bool {
        let table = self.0.get(table).and_then(Value::as_table);
        table.is_some_and(|table| fields.iter().any(|field| table.contains_key(*field)))
    }

    /// What is in a table of tables.
    pub(super) fn names_in(&self, table: &str) -> Vec<&str> {
        let table = self.0.get(table).and_then(Value::as_table);
        table
            .into_iter()
            .flat_map(|table| table.keys())
            .map(String::as_str)
            .collect()
    }

    /// Whether a table has something in it.
    pub(super) fn has_entries(&self, table: &str) -> bool {
        self.0.get(table).is_some_and(has_value)
    }

    pub(super) fn group_names(&self) -> Vec<&str> {
        self.groups().into_keys().collect()
    }

    /// Whether it says that there are to be no groups.
    pub(super) fn has_groups_table(&self) -> bool {
        self.0.contains_key("groups")
    }

    /// Logs how this differs from what was before, group by group.
    pub(super) fn log_changes(&self, before: &Self) {
        let (old, new) = (before.groups(), self.groups());
        for (group, fields) in &old {
            if !new.contains_key(group) {
                let fields = listed(fields);
                tracing::warn!(group, fields, "a group was removed, with its limits");
            }
        }
        for (group, fields) in &new {
            match old.get(group) {
                None => tracing::info!(group, fields = listed(fields), "a group was added"),
                Some(before) if before != fields => {
                    let changes = changes(before, fields);
                    tracing::info!(group, changes, "a group changed");
                }
                Some(_) => {}
            }
        }
        let (old, new) = (before.others(), self.others());
        let changes = changes(&old, &new);
        if !changes.is_empty() {
            tracing::info!(changes, "settings changed");
        }
    }

    /// Logs what changes in a file and has no effect, since a variable sets it.
    pub(super) fn log_hidden_changes(&self, before: &Self, variables: &Variables) {
        for (field, variable) in variables.hide(&self.0) {
            let path: Vec<_> = field.split('.').collect();
            if value_at(&self.0, &path) != value_at(&before.0, &path) {
                tracing::warn!(
                    field,
                    variable,
                    "a changed field of the file has no effect: a variable sets it"
                );
            }
        }
    }

    fn groups(&self) -> BTreeMap<&str, Fields> {
        let groups = self.0.get("groups").and_then(Value::as_table);
        let groups = groups.into_iter().flatten();
        let fields = groups.map(|(group, value)| (group.as_str(), fields(value, "", true)));
        fields.collect()
    }

    /// The fields of all but groups.
    fn others(&self) -> Fields {
        // The keys of overrides may be credentials.
        let is_other = |table: &str| !["groups", "limits"].contains(&table);
        let tables = self.0.iter().filter(|(table, _)| is_other(table));
        let of_table = |(table, value): (&String, &Value)| {
            let is_shown = TABLES_WITHOUT_SECRETS
                .iter()
                .any(|shown| shown.trim_end_matches('.') == table);
            fields(value, table, is_shown)
        };
        tables.flat_map(of_table).collect()
    }
}

impl fmt::Debug for ConfigFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // There are secrets in it.
        f.write_str("Written(..)")
    }
}

/// Whether there is a value in a table, a list or a text.
fn has_value(value: &Value) -> bool {
    match value {
        Value::Table(table) => table.values().any(has_value),
        Value::Array(values) => !values.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

/// Fields by their paths.
type Fields = BTreeMap<String, Field>;

#[derive(Clone, Debug, PartialEq)]
struct Field {
    value: Value,
    is_shown: bool,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.value.to_string();
        match &self.value {
            _ if !self.is_shown => f.write_str("(not shown)"),
            Value::String(text) => f.write_str(&shown(text)),
            _ if text.contains("://") || text.contains('@') => f.write_str("(not shown)"),
            _ => f.write_str(&text),
        }
    }
}

fn fields(value: &Value, at: &str, is_shown: bool) -> Fields {
    let Value::Table(table) = value else {
        let value = value.clone();
        return BTreeMap::from([(at.to_owned(), Field { value, is_shown })]);
    };
    let inner = table.iter().flat_map(|(key, value)| {
        let dot = if at.is_empty() { "" } else { "." };
        fields(value, &format!("{at}{dot}{key}"), is_shown)
    });
    inner.collect()
}

fn listed(fields: &Fields) -> String {
    let fields = fields
        .iter()
        .map(|(field, value)| format!("{field} = {value}"));
    fields.collect::<Vec<_>>().join(", ")
}

fn changes(before: &Fields, after: &Fields) -> String {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changes = names.into_iter().filter_map(|name| {
        let (old, new) = (before.get(name), after.get(name));
        (old != new).then(|| match (old, new) {
            (Some(old), Some(new)) => format!("{name} from {old} to {new}"),
            (Some(old), None) => format!("{name} from {old} to its default"),
            (None, new) => {
                let new = new.map(ToString::to_string).unwrap_or_default();
                format!("{name} from its default to {new}")
            }
        })
    });
    changes.collect::<Vec<_>>().join(", ")
}
