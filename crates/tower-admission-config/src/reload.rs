//! Changes the running limits to another configuration.

use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::admission::Admission;
use super::error::ConfigError;
use super::last_reload::ReloadStatus;
use super::model::Config;
use super::names::attach_switched_off;
use super::reload_state::ReloadState;
use super::sync::lock;

impl Admission {
    /// Changes the running limits to another configuration, as a whole or not at all.
    ///
    /// # Errors
    ///
    /// The configuration is invalid, has another `store`, or would [remove limits by accident](crate#changes). The running
    /// limits then stay.
    pub fn reload(&self, config: &Config) -> Result<(), ConfigError> {
        let mut running = lock(&self.0.reload_state);
        let changed = self.change_and_locate(&mut running, config);
        self.reloads().note(&changed);
        changed
    }

    fn change_and_locate(
        &self,
        running: &mut ReloadState,
        config: &Config,
    ) -> Result<(), ConfigError> {
        running.note(&config.origin);
        let changed = self.change(running, config);
        changed.map_err(|error| config.wrong(error))
    }

    /// Reads a file and [reloads](Self::reload) it at once. [`last_reload`](Self::last_reload) then has errors of the file as
    /// well; it does not after [`Config::load`] fails. Variables override the file, as with [`follow`](Self::follow).
    ///
    /// This method blocks while it reads the file.
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

    fn change(&self, running: &mut ReloadState, config: &Config) -> Result<(), ConfigError> {
        config.check_loss(&running.file)?;
        if self.0.hooks.denies_warnings {
            config.deny_warnings()?;
        }
        if !running.store.is(&config.store) {
            let problem = "the store cannot change while the service runs: restart the service";
            return Err(ConfigError::at("store", problem));
        }
        self.0.check_tables(config)?;
        let before = self.0.groups.load_full();
        let mut retired = running.retired.with(&before);
        #[cfg(feature = "axum")]
        let tokens = config.admin.tokens()?;
        let base = config.read_limits()?;
        let groups = self.0.groups_of(config, &before, &mut retired, &base)?;
        base.log_changes(&mem::replace(&mut running.base, base.clone()));
        #[cfg(feature = "metrics")]
        lock(&self.0.evictions).collect(before.rates());
        self.0.groups.store(Arc::new(groups));
        self.0.apply_tables(config);
        #[cfg(feature = "axum")]
        self.0.admin.reload(config, tokens);
        running.retired = retired;
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

    /// Whether this text is the last one that was read of a file.
    pub(super) fn has_read(&self, file: &Path, text: &str) -> bool {
        lock(&self.0.reload_state).has_read(file, text)
    }

    /// Applies the text of a file, with the variables of the last file.
    pub(super) fn apply(&self, file: &Path, text: String) -> Result<(), ConfigError> {
        // Note the text here: an invalid file does not reach `reload`.
        let origin = lock(&self.0.reload_state).reads(file, text);
        match Config::read(origin) {
            Ok(config) => self.reload(&config),
            Err(error) => {
                let rejected = Err(error);
                self.reloads().note(&rejected);
                rejected
            }
        }
    }

    /// Applies a file again after a transient error. `None` if the error is the same.
    pub(super) fn retry(
        &self,
        file: &Path,
        text: String,
        before: &ConfigError,
    ) -> Option<Result<(), ConfigError>> {
        let origin = lock(&self.0.reload_state).reads(file, text);
        let config = Config::read(origin);
        let changed = config
            .and_then(|config| self.change_and_locate(&mut lock(&self.0.reload_state), &config));
        if changed.as_ref().err() == Some(before) {
            return None;
        }
        self.reloads().note(&changed);
        Some(changed)
    }

    /// Notes that a file cannot be read.
    pub(super) fn cannot_read(&self, file: &Path, error: impl std::fmt::Display) -> ConfigError {
        let error = ConfigError::new(error).in_file(Some(file));
        let place = lock(&self.0.reload_state).place(file);
        self.reloads().note_unreadable(&place, &error);
        error
    }

    /// Notes that a file was read.
    pub(super) fn note_readable(&self, file: &Path) {
        let place = lock(&self.0.reload_state).place(file);
        self.reloads().note_readable(&place);
    }

    pub(super) fn warn_of_groups(&self) {
        lock(&self.0.reload_state).warn_of_groups();
    }

    pub(super) fn reloads(&self) -> &ReloadStatus {
        &self.0.reloads
    }
}
