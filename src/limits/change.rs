//! The audit trail of overrides: what was changed, by whom and from where.

use std::time::SystemTime;

use super::entry::{line, time};
use super::{Limits, LimitsError, Override};
use crate::key::KeyName;
use crate::store::overrides::AuditRecord;
use crate::sync::lock;

const SET: &str = "override set";
const DELETED: &str = "override deleted";
const ENDED: &str = "override ended";
const ACCEPTED: &str = "loss of overrides accepted";

/// A change in the audit trail, see [`Limits::changes`](super::Limits::changes).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitChange {
    /// The time of the change, by the clock of the store, or of this process.
    pub at: SystemTime,
    /// The key of the override. `None` if an operator [accepted](super::Limits::accept_loss) the
    /// loss of overrides, which removes all of them.
    pub key: Option<KeyName>,
    /// The previous override, with its end and note, so that it can be restored. `None` if there
    /// was none, or if it cannot be read.
    pub before: Option<Override>,
    /// The new override. `None` if it was deleted or has ended.
    pub after: Option<Override>,
    /// The author, see [`LimitEdit::author`](super::LimitEdit::author). Also `None` if the override
    /// [ended](Override#the-end).
    pub author: Option<Box<str>>,
    /// The origin of the change, see [`LimitEdit::origin`](super::LimitEdit::origin).
    pub origin: Option<Box<str>>,
    /// Whether the override ended, rather than being changed.
    pub has_ended: bool,
    /// Whether `before` or `after` is `None` because this version of the crate cannot read it.
    pub is_unreadable: bool,
    /// Whether this applies to `after`.
    pub(super) is_after_unreadable: bool,
}

impl Limits {
    /// The last changes of overrides, the newest first: up to `count` of the last
    /// [`MAX_CHANGES`](Self::MAX_CHANGES).
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`] if a shared store keeps them and is unavailable.
    pub async fn changes(&self, count: usize) -> Result<Vec<LimitChange>, LimitsError> {
        self.process_ends();
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
            key: Some(key),
            before,
            after: None,
            author: None,
            origin: None,
            has_ended: true,
            is_unreadable: false,
            is_after_unreadable: false,
        }
    }

    /// An ended override is in force again.
    pub(super) fn restored(key: KeyName, after: Option<Override>, at: u64) -> Self {
        Self {
            at: time(at),
            key: Some(key),
            before: None,
            after,
            author: None,
            origin: Some("the clock was set back before the end".into()),
            has_ended: false,
            is_unreadable: false,
            is_after_unreadable: false,
        }
    }

    /// An operator accepted the loss of overrides.
    pub(super) fn loss_accepted(
        author: Option<Box<str>>,
        origin: Option<Box<str>>,
        at: u64,
    ) -> Self {
        Self {
            at: time(at),
            key: None,
            before: None,
            after: None,
            author,
            origin,
            has_ended: false,
            is_unreadable: false,
            is_after_unreadable: false,
        }
    }

    /// Logs and counts a change by this process.
    pub(super) fn report(&self) {
        self.count(ChangedBy::ThisProcess);
        self.log(ChangedBy::ThisProcess);
    }

    pub(super) fn log(&self, made: ChangedBy) {
        let made = made.as_str();
        let Some(key) = &self.key else {
            tracing::warn!(
                author = self.author.as_deref(),
                origin = self.origin.as_deref(),
                made,
                "{}",
                self.word(),
            );
            return;
        };
        let limit_text =
            |entry: &Option<Override>| entry.as_ref().map(|entry| entry.limit().to_string());
        let (before, after) = (limit_text(&self.before), limit_text(&self.after));
        // An unreadable override is not `none`.
        let none = match self.is_unreadable {
            true => "none that can be read",
            false => "none",
        };
        let after_entry = self.after.as_ref();
        tracing::info!(
            key = key.as_str(),
            before = before.as_deref().unwrap_or(none),
            after = after.as_deref().unwrap_or(none),
            end = after_entry.and_then(Override::end_seconds),
            note = after_entry.and_then(Override::note),
            author = self.author.as_deref(),
            origin = self.origin.as_deref(),
            made,
            "{}",
            self.word(),
        );
    }

    pub(super) fn count(&self, made: ChangedBy) {
        #[cfg(feature = "metrics")]
        Self::counter(self.word(), made).increment(1);
        let _ = made;
    }

    #[cfg(feature = "metrics")]
    fn counter(word: &'static str, made: ChangedBy) -> metrics::Counter {
        let origin = made.as_str();
        metrics::counter!("admission_limit_changes_total", "change" => word, "origin" => origin)
    }

    /// Creates the counters of [`report`](Self::report) with 0. Otherwise, Prometheus would see no
    /// increase at the first change of each kind.
    pub(super) fn count_from_zero(in_store: bool) {
        let _ = in_store;
        #[cfg(feature = "metrics")]
        {
            metrics::describe_counter!(
                "admission_limit_changes_total",
                metrics::Unit::Count,
                "Changes of overrides that this process made, or that another one made in its store."
            );
            let words = [SET, DELETED, ENDED, ACCEPTED];
            let of_all = words.map(|word| (word, ChangedBy::ThisProcess));
            let elsewhere = words.map(|word| (word, ChangedBy::OtherProcess));
            // In memory there are no other processes, and nothing is lost.
            let (here, elsewhere) = match in_store {
                true => (&of_all[..], &elsewhere[..]),
                false => (&of_all[..3], &elsewhere[..0]),
            };
            for (word, made) in here.iter().chain(elsewhere) {
                Self::counter(word, *made).increment(0);
            }
        }
    }

    fn word(&self) -> &'static str {
        match self.after {
            _ if self.key.is_none() => ACCEPTED,
            _ if self.has_ended => ENDED,
            None if !self.is_after_unreadable => DELETED,
            _ => SET,
        }
    }
}

/// The process that made a change.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChangedBy {
    /// In this process.
    ThisProcess,
    /// Another process; this one read it from the store.
    OtherProcess,
}

impl ChangedBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::ThisProcess => "here",
            Self::OtherProcess => "elsewhere",
        }
    }
}

/// A change with its position in the store's audit trail.
pub(super) struct Audited {
    pub(super) id: Option<u64>,
    pub(super) version: u64,
    pub(super) change: LimitChange,
}

impl Audited {
    /// Returns `None` for a record with an unreadable key.
    pub(super) fn from_record(record: AuditRecord) -> Option<Self> {
        let key = match record.is_loss_accepted {
            true => None,
            false => Some(record.key.parse().ok()?),
        };
        let (before, after) = (
            Override::from_stored(&record.before),
            Override::from_stored(&record.after),
        );
        let is_unreadable =
            |text: &str, read: &Option<Override>| !text.is_empty() && read.is_none();
        Some(Self {
            id: record.id,
            version: record.version,
            change: LimitChange {
                at: time(record.at),
                key,
                is_after_unreadable: is_unreadable(&record.after, &after),
                is_unreadable: is_unreadable(&record.before, &before)
                    || is_unreadable(&record.after, &after),
                before,
                after,
                author: line(&record.author),
                origin: line(&record.origin),
                has_ended: record.has_ended,
            },
        })
    }
}
