//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

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
    pub(super) fn of(mut self, file: Option<&Path>, variables: &[String]) -> Self {
        if self.source.is_none() {
            let variable = self.field.as_deref().map(variable_of);
            let variable = variable.filter(|name| variables.contains(name));
            let file = || file.map(|file| PathBuf::from(file).display().to_string());
            self.source = variable.or_else(file);
        }
        self
    }

    /// The field, such as `groups.api.rate`.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }
}

/// The variable that sets a field.
pub(super) fn variable_of(field: &str) -> String {
    format!("ADMISSION_{}", field.replace('.', "__").to_uppercase())
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
