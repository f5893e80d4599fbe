//! Reads a configuration: the file, and the environment over it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use config::{Environment, File, FileFormat};

use super::error::ConfigError;
use super::model::{Config, Origin};
use super::text::Hidden;

/// What the names of variables begin with.
const PREFIX: &str = "ADMISSION";

/// What stands for a dot in them.
const SEPARATOR: &str = "__";

/// The variables that set fields.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables(BTreeMap<String, Hidden>);

impl Variables {
    fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        // Those of this crate's commands have no path in their names.
        let is_field = |name: &str| {
            let field = name.strip_prefix(PREFIX);
            let field = field.and_then(|rest| rest.strip_prefix('_'));
            field.is_some_and(|field| field.contains(SEPARATOR))
        };
        let variables = variables.into_iter().filter(|(name, _)| is_field(name));
        let sorted: BTreeMap<_, _> = variables.collect();
        // Of those that differ only in case, the one in capitals comes first and counts.
        let mut seen = BTreeSet::new();
        let variables = sorted.into_iter();
        let variables = variables.filter(|(name, _)| seen.insert(name.to_uppercase()));
        Self(
            variables
                .map(|(name, value)| (name, Hidden(value)))
                .collect(),
        )
    }

    /// Those of the process.
    pub(super) fn of_process() -> Self {
        Self::new(environment())
    }

    /// As what goes before a file.
    fn source(&self) -> Environment {
        let variables = self.0.iter();
        let variables = variables.map(|(name, value)| (name.clone(), value.0.clone()));
        Environment::with_prefix(PREFIX)
            .prefix_separator("_")
            .separator(SEPARATOR)
            .source(Some(variables.collect()))
    }

    /// The one that sets a field.
    pub(super) fn of(&self, field: &str) -> Option<&str> {
        let field = variable_of(field);
        self.find(|name| name == field)
    }

    /// The one that sets a field or something in it.
    fn within(&self, field: &str) -> Option<&str> {
        let within = variable_of(field) + SEPARATOR;
        let within = |name: &str| name.starts_with(&within);
        self.of(field).or_else(|| self.find(within))
    }

    fn find(&self, is_it: impl Fn(&str) -> bool) -> Option<&str> {
        let mut names = self.0.keys().map(String::as_str);
        names.find(|name| is_it(&as_variable(name)))
    }
}

/// The variable that sets a field.
fn variable_of(field: &str) -> String {
    format!("{PREFIX}_{}", as_variable(field))
}

/// With what leads into a field written in one way; in names of variables it may be a dot or a bracket as well.
fn as_variable(name: &str) -> String {
    name.replace(['.', '['], SEPARATOR).to_uppercase()
}

impl Config {
    /// Reads a file of TOML, and the process's environment over it, and checks both.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or something in it or in the environment is wrong.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::load_with(file, environment())
    }

    /// As [`load`](Self::load), with these variables in place of the environment.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_with(
        file: impl AsRef<Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file)
            .map_err(|error| ConfigError::new(error).of(Some(file), &Variables::default()))?;
        Self::read(Origin {
            file: Some(file.to_owned()),
            text: Hidden(text),
            variables: Variables::new(variables),
        })
    }

    /// Reads TOML, and checks it. Does not look at the environment.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::read(Origin {
            text: Hidden(text.to_owned()),
            ..Origin::default()
        })
    }

    pub(super) fn read(origin: Origin) -> Result<Self, ConfigError> {
        let config = config::Config::builder()
            .add_source(File::from_str(&origin.text.0, FileFormat::Toml))
            .add_source(origin.variables.source())
            .build()
            .and_then(config::Config::try_deserialize::<Self>);
        let mut config = config.map_err(|error| {
            let error = match error {
                config::ConfigError::At {
                    error,
                    key: Some(key),
                    ..
                } => ConfigError::at(key, error),
                // Without what is there: it may be a secret.
                config::ConfigError::Type { expected, .. } => {
                    ConfigError::new(format!("{expected} belongs here"))
                }
                error => ConfigError::new(without_source(&error.to_string())),
            };
            let path = error.path();
            let variable = path.and_then(|path| origin.variables.within(&path).map(str::to_owned));
            error
                .found_in(variable)
                .of(origin.file.as_deref(), &origin.variables)
        })?;
        config.origin = origin;
        config.check()?;
        Ok(config)
    }

    /// Says where the configuration is from in which something is wrong.
    pub(super) fn wrong(&self, error: ConfigError) -> ConfigError {
        error.of(self.origin.file.as_deref(), &self.origin.variables)
    }
}

/// An error of syntax without the line that it is about, as there may be a secret in it.
fn without_source(error: &str) -> String {
    let told = error.lines().filter(|line| !line.contains('|'));
    let told: Vec<_> = told
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    told.join(": ")
}

fn environment() -> impl Iterator<Item = (String, String)> {
    // What is no Unicode is nobody's field.
    let variables = std::env::vars_os();
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
