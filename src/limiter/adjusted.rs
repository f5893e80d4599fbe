//! A rate limiter whose quotas change.

use std::fmt;
use std::iter;
use std::sync::Arc;

use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::limit::Limit;
use crate::limits::{BoxFuture, LimitUsage, Limited, Limits};
#[cfg(feature = "redis")]
use crate::limits::{Description, Rates};
use crate::policy::{NamedQuota, Policy, Shape, tiers_of};
use crate::store::AdjustableBuckets;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// The part of a rate limiter that is told of changes.
pub(super) struct Adjusted {
    /// As they are for keys that have no limits of their own.
    policies: Mutex<Vec<Policy>>,
    /// As they were at first.
    shapes: Vec<Shape>,
    buckets: Arc<dyn AdjustableBuckets>,
    limits: Limits,
    /// Whether it limits nobody for now. Entries of single keys are kept up to date nevertheless.
    rests: AtomicBool,
}

impl Adjusted {
    pub(super) fn new(
        policies: Vec<Policy>,
        buckets: Arc<dyn AdjustableBuckets>,
        limits: &Limits,
    ) -> Arc<Self> {
        let shapes = policies.iter().map(Policy::shape).collect();
        Self::of_shapes(shapes, policies, buckets, limits)
    }

    /// Of policies that had other quotas of these shapes at first.
    pub(super) fn of_shapes(
        shapes: Vec<Shape>,
        policies: Vec<Policy>,
        buckets: Arc<dyn AdjustableBuckets>,
        limits: &Limits,
    ) -> Arc<Self> {
        let adjusted = Arc::new(Self {
            shapes,
            policies: Mutex::new(policies),
            buckets,
            limits: limits.clone(),
            rests: AtomicBool::new(false),
        });
        let limited: Arc<dyn Limited> = adjusted.clone();
        limits.attach(&limited);
        adjusted
    }

    #[cfg(feature = "config")]
    pub(super) fn rest(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    #[cfg(feature = "config")]
    pub(super) fn retire(&self) {
        self.buckets.retire();
    }

    fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    pub(super) fn policies(&self) -> Vec<Policy> {
        lock(&self.policies).clone()
    }

    /// Whether these policies can take the place of those at first.
    pub(super) fn takes(&self, policies: &[Policy]) -> bool {
        let fits = |(shape, policy): (&Shape, &Policy)| shape.fits(policy);
        policies.len() == self.shapes.len() && self.shapes.iter().zip(policies).all(fits)
    }

    /// Whether they could be set now.
    #[cfg(feature = "config")]
    pub(super) fn can_set(&self, policies: &[Policy]) -> bool {
        self.policies() == policies || self.buckets.can_set_policies()
    }

    pub(super) fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError> {
        let policies: Vec<_> = policies.into_iter().map(Policy::limiting).collect();
        if !self.takes(&policies) {
            return Err(SetPolicyError::Shape);
        }
        let mut is_set = false;
        self.limits.changed_for_all(self, || {
            is_set = self.buckets.set_policies(&policies);
            if is_set {
                *lock(&self.policies) = policies;
            }
        });
        if is_set {
            Ok(())
        } else {
            Err(SetPolicyError::TooOften)
        }
    }
}

impl Limited for Adjusted {
    fn set_own(&self, key: &Key, limit: Option<&Limit>) {
        for (at, policy) in lock(&self.policies).iter().enumerate() {
            let own = limit.and_then(|limit| limit.of_policy(policy, &self.shapes[at]));
            self.buckets.set_own(at, key, own.as_ref());
        }
    }

    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>> {
        if self.rests() {
            return Box::pin(std::future::ready(Vec::new()));
        }
        let policies = self.policies();
        let keys = vec![key; policies.len()];
        let tiers = iter::once(None).chain(tiers_of(&policies).into_iter().map(Some));
        let asked = tiers.filter_map(|tier| {
            let asked = match &tier {
                None => self.buckets.peek(&keys, 0),
                Some(tier) => self.buckets.clone().tier(tier)?.peek(&keys, 0),
            };
            Some((tier, asked))
        });
        let asked: Vec<_> = asked.collect();
        Box::pin(async move {
            let mut told = Vec::new();
            for (tier, asked) in asked {
                tell(&policies, tier, &asked.await, &mut told);
            }
            told
        })
    }

    fn total(&self) -> Option<LimitUsage> {
        None
    }

    fn names(&self) -> Vec<Arc<str>> {
        if self.rests() {
            return Vec::new();
        }
        let policies = self.policies();
        let mut names = Vec::new();
        for name in policies
            .iter()
            .flat_map(Policy::all_quotas)
            .map(NamedQuota::shared_name)
        {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    #[cfg(feature = "redis")]
    fn description(&self) -> Option<Description> {
        let place = self.buckets.place().filter(|_| !self.rests())?;
        Some(Description::Rate(Rates::new(
            place,
            &self.policies(),
            &self.shapes,
        )))
    }
}

/// How far the policies are used up in one tier, or in none.
fn tell(
    policies: &[Policy],
    tier: Option<Arc<str>>,
    decision: &Decision,
    told: &mut Vec<LimitUsage>,
) {
    let mut usages = decision.usages().iter();
    for (at, all) in policies.iter().enumerate() {
        let (policy, has_tier) = match &tier {
            // No tier has an empty name.
            None => (all.in_tier(""), true),
            Some(tier) => (all.in_tier(tier), all.tiers().any(|name| *name == **tier)),
        };
        let own = decision.policies().map(|own| own[at].in_tier(""));
        let is_own = own.as_ref().is_some_and(|own| *own != policy);
        let usages: Vec<_> = usages.by_ref().take(policy.quotas().len()).collect();
        if !has_tier {
            continue;
        }
        let used = |usage: &Usage| u64::from(usage.limit().saturating_sub(usage.remaining()));
        if at == 0 || is_own || usages.iter().any(|usage| used(usage) > 0) {
            let named = policy.quotas().iter().zip(usages).enumerate();
            told.extend(named.map(|(n, (quota, usage))| LimitUsage {
                name: quota.shared_name(),
                tier: tier.clone(),
                sort: "rate",
                used: used(usage),
                limit: Some(usage.limit().into()),
                is_own: (own.as_ref()).is_some_and(|own| own.quotas()[n] != *quota),
            }));
        }
    }
}

impl fmt::Debug for Adjusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adjusted")
            .field("policies", &*lock(&self.policies))
            .finish_non_exhaustive()
    }
}

/// Why a limiter's policy cannot be changed to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetPolicyError {
    /// The limiter was made without [`Limits`], or with quotas that were all off.
    Fixed,
    /// The policy has other names or tiers than the one at first, or one of its quotas is
    /// [sliding](crate::Quota::sliding) where that was not, or off.
    Shape,
    /// The policy was changed 64 times within the time that its buckets take to fill, so that no more
    /// can be carried over.
    TooOften,
}

impl fmt::Display for SetPolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "the limiter was made without limits that change",
            Self::Shape => {
                "a policy that is changed keeps its names and tiers, and whether its quotas are sliding or off"
            }
            Self::TooOften => "the policy was changed too often within the time that it counts",
        })
    }
}

impl std::error::Error for SetPolicyError {}
