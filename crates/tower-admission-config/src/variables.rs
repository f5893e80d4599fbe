//! The variables that set fields.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::text::Redacted;

/// What the names of variables begin with.
const PREFIX: &str = "ADMISSION_";

/// What stands for a dot in them.
const SEPARATOR: &str = "__";

/// The one field that is in no table and that a variable sets.
const ENABLED: &str = "enabled";

/// Variables that are for configuration, by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables {
    /// Those that set fields.
    fields: BTreeMap<String, Redacted>,
    /// The names of others that begin as these do.
    others: BTreeSet<String>,
}

impl Variables {
    pub(super) fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let variables = variables.into_iter();
        let (fields, others): (BTreeMap<_, _>, BTreeMap<_, _>) = variables
            .filter(|(name, _)| name.starts_with(PREFIX))
            // Those of this crate's program have no path in their names.
            .partition(|(name, _)| {
                let field = &name[PREFIX.len()..];
                field.contains(SEPARATOR) || field.eq_ignore_ascii_case(ENABLED)
            });
        // Of those that differ only in case, the one in capitals comes first and counts.
        let mut seen = BTreeSet::new();
        let fields = fields.into_iter();
        let fields = fields.filter(|(name, _)| seen.insert(name.to_uppercase()));
        Self {
            fields: fields
                .map(|(name, value)| (name, Redacted(value)))
                .collect(),
            others: others.into_keys().collect(),
        }
    }

    /// Those of the process.
    pub(super) fn of_process() -> Self {
        // What is no Unicode is nobody's field.
        let variables = std::env::vars_os();
        Self::new(variables.filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// Sets the fields, over those of a file.
    pub(super) fn set(&self, fields: &mut Table) {
        for (name, value) in &self.fields {
            let path = name[PREFIX.len()..].to_lowercase();
            let (parents, field) = path.rsplit_once(SEPARATOR).unwrap_or(("", &path));
            let mut table = &mut *fields;
            for parent in parents.split(SEPARATOR).filter(|_| path != ENABLED) {
                // In place of a text it is an error, as no field is a text and a table.
                if !table.get(parent).is_some_and(Value::is_table) {
                    table.insert(parent.to_owned(), Value::Table(Table::new()));
                }
                let Some(Value::Table(inner)) = table.get_mut(parent) else {
                    return;
                };
                table = inner;
            }
            table.insert(field.to_owned(), Value::String(value.0.clone()));
        }
    }

    /// The fields of a file that they set to something else, and which does.
    pub(super) fn hide(&self, file: &Table) -> Vec<(String, &str)> {
        let hidden = self.fields.iter().filter_map(|(name, value)| {
            let path = name[PREFIX.len()..].to_lowercase();
            let path: Vec<_> = path.split(SEPARATOR).collect();
            let written = value_at(file, &path)?;
            let is_same = match written {
                Value::String(text) => *text == value.0,
                other => other.to_string() == value.0,
            };
            (!is_same).then(|| (path.join("."), &**name))
        });
        hidden.collect()
    }

    /// The one that sets a field.
    pub(super) fn of(&self, field: &str) -> Option<&str> {
        let field = variable_of(field);
        self.find(|name| name == field)
    }

    /// The one that sets a field or something in it.
    pub(super) fn within(&self, field: &str) -> Option<&str> {
        let within = variable_of(field) + SEPARATOR;
        let within = |name: &str| name.starts_with(&within);
        self.of(field).or_else(|| self.find(within))
    }

    /// What the one that sets a field says.
    pub(super) fn value(&self, field: &str) -> Option<&str> {
        Some(&self.fields.get(self.of(field)?)?.0)
    }

    /// Those that set no field, with what is behind the prefix. Without those that Kubernetes makes in each pod of a
    /// service that is called `admission-store`, such as `ADMISSION_STORE_SERVICE_HOST`.
    pub(super) fn unread(&self) -> impl Iterator<Item = (&str, &str)> {
        let is_of_service = |name: &&str| {
            let ends = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"];
            ends.iter().any(|end| name.ends_with(end))
                || name.contains("_SERVICE_PORT_")
                || name.contains("_PORT_")
        };
        let names = self.others.iter().map(String::as_str);
        let names = names.filter(move |name| !is_of_service(name));
        names.map(|name| (name, &name[PREFIX.len()..]))
    }

    fn find(&self, is_it: impl Fn(&str) -> bool) -> Option<&str> {
        let mut names = self.fields.keys().map(String::as_str);
        names.find(|name| is_it(&as_variable(name)))
    }
}

/// What a table has at a path.
pub(super) fn value_at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (field, parents) = path.split_last()?;
    let mut table = table;
    for parent in parents {
        table = table.get(*parent)?.as_table()?;
    }
    table.get(*field)
}

/// The variable that sets a field.
fn variable_of(field: &str) -> String {
    format!("{PREFIX}{}", as_variable(field))
}

/// With a dot written in one way; in names of groups and of variables it may be one.
fn as_variable(name: &str) -> String {
    name.replace('.', SEPARATOR).to_uppercase()
}
