//! Changes what is running to another configuration.

use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::admission::Admission;
use super::changing::Changing;
use super::error::ConfigError;
use super::model::Config;
use super::overrides::LimitsTable;
use super::reloaded::Reloads;
use crate::sync::lock;

impl Admission {
    /// Changes what is running to another configuration, whole or not at all.
    ///
    /// # Errors
    ///
    /// Something in it is wrong, or its `store` is not that of the start. It has no groups, and does not
    /// [mean it](super#changes); or it is from a file, and a group has none of its limits any more, not even as 0.
    /// What is running goes on then.
    pub fn reload(&self, config: &Config) -> Result<(), ConfigError> {
        let mut running = lock(&self.0.changing);
        running.note(&config.origin);
        let changed = self.change(&mut running, config);
        let changed = changed.map_err(|error| config.wrong(error));
        self.reloads().note(&changed);
        changed
    }

    /// Reads a file, and [reloads](Self::reload) it: at once, where [`follow`](Self::follow) waits until it is
    /// changed. [`last_reload`](Self::last_reload) has what is wrong with the file as well, which it has not where
    /// [`Config::load`] fails. Variables go before the file as with [`follow`](Self::follow).
    ///
    /// It blocks while the file is read.
    ///
    /// # Errors
    ///
    /// As [`Config::load`] and [`reload`](Self::reload).
    pub fn reload_file(&self, file: impl AsRef<Path>) -> Result<(), ConfigError> {
        let file = file.as_ref();
        match std::fs::read_to_string(file) {
            Ok(text) => {
                self.reloads().note_readable();
                self.apply(file, text)
            }
            Err(error) => Err(self.cannot_read(file, error)),
        }
    }

    fn change(&self, running: &mut Changing, config: &Config) -> Result<(), ConfigError> {
        config.check_loss(&running.file)?;
        if self.0.says.denies_warnings {
            config.deny_warnings()?;
        }
        if !running.store.is(&config.store) {
            let problem = "the store cannot be changed while the service runs: restart it";
            return Err(ConfigError::at("store", problem));
        }
        self.0.check_tables(config)?;
        let before = self.0.groups.load_full();
        let mut kept = running.kept.with(&before);
        #[cfg(feature = "admin")]
        let tokens = config.admin.tokens()?;
        let base = LimitsTable::read(&config.limits.0)?;
        let groups = self.0.groups_of(config, &before, &mut kept, &base)?;
        base.log_changes(&mem::replace(&mut running.base, base.clone()));
        #[cfg(feature = "metrics")]
        lock(&self.0.evictions).collect(before.rates());
        self.0.groups.store(Arc::new(groups));
        self.0.apply_tables(config);
        #[cfg(feature = "admin")]
        self.0.admin.reload(config, tokens);
        running.kept = kept;
        running.file = config.file();
        let before = mem::replace(&mut running.written, config.written.clone());
        config.written.log_changes(&before);
        running.warn(config);
        Ok(())
    }

    /// Whether this is what was read last of a file, and is not to be tried again.
    pub(super) fn has_read(&self, file: &Path, text: &str) -> bool {
        lock(&self.0.changing).has_read(file, text)
    }

    /// Applies what was read of a file, with the variables that went before the last one.
    pub(super) fn apply(&self, file: &Path, text: String) -> Result<(), ConfigError> {
        // Noted here as well, since what is wrong does not come to be reloaded.
        let origin = lock(&self.0.changing).reads(file, text);
        match Config::read(origin) {
            Ok(config) => self.reload(&config),
            Err(error) => {
                let rejected = Err(error);
                self.reloads().note(&rejected);
                rejected
            }
        }
    }

    /// Notes that a file cannot be read.
    pub(super) fn cannot_read(&self, file: &Path, error: impl std::fmt::Display) -> ConfigError {
        let error = ConfigError::new(error).in_file(Some(file));
        self.reloads().note_unreadable(&error);
        error
    }

    pub(super) fn warn_of_groups(&self) {
        lock(&self.0.changing).warn_of_groups();
    }

    pub(super) fn reloads(&self) -> &Reloads {
        &self.0.reloads
    }
}
