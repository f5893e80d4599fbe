//! What was changed, by whom and from where: the audit trail of overrides.

use std::time::SystemTime;

#[cfg(feature = "redis")]
use serde::{Deserialize, Serialize};

use super::entry::time;
use super::{Limits, LimitsError, Override};
use crate::key::KeyName;
use crate::sync::lock;

const SET: &str = "override set";
const DELETED: &str = "override deleted";
const ENDED: &str = "override ended";

/// A change of an override; of [`Limits::changes`](super::Limits::changes).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitChange {
    /// When it was made: by the clock of the store, or of this process.
    pub at: SystemTime,
    /// Whose override was changed.
    pub key: KeyName,
    /// The override before; `None` if there was none, or it cannot be read.
    pub before: Option<Override>,
    /// The override now; `None` if it was deleted, or has ended.
    pub after: Option<Override>,
    /// Who made the change, as [`LimitEdit::author`](super::LimitEdit::author) said. `None` also when the override
    /// [ended](Override#the-end).
    pub author: Option<Box<str>>,
    /// From where it was made, as [`LimitEdit::origin`](super::LimitEdit::origin) said.
    pub origin: Option<Box<str>>,
    /// Whether the override has ended, so that no one changed it.
    pub has_ended: bool,
}

impl Limits {
    /// The last changes of overrides, the newest first: up to `count` of the last [`MAX_CHANGES`](Self::MAX_CHANGES).
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`] when they are kept in a store that cannot be reached.
    pub async fn changes(&self, count: usize) -> Result<Vec<LimitChange>, LimitsError> {
        self.remove_ended();
        #[cfg(feature = "redis")]
        if let Some(replica) = &self.0.replica {
            return replica.last_changes(count).await;
        }
        let state = lock(&self.0.state);
        Ok(state.changes.iter().rev().take(count).cloned().collect())
    }
}

impl LimitChange {
    /// An override has ended.
    pub(super) fn ended(key: KeyName, before: Option<Override>, at: u64) -> Self {
        Self {
            at: time(at),
            key,
            before,
            after: None,
            author: None,
            origin: None,
            has_ended: true,
        }
    }

    /// Logs and counts the change.
    pub(super) fn report(&self) {
        let shown =
            |entry: &Option<Override>| entry.as_ref().map(|entry| entry.limit().to_string());
        let (before, after) = (shown(&self.before), shown(&self.after));
        let after_entry = self.after.as_ref();
        tracing::info!(
            key = self.key.as_str(),
            before = before.as_deref().unwrap_or("none"),
            after = after.as_deref().unwrap_or("none"),
            end = after_entry.and_then(Override::end_seconds),
            note = after_entry.and_then(Override::note),
            author = self.author.as_deref(),
            origin = self.origin.as_deref(),
            "{}",
            self.word(),
        );
        #[cfg(feature = "metrics")]
        metrics::counter!("admission_limit_changes_total", "change" => self.word()).increment(1);
    }

    /// Creates the counters of [`report`](Self::report) with 0. Without that Prometheus sees no increase at the first
    /// change of each kind.
    pub(super) fn count_from_zero() {
        #[cfg(feature = "metrics")]
        {
            metrics::describe_counter!(
                "admission_limit_changes_total",
                metrics::Unit::Count,
                "Changes of overrides that this process made or ended."
            );
            for word in [SET, DELETED, ENDED] {
                metrics::counter!("admission_limit_changes_total", "change" => word).increment(0);
            }
        }
    }

    fn word(&self) -> &'static str {
        match self.after {
            _ if self.has_ended => ENDED,
            Some(_) => SET,
            None => DELETED,
        }
    }
}

/// A change as it lies in a store.
#[cfg(feature = "redis")]
#[derive(Serialize, Deserialize)]
struct Stored {
    at: u64,
    key: String,
    #[serde(default)]
    before: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    author: String,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    ended: bool,
}

#[cfg(feature = "redis")]
impl LimitChange {
    /// `None` for what is none.
    pub(super) fn from_stored(text: &[u8]) -> Option<Self> {
        let stored: Stored = serde_json::from_str(&String::from_utf8_lossy(text)).ok()?;
        let line = |text: &str| super::entry::line(text);
        Some(Self {
            at: time(stored.at),
            key: stored.key.parse().ok()?,
            before: Override::from_stored(&stored.before),
            after: Override::from_stored(&stored.after),
            author: line(&stored.author),
            origin: line(&stored.origin),
            has_ended: stored.ended,
        })
    }
}
