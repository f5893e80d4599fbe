//! Reads a configuration: the file, and the environment over it.

use std::path::Path;
use std::str::FromStr;

use serde_path_to_error::Segment;

use super::error::ConfigError;
use super::fields::ConfigFields;
use super::model::Config;
use super::names::LimitNames;
use super::origin::Origin;
use super::text::Redacted;
use super::variables::Variables;

impl Config {
    /// Reads a file of TOML, and the process's environment over it, and checks both.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or something in it or in the environment is wrong.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::load_over(file.as_ref(), Variables::of_process())
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
        Self::load_over(file.as_ref(), Variables::new(variables))
    }

    /// As [`load`](Self::load), for a text that was read from elsewhere, such as standard input. Errors name it as a file
    /// of this name.
    ///
    /// # Errors
    ///
    /// Something in it or in the environment is wrong.
    pub fn load_text(name: impl AsRef<Path>, text: String) -> Result<Self, ConfigError> {
        Self::read_over(name.as_ref(), text, Variables::of_process())
    }

    fn load_over(file: &Path, variables: Variables) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|error| ConfigError::new(error).in_file(Some(file)))?;
        Self::read_over(file, text, variables)
    }

    fn read_over(file: &Path, text: String, variables: Variables) -> Result<Self, ConfigError> {
        Self::read(Origin {
            file: Some(file.to_owned()),
            text: Redacted(text),
            variables,
        })
    }

    /// Reads TOML, and checks it. Does not look at the environment.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::read(Origin {
            text: Redacted(text.to_owned()),
            ..Origin::default()
        })
    }

    pub(super) fn read(origin: Origin) -> Result<Self, ConfigError> {
        let mut written = origin.file_values()?;
        origin.variables.set(&mut written);
        let config = serde_path_to_error::deserialize::<_, Self>(written.clone());
        let mut config = config.map_err(|error| {
            let keys = error.path().iter().filter_map(|segment| match segment {
                Segment::Map { key } => Some(key.clone()),
                _ => None,
            });
            origin.field_error(&keys.collect::<Vec<_>>(), error.inner().message())
        })?;
        config.origin = origin;
        config.written = ConfigFields(written);
        config.check()?;
        config.names = LimitNames::of(&config);
        config.switch_off();
        Ok(config)
    }

    /// Says where the configuration is from in which something is wrong.
    pub(super) fn wrong(&self, error: ConfigError) -> ConfigError {
        self.origin.locate(error)
    }
}

/// As [`Config::from_toml`].
impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::from_toml(text)
    }
}
