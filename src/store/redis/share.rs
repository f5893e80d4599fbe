//! This replica's share of the buckets, for when Redis is away.

use crate::policy::Policy;
use crate::quota::Quota;
use crate::rule::Rule;
use crate::store::memory::MemoryBuckets;
use crate::store::memory::clock::Timer;
use crate::store::{Charge, MemoryStore, RateBuckets};

/// What one replica may admit while it cannot ask. Its sets are numbered as those of the buckets are.
pub(super) struct Share {
    replicas: u32,
    pub(super) buckets: MemoryBuckets,
}

impl Share {
    pub(super) fn open(policies: &[Policy], replicas: u32) -> Self {
        let policies: Vec<_> = policies.iter().map(|p| p.replica_share(replicas)).collect();
        let max_keys = MemoryStore::DEFAULT_MAX_KEYS;
        Self {
            replicas,
            buckets: MemoryBuckets::new(&policies, max_keys, Timer::real()),
        }
    }

    /// This and others as one.
    pub(super) fn joined(&self, others: &[&Self]) -> Self {
        let others = others.iter().map(|other| &other.buckets);
        Self {
            replicas: self.replicas,
            buckets: self.buckets.joined(others),
        }
    }

    /// The same charges by this replica's share of the rules.
    pub(super) fn charges(&self, charges: &[Charge]) -> Vec<Charge> {
        let share = |rule: &Rule| Rule::new(rule.quota().replica_share(self.replicas));
        let charges = charges.iter().map(|charge| charge.map_rules(share));
        charges.collect()
    }

    pub(super) fn set_quotas(&self, set: usize, quotas: &[Quota]) {
        let quotas: Vec<_> = quotas
            .iter()
            .map(|q| q.replica_share(self.replicas))
            .collect();
        self.buckets.set_quotas(set, &quotas);
    }

    pub(super) fn add_tier(&self, policy: usize, tier: &str, quotas: &Policy) {
        self.buckets
            .add_tier(policy, tier, &quotas.replica_share(self.replicas));
    }
}
