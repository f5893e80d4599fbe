//! Reads the overrides of the store, and keeps those that the store has lost.

use std::collections::HashSet;

use tokio::time::Instant;

use super::change::Audited;
use super::entry::time;
use super::missing::CompleteRead;
use super::replica::{ReadProgress, Replica};
use super::reported::report_other_processes;
use super::state::{LimitsState, OverrideSource};
use super::{LimitChange, Limits, Override};
use crate::key::KeyName;
use crate::store::overrides::{OverrideChanges, StoredChange, TableState};
use crate::store::{FailureKind, StoreError};
use crate::sync::{Ordering, lock};

/// The number of complete reads in a row, when the table is lost or renewed during a read.
const MAX_COMPLETE_READS: usize = 3;

/// All names that were found in the store.
#[derive(Default)]
pub(super) struct Names {
    pub(super) keys: HashSet<KeyName>,
    /// The stored names; some may not be names of keys.
    pub(super) stored: HashSet<Vec<u8>>,
}

impl Replica {
    /// Reads changes, or everything.
    pub(super) async fn read(&self, limits: &Limits) -> Result<(), StoreError> {
        let _reading = self.reading.lock().await;
        let mut read_whole = 0;
        loop {
            let (mut known, made, greatest, is_first) = {
                let read = lock(&self.read);
                let is_first = read.all.is_none() && read.known.epoch.is_empty();
                (read.known.clone(), read.made, read.greatest, is_first)
            };
            let epoch = known.epoch.clone();
            if self.is_due() {
                // No store has this epoch, so the store requests a complete read.
                known.epoch = b"-".to_vec();
            }
            let mut read = self.table.changes(&known, Limits::MAX_CHANGES).await?;
            let is_older = read.state.epoch == epoch && read.state.version < made;
            let changes = read.changes.take().filter(|_| !is_older);
            let (audited, versions) = self.audited(&mut read);
            let Some(changes) = changes else {
                if !is_first {
                    report_other_processes(&audited);
                }
                if read_whole == MAX_COMPLETE_READS {
                    let error = unsettled_error();
                    if !self.is_unsettled.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "the overrides cannot be read completely; the read is retried");
                    }
                    return Err(error);
                }
                read_whole += 1;
                self.read_all(limits, read.state, [made, greatest]).await?;
                continue;
            };
            self.is_unsettled.store(false, Ordering::Relaxed);
            let found = read.state;
            let up_to = read.up_to.unwrap_or(found.version);
            let mut other_changes = Vec::new();
            let mut state = lock(&limits.0.state);
            for change in changes {
                let is_audited = versions.contains(&change.version);
                let applied = self.apply_read(limits, &mut state, change);
                other_changes.extend(applied.filter(|_| !is_audited));
            }
            let mut known = lock(&self.read);
            if known.known.epoch == found.epoch {
                state.newer.retain(|_, version| *version > up_to);
                known.known.version = up_to;
                known.greatest = known.greatest.max(up_to);
                known.known.table_id = found.table_id;
            }
            drop(known);
            drop(state);
            other_changes.extend(audited);
            report_other_processes(&other_changes);
            if read.up_to.is_none() {
                return Ok(());
            }
        }
    }

    /// Whether a complete read is due.
    fn is_due(&self) -> bool {
        let all = lock(&self.read).all;
        all.is_none_or(|all| all.elapsed() >= self.full_read_interval)
    }

    /// The new changes of the audit trail, the oldest first, and the versions of all its changes.
    fn audited(&self, read: &mut OverrideChanges) -> (Vec<LimitChange>, HashSet<u64>) {
        let audited = std::mem::take(&mut read.audited).into_iter().rev();
        let audited: Vec<_> = audited.filter_map(Audited::from_record).collect();
        let versions = audited.iter().map(|audited| audited.version).collect();
        let mut seen = lock(&self.seen);
        let new = audited.into_iter().filter(|audited| {
            // Changes of the next page are reported with that page.
            let is_reached = read.up_to.is_none_or(|up_to| audited.version <= up_to);
            is_reached && audited.id.is_some_and(|id| seen.insert(id))
        });
        (new.map(|audited| audited.change).collect(), versions)
    }

    /// Reads everything in this epoch, at this version or later, page by page, so that other tasks
    /// can run. `made` is the version of this process's last change, and `greatest` the highest
    /// version seen before.
    async fn read_all(
        &self,
        limits: &Limits,
        found: TableState,
        [made, greatest]: [u64; 2],
    ) -> Result<(), StoreError> {
        let before = {
            let mut state = lock(&limits.0.state);
            let before = lock(&self.read).known.clone();
            // Versions of another epoch are not comparable. Versions of this one may be of lost
            // writes.
            let same = before.epoch == found.epoch;
            let version = found.version.max(made);
            state.newer.retain(|_, newer| same && *newer > version);
            before
        };
        let mut names = Names::default();
        let mut table_id = Vec::new();
        let mut cursor = 0;
        loop {
            let page = self.table.page(cursor).await?;
            if let Some(id) = page.table_id {
                table_id = id;
            }
            let mut state = lock(&limits.0.state);
            for (stored, text) in page.entries {
                if let Ok(name) = str::from_utf8(&stored) {
                    names.keys.extend(name.parse::<KeyName>().ok());
                    let change = StoredChange {
                        name: name.to_owned(),
                        version: found.version,
                        text,
                    };
                    self.apply_read(limits, &mut state, change);
                }
                names.stored.insert(stored);
            }
            cursor = page.next;
            if cursor == 0 {
                break;
            }
        }
        if table_id != found.table_id {
            // The table was lost or created during the read: read it again; nothing counts as
            // missing yet.
            return Ok(());
        }
        // An older acceptance comes from a backup.
        let is_accepted = found.loss_accepted_at > before.loss_accepted_at;
        let is_other = !before.table_id.is_empty() && before.table_id != found.table_id;
        let is_same = before.epoch == found.epoch;
        let is_older = found.version < greatest;
        let has_lost = self.lost() > 0 || is_other || is_older;
        let complete_read = CompleteRead {
            names,
            since: before.version,
            found: &found,
            is_accepted,
            keeps: has_lost && !is_accepted,
        };
        let Some(lost) = self.reconcile_missing(limits, &complete_read).await? else {
            return Ok(());
        };
        self.set_lost(lost);
        let mut read = lock(&self.read);
        // If a change has found another epoch meanwhile, everything must be read again.
        if read.known.epoch == before.epoch {
            let is_renewed = is_other || is_accepted || before.table_id.is_empty();
            let greatest = match is_renewed {
                true if is_same => read.made,
                true => 0,
                false => read.greatest,
            };
            *read = ReadProgress {
                greatest: found.version.max(greatest),
                known: TableState {
                    // A store that has lost this acceptance may get an older one from a backup.
                    loss_accepted_at: found.loss_accepted_at.max(before.loss_accepted_at),
                    ..found
                },
                all: Some(Instant::now()),
                made: if read.made > made && is_same {
                    read.made
                } else {
                    0
                },
            };
        }
        Ok(())
    }

    /// Applies a change from the store, unless this process made a newer one. Returns the resulting
    /// change. An unreadable override leaves the previous one in force.
    pub(super) fn apply_read(
        &self,
        limits: &Limits,
        state: &mut LimitsState,
        StoredChange {
            name,
            version,
            text: stored,
        }: StoredChange,
    ) -> Option<LimitChange> {
        let Ok(key) = name.parse::<KeyName>() else {
            match stored {
                Some(_) => state
                    .unreadable
                    .add(&name, "its name is not the name of a key"),
                None => state.unreadable.remove(&name),
            }
            return None;
        };
        self.remove_lost(&key);
        if state.newer.get(&key).is_some_and(|newer| *newer >= version) {
            return None;
        }
        let after = match stored.as_deref().map(|text| read_entry(&key, text)) {
            Some(Err(why)) => {
                state.unreadable.add(&name, &why);
                return None;
            }
            Some(Ok(entry)) => Some(entry),
            None => None,
        };
        state.unreadable.remove(&name);
        let now = limits.0.clock.seconds();
        let before = limits.apply(state, OverrideSource::RunTime, &key, after.clone());
        if after.as_ref().is_some_and(|entry| entry.has_ended(|| now)) {
            state.ended_in_store(key.clone(), after.clone());
        }
        (before != after).then(|| LimitChange {
            at: time(now),
            key: Some(key),
            author: after.as_ref().and_then(Override::author).map(Box::from),
            before,
            after,
            origin: None,
            has_ended: false,
            is_unreadable: false,
            is_after_unreadable: false,
        })
    }
}

/// The error if the table keeps changing its epoch during reads.
fn unsettled_error() -> StoreError {
    StoreError::new(FailureKind::Busy)
        .with_detail("the overrides were lost or renewed several times while they were read")
}

/// Parses a stored override, or returns why it cannot be read.
fn read_entry(key: &KeyName, text: &str) -> Result<Override, String> {
    let Some(entry) = Override::from_stored(text) else {
        return Err("this version does not know its format".to_owned());
    };
    let checked = Limits::check_network(key, entry.limit());
    checked.map_err(|error| error.to_string())?;
    Ok(entry)
}
