//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::Path;

use super::model::Origin;

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

    pub(super) fn in_file(mut self, file: &Path) -> Self {
        self.source = Some(file.display().to_string());
        self
    }

    /// Names the file, or the variable if that is where the field is from.
    pub(super) fn of(mut self, origin: &Origin) -> Self {
        if self.source.is_none() {
            let field = self.field.as_deref().unwrap_or_default();
            // Of an unknown field the field that has it is told.
            let unknown = self.problem.strip_prefix("unknown field `");
            let unknown = unknown.and_then(|rest| rest.split('`').next());
            let fields = [
                Some(field.to_owned()),
                unknown.map(|name| format!("{field}.{name}")),
            ];
            let variables = fields.iter().flatten().map(|field| variable_of(field));
            let variable = variables
                .into_iter()
                .find(|name| origin.variables.contains_key(name));
            let file = || origin.file.as_ref().map(|file| file.display().to_string());
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
fn variable_of(field: &str) -> String {
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
