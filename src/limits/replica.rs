//! Limits that replicas keep together in Redis: each has all of them, and reads what is changed.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::publish::Published;
use super::{Inner, Limits, LimitsError, State};
use crate::key::{KeyMap, KeyName};
use crate::limit::Limit;
use crate::store::RedisStore;
use crate::store::redis::{Change, LimitTable, Post, StoreError};
use crate::sync::{Mutex, lock};

/// How often changes are asked for, so that each is known everywhere within a second.
const EVERY: Duration = Duration::from_millis(400);

/// Limits that are looked at between two looks at what else there is to do.
const DROPPED_AT_A_TIME: usize = 1_000;

/// What is read of the store, and whether anybody does.
pub(super) struct Replica {
    table: LimitTable,
    post: Arc<Post>,
    read: Mutex<Read>,
    /// Held while it is read, so that two readers do not mix what they found.
    reading: tokio::sync::Mutex<()>,
    reads_all_after: Duration,
}

/// How far the store was read.
#[derive(Default)]
struct Read {
    epoch: Vec<u8>,
    version: u64,
    /// When all of it was read last.
    all: Option<Instant>,
}

impl Limits {
    /// How long a replica goes on with what it has read before it reads all anew: 10 minutes.
    /// Changes are read within a second; this mends what nobody knows to be wrong.
    pub const DEFAULT_CACHE_TTL: Duration = Duration::from_secs(600);

    /// Limits that all replicas have together, kept in Redis under the store's prefix.
    ///
    /// Each replica holds all of them in memory, where decisions look them up, and asks
    /// for changes twice a second: one that is made anywhere is known everywhere within a second, here
    /// at once. While Redis is away what was read last goes on to count. Until they are read for
    /// the first time there are none; [`refresh`](Self::refresh), awaited at start, sees to that.
    ///
    /// They are read by a task in the runtime in which this is called, or else in that of the first
    /// of the other calls; it ends with the last clone.
    ///
    /// Names of entries lie in Redis as they are written, credentials as fingerprints. Next to them lies
    /// what limiters these limits are given to that count in Redis, with their quotas, so that tools
    /// find what is used ([`SharedLimiters`](crate::SharedLimiters)).
    #[must_use]
    pub fn in_store(store: &RedisStore) -> Self {
        Self::in_store_with(store, Self::DEFAULT_CACHE_TTL)
    }

    /// As [`in_store`](Self::in_store), reading all anew after `cache_ttl`, at least a second.
    #[must_use]
    pub fn in_store_with(store: &RedisStore, cache_ttl: Duration) -> Self {
        let limits = Self(Arc::new(Inner {
            by_key: KeyMap::default(),
            tiers: Default::default(),
            unknown: Default::default(),
            state: Mutex::default(),
            replica: Some(Replica {
                table: store.limit_table(),
                post: Arc::default(),
                read: Mutex::default(),
                reading: tokio::sync::Mutex::default(),
                reads_all_after: cache_ttl.max(Duration::from_secs(1)),
            }),
        }));
        limits.follow();
        limits
    }

    /// Reads what was changed, now. In memory there is nothing to read.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`]; what was read before goes on to count.
    pub async fn refresh(&self) -> Result<(), LimitsError> {
        let Some(replica) = &self.0.replica else {
            return Ok(());
        };
        self.follow();
        let read = replica.read(self).await;
        read.map_err(LimitsError::Unavailable)
    }

    /// Has all replicas read everything anew, within a second. In memory there is nothing to read.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`].
    pub async fn clear_caches(&self) -> Result<(), LimitsError> {
        let Some(replica) = &self.0.replica else {
            return Ok(());
        };
        let renewed = replica.table.renew().await;
        renewed.map_err(LimitsError::Unavailable)?;
        self.refresh().await
    }

    /// Starts the task that reads changes, unless it runs.
    fn follow(&self) {
        let Some(replica) = &self.0.replica else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if let Some(term) = replica.post.take() {
            let leaves = Leaves {
                post: replica.post.clone(),
                term,
            };
            runtime.spawn(follow(Arc::downgrade(&self.0), leaves));
        }
    }
}

/// Leaves the job when the task ends, also with its runtime.
struct Leaves {
    post: Arc<Post>,
    term: crate::store::redis::Term,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.post.leave(self.term);
    }
}

async fn follow(limits: Weak<Inner>, _leaves: Leaves) {
    let mut published = Published::default();
    while let Some(inner) = limits.upgrade() {
        let limits = Limits(inner);
        if let Some(replica) = &limits.0.replica {
            // What cannot be read now is read later.
            if replica.read(&limits).await.is_ok() {
                let all_read = lock(&replica.read).all;
                published.publish(&limits, &replica.table, all_read).await;
            }
        }
        drop(limits);
        sleep(EVERY).await;
    }
}

impl Replica {
    pub(super) async fn change(
        &self,
        limits: &Limits,
        key: &KeyName,
        limit: Option<Limit>,
    ) -> Result<Option<Limit>, LimitsError> {
        limits.follow();
        let text = limit.as_ref().map(Limit::to_string);
        let (known, known_version) = {
            let read = lock(&self.read);
            (read.epoch.clone(), read.version)
        };
        let set = self
            .table
            .set(key.as_str(), text.as_deref(), Limits::MOST)
            .await;
        let before = set
            .map_err(LimitsError::Unavailable)?
            .ok_or(LimitsError::TooMany)?;
        // It has to be above what was read before: else Redis has lost writes, as in a failover, and
        // whoever read these would not miss them.
        let is_repeated = known == before.epoch && known_version >= before.version;
        if is_repeated {
            // What cannot be told to the others now they find when they read all anew.
            let _ = self.table.renew().await;
        }
        let mut state = lock(&limits.0.state);
        let mut read = lock(&self.read);
        if is_repeated || read.epoch != before.epoch {
            // Of data that nobody has read here yet.
            *read = Read {
                epoch: before.epoch,
                ..Read::default()
            };
            state.newer.clear();
        }
        // Unless a later change was read already.
        let is_read = read.version >= before.version;
        drop(read);
        let newer = state.newer.get(key).copied().unwrap_or(0);
        if !is_read && newer < before.version {
            state.newer.insert(key.clone(), before.version);
            limits.apply(&mut state, key, limit);
        }
        Ok(before.limit.and_then(|text| from_stored(&text)))
    }

    /// Reads what was changed, or everything.
    async fn read(&self, limits: &Limits) -> Result<(), StoreError> {
        let _reading = self.reading.lock().await;
        loop {
            let (epoch, version) = {
                let read = lock(&self.read);
                let is_due = read
                    .all
                    .is_none_or(|all| all.elapsed() >= self.reads_all_after);
                // No store has that epoch, so it answers that all is to be read.
                let epoch = if is_due {
                    b"-".to_vec()
                } else {
                    read.epoch.clone()
                };
                (epoch, read.version)
            };
            let found = self.table.changes(&epoch, version).await?;
            let Some(changes) = found.changes else {
                self.read_all(limits, found.epoch, found.version).await?;
                continue;
            };
            let upto = found.upto.unwrap_or(found.version);
            let mut state = lock(&limits.0.state);
            for (name, version, limit) in changes {
                self.apply_read(limits, &mut state, (name, version, limit));
            }
            let mut read = lock(&self.read);
            if read.epoch == found.epoch {
                state.newer.retain(|_, version| *version > upto);
                read.version = upto;
            }
            if found.upto.is_none() {
                return Ok(());
            }
        }
    }

    /// Reads everything, of which this is the epoch and at least the version: page by page, as the runtime
    /// has other things to do.
    async fn read_all(
        &self,
        limits: &Limits,
        epoch: Vec<u8>,
        version: u64,
    ) -> Result<(), StoreError> {
        let before = {
            let mut state = lock(&limits.0.state);
            let before = lock(&self.read).epoch.clone();
            // Of another epoch, versions say nothing.
            let same = before == epoch;
            state.newer.retain(|_, newer| same && *newer > version);
            before
        };
        let mut found = HashSet::new();
        let mut cursor = 0;
        loop {
            let (next, page) = self.table.page(cursor).await?;
            let mut state = lock(&limits.0.state);
            for (name, limit) in page {
                if let Ok(name) = name.parse::<KeyName>() {
                    found.insert(name);
                }
                self.apply_read(limits, &mut state, (name, version, limit));
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        self.drop_all_but(limits, &found).await;
        let mut read = lock(&self.read);
        // Else a change has found another epoch meanwhile, of which all is to be read.
        if read.epoch == before {
            *read = Read {
                epoch,
                version,
                all: Some(Instant::now()),
            };
        }
        Ok(())
    }

    async fn drop_all_but(&self, limits: &Limits, found: &HashSet<KeyName>) {
        let mut after = None;
        loop {
            let page = limits.list_after(after.as_ref(), DROPPED_AT_A_TIME);
            let Some((last, _)) = page.last() else {
                return;
            };
            after = Some(last.clone());
            {
                let mut state = lock(&limits.0.state);
                for (name, _) in &page {
                    if !found.contains(name) && !state.newer.contains_key(name) {
                        limits.apply(&mut state, name, None);
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
            let limit = limit.and_then(|text| from_stored(&text));
            limits.apply(state, &name, limit);
        }
    }
}

/// The limit of an entry as it is stored: its first line. Lines behind it, `name: value`, are for an end, a note, an
/// author and a time, which this version neither writes nor reads.
fn from_stored(text: &str) -> Option<Limit> {
    text.lines().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_limit_is_the_first_line() {
        let limit: Limit = "tier=pro, daily=5/day".parse().unwrap();
        for text in [
            "tier=pro, daily=5/day",
            "tier=pro, daily=5/day\nnote: until 5/day is enough",
        ] {
            assert_eq!(from_stored(text), Some(limit.clone()));
        }
        assert_eq!(from_stored(""), None);
        assert_eq!(from_stored("fast\n5/day"), None);
    }
}
