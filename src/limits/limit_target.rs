//! The interface between limits and the limiters that they apply to.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::LimitExplanation;
use crate::key::Key;
use crate::limit::Limit;
use crate::store::StoreStatus;
use crate::store::overrides::LimiterDescription;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A limiter that [`Limits`](super::Limits) apply to.
pub(crate) trait LimitTarget: Send + Sync {
    /// An override of the key was set, changed or deleted. Default: the limiter looks it up when it
    /// needs it.
    fn changed(&self, _key: &Key) {}

    /// A tier was declared or changed. Default: the limiter looks it up when it needs it.
    fn tiers_changed(&self) {}

    /// The tiers of the limiter.
    fn tiers(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// A key's usage of the limiter.
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>>;

    /// Explains the limit for a key in a request of a tier.
    fn explain(&self, key: Key, tier: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>>;

    /// The total usage of all keys, if there is a total limit.
    fn total(&self) -> BoxFuture<Option<LimitUsage>>;

    /// The status of the limiter's store. Default: it counts in this process only.
    fn store_status(&self) -> Option<StoreStatus> {
        None
    }

    /// The names that an override can use for this limiter.
    fn names(&self) -> Vec<Arc<str>>;

    /// Whether an override changes anything for this limiter.
    fn applies(&self, limit: &Limit) -> bool;

    /// A description for tools that read usage from the store. Default: none, the limiter uses no
    /// shared store.
    fn description(&self) -> Option<LimiterDescription> {
        None
    }
}

/// The usage of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitUsage {
    /// The name of the limit: that of a quota or of a limiter.
    pub name: Arc<str>,
    /// The [tier](crate::Limits::tier) of the counted buckets, if any.
    pub tier: Option<Arc<str>>,
    /// The kind of the limit: `"rate"`, `"concurrency"` or `"lease"`.
    pub sort: &'static str,
    /// The used requests, or the requests in flight: of all replicas if a store
    /// [counts](Self::counted_in) them.
    pub used: u64,
    /// The part of `used` that this process holds. `None` for a rate in a store, whose used
    /// requests belong to no process, and for usage that a tool has read.
    pub here: Option<u64>,
    /// Where `used` was counted.
    pub counted_in: CountedIn,
    /// The limit; `None` if requests are only counted.
    pub limit: Option<u64>,
    /// Whether the limit is an override of the key.
    pub is_override: bool,
}

/// Where a limit was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CountedIn {
    /// In a store that replicas share.
    Store,
    /// In this process, because it counts only here or because its store does not answer at the
    /// moment.
    Process,
}

impl CountedIn {
    pub(crate) fn from_in_store(is_in_store: bool) -> Self {
        match is_in_store {
            true => Self::Store,
            false => Self::Process,
        }
    }

    /// The name in JSON and in texts: `"store"` or `"this process"`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Process => "this process",
        }
    }
}

impl LimitUsage {
    /// Adds the count of this process, and the count of the store if it answered.
    pub(crate) fn with_counts(self, here: u64, in_store: Option<u64>) -> Self {
        Self {
            used: in_store.unwrap_or(here),
            here: Some(here),
            counted_in: match in_store {
                Some(_) => CountedIn::Store,
                None => CountedIn::Process,
            },
            ..self
        }
    }

    /// The usage of a key that a limiter charges at several positions: the usage at the position
    /// with the fewest slots left. For a key without requests, the first position with a limit.
    pub(crate) fn most_limiting(places: impl IntoIterator<Item = Self>) -> Option<Self> {
        let limiting = (places.into_iter()).filter_map(|usage| Some((usage.limit?, usage)));
        let fewest_left = limiting.min_by_key(|(limit, usage)| match usage.used {
            0 => u64::MAX,
            used => limit.saturating_sub(used),
        });
        fewest_left.map(|(_, usage)| usage)
    }
}
