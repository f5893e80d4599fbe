//! What a limiter is to limits: what they apply to, and what they report.

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
    /// The override of a key was set, changed or deleted. Default: it is looked up when it is needed.
    fn changed(&self, _key: &Key) {}

    /// A tier was declared, or has other limits. Default: it is looked up when it is needed.
    fn tiers_changed(&self) {}

    /// The tiers that it has.
    fn tiers(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// How far a key has used it up.
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>>;

    /// Which number applies to a key in a request of a tier, and what the request would get now.
    fn explain(&self, key: Key, tier: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>>;

    /// How far all keys have used it up together, if there is a limit on that.
    fn total(&self) -> BoxFuture<Option<LimitUsage>>;

    /// Whether the store that it counts in decides. Default: it counts in this process alone.
    fn store_status(&self) -> Option<StoreStatus> {
        None
    }

    /// The names that an override can have parts for.
    fn names(&self) -> Vec<Arc<str>>;

    /// Whether an override changes anything for it.
    fn applies(&self, limit: &Limit) -> bool;

    /// The description for tools that read usage from the store. Default: it counts in no shared store.
    fn description(&self) -> Option<LimiterDescription> {
        None
    }
}

/// How far a limit is used up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitUsage {
    /// What the limit is called: a quota's name, or a limiter's.
    pub name: Arc<str>,
    /// The [tier](crate::Limits::tier) whose buckets these are, if it is of one.
    pub tier: Option<Arc<str>>,
    /// What sort of limit it is: `"rate"`, `"concurrency"` or `"lease"`.
    pub sort: &'static str,
    /// Requests that are spent, or that are in flight: of all replicas where a store [counts](Self::counted_in) them.
    pub used: u64,
    /// How many of them this process holds. `None` of a rate in a store, where a spent request is nobody's, and of what
    /// was read by a tool.
    pub here: Option<u64>,
    /// Where `used` was counted.
    pub counted_in: CountedIn,
    /// The most that may be; `None` where they are only counted.
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
    /// In this process: it counts there alone, or its store does not answer at the moment.
    Process,
}

impl CountedIn {
    pub(crate) fn of(is_in_store: bool) -> Self {
        match is_in_store {
            true => Self::Store,
            false => Self::Process,
        }
    }

    /// Words for JSON and for people: `"store"` or `"this process"`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Process => "this process",
        }
    }
}

impl LimitUsage {
    /// What this process holds becomes what is told, next to what the store has if it answers.
    pub(crate) fn counted(self, here: u64, in_store: Option<u64>) -> Self {
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

    /// What a key has used of a limiter that may charge it at several places: where it is counted now,
    /// at the place that has the fewest left. A key that is counted nowhere has the limit of the first
    /// place that limits it.
    pub(crate) fn of_places(places: impl IntoIterator<Item = Self>) -> Option<Self> {
        let limiting = (places.into_iter()).filter_map(|usage| Some((usage.limit?, usage)));
        let fewest_left = limiting.min_by_key(|(limit, usage)| match usage.used {
            0 => u64::MAX,
            used => limit.saturating_sub(used),
        });
        fewest_left.map(|(_, usage)| usage)
    }
}
