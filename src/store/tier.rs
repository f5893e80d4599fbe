//! Buckets as requests of one tier are charged to them.

use std::sync::Arc;

use super::{RateBuckets, RateStats, Reply};
use crate::decision::Decision;
use crate::key::Key;
use crate::policy::Binding;

/// Buckets of which a request has to fit some, and is counted in the others.
pub(crate) trait Tiered: RateBuckets {
    /// As [`take`](RateBuckets::take) from those that bind.
    fn take_in(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision>;

    /// As [`peek`](RateBuckets::peek) at those that bind.
    fn peek_in(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision>;
}

/// A tier of buckets.
pub(crate) struct InTier<B> {
    pub(crate) buckets: Arc<B>,
    pub(crate) binding: Binding,
}

impl<B: Tiered> RateBuckets for InTier<B> {
    fn take(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.buckets.take_in(&self.binding, keys, cost)
    }

    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.buckets.peek_in(&self.binding, keys, cost)
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        self.buckets.refund(keys, cost)
    }

    fn stats(&self) -> Option<RateStats> {
        self.buckets.stats()
    }
}
