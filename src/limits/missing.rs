//! Overrides that a replica has, and that it did not find in the store.

use std::collections::HashSet;

use tokio::task::yield_now;

use super::Limits;
use super::reading::Names;
use super::replica::Replica;
use super::state::Source;
use crate::key::KeyName;
use crate::store::StoreError;
use crate::store::overrides::{ConfirmedOverrides, StoredChange, TableState};
use crate::sync::lock;

/// Overrides that are looked at between two looks at what else there is to do.
const AT_A_TIME: usize = 1_000;

/// Names of dropped overrides that are logged.
const MAX_LOGGED: usize = 10;

/// What was found, and what becomes of the rest.
pub(super) struct Expected<'a> {
    pub(super) names: Names,
    /// Up to which version this replica had read the store.
    pub(super) since: u64,
    /// What the store was when the reading began.
    pub(super) found: &'a TableState,
    /// Whether an operator has accepted that overrides are lost.
    pub(super) is_accepted: bool,
    /// Whether those that are not found are kept.
    pub(super) keeps: bool,
}

impl Expected<'_> {
    /// Whether the store is the one that was read.
    fn is_same_store(&self, now: &ConfirmedOverrides) -> bool {
        now.table_id == self.found.table_id && now.version >= self.found.version
    }

    /// Whether all overrides were read. The cursor of a scan means nothing to another server, so one that went on over a
    /// new connection may have passed some by.
    fn is_whole(&self, now: &ConfirmedOverrides) -> bool {
        let added = now.version.saturating_sub(self.found.version);
        self.names.stored.len() as u64 + added >= now.len
    }
}

/// What was dropped.
#[derive(Default)]
struct Dropped {
    overrides: usize,
    first: Vec<String>,
}

impl Replica {
    /// The overrides that are kept though the store does not have them. Others that it does not have are dropped. `None` if
    /// the store was lost or exchanged while it was read, so that it is to be read again.
    pub(super) async fn missing(
        &self,
        limits: &Limits,
        expected: &Expected<'_>,
    ) -> Result<Option<HashSet<KeyName>>, StoreError> {
        let now = self.table.confirm(&[]).await?;
        if !expected.is_same_store(&now) || !expected.is_whole(&now) {
            return Ok(None);
        }
        let is_stored = |name: &str| expected.names.stored.contains(name.as_bytes());
        lock(&limits.0.state).unreadable.retain(is_stored);
        let (mut after, mut kept, mut dropped) = (None, HashSet::new(), Dropped::default());
        loop {
            let names: Vec<_> = {
                let state = lock(&limits.0.state);
                let page = state.names_after(Source::RunTime, after.as_ref(), AT_A_TIME);
                let Some(last) = page.last() else {
                    break;
                };
                after = Some(last.clone());
                let is_missing = |name: &KeyName| {
                    !expected.names.keys.contains(name) && !state.newer.contains_key(name)
                };
                page.into_iter().filter(is_missing).collect()
            };
            if names.is_empty() {
                yield_now().await;
                continue;
            }
            // A scan may have passed them by.
            let texts: Vec<_> = names.iter().map(KeyName::as_str).collect();
            let now = self.table.confirm(&texts).await?;
            if !expected.is_same_store(&now) {
                return Ok(None);
            }
            let mut state = lock(&limits.0.state);
            for (name, stored) in names.into_iter().zip(now.found) {
                if stored.text.is_some() {
                    let change = StoredChange {
                        name: name.to_string(),
                        version: expected.found.version,
                        text: stored.text,
                    };
                    self.apply_read(limits, &mut state, change);
                } else if state.newer.contains_key(&name) {
                    // It was changed here meanwhile.
                } else if expected.keeps {
                    // Also if it has ended by this clock, which may be wrong: the store's decides.
                    let entry = state.entry(Source::RunTime, &name).cloned();
                    if entry.as_ref().is_some_and(|entry| !state.has_effect(entry)) {
                        state.ended_in_store(name.clone(), entry);
                    }
                    kept.insert(name);
                } else {
                    let has_ended = state.get(&name).is_none();
                    limits.apply(&mut state, Source::RunTime, &name, None);
                    // The audit trail tells of a deletion. What has ended was deleted by another replica.
                    let is_changed =
                        (stored.version).is_some_and(|version| version > expected.since);
                    if !has_ended && (expected.is_accepted || !is_changed) {
                        dropped.add(&name);
                    }
                }
            }
        }
        dropped.report(expected.is_accepted);
        Ok(Some(kept))
    }
}

impl Dropped {
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
                "overrides that the store lost are dropped, as an operator accepted the loss"
            );
        } else {
            tracing::warn!(
                overrides = self.overrides,
                first,
                "overrides are gone from the store, and no change deleted them; they are dropped"
            );
        }
    }
}
