//! The changes that this process has reported, and reports of changes by other processes.

use std::collections::{HashSet, VecDeque};

use super::LimitChange;
use super::change::ChangedBy;
use crate::sync::{Mutex, lock};

/// The number of remembered ids: more than the audit trail has, because this process makes changes
/// while it reads the trail.
const MAX_IDS: usize = 4 * super::Limits::MAX_CHANGES;

/// Changes of other processes that are logged individually at a time. All of them are counted.
const MAX_LOGGED: usize = 100;

/// The ids of the last changes that this process made or reported.
#[derive(Default)]
pub(super) struct ReportedChanges {
    ids: HashSet<u64>,
    order: VecDeque<u64>,
}

/// A change in progress. If it is dropped before it is [completed](Self::complete), its result is
/// unknown, and the audit trail reports it if it was made.
pub(super) struct PendingChange<'a> {
    seen: &'a Mutex<ReportedChanges>,
    pub(super) id: u64,
    is_complete: bool,
}

impl ReportedChanges {
    pub(super) fn begin(seen: &Mutex<Self>) -> PendingChange<'_> {
        let id = fastrand::u64(..);
        lock(seen).insert(id);
        PendingChange {
            seen,
            id,
            is_complete: false,
        }
    }

    /// Adds a change, and returns whether it is new.
    pub(super) fn insert(&mut self, id: u64) -> bool {
        let is_new = self.ids.insert(id);
        if is_new {
            self.order.push_back(id);
        }
        if self.order.len() > MAX_IDS
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        is_new
    }
}

impl PendingChange<'_> {
    /// The change was made, and its caller reports it.
    pub(super) fn complete(mut self) {
        self.is_complete = true;
    }
}

impl Drop for PendingChange<'_> {
    fn drop(&mut self) {
        if !self.is_complete {
            let mut seen = lock(self.seen);
            seen.ids.remove(&self.id);
            seen.order.retain(|id| *id != self.id);
        }
    }
}

/// Logs and counts changes by other processes, the oldest first.
pub(super) fn report_other_processes(changes: &[LimitChange]) {
    for (n, change) in changes.iter().enumerate() {
        change.count(ChangedBy::OtherProcess);
        if n < MAX_LOGGED {
            change.log(ChangedBy::OtherProcess);
        }
    }
    let more = changes.len().saturating_sub(MAX_LOGGED);
    if more > 0 {
        tracing::info!(changes = more, "other processes changed more overrides");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_change_is_new_again() {
        let seen = Mutex::default();
        let done = ReportedChanges::begin(&seen);
        let id = done.id;
        done.complete();
        assert!(!lock(&seen).insert(id));
        let dropped = ReportedChanges::begin(&seen);
        let id = dropped.id;
        assert!(!lock(&seen).insert(id));
        drop(dropped);
        assert!(lock(&seen).insert(id));
        for id in 0..2 * MAX_IDS as u64 {
            lock(&seen).insert(id);
        }
        assert_eq!(lock(&seen).ids.len(), MAX_IDS);
        assert_eq!(lock(&seen).order.len(), MAX_IDS);
    }
}
