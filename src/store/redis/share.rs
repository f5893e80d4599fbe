//! This replica's share of the buckets, for when Redis is away.

use std::sync::Arc;

use crate::decision::Decision;
use crate::key::Key;
use crate::policy::{Binding, Policy, tiers_of};
use crate::store::memory::ChargedBuckets;
use crate::store::{MemoryStore, RateBuckets, Reply};

/// What one replica may admit by itself.
pub(super) struct Share {
    replicas: u32,
    pub(super) buckets: Arc<dyn ChargedBuckets>,
    tiers: Vec<(Arc<str>, Arc<dyn RateBuckets>)>,
}

impl Share {
    pub(super) fn open(policies: &[Policy], replicas: u32) -> Self {
        let policies: Vec<_> = policies.iter().map(|p| p.share(replicas)).collect();
        let buckets = MemoryStore::new().adjustable(&policies);
        let tiers = tiers_of(&policies).into_iter();
        let tiers = tiers.filter_map(|tier| {
            let buckets = buckets.clone().tier(&tier)?;
            Some((tier, buckets))
        });
        Self {
            replicas,
            tiers: tiers.collect(),
            buckets,
        }
    }

    pub(super) fn take(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision> {
        match self.tier(binding) {
            Some(tier) => tier.take(keys, cost),
            None => self.buckets.take(keys, cost),
        }
    }

    pub(super) fn peek(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision> {
        match self.tier(binding) {
            Some(tier) => tier.peek(keys, cost),
            None => self.buckets.peek(keys, cost),
        }
    }

    /// As [`AdjustableBuckets`](crate::store::AdjustableBuckets) has it.
    pub(super) fn set_policies(&self, policies: &[Policy]) -> bool {
        let policies: Vec<_> = policies.iter().map(|p| p.share(self.replicas)).collect();
        self.buckets.set_policies(&policies)
    }

    /// As [`AdjustableBuckets`](crate::store::AdjustableBuckets) has it.
    pub(super) fn set_own(&self, policy: usize, key: &Key, own: Option<&Policy>) {
        let own = own.map(|own| own.share(self.replicas));
        self.buckets.set_own(policy, key, own.as_ref());
    }

    fn tier(&self, binding: &Binding) -> Option<&dyn RateBuckets> {
        let name = binding.tier()?;
        let mut tiers = self.tiers.iter();
        tiers
            .find(|(tier, _)| tier == name)
            .map(|(_, tier)| &**tier)
    }
}
