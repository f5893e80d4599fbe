//! Reports a rate limiter to its limits, and applies their changes.

use std::sync::Arc;

use super::{RateRules, with_override};
use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::limit::Limit;
use crate::limits::{BoxFuture, CountedIn, LimitExplanation, LimitTarget, LimitUsage};
use crate::policy::{NamedQuota, Policy, PolicyShape};
use crate::rule::Rule;
use crate::store::overrides::{LimiterDescription, RateDescription};
use crate::store::{Charge, StoreStatus};
use crate::sync::{Ordering, lock};

impl RateRules {
    #[inline]
    pub(in crate::limiter) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }

    /// The tier that is stored for a key, if the first policy has it.
    fn stored_tier(&self, key: &Key) -> Option<Arc<str>> {
        let limits = self.limits.as_ref()?;
        let stored: Option<Arc<str>> = limits.find(key, |limit| limit.tier().map(Arc::from))?;
        stored.filter(|tier| self.in_tier(0, tier, |_| ()).is_some())
    }

    /// Whether a charge in a tier has any quota that is on, so that a decision about it has
    /// numbers.
    fn is_limited(&self, policy: usize, tier: Option<&str>, charge: &Charge) -> bool {
        let policies = self.policies_in(tier);
        let mut quotas = policies[policy].quotas().iter().enumerate();
        quotas.any(|(at, named)| {
            let override_quota = charge.rule(at).map(Rule::quota);
            !override_quota.unwrap_or(named.quota()).is_off()
        })
    }

    /// A key's usage, and whether the store answered about all of it.
    pub(in crate::limiter) fn usage_and_completeness(
        &self,
        key: Key,
    ) -> BoxFuture<(Vec<LimitUsage>, bool)> {
        let stored = self.stored_tier(&key);
        let policies = self.policies();
        let charges = self.all_charges(&key).into_iter();
        let pending = charges.map(|(policy, tier, charge)| {
            let is_limited = self.is_limited(policy, tier.as_deref(), &charge);
            let pending = self.buckets.peek(std::slice::from_ref(&charge), 0);
            (policy, tier, charge, is_limited, pending)
        });
        let pending: Vec<_> = pending.collect();
        let buckets = self.buckets.clone();
        Box::pin(async move {
            let (mut usages, mut is_complete) = (Vec::new(), true);
            for (policy, tier, charge, is_limited, pending) in pending {
                let decision = pending.await;
                // If the store fails, this process's share has answered.
                let counted_in =
                    CountedIn::from_in_store(matches!(buckets.status(), Some(StoreStatus::Ok)));
                is_complete &= !is_limited || !decision.usages().is_empty();
                let is_used = || decision.usages().iter().any(|usage| used(usage) > 0);
                let is_first = policy == 0 && tier.as_deref() == stored.as_deref();
                if is_first || charge.is_overridden() && tier.is_none() || is_used() {
                    usages.extend(report(
                        &policies[policy],
                        tier,
                        &charge,
                        &decision,
                        counted_in,
                    ));
                }
            }
            (usages, is_complete)
        })
    }

    /// All buckets that a key may be charged to, by its override or the defaults, with their
    /// policies and tiers.
    fn all_charges(&self, key: &Key) -> Vec<(usize, Option<Arc<str>>, Charge)> {
        let mut all = Vec::new();
        let charge = |charge: Charge, shape: &PolicyShape| {
            let overridden = self.limits.as_ref().and_then(|limits| {
                limits.find(key, |limit| with_override(charge.clone(), limit, shape))
            });
            overridden.unwrap_or(charge)
        };
        for (policy, shape) in self.shapes.iter().enumerate() {
            all.push((policy, None, charge(Charge::new(*key, policy), shape)));
        }
        for tier in self.tiers.load().iter() {
            for (policy, set) in tier.sets.iter().enumerate() {
                if let Some(of) = set {
                    let charge = charge(Charge::new(*key, of.set), &of.shape);
                    all.push((policy, Some(tier.name.clone()), charge));
                }
            }
        }
        all
    }
}

impl LimitTarget for RateRules {
    fn changed(&self, key: &Key) {
        for (_, _, charge) in self.all_charges(key) {
            self.buckets.settle(&[charge]);
        }
    }

    fn tiers_changed(&self) {
        if !self.open_tiers(&mut lock(&self.state)) {
            tracing::error!(
                "the store has no room for another tier: its requests get the defaults"
            );
        }
    }

    fn tiers(&self) -> Vec<Arc<str>> {
        let tiers = self.tiers.load();
        tiers.iter().map(|tier| tier.name.clone()).collect()
    }

    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>> {
        if self.is_suspended() {
            return Box::pin(std::future::ready(Vec::new()));
        }
        let pending = self.usage_and_completeness(key);
        Box::pin(async move { pending.await.0 })
    }

    fn explain(&self, key: Key, tier: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>> {
        if self.is_suspended() {
            return Box::pin(std::future::ready(Vec::new()));
        }
        self.explain_key(key, tier.as_deref())
    }

    fn total(&self) -> BoxFuture<Option<LimitUsage>> {
        Box::pin(std::future::ready(None))
    }

    fn store_status(&self) -> Option<StoreStatus> {
        self.buckets.status().filter(|_| !self.is_suspended())
    }

    fn names(&self) -> Vec<Arc<str>> {
        if self.is_suspended() {
            return Vec::new();
        }
        let policies = self.policies();
        let quotas = policies.iter().flat_map(Policy::quotas);
        quotas.map(NamedQuota::shared_name).collect()
    }

    fn applies(&self, limit: &Limit) -> bool {
        let policies = self.policies();
        policies.iter().any(|policy| policy.is_changed_by(limit))
    }

    fn description(&self) -> Option<LimiterDescription> {
        let place = self.buckets.place().filter(|_| !self.is_suspended())?;
        let policies = self.policies();
        let tiers = self.tiers.load();
        let tiers = tiers.iter().flat_map(|tier| {
            let sets = tier.sets.iter().enumerate();
            let policies = &policies;
            sets.filter_map(move |(at, set)| {
                let policy = self.declared(&policies[at], &tier.name)?;
                let shape = &set.as_ref()?.shape;
                Some((at, &*tier.name, policy.with_shape(shape), shape))
            })
        });
        let all = policies.iter().zip(&self.shapes);
        let described = RateDescription::new(place, all, tiers);
        Some(LimiterDescription::Rate(described))
    }
}

fn used(usage: &Usage) -> u64 {
    usage.limit().saturating_sub(usage.remaining()).into()
}

/// The usage of a policy's quotas.
fn report(
    policy: &Policy,
    tier: Option<Arc<str>>,
    charge: &Charge,
    decision: &Decision,
    counted_in: CountedIn,
) -> Vec<LimitUsage> {
    let usages = decision.usages().iter();
    usages
        .filter_map(|usage| {
            Some(LimitUsage {
                name: policy.quotas().get(usage.index())?.shared_name(),
                tier: tier.clone(),
                sort: "rate",
                used: used(usage),
                here: Some(used(usage)).filter(|_| counted_in == CountedIn::Process),
                counted_in,
                limit: Some(usage.limit().into()),
                is_override: charge.rule(usage.index()).is_some(),
            })
        })
        .collect()
}
