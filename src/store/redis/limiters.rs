//! Which limiters count in a store, as replicas write it down for tools.

use std::sync::Arc;
use std::time::Duration;

use super::RedisStore;
use super::failure::{FailureKind, StoreError};
use super::limits::LimitTable;
use super::rate::RedisBuckets;
use crate::policy::Policy;
use crate::store::RateBuckets;

/// How long a limiter is known that no replica writes down any more.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The same for overrides that a replica keeps: three times as long as it takes to write them again.
const LOST_KEPT: Duration = Duration::from_secs(180);

fn kept() -> [String; 2] {
    [KEPT, LOST_KEPT].map(|kept| kept.as_secs().to_string())
}

impl LimitTable {
    /// Writes down limiters: what each is known by, and what it is; an empty text removes it.
    pub(crate) async fn publish(&self, limiters: &[(String, String)]) -> Result<(), StoreError> {
        let mut arguments = kept().to_vec();
        for (field, text) in limiters {
            arguments.extend([field.clone(), text.clone()]);
        }
        let published = self.call::<u8>(&self.publish, &self.limiters, &arguments[..]);
        published.await.map(drop)
    }

    /// What was written down of each, in the order of what they are known by.
    pub(crate) async fn limiters(&self) -> Result<Vec<String>, StoreError> {
        let arguments = &kept()[..];
        // Bytes, as others may have written there.
        let found: Vec<(Vec<u8>, Vec<u8>)> = self
            .call(&self.published, &self.limiters, arguments)
            .await?;
        let mut found: Vec<_> = found
            .into_iter()
            .filter_map(|(field, text)| Some((field, String::from_utf8(text).ok()?)))
            .collect();
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, text)| text).collect())
    }
}

impl RedisStore {
    /// The buckets that a limiter counts in which has this [place](RateBuckets::place).
    pub(crate) fn open_at(&self, place: &str, policies: &[Policy]) -> Option<Arc<dyn RateBuckets>> {
        let store = self.inner().clone();
        let name = store.names.at(place)?;
        Some(Arc::new(RedisBuckets::called(name, store, policies)))
    }

    /// Why a call failed that does not say so.
    pub(crate) async fn trouble(&self) -> StoreError {
        let alive = self.ping().await;
        // It answers, but not to that.
        alive.err().unwrap_or(StoreError::new(FailureKind::Other))
    }
}
