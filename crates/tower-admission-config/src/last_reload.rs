//! The result of the last reload.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tower_admission::provider::since_epoch;

use super::admission::Admission;
use super::error::ConfigError;

/// The result of the last reload, or of the start if there was none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LastReload {
    /// The time of the reload.
    pub at: SystemTime,
    /// The time at which the running configuration was applied.
    pub succeeded_at: SystemTime,
    /// Why the reload was rejected, or why a [followed](Admission::follow) or [reloaded](Admission::reload_file) file
    /// cannot be read. `None` if it succeeded.
    pub error: Option<ConfigError>,
}

/// The results of reloads, for metrics and for [`LastReload`].
#[derive(Debug)]
pub(super) struct ReloadStatus(ArcSwap<State>);

#[derive(Clone, Debug)]
struct State {
    at: Duration,
    succeeded_at: Duration,
    rejected: Option<ConfigError>,
    /// False if the configuration switches off all its limits.
    limits_enabled: bool,
    /// The files that cannot be read, whatever is applied in between.
    unreadable: BTreeMap<PathBuf, ConfigError>,
}

impl ReloadStatus {
    /// The status after a start.
    pub(super) fn new(limits_enabled: bool) -> Self {
        let now = since_epoch();
        let reloads = Self(ArcSwap::from_pointee(State {
            at: now,
            succeeded_at: now,
            rejected: None,
            limits_enabled,
            unreadable: BTreeMap::new(),
        }));
        reloads.publish();
        reloads
    }

    /// Records and logs the result of a reload.
    pub(super) fn note(&self, reloaded: &Result<(), ConfigError>) {
        let now = since_epoch();
        let rejected = reloaded.as_ref().err();
        self.change(|state| {
            state.at = now;
            state.rejected = rejected.cloned();
            if rejected.is_none() {
                state.succeeded_at = now;
            }
        });
        match rejected {
            Some(error) => {
                tracing::error!(%error, "the new configuration is rejected; the running limits stay")
            }
            None => tracing::info!("the new configuration is applied"),
        }
    }

    /// Records and logs a reload that panicked.
    pub(super) fn note_panicked(&self, error: &ConfigError) {
        let now = since_epoch();
        self.change(|state| {
            state.at = now;
            state.rejected = Some(error.clone());
        });
        tracing::error!(%error, "the new configuration is applied only in part");
    }

    /// Records and logs that a file cannot be read.
    pub(super) fn note_unreadable(&self, file: &Path, error: &ConfigError) {
        let now = since_epoch();
        self.change(|state| {
            state.at = now;
            state.unreadable.insert(file.to_owned(), error.clone());
        });
        tracing::error!(%error, "the configuration cannot be read; the running limits stay");
    }

    /// Records that a file was read.
    pub(super) fn note_readable(&self, file: &Path) {
        if self.0.load().unreadable.contains_key(file) {
            self.change(|state| _ = state.unreadable.remove(file));
        }
    }

    /// Records whether limits are enabled.
    pub(super) fn note_enabled(&self, limits_enabled: bool) {
        self.change(|state| state.limits_enabled = limits_enabled);
    }

    fn change(&self, change: impl Fn(&mut State)) {
        self.0.rcu(|state| {
            let mut state = State::clone(state);
            change(&mut state);
            state
        });
        self.publish();
    }

    /// Sets the metrics.
    #[cfg(feature = "metrics")]
    pub(super) fn publish(&self) {
        use metrics::{Unit, describe_gauge, gauge};

        const SUCCESSFUL: &str = "admission_config_last_reload_successful";
        const SUCCEEDED_AT: &str = "admission_config_last_reload_success_timestamp_seconds";
        const ENABLED: &str = "admission_limits_enabled";
        // Describe them to the recorder that is installed now.
        describe_gauge!(
            SUCCESSFUL,
            Unit::Count,
            "Whether the last reload of the configuration succeeded."
        );
        describe_gauge!(
            SUCCEEDED_AT,
            Unit::Seconds,
            "When the running configuration was applied, since the Unix epoch."
        );
        describe_gauge!(
            ENABLED,
            Unit::Count,
            "Whether limits are on: 0 while `enabled = false` switches off all limits of the configuration."
        );
        let state = self.0.load();
        gauge!(ENABLED).set(f64::from(u8::from(state.limits_enabled)));
        gauge!(SUCCESSFUL).set(f64::from(u8::from(state.error().is_none())));
        gauge!(SUCCEEDED_AT).set(state.succeeded_at.as_secs_f64());
    }

    #[cfg(not(feature = "metrics"))]
    fn publish(&self) {}

    fn last(&self) -> LastReload {
        let state: Arc<State> = self.0.load_full();
        LastReload {
            at: SystemTime::UNIX_EPOCH + state.at,
            succeeded_at: SystemTime::UNIX_EPOCH + state.succeeded_at,
            error: state.error().cloned(),
        }
    }
}

impl State {
    fn error(&self) -> Option<&ConfigError> {
        let mut unreadable = self.unreadable.values();
        unreadable.next().or(self.rejected.as_ref())
    }
}

impl Admission {
    /// The result of the last reload, by [`reload`](Self::reload) or of a [followed](Self::follow) file.
    ///
    /// With the feature `metrics`, two gauges have it as well: `admission_config_last_reload_successful` (1 or 0) and
    /// `admission_config_last_reload_success_timestamp_seconds` (since the Unix epoch). If you install the recorder later,
    /// `Admission::publish` sets them.
    #[must_use]
    pub fn last_reload(&self) -> LastReload {
        self.reloads().last()
    }
}
