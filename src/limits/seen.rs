//! Which changes this process has reported, and reports of those that other processes made.

use std::collections::{HashSet, VecDeque};

use super::LimitChange;
use super::change::Made;
use crate::sync::{Mutex, lock};

/// Ids that are kept: more than the audit trail has, as changes are made here while it is read.
const MAX_IDS: usize = 4 * super::Limits::MAX_CHANGES;

/// Changes of other processes that are logged one by one at a time. All are counted.
const MAX_LOGGED: usize = 100;

/// The ids of the last changes that were made or reported here.
#[derive(Default)]
pub(super) struct SeenChanges {
    ids: HashSet<u64>,
    order: VecDeque<u64>,
}

/// A change that is being made here. Unless it is [done](Self::done) before this is dropped, it is one of which this
/// process does not know whether it was made: then the audit trail tells it.
pub(super) struct BegunChange<'a> {
    seen: &'a Mutex<SeenChanges>,
    pub(super) id: u64,
    is_done: bool,
}

impl SeenChanges {
    pub(super) fn begin(seen: &Mutex<Self>) -> BegunChange<'_> {
        let id = fastrand::u64(..);
        lock(seen).is_new(id);
        BegunChange {
            seen,
            id,
            is_done: false,
        }
    }

    /// Whether a change was not seen before. From now on it was.
    pub(super) fn is_new(&mut self, id: u64) -> bool {
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

impl BegunChange<'_> {
    /// The change was made, and is reported by its maker.
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for BegunChange<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            let mut seen = lock(self.seen);
            seen.ids.remove(&self.id);
            seen.order.retain(|id| *id != self.id);
        }
    }
}

/// Logs and counts changes that other processes made, the oldest first.
pub(super) fn report_elsewhere(changes: &[LimitChange]) {
    for (n, change) in changes.iter().enumerate() {
        change.count(Made::Elsewhere);
        if n < MAX_LOGGED {
            change.log(Made::Elsewhere);
        }
    }
    let more = changes.len().saturating_sub(MAX_LOGGED);
    if more > 0 {
        tracing::info!(
            changes = more,
            "more overrides were changed by other processes"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_was_not_finished_here_is_new_again() {
        let seen = Mutex::default();
        let done = SeenChanges::begin(&seen);
        let id = done.id;
        done.done();
        assert!(!lock(&seen).is_new(id));
        let dropped = SeenChanges::begin(&seen);
        let id = dropped.id;
        assert!(!lock(&seen).is_new(id));
        drop(dropped);
        assert!(lock(&seen).is_new(id));
        for id in 0..2 * MAX_IDS as u64 {
            lock(&seen).is_new(id);
        }
        assert_eq!(lock(&seen).ids.len(), MAX_IDS);
        assert_eq!(lock(&seen).order.len(), MAX_IDS);
    }
}
