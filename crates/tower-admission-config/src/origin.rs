//! Where a configuration is from, and where in it something is written.

use std::path::PathBuf;

use toml::Table;

use super::document::Document;
use super::error::{ConfigError, SourcePosition};
use super::text::{Redacted, shown};
use super::variables::Variables;

/// Where a configuration is from, for errors that are found later.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    pub(super) file: Option<PathBuf>,
    pub(super) text: Redacted,
    pub(super) variables: Variables,
}

impl Origin {
    /// All that is written in the file.
    pub(super) fn file_values(&self) -> Result<Table, ConfigError> {
        let document = Document::parse(&self.text.0);
        let document = document.map_err(|error| error.in_file(self.file.as_deref()))?;
        Ok(document.values())
    }

    /// Adds where it is written to what is wrong: the variable, or the file, the line and the column.
    pub(super) fn locate(&self, error: ConfigError) -> ConfigError {
        let Some(field) = error.field().map(str::to_owned) else {
            return error.in_file(self.file.as_deref());
        };
        if let Some(variable) = self.variables.of(&field) {
            return error.in_variable(variable);
        }
        let document = Document::parse(&self.text.0).ok();
        let exact = document
            .as_ref()
            .and_then(|it| it.exact_position_of(&field));
        match (exact, self.variables.within(&field)) {
            (None, Some(variable)) => error.in_variable(variable),
            (exact, _) => {
                let place = exact.or_else(|| document?.position_of(&field));
                error.in_file(self.file.as_deref()).at_position(place)
            }
        }
    }

    /// Where a field is written in the file.
    pub(super) fn position_of(&self, field: &str) -> Option<SourcePosition> {
        Document::parse(&self.text.0).ok()?.exact_position_of(field)
    }

    /// Where an entry of a table is written in the file.
    pub(super) fn position_of_entry(&self, table: &str, key: &str) -> Option<SourcePosition> {
        Document::parse(&self.text.0)
            .ok()?
            .position_of_entry(table, key)
    }

    /// What is wrong with a field that could not be read, or that there is none of this name.
    pub(super) fn field_error(&self, path: &[String], problem: &str) -> ConfigError {
        let whole = path.join(".");
        let unknown = problem.starts_with("unknown field `");
        let field = match path {
            [parents @ .., _] if unknown => parents.join("."),
            _ => whole.clone(),
        };
        let variable = self.variables.within(&whole);
        let document = Document::parse(&self.text.0).ok();
        let problem = if unknown {
            with_suggestion(problem)
        } else if variable.is_some() && problem.starts_with("expected a table") {
            // `ADMISSION_GROUPS__API_RATE`
            format!(
                "{problem}: write two underscores for each dot, as in `ADMISSION_GROUPS__API__RATE`"
            )
        } else {
            let value = match variable {
                Some(_) => self.variables.value(&whole).map(shown),
                None => document
                    .as_ref()
                    .and_then(|it| it.written(&whole))
                    .map(str::to_owned),
            };
            with_input(problem, &whole, value)
        };
        let error = match &*field {
            "" => ConfigError::new(problem),
            field => ConfigError::at(field, problem),
        };
        if let Some(variable) = variable {
            return error.in_variable(variable);
        }
        let place = document.and_then(|it| match unknown {
            true => it.key_position_of(&whole),
            false => it.position_of(&whole),
        });
        error.in_file(self.file.as_deref()).at_position(place)
    }
}

/// Tables without secrets.
pub(super) const TABLES_WITHOUT_SECRETS: [&str; 5] =
    ["groups.", "clients.", "leases.", "sockets.", "enabled"];

/// Adds what is written to what belongs there, unless it may be a secret.
fn with_input(problem: &str, field: &str, value: Option<String>) -> String {
    let is_shown = TABLES_WITHOUT_SECRETS
        .iter()
        .any(|table| field.starts_with(table));
    let value = value.filter(|value| is_shown && is_short(value));
    match value {
        Some(value) if problem.starts_with("expected") => format!("{problem}, not {value}"),
        _ => problem.to_owned(),
    }
}

fn is_short(value: &str) -> bool {
    value.len() <= 64 && !value.contains(['\n', '@']) && !value.contains("://")
}

/// Adds the field that is the nearest to an unknown one.
fn with_suggestion(problem: &str) -> String {
    let mut names = problem.split('`').skip(1).step_by(2);
    let unknown = names.next().unwrap_or_default();
    match nearest(unknown, names) {
        Some(meant) => format!("{problem}; did you mean `{meant}`?"),
        None => problem.to_owned(),
    }
}

/// The word that a word with a typing error is likely to be.
pub(super) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let distances = words
        .into_iter()
        .map(|other| (distance(&word, &other.to_lowercase()), other));
    let near = distances.filter(|(distance, other)| distance * 3 <= other.len().max(3));
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// How many characters are added, left out, changed or in each other's place.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<_>, Vec<_>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for (n, char) in one.iter().enumerate() {
        let mut row = vec![n + 1];
        for (m, with) in other.iter().enumerate() {
            let changed = rows[n][m] + usize::from(char != with);
            let mut least = changed.min(row[m] + 1).min(rows[n][m + 1] + 1);
            if n > 0 && m > 0 && one[n - 1] == *with && other[m - 1] == *char {
                least = least.min(rows[n - 1][m - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_has_a_nearest_word() {
        let words = ["path", "rate", "rates", "concurrency", "exclude"];
        for (word, meant) in [
            ("pth", Some("path")),
            ("Path", Some("path")),
            ("raet", Some("rate")),
            ("concurency", Some("concurrency")),
            ("excludes", Some("exclude")),
            ("burst", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, words), meant, "{word}");
        }
    }
}
