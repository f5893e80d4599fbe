//! Determines the rules and buckets of a request.

mod error;
mod explain;
mod limit_target;
mod recharge;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use smallvec::SmallVec;

pub use self::error::SetPolicyError;
pub(crate) use self::error::TiersUnsupported;
use crate::key::Key;
use crate::limit::Limit;
use crate::limits::{LimitTarget, Limits};
use crate::policy::{NamedQuota, Policy, PolicyShape, Tier};
use crate::store::{Charge, RateBuckets};
use crate::sync::Ordering;
use crate::sync::{AtomicBool, Mutex, lock};

/// The charges of one decision: one for each policy with a key.
pub(super) type Charges = SmallVec<[Charge; 2]>;

/// The rules of a rate limiter: the defaults of its policies and tiers, and the overrides of keys.
pub(super) struct RateRules {
    buckets: Arc<dyn RateBuckets>,
    limits: Option<Limits>,
    /// The shapes with which the buckets of the policies were opened.
    shapes: Box<[PolicyShape]>,
    tiers: ArcSwap<Vec<TierSets>>,
    state: Mutex<RulesState>,
    /// Whether the limiter limits nothing and is not reported.
    suspended: AtomicBool,
}

struct RulesState {
    /// The policies in force.
    policies: Vec<Policy>,
    /// The buckets of all tiers so far, by policy and name. A tier that is declared again finds
    /// them.
    opened: OpenedTiers,
    /// Unknown tiers that were logged.
    logged_tiers: Vec<Box<str>>,
}

type OpenedTiers = HashMap<(usize, Arc<str>), Arc<TierSet>>;

/// The number of a policy's tiers that were opened for one source. Each source has its own bound,
/// so that neither takes what the other is guaranteed.
fn opened_tier_count(opened: &OpenedTiers, policy: usize, source: TierSource) -> usize {
    let is_of = |((of, _), tier): &(&(usize, Arc<str>), &Arc<TierSet>)| {
        *of == policy && tier.source == source
    };
    opened.iter().filter(is_of).count()
}

/// The source of a tier when its buckets were opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TierSource {
    Policy,
    Limits,
}

/// The maximum number of unknown tiers that are logged.
const MAX_LOGGED_TIERS: usize = 16;

/// One tier.
struct TierSets {
    name: Arc<str>,
    /// Its buckets for each policy; `None` if the tier has none of the policy's quotas.
    sets: Box<[Option<Arc<TierSet>>]>,
}

/// The buckets of one policy in one tier.
struct TierSet {
    set: usize,
    shape: PolicyShape,
    source: TierSource,
}

impl TierSet {
    /// Whether these buckets can count the policy in this tier. If the default is a rate, the tier
    /// has the same algorithm.
    fn accepts(&self, policy: &Policy, tier: &Tier) -> bool {
        let Some(in_tier) = policy.with_limit(&tier.limit) else {
            return true;
        };
        let quotas = policy.quotas().iter().zip(in_tier.quotas());
        let mut quotas = quotas.zip(self.shape.quotas().0);
        quotas.all(|((default, tier_quota), (_, sliding))| {
            let rate = tier_quota.quota().rate();
            default.quota().rate().is_some() || rate.is_none_or(|rate| rate.is_sliding() == sliding)
        })
    }
}

impl RateRules {
    pub(super) fn new(
        policies: Vec<Policy>,
        shapes: Vec<PolicyShape>,
        buckets: Arc<dyn RateBuckets>,
        limits: Option<&Limits>,
    ) -> Result<Arc<Self>, TiersUnsupported> {
        let rules = Arc::new(Self {
            buckets,
            limits: limits.cloned(),
            shapes: shapes.into(),
            tiers: ArcSwap::default(),
            state: Mutex::new(RulesState {
                policies,
                opened: HashMap::new(),
                logged_tiers: Vec::new(),
            }),
            suspended: AtomicBool::new(false),
        });
        if let Some(limits) = limits {
            let target: Arc<dyn LimitTarget> = rules.clone();
            // Before the tiers are read, so that a tier that is declared meanwhile is not missed.
            limits.attach(&target);
        }
        let has_all = rules.open_tiers(&mut lock(&rules.state));
        if has_all {
            Ok(rules)
        } else {
            Err(TiersUnsupported)
        }
    }

    pub(super) fn buckets(&self) -> &Arc<dyn RateBuckets> {
        &self.buckets
    }

    /// The charge of a key for the policy at an index, in a request of this tier.
    #[inline]
    pub(super) fn charge(&self, policy: usize, key: &Key, tier: Option<&str>) -> Charge {
        match &self.limits {
            Some(limits) if !limits.has_no_overrides() => {
                self.charge_with_override(limits, policy, key, tier)
            }
            _ => Charge::new(*key, self.set(policy, tier)),
        }
    }

    /// The charges of each policy that has a key.
    #[inline]
    pub(super) fn charges(&self, keys: &[Key], tier: Option<&str>) -> Charges {
        let keys = keys.iter().take(self.shapes.len()).enumerate();
        keys.map(|(policy, key)| self.charge(policy, key, tier))
            .collect()
    }

    /// Converts what these keys used to their rules, after a delayed decision charged them by a
    /// replaced rule.
    #[cold]
    pub(super) fn settle(&self, keys: &[Key]) {
        if let Some(limits) = &self.limits {
            limits.while_unchanged(|| keys.iter().for_each(|key| self.changed(key)));
        }
    }

    fn charge_with_override(
        &self,
        limits: &Limits,
        policy: usize,
        key: &Key,
        tier: Option<&str>,
    ) -> Charge {
        let overridden = limits.find(key, |limit| {
            let of_tier = limit.tier().or(tier).and_then(|tier| {
                self.in_tier(policy, tier, |of| {
                    with_override(Charge::new(*key, of.set), limit, &of.shape)
                })
            });
            let of_none = || with_override(Charge::new(*key, policy), limit, &self.shapes[policy]);
            of_tier.unwrap_or_else(of_none)
        });
        overridden.unwrap_or_else(|| Charge::new(*key, self.set(policy, tier)))
    }

    #[inline]
    fn set(&self, policy: usize, tier: Option<&str>) -> usize {
        let tier = tier.and_then(|tier| self.in_tier(policy, tier, |of| of.set));
        tier.unwrap_or(policy)
    }

    /// Applies `read` to a policy's buckets in a tier; `None` if the tier has none.
    #[inline]
    fn in_tier<T>(&self, policy: usize, tier: &str, read: impl FnOnce(&TierSet) -> T) -> Option<T> {
        let tiers = self.tiers.load();
        match tiers.iter().find(|known| *known.name == *tier) {
            Some(tier) => tier.sets[policy].as_deref().map(read),
            None => {
                self.warn_unknown_tier(tier);
                None
            }
        }
    }

    #[cold]
    fn warn_unknown_tier(&self, tier: &str) {
        let mut state = lock(&self.state);
        let is_logged = state
            .logged_tiers
            .iter()
            .any(|logged_tiers| **logged_tiers == *tier);
        if !is_logged && state.logged_tiers.len() < MAX_LOGGED_TIERS {
            state.logged_tiers.push(tier.into());
            drop(state);
            tracing::warn!(tier, "unknown tier: the defaults apply");
        }
    }

    /// The shared name of a tier, if the tier exists.
    pub(super) fn tier(&self, name: &str) -> Option<Arc<str>> {
        let tiers = self.tiers.load();
        let tier = tiers.iter().find(|tier| *tier.name == *name);
        tier.map(|tier| tier.name.clone())
    }

    /// Whether the tier exists.
    pub(super) fn has_tier(&self, name: &str) -> bool {
        self.tiers.load().iter().any(|tier| *tier.name == *name)
    }

    /// The policies in force, with their tiers.
    pub(super) fn policies(&self) -> Vec<Policy> {
        lock(&self.state).policies.clone()
    }

    /// The policies in force for requests of a tier.
    pub(super) fn policies_in(&self, tier: Option<&str>) -> Vec<Policy> {
        let state = lock(&self.state);
        let policies = state.policies.iter();
        let in_tier = |policy: &Policy| {
            let tier = tier.and_then(|tier| self.declared(policy, tier));
            tier.unwrap_or_else(|| policy.in_tier(""))
        };
        policies.map(in_tier).collect()
    }

    /// A policy in one of its own tiers, else in one that the limits declare.
    fn declared(&self, policy: &Policy, tier: &str) -> Option<Policy> {
        if policy.tiers().any(|name| name == tier) {
            return Some(policy.in_tier(tier));
        }
        let declared = self.limits.as_ref()?.declared();
        let declared = declared.iter().find(|known| *known.name == *tier)?;
        policy.with_limit(&declared.limit)
    }

    /// Whether these policies can replace the initial ones.
    pub(super) fn accepts(&self, policies: &[Policy]) -> bool {
        let fits = |(shape, policy): (&PolicyShape, &Policy)| shape.fits(policy);
        policies.len() == self.shapes.len()
            && self.shapes.iter().zip(policies).all(fits)
            && self.accepts_tiers(policies)
    }

    /// Whether the existing buckets can count the tiers that these policies add or change.
    fn accepts_tiers(&self, policies: &[Policy]) -> bool {
        let state = lock(&self.state);
        policies.iter().enumerate().all(|(at, policy)| {
            let before = state.policies[at].declared();
            let new = policy
                .declared()
                .iter()
                .filter(|tier| !before.contains(tier));
            new.filter_map(|tier| Some((tier, state.opened.get(&(at, tier.name.clone()))?)))
                .all(|(tier, opened)| opened.accepts(policy, tier))
        })
    }

    /// Whether there is room for the buckets of these policies' tiers.
    pub(super) fn has_room_for_tiers(&self, policies: &[Policy]) -> bool {
        let state = lock(&self.state);
        policies.iter().enumerate().all(|(at, policy)| {
            let is_new = |tier: &&Tier| !state.opened.contains_key(&(at, tier.name.clone()));
            let new = policy.declared().iter().filter(is_new).count();
            opened_tier_count(&state.opened, at, TierSource::Policy) + new <= Policy::MAX_TIERS
        })
    }

    pub(super) fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError> {
        if !self.accepts(&policies) {
            return Err(SetPolicyError::Shape);
        }
        let mut state = lock(&self.state);
        for (set, policy) in policies.iter().enumerate() {
            let quotas: Vec<_> = policy.quotas().iter().map(NamedQuota::quota).collect();
            if !self.buckets.set_quotas(set, &quotas) {
                return Err(SetPolicyError::Fixed);
            }
        }
        state.policies = policies;
        if self.open_tiers(&mut state) {
            Ok(())
        } else {
            Err(SetPolicyError::TooManyTiers)
        }
    }

    /// Finds or opens the buckets of all declared tiers and sets their quotas. Returns whether
    /// every tier has buckets.
    fn open_tiers(&self, state: &mut RulesState) -> bool {
        let declared = self.limits.as_ref().map(Limits::declared);
        let of_limits = declared.iter().flat_map(|tiers| tiers.iter());
        let of_policies = state.policies.iter().flat_map(Policy::declared);
        let mut names: Vec<Arc<str>> = Vec::new();
        for tier in of_policies.chain(of_limits) {
            if !names.contains(&tier.name) {
                names.push(tier.name.clone());
            }
        }
        let mut has_all = true;
        let tiers = names.into_iter().map(|name| {
            let policies = state.policies.iter().enumerate();
            let sets = policies.map(|(at, policy)| {
                let in_tier = self.declared(policy, &name)?;
                let set = self.tier_buckets(&mut state.opened, at, &name, policy, &in_tier);
                has_all &= set.is_some();
                set
            });
            let sets = sets.collect();
            TierSets { name, sets }
        });
        let tiers = tiers.collect();
        self.tiers.store(Arc::new(tiers));
        has_all
    }

    fn tier_buckets(
        &self,
        opened: &mut OpenedTiers,
        at: usize,
        name: &Arc<str>,
        declared: &Policy,
        policy: &Policy,
    ) -> Option<Arc<TierSet>> {
        let place = (at, name.clone());
        if let Some(tier) = opened.get(&place) {
            let policy = policy.with_shape(&tier.shape);
            let quotas: Vec<_> = policy.quotas().iter().map(NamedQuota::quota).collect();
            self.buckets.set_quotas(tier.set, &quotas);
            return Some(tier.clone());
        }
        let source = match declared.tiers().any(|tier| *tier == **name) {
            true => TierSource::Policy,
            false => TierSource::Limits,
        };
        if opened_tier_count(opened, at, source) == Policy::MAX_TIERS {
            return None;
        }
        let set = self.buckets.add_tier(at, name, policy)?;
        let shape = policy.shape();
        let tier = Arc::new(TierSet { set, shape, source });
        opened.insert(place, tier.clone());
        Some(tier)
    }

    pub(super) fn set_suspended(&self, is_suspended: bool) {
        self.suspended.store(is_suspended, Ordering::Relaxed);
    }
}

/// Adds the rules of a limit's quotas to a charge.
fn with_override(charge: Charge, limit: &Limit, shape: &PolicyShape) -> Charge {
    let (quotas, is_single) = shape.quotas();
    let rules: SmallVec<[_; 1]> = quotas
        .map(|(name, sliding)| limit.rule(name, is_single, sliding).copied())
        .collect();
    charge.with_rules(&rules)
}

impl fmt::Debug for RateRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateRules")
            .field("policies", &lock(&self.state).policies)
            .finish_non_exhaustive()
    }
}
