//! What limiters are to those who look after limits.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

#[cfg(feature = "redis")]
use super::Description;
use crate::key::Key;
use crate::limit::Limit;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A limiter, for [`Limits`](super::Limits).
pub(crate) trait Limited: Send + Sync {
    /// A key's limit was set or deleted.
    fn set_own(&self, key: &Key, limit: Option<&Limit>);

    /// How far a key has used it up.
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>>;

    /// How far all have used it up together, if there is a limit on that.
    fn total(&self) -> Option<LimitUsage>;

    /// What an entry can be about.
    fn names(&self) -> Vec<Arc<str>>;

    /// What others are told who ask the store how far it is used up; `None` of one that counts in no
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
    /// The [tier](crate::Policy::tier) that it is of, if it is of one: a key is told of in each, as it
    /// may come in by any.
    pub tier: Option<Arc<str>>,
    /// What sort of limit it is: `"rate"`, `"concurrency"` or `"lease"`.
    pub sort: &'static str,
    /// Requests that are spent, or that are in flight.
    pub used: u64,
    /// The most that may be; `None` where they are only counted.
    pub limit: Option<u64>,
    /// Whether the limit is the key's own.
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
