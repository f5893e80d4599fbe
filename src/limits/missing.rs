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

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use std::collections::BTreeMap;
    use std::future::ready;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::policy::Policy;
    use crate::store::overrides::{
        AuditRecord, ConfirmedOverride, LimiterDescription, OverrideChanges, OverridePage,
        OverrideTable, Renewal, SetOutcome, SetOverride, StoreFuture,
    };
    use crate::store::{
        LeaseSlots, LeaseStore, MemoryStore, RateBuckets, RateStore, SharedStore, StoreStatus,
    };

    /// A table in memory: each override with the version of its last change.
    #[derive(Default)]
    struct Table(Mutex<BTreeMap<String, (String, u64)>>);

    impl Table {
        fn state(&self) -> TableState {
            let versions = self.0.lock().unwrap();
            let versions = versions.values().map(|(_, version)| *version);
            TableState {
                epoch: b"epoch".to_vec(),
                version: versions.max().unwrap_or(0),
                table_id: b"table".to_vec(),
                loss_accepted_at: 0,
            }
        }
    }

    impl OverrideTable for Table {
        fn status(&self) -> StoreStatus {
            StoreStatus::Ok
        }

        fn has_secret(&self) -> bool {
            false
        }

        fn set<'a>(
            &'a self,
            change: &'a SetOverride<'a>,
        ) -> StoreFuture<'a, Result<SetOutcome, StoreError>> {
            let state = self.state();
            let version = state.version + 1;
            let text = change.text.expect("this table deletes nothing").to_owned();
            let entry = (text.clone(), version);
            let before = self.0.lock().unwrap().insert(change.name.to_owned(), entry);
            Box::pin(ready(Ok(SetOutcome::Set {
                epoch: state.epoch,
                version,
                table_id: state.table_id,
                before: before.map(|(text, _)| text),
                after: Some(text),
            })))
        }

        fn changes<'a>(
            &'a self,
            known: &'a TableState,
            _max_audited: usize,
        ) -> StoreFuture<'a, Result<OverrideChanges, StoreError>> {
            let state = self.state();
            let entries = self.0.lock().unwrap();
            let entries = entries
                .iter()
                .filter(|(_, (_, version))| *version > known.version);
            let changes = entries.map(|(name, (text, version))| StoredChange {
                name: name.clone(),
                version: *version,
                text: Some(text.clone()),
            });
            let changes = (known.epoch == state.epoch).then(|| changes.collect());
            Box::pin(ready(Ok(OverrideChanges {
                state,
                changes,
                ..OverrideChanges::default()
            })))
        }

        fn page(&self, _cursor: u64) -> StoreFuture<'_, Result<OverridePage, StoreError>> {
            let entries = self.0.lock().unwrap();
            let entries = entries.iter();
            let entries =
                entries.map(|(name, (text, _))| (name.clone().into(), Some(text.clone())));
            Box::pin(ready(Ok(OverridePage {
                next: 0,
                table_id: Some(b"table".to_vec()),
                entries: entries.collect(),
            })))
        }

        fn confirm<'a>(
            &'a self,
            names: &'a [&'a str],
        ) -> StoreFuture<'a, Result<ConfirmedOverrides, StoreError>> {
            let state = self.state();
            let entries = self.0.lock().unwrap();
            let found = names.iter().map(|name| match entries.get(*name) {
                Some((text, version)) => ConfirmedOverride {
                    text: Some(text.clone()),
                    version: Some(*version),
                },
                None => ConfirmedOverride::default(),
            });
            Box::pin(ready(Ok(ConfirmedOverrides {
                version: state.version,
                table_id: state.table_id,
                len: entries.len() as u64,
                found: found.collect(),
            })))
        }

        fn audit(&self, _count: usize) -> StoreFuture<'_, Result<Vec<AuditRecord>, StoreError>> {
            Box::pin(ready(Ok(Vec::new())))
        }

        fn renew<'a>(
            &'a self,
            _id: u64,
            _why: Renewal<'a>,
        ) -> StoreFuture<'a, Result<(), StoreError>> {
            Box::pin(ready(Ok(())))
        }

        fn publish<'a>(
            &'a self,
            _limiters: &'a [LimiterDescription],
            _withdrawn: &'a [LimiterDescription],
        ) -> StoreFuture<'a, Result<(), StoreError>> {
            Box::pin(ready(Ok(())))
        }

        fn published(&self) -> StoreFuture<'_, Result<Vec<LimiterDescription>, StoreError>> {
            Box::pin(ready(Ok(Vec::new())))
        }
    }

    /// Counts in memory, and shares the table.
    #[derive(Default)]
    struct Store {
        counts: MemoryStore,
        table: Arc<Table>,
    }

    impl RateStore for Store {
        fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
            self.counts.open(policies)
        }
    }

    impl LeaseStore for Store {
        fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots> {
            self.counts.open_leases(name)
        }
    }

    impl SharedStore for Store {
        fn overrides(&self) -> Arc<dyn OverrideTable> {
            self.table.clone()
        }

        fn open_at(&self, _place: &str, _policies: &[Policy]) -> Option<Arc<dyn RateBuckets>> {
            None
        }

        fn diagnose(&self) -> StoreFuture<'_, StoreError> {
            unreachable!("no call fails")
        }
    }

    #[tokio::test]
    async fn limits_take_a_store_behind_a_pointer() {
        let store = Arc::new(Store::default());
        let shared: Arc<dyn SharedStore> = store.clone();
        let name = "org:acme".parse::<KeyName>().unwrap();
        let limits = [
            Limits::in_store(&store),
            Limits::in_store(&shared),
            Limits::in_store(&*shared),
        ];
        limits[0].set(&name, "5/h".parse().unwrap()).await.unwrap();
        for limits in &limits {
            limits.refresh().await.unwrap();
            assert!(limits.get_override(&name).is_some());
        }
    }

    #[tokio::test]
    async fn an_override_that_the_scan_skipped_is_kept() {
        let store = Store::default();
        let limits = Limits::in_store(&store);
        let name = |n: usize| format!("org:{n}").parse::<KeyName>().unwrap();
        for n in 0..3 {
            let limit = "5/h".parse().unwrap();
            limits.set(&name(n), limit).await.unwrap();
        }
        limits.refresh().await.unwrap();
        let replica = limits.0.replica.as_ref().unwrap();
        let found = lock(&replica.read).known.clone();
        let missing = async |names, found: &TableState| {
            let read = CompleteRead {
                names,
                since: found.version,
                found,
                is_accepted: false,
                keeps: false,
            };
            let kept = replica.reconcile_missing(&limits, &read).await.unwrap();
            kept.map(|kept| kept.len())
        };
        // The read has fewer names than the table.
        assert_eq!(missing(Names::default(), &found).await, None);
        assert_eq!(limits.len(), 3);

        store.table.0.lock().unwrap().remove("org:0");
        // The read has enough names, but others: each override is looked up before it is dropped.
        let others = || Names {
            stored: (0..3).map(|n| vec![n]).collect(),
            ..Names::default()
        };
        let mut replaced = found.clone();
        replaced.table_id = b"another".to_vec();
        assert_eq!(missing(others(), &replaced).await, None);
        assert_eq!(limits.len(), 3);
        assert_eq!(missing(others(), &found).await, Some(0));
        assert_eq!(limits.len(), 2);
        assert_eq!(limits.get(&name(0)), None);
    }
}
