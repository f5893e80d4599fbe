//! Which rules and which buckets apply to a request.

mod error;
mod explain;
mod more;
mod target;

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

/// What one decision charges: a key for each policy.
pub(super) type Charges = SmallVec<[Charge; 2]>;

/// The rules of a rate limiter: the defaults of its policies, of their tiers, and the overrides of keys.
pub(super) struct Rules {
    buckets: Arc<dyn RateBuckets>,
    limits: Option<Limits>,
    /// What the buckets of the policies were opened with.
    shapes: Box<[PolicyShape]>,
    tiers: ArcSwap<Vec<TierSets>>,
    state: Mutex<State>,
    /// Whether it limits nothing for now, and is not reported.
    rests: AtomicBool,
}

struct State {
    /// As they are now.
    policies: Vec<Policy>,
    /// The buckets of all tiers that there ever were, by policy and name: a tier that is declared again finds them.
    opened: Opened,
    /// Unknown tiers that were logged.
    logged: Vec<Box<str>>,
}

type Opened = HashMap<(usize, Arc<str>), Arc<TierSet>>;

/// How many tiers of a policy were opened because it declares them, or because the limits do. Each has room of its
/// own, so that neither takes what the other is promised.
fn opened_of(opened: &Opened, policy: usize, source: Source) -> usize {
    let is_of = |((of, _), tier): &(&(usize, Arc<str>), &Arc<TierSet>)| {
        *of == policy && tier.source == source
    };
    opened.iter().filter(is_of).count()
}

/// Who declared a tier when its buckets were opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Policy,
    Limits,
}

/// Unknown tiers that are logged.
const MAX_LOGGED: usize = 16;

/// One tier.
struct TierSets {
    name: Arc<str>,
    /// For each policy its buckets in this tier; `None` if the tier names none of its quotas.
    sets: Box<[Option<Arc<TierSet>>]>,
}

/// The buckets of one policy in one tier.
struct TierSet {
    set: usize,
    shape: PolicyShape,
    source: Source,
}

impl TierSet {
    /// Whether these buckets can count what a policy has in the tier. Where the default has an algorithm, the tier
    /// has the same.
    fn takes(&self, policy: &Policy, tier: &Tier) -> bool {
        let Some(in_tier) = policy.with_limit(&tier.limit) else {
            return true;
        };
        let quotas = policy.quotas().iter().zip(in_tier.quotas());
        let mut quotas = quotas.zip(self.shape.quotas().0);
        quotas.all(|((default, own), (_, sliding))| {
            let own = own.quota().rate();
            default.quota().rate().is_some() || own.is_none_or(|own| own.is_sliding() == sliding)
        })
    }
}

impl Rules {
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
            state: Mutex::new(State {
                policies,
                opened: HashMap::new(),
                logged: Vec::new(),
            }),
            rests: AtomicBool::new(false),
        });
        if let Some(limits) = limits {
            let target: Arc<dyn LimitTarget> = rules.clone();
            // Before the tiers are read, so that one which is declared meanwhile is not missed.
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

    /// What a key is charged to for the policy at a place, in a request of this tier.
    #[inline]
    pub(super) fn charge(&self, policy: usize, key: &Key, tier: Option<&str>) -> Charge {
        match &self.limits {
            Some(limits) if !limits.has_no_overrides() => {
                self.overridden(limits, policy, key, tier)
            }
            _ => Charge::new(*key, self.set(policy, tier)),
        }
    }

    /// The same for each policy that has a key.
    #[inline]
    pub(super) fn charges(&self, keys: &[Key], tier: Option<&str>) -> Charges {
        let keys = keys.iter().take(self.shapes.len()).enumerate();
        keys.map(|(policy, key)| self.charge(policy, key, tier))
            .collect()
    }

    /// Has what these keys used be by their rules, where a decision that was held up charged it by one that was replaced.
    #[cold]
    pub(super) fn settle(&self, keys: &[Key]) {
        if let Some(limits) = &self.limits {
            limits.between_changes(|| keys.iter().for_each(|key| self.changed(key)));
        }
    }

    fn overridden(&self, limits: &Limits, policy: usize, key: &Key, tier: Option<&str>) -> Charge {
        let own = limits.find(key, |limit| {
            let of_tier = limit.tier().or(tier).and_then(|tier| {
                self.in_tier(policy, tier, |of| {
                    with_override(Charge::new(*key, of.set), limit, &of.shape)
                })
            });
            let of_none = || with_override(Charge::new(*key, policy), limit, &self.shapes[policy]);
            of_tier.unwrap_or_else(of_none)
        });
        own.unwrap_or_else(|| Charge::new(*key, self.set(policy, tier)))
    }

    #[inline]
    fn set(&self, policy: usize, tier: Option<&str>) -> usize {
        let tier = tier.and_then(|tier| self.in_tier(policy, tier, |of| of.set));
        tier.unwrap_or(policy)
    }

    /// What `read` makes of a policy's buckets in a tier; `None` if the tier has none.
    #[inline]
    fn in_tier<T>(&self, policy: usize, tier: &str, read: impl FnOnce(&TierSet) -> T) -> Option<T> {
        let tiers = self.tiers.load();
        match tiers.iter().find(|known| *known.name == *tier) {
            Some(tier) => tier.sets[policy].as_deref().map(read),
            None => {
                self.log_unknown(tier);
                None
            }
        }
    }

    #[cold]
    fn log_unknown(&self, tier: &str) {
        let mut state = lock(&self.state);
        let is_logged = state.logged.iter().any(|logged| **logged == *tier);
        if !is_logged && state.logged.len() < MAX_LOGGED {
            state.logged.push(tier.into());
            drop(state);
            tracing::warn!(tier, "there is no tier of this name: the defaults apply");
        }
    }

    /// The name of a tier that there is.
    pub(super) fn tier(&self, name: &str) -> Option<Arc<str>> {
        let tiers = self.tiers.load();
        let tier = tiers.iter().find(|tier| *tier.name == *name);
        tier.map(|tier| tier.name.clone())
    }

    /// Whether there is a tier of this name.
    pub(super) fn has_tier(&self, name: &str) -> bool {
        self.tiers.load().iter().any(|tier| *tier.name == *name)
    }

    /// The policies as they are now, with their tiers.
    pub(super) fn policies(&self) -> Vec<Policy> {
        lock(&self.state).policies.clone()
    }

    /// The policies as they are now for the requests of a tier.
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

    /// Whether these policies can take the place of those at first.
    pub(super) fn takes(&self, policies: &[Policy]) -> bool {
        let fits = |(shape, policy): (&PolicyShape, &Policy)| shape.fits(policy);
        policies.len() == self.shapes.len()
            && self.shapes.iter().zip(policies).all(fits)
            && self.takes_tiers(policies)
    }

    /// Whether the tiers that these policies declare anew can be counted as they say.
    fn takes_tiers(&self, policies: &[Policy]) -> bool {
        let state = lock(&self.state);
        policies.iter().enumerate().all(|(at, policy)| {
            let before = state.policies[at].declared();
            let new = policy
                .declared()
                .iter()
                .filter(|tier| !before.contains(tier));
            new.filter_map(|tier| Some((tier, state.opened.get(&(at, tier.name.clone()))?)))
                .all(|(tier, opened)| opened.takes(policy, tier))
        })
    }

    /// Whether there is room for the buckets of these policies' tiers.
    pub(super) fn has_room_for_tiers(&self, policies: &[Policy]) -> bool {
        let state = lock(&self.state);
        policies.iter().enumerate().all(|(at, policy)| {
            let is_new = |tier: &&Tier| !state.opened.contains_key(&(at, tier.name.clone()));
            let new = policy.declared().iter().filter(is_new).count();
            opened_of(&state.opened, at, Source::Policy) + new <= Policy::MAX_TIERS
        })
    }

    pub(super) fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError> {
        if !self.takes(&policies) {
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

    /// Finds or opens the buckets of all tiers that are declared now, and sets their quotas. Returns whether all
    /// have some.
    fn open_tiers(&self, state: &mut State) -> bool {
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
        opened: &mut Opened,
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
            true => Source::Policy,
            false => Source::Limits,
        };
        if opened_of(opened, at, source) == Policy::MAX_TIERS {
            return None;
        }
        let set = self.buckets.add_tier(at, name, policy)?;
        let shape = policy.shape();
        let tier = Arc::new(TierSet { set, shape, source });
        opened.insert(place, tier.clone());
        Some(tier)
    }

    pub(super) fn rest(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }
}

/// A charge by the parts of a limit that are about its quotas.
fn with_override(charge: Charge, limit: &Limit, shape: &PolicyShape) -> Charge {
    let (quotas, is_single) = shape.quotas();
    let rules: SmallVec<[_; 1]> = quotas
        .map(|(name, sliding)| limit.rule(name, is_single, sliding).copied())
        .collect();
    charge.with_rules(&rules)
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("policies", &lock(&self.state).policies)
            .finish_non_exhaustive()
    }
}
