//! Explains which rules of a rate limiter apply to a key.

use std::sync::Arc;

use super::RateRules;
use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::limit::Limit;
use crate::limits::{
    BoxFuture, CountedIn, LimitExplanation, LimitSource, LimitVerdict, Limits, UNLIMITED,
};
use crate::policy::{NamedQuota, Policy};
use crate::quota::Quota;
use crate::rejection::Reason;
use crate::store::StoreStatus;

/// One policy as it applies to a request, before the store is asked.
struct AppliedPolicy {
    place: usize,
    tier: Option<Arc<str>>,
    /// The name, number and source of each quota.
    quotas: Vec<(Arc<str>, Quota, LimitSource)>,
}

impl RateRules {
    /// Explains each quota for a key, in a request of this tier.
    pub(in crate::limiter) fn explain_key(
        &self,
        key: Key,
        tier: Option<&str>,
    ) -> BoxFuture<Vec<LimitExplanation>> {
        // Only existing tiers: a name that an operator typed must not be logged as an unknown tier
        // of requests.
        let tier = tier.and_then(|tier| self.tier(tier));
        let policies = self.policies().into_iter().enumerate();
        let pending = policies.map(|(at, policy)| {
            let charge = self.charge(at, &key, tier.as_deref());
            let applied = self.applied(at, &policy, &key, tier.as_ref(), |at| {
                charge.rule(at).map(|rule| rule.quota())
            });
            (applied, self.buckets.peek(std::slice::from_ref(&charge), 1))
        });
        let pending: Vec<_> = pending.collect();
        let buckets = self.buckets.clone();
        Box::pin(async move {
            let mut explained = Vec::new();
            for (applied, pending) in pending {
                let decision = pending.await;
                // If the store fails, this process's share has answered.
                let counted_in =
                    CountedIn::from_in_store(matches!(buckets.status(), Some(StoreStatus::Ok)));
                applied.explain(&decision, counted_in, &mut explained);
            }
            explained
        })
    }

    fn applied(
        &self,
        place: usize,
        policy: &Policy,
        key: &Key,
        requested: Option<&Arc<str>>,
        override_quota: impl Fn(usize) -> Option<Quota>,
    ) -> AppliedPolicy {
        let limits = self.limits.as_ref();
        let stored = limits
            .and_then(|limits| limits.find(key, |limit| limit.tier().map(Arc::<str>::from))?);
        let (tier, source) = match &stored {
            Some(stored) => (Some(stored), LimitSource::StoredTier),
            None => (requested, LimitSource::RequestTier),
        };
        let tier = tier.and_then(|tier| self.tier(tier));
        let limit = tier.as_ref().and_then(|tier| self.limit_of(policy, tier));
        let in_tier = limit.as_ref().and_then(|limit| policy.with_limit(limit));
        let quotas = policy.quotas().iter().enumerate();
        let quotas = quotas.map(|(at, named)| {
            let name = named.shared_name();
            if let Some(quota) = override_quota(at) {
                return (name, quota, LimitSource::Override);
            }
            let of_tier = in_tier.as_ref().and_then(|policy| policy.quotas().get(at));
            let of_tier = of_tier.map(NamedQuota::quota);
            // For tools, tiers of services are stored with all their quotas. An equal quota is the
            // default's.
            match of_tier.filter(|of_tier| *of_tier != named.quota()) {
                Some(of_tier) => (name, of_tier, source),
                None => (name, named.quota(), LimitSource::Default),
            }
        });
        AppliedPolicy {
            place,
            quotas: quotas.collect(),
            tier: tier.filter(|_| in_tier.is_some()),
        }
    }

    /// The limit of a tier: as the policy declares it, else as the limits declare it.
    fn limit_of(&self, policy: &Policy, tier: &str) -> Option<Limit> {
        let by_policy = policy.declared().iter().find(|known| *known.name == *tier);
        if let Some(by_policy) = by_policy {
            return Some(by_policy.limit.clone());
        }
        let declared = self.limits.as_ref().map(Limits::declared)?;
        let declared = declared.iter().find(|known| *known.name == *tier);
        declared.map(|known| known.limit.clone())
    }
}

impl AppliedPolicy {
    fn explain(
        self,
        decision: &Decision,
        counted_in: CountedIn,
        explained: &mut Vec<LimitExplanation>,
    ) {
        for (at, (name, quota, source)) in self.quotas.into_iter().enumerate() {
            let usage = decision.usages().iter().find(|usage| usage.index() == at);
            let (used, verdict) = match usage {
                Some(usage) => (Some(used(usage)), verdict(usage)),
                None if quota.is_off() => (None, LimitVerdict::Admitted { remaining: None }),
                None => (None, LimitVerdict::Unknown),
            };
            explained.push(LimitExplanation {
                name,
                sort: "rate",
                is_total: false,
                place: self.place,
                limit: match quota.is_off() {
                    true => UNLIMITED.to_owned(),
                    false => quota.to_string(),
                },
                source,
                tier: self.tier.clone(),
                used,
                counted_in,
                verdict,
            });
        }
    }
}

fn used(usage: &Usage) -> u64 {
    usage.limit().saturating_sub(usage.remaining()).into()
}

fn verdict(usage: &Usage) -> LimitVerdict {
    match usage.fits() {
        true => LimitVerdict::Admitted {
            // A peek does not count the request that it decides.
            remaining: Some(usage.remaining().saturating_sub(1).into()),
        },
        false => LimitVerdict::Rejected {
            reason: match usage.limit() {
                0 => Reason::Denied,
                _ => Reason::QuotaExceeded,
            },
            retry_after: usage.retry_after(),
        },
    }
}
