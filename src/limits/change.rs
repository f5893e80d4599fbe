//! What was changed, by whom and from where: the audit trail of overrides.

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

/// A change of an override, or of what replicas keep; of [`Limits::changes`](super::Limits::changes).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitChange {
    /// When it was made: by the clock of the store, or of this process.
    pub at: SystemTime,
    /// Whose override was changed. `None` when an operator [accepted](super::Limits::accept_loss) that overrides were
    /// lost, with which all of these go.
    pub key: Option<KeyName>,
    /// The override before, with its end and note, so that it can be set again; `None` if there was none, or it cannot
    /// be read.
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
    /// Whether `before` or `after` is `None` because this version of the crate cannot read what is there.
    pub is_unreadable: bool,
    /// Whether that is so of `after`.
    pub(super) is_after_unreadable: bool,
}

impl Limits {
    /// The last changes of overrides, the newest first: up to `count` of the last [`MAX_CHANGES`](Self::MAX_CHANGES).
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`] when they are kept in a store that cannot be reached.
    pub async fn changes(&self, count: usize) -> Result<Vec<LimitChange>, LimitsError> {
        self.turn_ends();
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

    /// An override that had ended is in force again.
    pub(super) fn back(key: KeyName, after: Option<Override>, at: u64) -> Self {
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

    /// An operator has accepted that overrides were lost.
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

    /// Logs and counts a change that was made here.
    pub(super) fn report(&self) {
        self.count(Made::Here);
        self.log(Made::Here);
    }

    pub(super) fn log(&self, made: Made) {
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
        let shown =
            |entry: &Option<Override>| entry.as_ref().map(|entry| entry.limit().to_string());
        let (before, after) = (shown(&self.before), shown(&self.after));
        // What is there, but cannot be read, is not `none`.
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

    pub(super) fn count(&self, made: Made) {
        #[cfg(feature = "metrics")]
        Self::counter(self.word(), made).increment(1);
        let _ = made;
    }

    #[cfg(feature = "metrics")]
    fn counter(word: &'static str, made: Made) -> metrics::Counter {
        let origin = made.as_str();
        metrics::counter!("admission_limit_changes_total", "change" => word, "origin" => origin)
    }

    /// Creates the counters of [`report`](Self::report) with 0. Without that Prometheus sees no increase at the first
    /// change of each kind.
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
            let of_all = words.map(|word| (word, Made::Here));
            let elsewhere = words.map(|word| (word, Made::Elsewhere));
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

/// Where a change was made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Made {
    /// In this process.
    Here,
    /// In another one, so that this process read it of the store.
    Elsewhere,
}

impl Made {
    fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// A change with its place in the audit trail of a store.
pub(super) struct Audited {
    pub(super) id: Option<u64>,
    pub(super) version: u64,
    pub(super) change: LimitChange,
}

impl Audited {
    /// `None` for a record whose key is unreadable.
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
