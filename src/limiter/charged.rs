//! Charges or refunds more of a request that was charged before.

use std::sync::Arc;

use super::joined::Parts;
use super::rate::RateLimiter;
use crate::decision::Decision;
use crate::key::Key;
use crate::store::Reply;

/// The buckets that a decision charged, for later charges and refunds of the same request.
pub(crate) struct Charged {
    tier: Option<Arc<str>>,
    sets: Option<Box<[usize]>>,
    /// The joined limiters that do not count the request.
    left_out: Parts,
}

impl RateLimiter {
    /// The buckets that a decision about a request of this tier charges.
    #[inline]
    pub(crate) fn charged(&self, tier: Option<Arc<str>>, keys: &[Key], left_out: Parts) -> Charged {
        let name = tier.as_deref();
        let sets = match (self.rules(), self.joined()) {
            (Some(rules), _) => rules.sets(keys, name),
            (None, Some(joined)) => joined.sets(keys, name),
            (None, None) => None,
        };
        Charged {
            tier,
            sets,
            left_out,
        }
    }

    /// Charges more of a request that was charged before.
    pub(crate) fn decide_more(&self, of: &Charged, keys: &[Key], cost: u32) -> Reply<Decision> {
        let (tier, sets, left_out) = of.parts();
        match (self.rules(), self.joined()) {
            (Some(rules), _) if left_out.is_empty() => rules
                .buckets()
                .take(&rules.charges_to(keys, tier, sets), cost),
            (None, Some(joined)) => joined.decide_more(keys, tier, sets, cost, left_out),
            _ => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Peeks at the buckets that a request was charged to.
    pub(crate) fn peek_at(&self, of: &Charged, keys: &[Key]) -> Reply<Decision> {
        let (tier, sets, left_out) = of.parts();
        match (self.rules(), self.joined()) {
            (Some(rules), _) if left_out.is_empty() => {
                rules.buckets().peek(&rules.charges_to(keys, tier, sets), 0)
            }
            (None, Some(joined)) => joined.peek(keys, tier, sets, left_out),
            _ => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Refunds to the buckets that a request was charged to.
    pub(crate) fn give_back(&self, of: &Charged, keys: &[Key], cost: u32) -> Reply<()> {
        let (tier, sets, left_out) = of.parts();
        match (self.rules(), self.joined()) {
            (Some(rules), _) if left_out.is_empty() => rules
                .buckets()
                .refund(&rules.charges_to(keys, tier, sets), cost),
            (None, Some(joined)) => joined.refund(keys, tier, sets, cost, left_out),
            _ => Reply::Ready(()),
        }
    }
}

impl Charged {
    fn parts(&self) -> (Option<&str>, Option<&[usize]>, Parts) {
        (self.tier.as_deref(), self.sets.as_deref(), self.left_out)
    }

    /// The joined limiters that do not count the request.
    pub(crate) fn left_out(&self) -> Parts {
        self.left_out
    }

    /// A copy that excludes more of the joined limiters.
    pub(crate) fn without(&self, left_out: Parts) -> Self {
        let sets = self.sets.clone();
        Self {
            tier: self.tier.clone(),
            sets,
            left_out: self.left_out.with(left_out),
        }
    }
}
