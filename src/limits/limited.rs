//! What a limiter is to limits: what they apply to, and what they report.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

#[cfg(feature = "redis")]
use super::Description;
use super::LimitExplanation;
use crate::key::Key;

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
    fn total(&self) -> Option<LimitUsage>;

    /// The names that an override can have parts for.
    fn names(&self) -> Vec<Arc<str>>;

    /// The description for tools that ask the store how far it is used up; `None` of one that counts in no
    /// store that replicas share.
    #[cfg(feature = "redis")]
    fn description(&self) -> Option<Description>;
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
    /// Requests that are spent, or that are in flight.
    pub used: u64,
    /// The most that may be; `None` where they are only counted.
    pub limit: Option<u64>,
    /// Whether the limit is an override of the key.
    pub is_own: bool,
}

impl LimitUsage {
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
