//! How a replica reads the overrides of the store, and what it keeps when the store has lost some.

use std::collections::HashSet;

use tokio::task::yield_now;
use tokio::time::Instant;

use super::replica::{Read, Replica};
use super::state::{Source, State};
use super::{Limits, Override};
use crate::key::KeyName;
use crate::store::redis::{Change, Found, LimitTable, StoreError};
use crate::sync::{Ordering, lock};

/// How often all is read anew at a time, when it is lost or renewed while it is read.
const READ_WHOLE_AT_A_TIME: usize = 3;

/// Limits that are looked at between two looks at what else there is to do.
const DROPPED_AT_A_TIME: usize = 1_000;

impl Replica {
    /// Reads what was changed, or everything.
    pub(super) async fn read(&self, limits: &Limits) -> Result<(), StoreError> {
        let _reading = self.reading.lock().await;
        let mut read_whole = 0;
        loop {
            let known = {
                let read = lock(&self.read);
                let is_due = read
                    .all
                    .is_none_or(|all| all.elapsed() >= self.reads_all_after);
                let mut known = read.known.clone();
                if is_due {
                    // No store has that epoch, so it answers that all is to be read.
                    known.epoch = b"-".to_vec();
                }
                known
            };
            let read = self.table.changes(&known).await?;
            let Some(changes) = read.changes else {
                if read_whole == READ_WHOLE_AT_A_TIME {
                    return Ok(());
                }
                read_whole += 1;
                self.read_all(limits, read.found).await?;
                continue;
            };
            let found = read.found;
            let upto = read.upto.unwrap_or(found.version);
            let mut state = lock(&limits.0.state);
            let has_changes = !changes.is_empty();
            for (name, version, limit) in changes {
                self.apply_read(limits, &mut state, (name, version, limit));
            }
            let mut known = lock(&self.read);
            if known.known.epoch == found.epoch {
                state.newer.retain(|_, version| *version > upto);
                known.known.version = upto;
                known.known.table = found.table;
            }
            if has_changes && self.lost.load(Ordering::Relaxed) > 0 {
                // What is lost may be less now.
                known.all = None;
            }
            if read.upto.is_none() {
                return Ok(());
            }
        }
    }

    /// Reads everything, of which this is the epoch and at least the version: page by page, as the runtime
    /// has other things to do.
    async fn read_all(&self, limits: &Limits, found: Found) -> Result<(), StoreError> {
        let (before, is_rolled_back) = {
            let mut state = lock(&limits.0.state);
            let read = lock(&self.read);
            let (before, is_rolled_back) = (read.known.clone(), read.is_rolled_back);
            drop(read);
            // Of another epoch, versions say nothing.
            let same = before.epoch == found.epoch;
            let version = found.version;
            state.newer.retain(|_, newer| same && *newer > version);
            (before, is_rolled_back)
        };
        let mut names = HashSet::new();
        let mut table = String::new();
        let mut cursor = 0;
        loop {
            let (next, page) = self.table.page(cursor).await?;
            let mut state = lock(&limits.0.state);
            for (name, limit) in page {
                if name == LimitTable::ID {
                    table = limit.unwrap_or_default();
                    continue;
                }
                if let Ok(name) = name.parse::<KeyName>() {
                    names.insert(name);
                }
                self.apply_read(limits, &mut state, (name, found.version, limit));
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        if table.as_bytes() != found.table {
            // It was lost, or begun, while it was read: it is to be read again, and nothing is missing yet.
            return Ok(());
        }
        // One that is older is of a backup.
        let is_accepted = found.accepted > before.accepted;
        let is_other = !before.table.is_empty() && before.table != found.table;
        let is_older = found.version < before.version || is_rolled_back;
        let has_lost = self.lost.load(Ordering::Relaxed) > 0 || is_other || is_older;
        let keeps = has_lost && !is_accepted;
        let lost = self.missing(limits, &names, keeps).await;
        self.report_lost(if keeps { lost } else { 0 });
        let mut read = lock(&self.read);
        // Else a change has found another epoch meanwhile, of which all is to be read.
        if read.known.epoch == before.epoch {
            *read = Read {
                known: found,
                all: Some(Instant::now()),
                is_rolled_back: false,
            };
        }
        Ok(())
    }

    fn report_lost(&self, lost: usize) {
        self.lost.store(lost, Ordering::Relaxed);
        if lost > 0 {
            tracing::error!(
                overrides = lost,
                "the store has lost overrides; this replica keeps the last that it knows until they are \
                 imported again or the loss is accepted"
            );
        }
        #[cfg(feature = "metrics")]
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("admission_limits_lost").set(lost as f64);
    }

    /// How many overrides are here that were not found. They are dropped unless they are to be kept.
    async fn missing(&self, limits: &Limits, found: &HashSet<KeyName>, keeps: bool) -> usize {
        let (mut after, mut missing) = (None, 0);
        loop {
            {
                let mut state = lock(&limits.0.state);
                let page = state.names_after(Source::RunTime, after.as_ref(), DROPPED_AT_A_TIME);
                let Some(last) = page.last() else {
                    return missing;
                };
                after = Some(last.clone());
                for name in &page {
                    if !found.contains(name) && !state.newer.contains_key(name) {
                        missing += 1;
                        if !keeps {
                            limits.apply(&mut state, Source::RunTime, name, None);
                        }
                    }
                }
            }
            yield_now().await;
        }
    }

    /// Applies what was read, unless what was changed here is newer. What this version of the crate
    /// cannot read is as if it was not there.
    fn apply_read(&self, limits: &Limits, state: &mut State, (name, version, limit): Change) {
        let Ok(name) = name.parse() else {
            return;
        };
        if state.newer.get(&name).is_none_or(|newer| *newer < version) {
            let entry = limit.and_then(|text| Override::from_stored(&text));
            let entry = entry.filter(|entry| Limits::fits_network(&name, entry.limit()));
            let now = || limits.0.clock.seconds();
            let entry = match entry {
                Some(ended) if ended.has_ended(now) => {
                    state.ended_in_store(name.clone(), ended);
                    None
                }
                entry => entry,
            };
            limits.apply(state, Source::RunTime, &name, entry);
        }
    }
}
