//! The limits of single keys in Redis, where all replicas find them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::failure::StoreError;
use super::script::Script;
use super::{Inner, RedisStore};

/// What the scripts of limits read and write.
pub(crate) struct LimitTable {
    store: Arc<Inner>,
    keys: [String; 3],
    pub(super) limiters: [String; 1],
    pub(super) publish: Script,
    pub(super) published: Script,
    set: Script,
    changes: Script,
    page: Script,
    epoch: Script,
}

/// One change: whose limit, as of which version, and what it is, if it was not deleted.
pub(crate) type Change = (String, u64, Option<String>);

/// What was changed since a version.
pub(crate) struct Changes {
    pub(crate) epoch: String,
    pub(crate) version: u64,
    /// What is missing when there are more than fit one answer is asked for again.
    pub(crate) changes: Option<Vec<Change>>,
}

/// What a change found.
pub(crate) struct Before {
    pub(crate) epoch: String,
    pub(crate) version: u64,
    pub(crate) limit: Option<String>,
}

/// These calls are few, and nobody's request waits for them.
const WITHIN: Duration = Duration::from_secs(2);

/// Changes that are kept for replicas that have not seen them: one that missed more reads all anew.
const JOURNAL: usize = 100_000;

/// Limits in one answer.
const PAGE: usize = 1_000;

impl RedisStore {
    pub(crate) fn limit_table(&self) -> LimitTable {
        let store = self.inner().clone();
        LimitTable {
            keys: store.names.limits(),
            limiters: [store.names.limiters()],
            store,
            publish: Script::new(include_str!("limiters_publish.lua")),
            published: Script::new(include_str!("limiters_published.lua")),
            set: Script::new(include_str!("limits_set.lua")),
            changes: Script::new(include_str!("limits_changes.lua")),
            page: Script::new(include_str!("limits_page.lua")),
            epoch: Script::new(include_str!("limits_epoch.lua")),
        }
    }
}

impl LimitTable {
    /// Sets a limit, or deletes it; `None` when there are too many.
    pub(crate) async fn set(
        &self,
        name: &str,
        limit: Option<&str>,
        most: usize,
    ) -> Result<Option<Before>, StoreError> {
        let arguments = &[
            name.to_owned(),
            limit.unwrap_or_default().to_owned(),
            most.to_string(),
            JOURNAL.to_string(),
            new_epoch(),
        ][..];
        let answer: Vec<redis::Value> = self.call(&self.set, &self.keys, arguments).await?;
        let [epoch, version, before] = &answer[..] else {
            return Ok(None);
        };
        Ok(Some(Before {
            epoch: read(epoch)?,
            version: read(version)?,
            limit: read(before)?,
        }))
    }

    pub(crate) async fn changes(&self, epoch: &str, since: u64) -> Result<Changes, StoreError> {
        let arguments = &[epoch.to_owned(), since.to_string(), PAGE.to_string()][..];
        let (epoch, version, all, changes): (String, u64, u8, Vec<(String, u64, String)>) =
            self.call(&self.changes, &self.keys, arguments).await?;
        let changes = changes.into_iter();
        let changes = changes.map(|(name, version, limit)| {
            let limit = Some(limit).filter(|limit| !limit.is_empty());
            (name, version, limit)
        });
        Ok(Changes {
            epoch,
            version,
            changes: (all == 0).then(|| changes.collect()),
        })
    }

    /// Limits, and where to go on; 0 at the beginning and the end.
    pub(crate) async fn page(
        &self,
        cursor: u64,
    ) -> Result<(u64, Vec<(String, String)>), StoreError> {
        let arguments = &[cursor.to_string(), PAGE.to_string()][..];
        self.call(&self.page, &self.keys, arguments).await
    }

    /// Has all replicas read everything anew.
    pub(crate) async fn renew(&self) -> Result<(), StoreError> {
        let arguments = &[new_epoch()][..];
        let renewed = self.call::<u8>(&self.epoch, &self.keys, arguments).await;
        renewed.map(drop)
    }

    /// A page that is full is followed by another.
    pub(crate) fn is_full(changes: &[Change]) -> bool {
        changes.len() >= PAGE
    }

    pub(super) async fn call<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[String],
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + WITHIN;
        let client = &self.store.client;
        client.run_apart(script, keys, arguments, deadline).await
    }
}

fn read<T: redis::FromRedisValue>(value: &redis::Value) -> Result<T, StoreError> {
    redis::from_redis_value_ref(value).map_err(|error| redis::RedisError::from(error).into())
}

fn new_epoch() -> String {
    format!("{:016x}", fastrand::u64(..))
}
