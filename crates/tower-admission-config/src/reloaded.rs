//! How the last reload went.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tower_admission::provider::since_epoch;

use super::admission::Admission;
use super::error::ConfigError;

/// How the last reload went, or the start if there was none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LastReload {
    /// When it was.
    pub at: SystemTime,
    /// When what is running was applied.
    pub succeeded_at: SystemTime,
    /// Why it was rejected, or why a file cannot be read that was [followed](Admission::follow) or
    /// [reloaded](Admission::reload_file), until it is read again. `None`:
    /// it succeeded.
    pub error: Option<ConfigError>,
}

/// How reloads go.
#[derive(Debug)]
pub(super) struct Reloads(ArcSwap<State>);

#[derive(Clone, Debug)]
struct State {
    at: Duration,
    succeeded_at: Duration,
    rejected: Option<ConfigError>,
    /// Whether the configuration does not switch off all of its limits.
    limits_enabled: bool,
    /// Files that are away, whatever is applied meanwhile.
    unreadable: BTreeMap<PathBuf, ConfigError>,
}

impl Reloads {
    /// The start, which succeeded.
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

    /// Notes and logs how one went.
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
                tracing::error!(%error, "the new configuration is rejected; limits stay as they are")
            }
            None => tracing::info!("the new configuration is applied"),
        }
    }

    /// Notes and logs that one ended half-way.
    pub(super) fn note_panicked(&self, error: &ConfigError) {
        let now = since_epoch();
        self.change(|state| {
            state.at = now;
            state.rejected = Some(error.clone());
        });
        tracing::error!(%error, "the new configuration is not applied as a whole");
    }

    /// Notes and logs that a file cannot be read.
    pub(super) fn note_unreadable(&self, file: &Path, error: &ConfigError) {
        let now = since_epoch();
        self.change(|state| {
            state.at = now;
            state.unreadable.insert(file.to_owned(), error.clone());
        });
        tracing::error!(%error, "the configuration cannot be read; limits stay as they are");
    }

    /// Notes that a file was read.
    pub(super) fn note_readable(&self, file: &Path) {
        if self.0.load().unreadable.contains_key(file) {
            self.change(|state| _ = state.unreadable.remove(file));
        }
    }

    /// Notes whether what is running has limits that are on.
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
        // To the recorder that is installed now.
        describe_gauge!(
            SUCCESSFUL,
            Unit::Count,
            "Whether the last reload of the configuration succeeded."
        );
        describe_gauge!(
            SUCCEEDED_AT,
            Unit::Seconds,
            "When the configuration that is running was applied, since the Unix epoch."
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
    /// How the last reload went, by [`reload`](Self::reload) or of a file that is [followed](Self::follow).
    ///
    /// With feature `metrics` it is also in two gauges, `admission_config_last_reload_successful` (1 or 0) and
    /// `admission_config_last_reload_success_timestamp_seconds` (since the Unix epoch), on the recorder that is
    /// installed; [`publish`](Self::publish) sets them for one that was installed later.
    #[must_use]
    pub fn last_reload(&self) -> LastReload {
        self.reloads().last()
    }
}
