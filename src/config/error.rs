//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::Path;

use super::load::Variables;

/// What is wrong with a configuration: the file or variable, the field, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file or the variable.
    source: Option<String>,
    field: Option<String>,
    problem: String,
}

impl ConfigError {
    pub(super) fn new(problem: impl fmt::Display) -> Self {
        Self {
            source: None,
            field: None,
            problem: problem.to_string(),
        }
    }

    /// Which field it is about.
    pub(super) fn at(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self {
            field: Some(field.into()),
            ..Self::new(problem)
        }
    }

    /// Names the file, or the variable if that is where the field is from.
    pub(super) fn of(self, file: Option<&Path>, variables: &Variables) -> Self {
        let variable = self.field.as_deref().and_then(|field| variables.of(field));
        let variable = variable.map(str::to_owned);
        self.found_in(variable.or_else(|| file.map(|file| file.display().to_string())))
    }

    /// Names the file or the variable, unless that is done.
    pub(super) fn found_in(mut self, source: Option<String>) -> Self {
        self.source = self.source.or(source);
        self
    }

    /// The path of what was not read: the field, or what is in it and is no field.
    pub(super) fn path(&self) -> Option<String> {
        let unknown = self.problem.strip_prefix("unknown field `");
        let unknown = unknown.and_then(|rest| Some(rest.split_once('`')?.0));
        let path: Vec<_> = self.field.as_deref().into_iter().chain(unknown).collect();
        (!path.is_empty()).then(|| path.join("."))
    }

    /// The field, such as `groups.api.rate`.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.source, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ConfigError {}
