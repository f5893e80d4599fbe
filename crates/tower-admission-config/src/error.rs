//! The error of a configuration, with its position.

use std::fmt;
use std::path::Path;

/// The error of a configuration: the file with line and column, or the variable; the field; the invalid text, unless it
/// may be a secret; and the fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file or the variable.
    source: Option<String>,
    position: Option<SourcePosition>,
    field: Option<String>,
    problem: String,
    /// Whether the cause can go away while the configuration stays the same.
    is_transient: bool,
}

/// A position in a text. Lines and columns start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SourcePosition {
    pub(super) line: usize,
    /// In characters.
    pub(super) column: usize,
}

impl ConfigError {
    pub(super) fn new(problem: impl fmt::Display) -> Self {
        Self {
            source: None,
            position: None,
            field: None,
            problem: problem.to_string(),
            is_transient: false,
        }
    }

    /// An error of a field.
    pub(super) fn at(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self {
            field: Some(field.into()),
            ..Self::new(problem)
        }
    }

    /// Adds the file, unless the source is known.
    pub(super) fn in_file(mut self, file: Option<&Path>) -> Self {
        let file = file.map(|file| file.display().to_string());
        self.source = self.source.or(file);
        self
    }

    /// Adds the variable, unless the source is known.
    pub(super) fn in_variable(mut self, variable: &str) -> Self {
        self.source.get_or_insert_with(|| variable.to_owned());
        self
    }

    /// Adds the position, if it is known.
    pub(super) fn at_position(mut self, position: Option<SourcePosition>) -> Self {
        self.position = self.position.or(position);
        self
    }

    /// Marks an error whose cause can go away while the configuration stays the same.
    pub(super) fn transient(mut self) -> Self {
        self.is_transient = true;
        self
    }

    pub(super) fn is_transient(&self) -> bool {
        self.is_transient
    }

    /// The field, such as `groups.api.rate`.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// The line of the field in the file, starting at 1.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.position.map(|position| position.line)
    }

    /// The column of the field in the file, in characters, starting at 1.
    #[must_use]
    pub fn column(&self) -> Option<usize> {
        self.position.map(|position| position.column)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.source, self.position) {
            (Some(source), Some(position)) => write!(f, "{source}:{position}: ")?,
            (Some(source), None) => write!(f, "{source}: ")?,
            // Without a file, the field is more useful than the position.
            (None, Some(position)) if self.field.is_none() => write!(f, "{position}: ")?,
            (None, _) => {}
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.problem)
    }
}

/// `line:column`, as compilers print it.
impl fmt::Display for SourcePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl std::error::Error for ConfigError {}
