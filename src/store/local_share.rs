//! The share of one replica, for the time when a shared store does not answer.

use std::fmt;

use super::memory::MemoryBuckets;
use super::memory::clock::MonotonicClock;
use super::{Charge, MemoryStore, RateBuckets, Reply};
use crate::decision::Decision;
use crate::policy::Policy;
use crate::quota::Quota;
use crate::rule::{Rule, RuleKind};

/// Decides in memory with one replica's share of each limit: [`FailureMode::LocalShare`](super::FailureMode).
///
/// Its sets have the same numbers as those of the store's buckets.
pub struct LocalShare {
    replicas: u32,
    buckets: MemoryBuckets,
}

impl LocalShare {
    /// Opens the share of one of `replicas` replicas.
    #[must_use]
    pub fn open(policies: &[Policy], replicas: u32) -> Self {
        let policies: Vec<_> = policies.iter().map(|p| p.replica_share(replicas)).collect();
        let max_keys = MemoryStore::DEFAULT_MAX_KEYS;
        Self {
            replicas,
            buckets: MemoryBuckets::new(&policies, max_keys, MonotonicClock::process()),
        }
    }

    /// Joins this share with those of other limiters, as [`RateBuckets::join`] does.
    #[must_use]
    pub fn joined(&self, others: &[&Self]) -> Self {
        let others = others.iter().map(|other| &other.buckets);
        Self {
            replicas: self.replicas,
            buckets: self.buckets.joined(others),
        }
    }

    /// Decides by this share, and reports the whole limits. `rules` are the rules in force, one for each quota of the
    /// charges; `takes` is false for a peek.
    ///
    /// A cost that fits the whole limit but never the share is rejected as unavailable, because it fits when the store
    /// answers again.
    pub fn decide(
        &self,
        charges: &[Charge],
        cost: u32,
        takes: bool,
        rules: &[Rule],
    ) -> Reply<Decision> {
        let charges = self.charges(charges);
        let decided = match takes {
            true => self.buckets.take(&charges, cost),
            false => self.buckets.peek(&charges, cost),
        };
        let limiting = || {
            rules
                .iter()
                .filter(|rule| rule.kind() != RuleKind::Unlimited)
        };
        match decided {
            Reply::Ready(decision)
                if decision.can_never_fit() && limiting().all(|rule| cost <= rule.limit()) =>
            {
                Reply::Ready(Decision::unavailable())
            }
            Reply::Ready(decision) => Reply::Ready(decision.with_rules(rules)),
            decided @ Reply::Pending(_) => decided,
        }
    }

    /// Charges a request that the store admitted, whether it fits the share or not: so the share is no fresh burst when
    /// the store fails.
    pub fn charge(&self, charges: &[Charge], cost: u32) {
        self.buckets.charge(&self.charges(charges), cost);
    }

    /// Refunds a request.
    pub fn refund(&self, charges: &[Charge], cost: u32) {
        let _ = self.buckets.refund(&self.charges(charges), cost);
    }

    /// Converts what the keys have used, as [`RateBuckets::settle`] does.
    pub fn settle(&self, charges: &[Charge]) {
        self.buckets.settle(&self.charges(charges));
    }

    /// Sets the quotas of a set, as [`RateBuckets::set_quotas`] does.
    pub fn set_quotas(&self, set: usize, quotas: &[Quota]) {
        let quotas: Vec<_> = quotas
            .iter()
            .map(|q| q.replica_share(self.replicas))
            .collect();
        self.buckets.set_quotas(set, &quotas);
    }

    /// Adds a set for a tier, as [`RateBuckets::add_tier`] does.
    pub fn add_tier(&self, policy: usize, tier: &str, quotas: &Policy) {
        self.buckets
            .add_tier(policy, tier, &quotas.replica_share(self.replicas));
    }

    /// The same charges by this share of their rules.
    fn charges(&self, charges: &[Charge]) -> Vec<Charge> {
        let share = |rule: &Rule| Rule::new(rule.quota().replica_share(self.replicas));
        let charges = charges.iter().map(|charge| charge.map_rules(share));
        charges.collect()
    }
}

impl fmt::Debug for LocalShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalShare")
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}
