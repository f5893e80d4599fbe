//! How a configuration makes both layers, for the first time and after a reload.

use crate::concurrency::ConcurrencyLimitLayer;
use crate::extract::KeyExtractor;
use crate::limiter::{ConcurrencyLimiter, RateLimiter};
use crate::rate::RateLimitLayer;

/// For configuration: layers over limiters that run already, and joined layers.
pub trait RateLayerInternals: Sized {
    /// Counts with a limiter that runs already, of the same policies.
    #[must_use]
    fn resumed(self, limiter: RateLimiter) -> Self;

    /// Guards by address with a limiter that runs already and answers at once, as
    /// [`guard_by_ip`](RateLimitLayer::guard_by_ip).
    #[must_use]
    fn guard_resumed(self, client_ip: impl KeyExtractor, limiter: RateLimiter) -> Self;

    /// Adds the limits of `others` to the decision: a request fits all of them or is charged to none. Each limit keeps its
    /// name, its enforcement, and what it skips and counts. Headers and cost are those of this layer, and a request that
    /// this layer skips passes all.
    ///
    /// Returns `None` if the layers count in different stores, or in a store that cannot join them.
    #[must_use]
    fn joined(self, others: &[Self]) -> Option<Self>;

    /// Informs the observers that the limit is in force, unless they know it.
    fn notify_attached(&self);
}

impl<K: KeyExtractor> RateLayerInternals for RateLimitLayer<K> {
    fn resumed(self, limiter: RateLimiter) -> Self {
        Self::resumed(self, limiter)
    }

    fn guard_resumed(self, client_ip: impl KeyExtractor, limiter: RateLimiter) -> Self {
        Self::guard_resumed(self, client_ip, limiter)
    }

    fn joined(self, others: &[Self]) -> Option<Self> {
        Self::joined(self, others)
    }

    fn notify_attached(&self) {
        self.tell_attached();
    }
}

/// For configuration: layers over limiters that run already, and joined layers.
pub trait ConcurrencyLayerInternals: Sized {
    /// A layer over a limiter that runs already. The extractors find the keys of its first limits per key.
    fn resumed<E: KeyExtractor>(
        limiter: ConcurrencyLimiter,
        keys: impl IntoIterator<Item = E>,
    ) -> Self;

    /// Takes a permit of each of `others` as well, after its own; all are released together. Each limit keeps its name, its
    /// answers, its enforcement and what it skips. A request that this layer skips passes all.
    #[must_use]
    fn joined(self, others: &[Self]) -> Self;
}

impl ConcurrencyLayerInternals for ConcurrencyLimitLayer {
    fn resumed<E: KeyExtractor>(
        limiter: ConcurrencyLimiter,
        keys: impl IntoIterator<Item = E>,
    ) -> Self {
        Self::resumed(limiter, keys)
    }

    fn joined(self, others: &[Self]) -> Self {
        Self::joined(self, others)
    }
}
