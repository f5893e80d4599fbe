//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::Path;

/// What is wrong with a configuration: the file with line and column, or the variable; the field; what is
/// written there, if it cannot be a secret; and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file or the variable.
    source: Option<String>,
    place: Option<Place>,
    field: Option<String>,
    problem: String,
    /// Whether it is also about what is not in the configuration, and may be right later.
    may_pass: bool,
}

/// A place in a text; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    /// In characters.
    pub(super) column: usize,
}

impl ConfigError {
    pub(super) fn new(problem: impl fmt::Display) -> Self {
        Self {
            source: None,
            place: None,
            field: None,
            problem: problem.to_string(),
            may_pass: false,
        }
    }

    /// Which field it is about.
    pub(super) fn at(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self {
            field: Some(field.into()),
            ..Self::new(problem)
        }
    }

    /// Names the file, unless it is known where this is from.
    pub(super) fn in_file(mut self, file: Option<&Path>) -> Self {
        let file = file.map(|file| file.display().to_string());
        self.source = self.source.or(file);
        self
    }

    /// Names the variable, unless it is known where this is from.
    pub(super) fn in_variable(mut self, variable: &str) -> Self {
        self.source.get_or_insert_with(|| variable.to_owned());
        self
    }

    /// Names the place in the text, if it is known.
    pub(super) fn found_at(mut self, place: Option<Place>) -> Self {
        self.place = self.place.or(place);
        self
    }

    /// Marks an error whose cause can go away while the configuration stays the same.
    pub(super) fn that_may_pass(mut self) -> Self {
        self.may_pass = true;
        self
    }

    pub(super) fn may_pass(&self) -> bool {
        self.may_pass
    }

    /// The field, such as `groups.api.rate`.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// The line of the file, from 1 on, where the file has the field.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.place.map(|place| place.line)
    }

    /// The character of the line, from 1 on.
    #[must_use]
    pub fn column(&self) -> Option<usize> {
        self.place.map(|place| place.column)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.source, self.place) {
            (Some(source), Some(place)) => write!(f, "{source}:{place}: ")?,
            (Some(source), None) => write!(f, "{source}: ")?,
            // Of a text without a file, the field says more.
            (None, Some(place)) if self.field.is_none() => write!(f, "{place}: ")?,
            (None, _) => {}
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.problem)
    }
}

/// As compilers have it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl std::error::Error for ConfigError {}
