//! The TOML of a file: what is written there, and where.

use std::iter;
use std::ops::Range;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::error::{ConfigError, SourcePosition};

/// A text that is TOML.
pub(super) struct Document<'a> {
    text: &'a str,
    table: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| {
            // The message alone: the line that it is about may have a secret in it.
            let wrong = ConfigError::new(format!("invalid TOML: {}", error.message()));
            wrong.at_position(error.span().map(|span| place(text, span.start)))
        })?;
        Ok(Self { text, table })
    }

    /// All that is written.
    pub(super) fn values(&self) -> Table {
        table_of(self.table.get_ref())
    }

    /// Where a field is written, or what it is in.
    pub(super) fn position_of(&self, field: &str) -> Option<SourcePosition> {
        // A group that is not there is not at the first of the others.
        let parents = iter::successors(Some(field), |field| Some(field.rsplit_once('.')?.0));
        let mut parents = parents.filter(|parent| *parent != "groups");
        parents.find_map(|field| self.exact_position_of(field))
    }

    pub(super) fn exact_position_of(&self, field: &str) -> Option<SourcePosition> {
        let (key, value) = find(self.table.get_ref(), field)?;
        let span = match value.get_ref() {
            DeValue::Table(_) => key,
            _ => value.span(),
        };
        Some(place(self.text, span.start))
    }

    /// Where what a field is called is written.
    pub(super) fn key_position_of(&self, field: &str) -> Option<SourcePosition> {
        let (key, _) = find(self.table.get_ref(), field)?;
        Some(place(self.text, key.start))
    }

    /// Where an entry of a table is written.
    pub(super) fn position_of_entry(&self, table: &str, key: &str) -> Option<SourcePosition> {
        let mut tables = self.table.get_ref().iter();
        let (_, table) = tables.find(|(name, _)| **name.get_ref() == *table)?;
        let DeValue::Table(table) = table.get_ref() else {
            return None;
        };
        let (key, _) = table.iter().find(|(name, _)| **name.get_ref() == *key)?;
        Some(place(self.text, key.span().start))
    }

    /// What a field has, as it is written.
    pub(super) fn written(&self, field: &str) -> Option<&'a str> {
        let (_, value) = find(self.table.get_ref(), field)?;
        self.text.get(value.span())
    }
}

/// The key and the value of a field. Names may have dots in them.
fn find<'t, 'a>(
    table: &'t DeTable<'a>,
    field: &str,
) -> Option<(Range<usize>, &'t Spanned<DeValue<'a>>)> {
    table.iter().find_map(|(key, value)| {
        let rest = field.strip_prefix(&**key.get_ref())?;
        if rest.is_empty() {
            return Some((key.span(), value));
        }
        match value.get_ref() {
            DeValue::Table(table) => find(table, rest.strip_prefix('.')?),
            _ => None,
        }
    })
}

fn place(text: &str, at: usize) -> SourcePosition {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    SourcePosition {
        line: before.matches('\n').count() + 1,
        column: line.chars().count() + 1,
    }
}

fn table_of(table: &DeTable<'_>) -> Table {
    let fields = table.iter();
    let fields = fields.map(|(key, value)| (key.get_ref().to_string(), value_of(value.get_ref())));
    fields.collect()
}

fn value_of(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        // One that is too large is as wrong as a fraction, wherever it is, and is told with its field.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Float(f64::INFINITY), Value::Integer),
        DeValue::Float(_) => Value::Float(f64::INFINITY),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(parts) => {
            let parts = parts.iter().map(|part| value_of(part.get_ref()));
            Value::Array(parts.collect())
        }
        DeValue::Table(table) => Value::Table(table_of(table)),
    }
}
