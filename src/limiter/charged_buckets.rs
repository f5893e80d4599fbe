//! Charges or refunds more of a request that was charged before.

use std::sync::Arc;

use super::joined::LimiterSet;
use super::rate::RateLimiter;
use crate::decision::Decision;
use crate::key::Key;
use crate::store::Reply;

/// The buckets that a decision charged, for later charges and refunds of the same request.
pub(crate) struct ChargedBuckets {
    tier: Option<Arc<str>>,
    sets: Option<Box<[usize]>>,
    /// The joined limiters that do not count the request.
    excluded: LimiterSet,
}

impl RateLimiter {
    /// The buckets that a decision about a request of this tier charges.
    #[inline]
    pub(crate) fn charged_buckets(
        &self,
        tier: Option<Arc<str>>,
        keys: &[Key],
        excluded: LimiterSet,
    ) -> ChargedBuckets {
        let name = tier.as_deref();
        let sets = match (self.rules(), self.joined()) {
            (Some(rules), _) => rules.sets(keys, name),
            (None, Some(joined)) => joined.sets(keys, name),
            (None, None) => None,
        };
        ChargedBuckets {
            tier,
            sets,
            excluded,
        }
    }

    /// Charges more of a request that was charged before.
    pub(crate) fn charge_more(
        &self,
        charged: &ChargedBuckets,
        keys: &[Key],
        cost: u32,
    ) -> Reply<Decision> {
        let (tier, sets, excluded) = charged.parts();
        match (self.rules(), self.joined()) {
            (Some(rules), _) if excluded.is_empty() => rules
                .buckets()
                .take(&rules.charges_to(keys, tier, sets), cost),
            (None, Some(joined)) => joined.charge_more(keys, tier, sets, cost, excluded),
            _ => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Peeks at the buckets that a request was charged to.
    pub(crate) fn peek_charged(&self, charged: &ChargedBuckets, keys: &[Key]) -> Reply<Decision> {
        let (tier, sets, excluded) = charged.parts();
        match (self.rules(), self.joined()) {
            (Some(rules), _) if excluded.is_empty() => {
                rules.buckets().peek(&rules.charges_to(keys, tier, sets), 0)
            }
            (None, Some(joined)) => joined.peek(keys, tier, sets, excluded),
            _ => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Refunds to the buckets that a request was charged to.
    pub(crate) fn refund_charged(
        &self,
        charged: &ChargedBuckets,
        keys: &[Key],
        cost: u32,
    ) -> Reply<()> {
        let (tier, sets, excluded) = charged.parts();
        match (self.rules(), self.joined()) {
            (Some(rules), _) if excluded.is_empty() => rules
                .buckets()
                .refund(&rules.charges_to(keys, tier, sets), cost),
            (None, Some(joined)) => joined.refund(keys, tier, sets, cost, excluded),
            _ => Reply::Ready(()),
        }
    }
}

impl ChargedBuckets {
    fn parts(&self) -> (Option<&str>, Option<&[usize]>, LimiterSet) {
        (self.tier.as_deref(), self.sets.as_deref(), self.excluded)
    }

    /// The joined limiters that do not count the request.
    pub(crate) fn excluded(&self) -> LimiterSet {
        self.excluded
    }

    /// A copy that excludes more of the joined limiters.
    pub(crate) fn without(&self, excluded: LimiterSet) -> Self {
        let sets = self.sets.clone();
        Self {
            tier: self.tier.clone(),
            sets,
            excluded: self.excluded.with(excluded),
        }
    }
}
