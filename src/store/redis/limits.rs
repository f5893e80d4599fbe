//! The limits of single keys in Redis, where all replicas find them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::Again;
use super::failure::{OrFailure, StoreError};
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

/// One change: whose limit, as of which version, and what it is, if it was not deleted and is text.
pub(crate) type Change = (String, u64, Option<String>);

/// What is read of Redis. Others may have written there, so it need not be text.
type Bytes = Vec<u8>;

/// What was changed since a version.
pub(crate) struct Changes {
    pub(crate) epoch: Bytes,
    pub(crate) version: u64,
    /// What can be read of them; nothing when all has to be read anew.
    pub(crate) changes: Option<Vec<Change>>,
    /// Up to which version these are, when there are more than fit one answer.
    pub(crate) upto: Option<u64>,
}

/// What a change found.
pub(crate) struct Before {
    pub(crate) epoch: Bytes,
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
        // A second one would find its own limit as the one before.
        let set = self.call_again(Again::Never, &self.set, &self.keys, arguments);
        let answer: Vec<redis::Value> = set.await?;
        let [epoch, version, before] = &answer[..] else {
            return Ok(None);
        };
        let before: Option<Bytes> = redis::from_redis_value_ref(before).or_failure()?;
        Ok(Some(Before {
            epoch: redis::from_redis_value_ref(epoch).or_failure()?,
            version: redis::from_redis_value_ref(version).or_failure()?,
            limit: before.and_then(text),
        }))
    }

    pub(crate) async fn changes(&self, epoch: &[u8], since: u64) -> Result<Changes, StoreError> {
        let (since, page) = (since.to_string(), PAGE.to_string());
        let arguments = &[epoch, since.as_bytes(), page.as_bytes()][..];
        let (epoch, version, all, found): (Bytes, u64, u8, Vec<(Bytes, Bytes, Bytes)>) =
            self.call(&self.changes, &self.keys, arguments).await?;
        let is_full = found.len() >= PAGE;
        let last = found.last().and_then(|(_, version, _)| whole(version));
        let changes = found.into_iter().filter_map(|(name, version, limit)| {
            let limit = text(limit).filter(|limit| !limit.is_empty());
            Some((text(name)?, whole(&version)?, limit))
        });
        // Who cannot tell where to go on reads everything.
        let is_readable = all == 0 && !(is_full && last.is_none());
        Ok(Changes {
            epoch,
            version,
            changes: is_readable.then(|| changes.collect()),
            upto: last.filter(|_| is_full),
        })
    }

    /// Limits, and where to go on; 0 at the beginning and the end.
    pub(crate) async fn page(
        &self,
        cursor: u64,
    ) -> Result<(u64, Vec<(String, Option<String>)>), StoreError> {
        let arguments = &[cursor.to_string(), PAGE.to_string()][..];
        let (next, found): (u64, Vec<(Bytes, Bytes)>) =
            self.call(&self.page, &self.keys, arguments).await?;
        let found = found.into_iter();
        let found = found.filter_map(|(name, limit)| Some((text(name)?, text(limit))));
        Ok((next, found.collect()))
    }

    /// Has all replicas read everything anew.
    pub(crate) async fn renew(&self) -> Result<(), StoreError> {
        let arguments = &[new_epoch()][..];
        let renewed = self.call::<u8>(&self.epoch, &self.keys, arguments).await;
        renewed.map(drop)
    }

    pub(super) async fn call<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: impl redis::ToRedisArgs + Copy,
    ) -> Result<T, StoreError> {
        self.call_again(Again::Once, script, keys, arguments).await
    }

    async fn call_again<T: redis::FromRedisValue>(
        &self,
        again: Again,
        script: &Script,
        keys: &[String],
        arguments: impl redis::ToRedisArgs + Copy,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + WITHIN;
        let client = &self.store.client;
        client
            .run_apart(script, keys, arguments, deadline, again)
            .await
    }
}

fn text(bytes: Bytes) -> Option<String> {
    String::from_utf8(bytes).ok()
}

/// A version, of what may be any number.
fn whole(score: &[u8]) -> Option<u64> {
    str::from_utf8(score).ok()?.parse().ok()
}

fn new_epoch() -> String {
    format!("{:016x}", fastrand::u64(..))
}
