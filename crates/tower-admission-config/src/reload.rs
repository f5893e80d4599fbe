//! Changes what is running to another configuration.

use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::admission::Admission;
use super::changing::Changing;
use super::error::ConfigError;
use super::model::Config;
use super::names::attach_switched_off;
use super::reloaded::Reloads;
use super::sync::lock;

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
        let changed = self.change_to(&mut running, config);
        self.reloads().note(&changed);
        changed
    }

    fn change_to(&self, running: &mut Changing, config: &Config) -> Result<(), ConfigError> {
        running.note(&config.origin);
        let changed = self.change(running, config);
        changed.map_err(|error| config.wrong(error))
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
                self.note_readable(file);
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
        #[cfg(feature = "axum")]
        let tokens = config.admin.tokens()?;
        let base = config.read_limits()?;
        let groups = self.0.groups_of(config, &before, &mut kept, &base)?;
        base.log_changes(&mem::replace(&mut running.base, base.clone()));
        #[cfg(feature = "metrics")]
        lock(&self.0.evictions).collect(before.rates());
        self.0.groups.store(Arc::new(groups));
        self.0.apply_tables(config);
        #[cfg(feature = "axum")]
        self.0.admin.reload(config, tokens);
        running.kept = kept;
        running.switched_off = attach_switched_off(config, self.limits());
        let file = config.file();
        file.log_hidden_changes(&running.file, &config.origin.variables);
        running.file = file;
        let before = mem::replace(&mut running.written, config.written.clone());
        config.written.log_changes(&before);
        running.warn(config);
        config.warn_of_switches();
        self.reloads().note_enabled(config.is_enabled(None));
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

    /// Applies a file once more that was rejected for what is not in it. `None`: it is rejected for the same.
    pub(super) fn retry(
        &self,
        file: &Path,
        text: String,
        before: &ConfigError,
    ) -> Option<Result<(), ConfigError>> {
        let origin = lock(&self.0.changing).reads(file, text);
        let config = Config::read(origin);
        let changed =
            config.and_then(|config| self.change_to(&mut lock(&self.0.changing), &config));
        if changed.as_ref().err() == Some(before) {
            return None;
        }
        self.reloads().note(&changed);
        Some(changed)
    }

    /// Notes that a file cannot be read.
    pub(super) fn cannot_read(&self, file: &Path, error: impl std::fmt::Display) -> ConfigError {
        let error = ConfigError::new(error).in_file(Some(file));
        let place = lock(&self.0.changing).place(file);
        self.reloads().note_unreadable(&place, &error);
        error
    }

    /// Notes that a file was read.
    pub(super) fn note_readable(&self, file: &Path) {
        let place = lock(&self.0.changing).place(file);
        self.reloads().note_readable(&place);
    }

    pub(super) fn warn_of_groups(&self) {
        lock(&self.0.changing).warn_of_groups();
    }

    pub(super) fn reloads(&self) -> &Reloads {
        &self.0.reloads
    }
}
