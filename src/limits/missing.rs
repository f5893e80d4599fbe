//! Overrides that a replica has and did not find in the store.

use std::collections::HashSet;

use tokio::task::yield_now;

use super::Limits;
use super::reading::Names;
use super::replica::Replica;
use super::state::OverrideSource;
use crate::key::KeyName;
use crate::store::StoreError;
use crate::store::overrides::{ConfirmedOverrides, StoredChange, TableState};
use crate::sync::lock;

/// Overrides that are checked before other tasks can run.
const CHECKED_PER_PAGE: usize = 1_000;

/// The maximum number of dropped names that are logged.
const MAX_LOGGED: usize = 10;

/// The result of a complete read, and how to treat missing overrides.
pub(super) struct CompleteRead<'a> {
    pub(super) names: Names,
    /// The version up to which this replica had read the store before.
    pub(super) since: u64,
    /// The state of the store when the read began.
    pub(super) found: &'a TableState,
    /// Whether an operator has accepted the loss of overrides.
    pub(super) is_accepted: bool,
    /// Whether missing overrides are kept.
    pub(super) keeps: bool,
}

impl CompleteRead<'_> {
    /// Whether the store still has the table that was read.
    fn is_same_store(&self, now: &ConfirmedOverrides) -> bool {
        now.table_id == self.found.table_id && now.version >= self.found.version
    }

    /// Whether all overrides were read. The cursor of a scan is invalid on another server, so a
    /// scan that continued over a new connection may have skipped some.
    fn is_whole(&self, now: &ConfirmedOverrides) -> bool {
        let added = now.version.saturating_sub(self.found.version);
        self.names.stored.len() as u64 + added >= now.len
    }
}

/// The overrides that were dropped.
#[derive(Default)]
struct DroppedOverrides {
    overrides: usize,
    first: Vec<String>,
}

impl Replica {
    /// Returns the overrides that are kept although the store does not have them, and drops other
    /// missing ones. Returns `None` if the table was lost or replaced during the read, so that it
    /// must be read again.
    pub(super) async fn reconcile_missing(
        &self,
        limits: &Limits,
        complete_read: &CompleteRead<'_>,
    ) -> Result<Option<HashSet<KeyName>>, StoreError> {
        let now = self.table.confirm(&[]).await?;
        if !complete_read.is_same_store(&now) || !complete_read.is_whole(&now) {
            return Ok(None);
        }
        let is_stored = |name: &str| complete_read.names.stored.contains(name.as_bytes());
        lock(&limits.0.state).unreadable.retain(is_stored);
        let (mut after, mut kept, mut dropped) =
            (None, HashSet::new(), DroppedOverrides::default());
        loop {
            let names: Vec<_> = {
                let state = lock(&limits.0.state);
                let page =
                    state.names_after(OverrideSource::RunTime, after.as_ref(), CHECKED_PER_PAGE);
                let Some(last) = page.last() else {
                    break;
                };
                after = Some(last.clone());
                let is_missing = |name: &KeyName| {
                    !complete_read.names.keys.contains(name) && !state.newer.contains_key(name)
                };
                page.into_iter().filter(is_missing).collect()
            };
            if names.is_empty() {
                yield_now().await;
                continue;
            }
            // A scan may have skipped them.
            let texts: Vec<_> = names.iter().map(KeyName::as_str).collect();
            let now = self.table.confirm(&texts).await?;
            if !complete_read.is_same_store(&now) {
                return Ok(None);
            }
            let mut state = lock(&limits.0.state);
            for (name, stored) in names.into_iter().zip(now.found) {
                if stored.text.is_some() {
                    let change = StoredChange {
                        name: name.to_string(),
                        version: complete_read.found.version,
                        text: stored.text,
                    };
                    self.apply_read(limits, &mut state, change);
                } else if state.newer.contains_key(&name) {
                    // This process changed it meanwhile.
                } else if complete_read.keeps {
                    // Also if it has ended by this clock, which may be wrong: the store's clock
                    // decides.
                    let entry = state.entry(OverrideSource::RunTime, &name).cloned();
                    if entry.as_ref().is_some_and(|entry| !state.has_effect(entry)) {
                        state.ended_in_store(name.clone(), entry);
                    }
                    kept.insert(name);
                } else {
                    let has_ended = state.get(&name).is_none();
                    limits.apply(&mut state, OverrideSource::RunTime, &name, None);
                    // The audit trail reports a deletion. Another replica deleted what has ended.
                    let is_changed =
                        (stored.version).is_some_and(|version| version > complete_read.since);
                    if !has_ended && (complete_read.is_accepted || !is_changed) {
                        dropped.add(&name);
                    }
                }
            }
        }
        dropped.report(complete_read.is_accepted);
        Ok(Some(kept))
    }
}

impl DroppedOverrides {
    fn add(&mut self, name: &KeyName) {
        self.overrides += 1;
        if self.first.len() < MAX_LOGGED {
            self.first.push(name.to_string());
        }
    }

    fn report(&self, is_accepted: bool) {
        if self.overrides == 0 {
            return;
        }
        let first = self.first.join(", ");
        if is_accepted {
            tracing::warn!(
                overrides = self.overrides,
                first,
                "overrides that the store lost are dropped because an operator accepted the loss"
            );
        } else {
            tracing::warn!(
                overrides = self.overrides,
                first,
                "overrides are missing from the store although no change deleted them; they are dropped here"
            );
        }
    }
}
