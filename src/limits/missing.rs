//! Overrides that a replica has, and that it did not find in the store.

use std::collections::HashSet;

use tokio::task::yield_now;

use super::Limits;
use super::reading::Names;
use super::replica::Replica;
use super::state::Source;
use crate::key::KeyName;
use crate::store::redis::{Confirmed, Found, StoreError};
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
    pub(super) found: &'a Found,
    /// Whether an operator has accepted that overrides are lost.
    pub(super) is_accepted: bool,
    /// Whether those that are not found are kept.
    pub(super) keeps: bool,
}

impl Expected<'_> {
    /// Whether the store is the one that was read.
    fn is_same_store(&self, now: &Confirmed) -> bool {
        now.table == self.found.table && now.version >= self.found.version
    }

    /// Whether all overrides were read. The cursor of a scan means nothing to another server, so one that went on over a
    /// new connection may have passed some by.
    fn is_whole(&self, now: &Confirmed) -> bool {
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
            for (name, (stored, version)) in names.into_iter().zip(now.found) {
                if stored.is_some() {
                    let change = (name.to_string(), expected.found.version, stored);
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
                    let is_changed = version.is_some_and(|version| version > expected.since);
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

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;
    use crate::store::RedisStore;
    use crate::store::redis::test_server::TestServer;

    #[tokio::test]
    async fn an_override_that_the_scan_passed_by_is_kept() {
        let server = TestServer::start(&[]).await;
        let url = format!("redis://127.0.0.1:{}", server.port);
        let limits = Limits::in_store(&RedisStore::connect(&url).unwrap());
        let name = |n: usize| format!("org:{n}").parse::<KeyName>().unwrap();
        for n in 0..3 {
            let limit = "5/h".parse().unwrap();
            limits.set(&name(n), limit).await.unwrap();
        }
        limits.refresh().await.unwrap();
        let replica = limits.0.replica.as_ref().unwrap();
        let found = lock(&replica.read).known.clone();
        let missing = async |names, found: &Found| {
            let expected = Expected {
                names,
                since: found.version,
                found,
                is_accepted: false,
                keeps: false,
            };
            let kept = replica.missing(&limits, &expected).await.unwrap();
            kept.map(|kept| kept.len())
        };
        // Fewer than there are.
        assert_eq!(missing(Names::default(), &found).await, None);
        assert_eq!(limits.len(), 3);

        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut delete = redis::cmd("HDEL");
        delete.arg("{admission:limits}:of").arg("org:0");
        delete.query_async::<()>(&mut connection).await.unwrap();
        // As many as there are, but others: each is looked up before it is dropped.
        let others = || Names {
            stored: (0..3).map(|n| vec![n]).collect(),
            ..Names::default()
        };
        let mut exchanged = found.clone();
        exchanged.table = b"another".to_vec();
        assert_eq!(missing(others(), &exchanged).await, None);
        assert_eq!(limits.len(), 3);
        assert_eq!(missing(others(), &found).await, Some(0));
        assert_eq!(limits.len(), 2);
        assert_eq!(limits.get(&name(0)), None);
    }
}
