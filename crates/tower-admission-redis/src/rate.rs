//! The buckets of one limiter in Redis.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::Inner;
use super::arguments::{KeyRules, Mode};
use super::call_error::CallError;
use super::client::Client;
use super::lanes::Lanes;
use super::names::Name;
use super::script::Script;
use super::sync::lock;
use std::sync::Mutex;
use tower_admission::Decision;
use tower_admission::Quota;
use tower_admission::provider::DenialCache;
use tower_admission::provider::LocalShare;
use tower_admission::provider::split_joined_set;
use tower_admission::store::{Charge, FailureMode, RateBuckets, Reply, StoreStatus};
use tower_admission::{NamedQuota, Policy};
use tower_admission::{Rule, provider::RuleKind};

/// Clones share the buckets.
#[derive(Clone)]
pub(super) struct RedisBuckets(Arc<Buckets>);

pub(super) struct Buckets {
    pub(super) store: Arc<Inner>,
    /// `None` for joined buckets.
    name: Option<Name>,
    /// The joined limiters.
    parts: Box<[Arc<Self>]>,
    /// The sets of the policies, then those of tiers.
    sets: Box<[OnceLock<Set>]>,
    /// The number of sets. Locked while a set is added.
    adding: Mutex<usize>,
    denials: Arc<DenialCache>,
    pub(super) lanes: Lanes<Self>,
    /// The share of this replica while Redis is unavailable.
    share: Option<LocalShare>,
}

/// The buckets of one policy, or of one tier of it.
struct Set {
    /// The beginning of the Redis keys.
    begin: String,
    /// The default rules.
    rules: ArcSwap<KeyRules>,
}

impl Set {
    fn new(begin: String, policy: &Policy) -> Self {
        let quotas = policy.quotas().iter().map(NamedQuota::quota);
        let rules = ArcSwap::from_pointee(quotas.map(Rule::new).collect());
        Self { begin, rules }
    }
}

pub(super) fn is_limiting(rule: &Rule) -> bool {
    rule.kind() != RuleKind::Unlimited
}

pub(super) fn script() -> Script {
    Script::new(concat!(
        include_str!("scripts/take.lua"),
        include_str!("scripts/take_general.lua")
    ))
}

impl RedisBuckets {
    pub(super) fn new(store: Arc<Inner>, policies: &[Policy]) -> Self {
        let name = store.names.claim(policies);
        Self::called(name, store, policies)
    }

    /// Opens the buckets of an existing name.
    pub(super) fn called(name: Name, store: Arc<Inner>, policies: &[Policy]) -> Self {
        let share = match store.options.on_failure {
            FailureMode::LocalShare { replicas } => Some(LocalShare::open(policies, replicas)),
            _ => None,
        };
        let sets = policies.len() * (1 + Policy::MAX_OPENED_TIERS);
        let sets: Box<[OnceLock<Set>]> = (0..sets).map(|_| OnceLock::new()).collect();
        for (at, policy) in policies.iter().enumerate() {
            let _ = sets[at].set(Set::new(name.begin(at), policy));
        }
        Self(Arc::new(Buckets {
            name: Some(name),
            parts: Box::default(),
            sets,
            adding: Mutex::new(policies.len()),
            denials: Arc::new(DenialCache::new()),
            lanes: Lanes::new(),
            share,
            store,
        }))
    }

    /// Calls Redis, unless it is known to be unavailable.
    fn ask(&self, charges: &[Charge], cost: u32, mode: Mode) -> Reply<Decision> {
        if !self.0.limits(charges) {
            return Reply::Ready(Decision::unlimited());
        }
        if self.0.check(charges).is_err() {
            return self.0.without_redis(charges, cost, mode);
        }
        let this = self.clone();
        let charges: Arc<[Charge]> = charges.into();
        Reply::Pending(Box::pin(async move {
            let asked = Instant::now();
            match this.0.decide(&charges, cost, mode, asked).await {
                Ok(decision) => {
                    this.0.learn(&charges, cost, mode, asked, &decision);
                    decision
                }
                Err(charged) => {
                    let decision = this.0.without_redis(&charges, cost, mode).await;
                    if !decision.is_admitted() && !charged.is_empty() {
                        // Not awaited, because the deadline may be over.
                        tokio::spawn(async move { this.0.refund_charges(&charged, cost).await });
                    }
                    decision
                }
            }
        }))
    }
}

impl RateBuckets for RedisBuckets {
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        if let Some(denied) = self.0.denials.find(charges, cost) {
            self.0.client().events().denied_from_cache();
            return Reply::Ready(denied);
        }
        self.ask(charges, cost, Mode::Take)
    }

    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        self.ask(charges, cost, Mode::Peek)
    }

    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()> {
        self.0.denials.forget(charges);
        if let Some(share) = &self.0.share {
            share.refund(charges, cost);
        }
        if !self.0.limits(charges) || self.0.check(charges).is_err() {
            return Reply::Ready(());
        }
        let this = self.clone();
        let charges = charges.to_vec();
        Reply::Pending(Box::pin(async move {
            this.0.refund_charges(&charges, cost).await;
            // Retry, because a rejection that arrived meanwhile is outdated.
            this.0.denials.forget(&charges);
        }))
    }

    /// In Redis the next decision converts the usage.
    fn settle(&self, charges: &[Charge]) {
        if let Some(share) = &self.0.share {
            share.settle(charges);
        }
        self.0.denials.forget_all();
    }

    fn set_quotas(&self, set: usize, quotas: &[Quota]) -> bool {
        let this = &*self.0;
        let Some(found) = this.set(set) else {
            return false;
        };
        let rules = quotas.iter().copied().map(Rule::new).collect();
        found.rules.store(Arc::new(rules));
        if let Some(share) = &this.share {
            share.set_quotas(set, quotas);
        }
        this.denials.forget_all();
        true
    }

    fn add_tier(&self, policy: usize, tier: &str, quotas: &Policy) -> Option<usize> {
        let this = &*self.0;
        let mut len = lock(&this.adding);
        let begin = this.name.as_ref()?.begin_in(policy, tier, quotas);
        let set = this.sets.get(*len)?;
        set.set(Set::new(begin, quotas)).ok()?;
        if let Some(share) = &this.share {
            share.add_tier(policy, tier, quotas);
        }
        *len += 1;
        Some(*len - 1)
    }

    fn retire(&self) {
        if let Some(name) = &self.0.name {
            name.release();
        }
    }

    fn place(&self) -> Option<&str> {
        Some(self.0.name.as_ref()?.place())
    }

    fn join(&self, others: &[Arc<dyn RateBuckets>]) -> Option<Arc<dyn RateBuckets>> {
        let others = others.iter().map(|other| {
            let other: &dyn Any = &**other;
            let other = &other.downcast_ref::<Self>()?.0;
            let is_same = Arc::ptr_eq(&other.store, &self.0.store);
            is_same.then(|| other.clone())
        });
        let others: Vec<_> = others.collect::<Option<_>>()?;
        let share = self.0.share.as_ref().and_then(|share| {
            let others = others.iter().map(|other| other.share.as_ref());
            Some(share.joined(&others.collect::<Option<Vec<_>>>()?))
        });
        let parts: Box<[_]> = std::iter::once(self.0.clone()).chain(others).collect();
        let denials = parts.iter().map(|part| part.denials.clone()).collect();
        Some(Arc::new(Self(Arc::new(Buckets {
            store: self.0.store.clone(),
            name: None,
            parts,
            sets: Box::default(),
            adding: Mutex::new(0),
            denials: Arc::new(DenialCache::joined(denials)),
            lanes: Lanes::new(),
            share,
        }))))
    }

    fn status(&self) -> Option<StoreStatus> {
        Some(self.0.store.status())
    }
}

impl Buckets {
    pub(super) fn client(&self) -> &Client {
        &self.store.client
    }

    /// Fails at once if no server of the keys is available.
    fn check(&self, charges: &[Charge]) -> Result<(), CallError> {
        let keys = || charges.iter().map(|charge| self.key(charge));
        self.client().check_any(keys)
    }

    fn set(&self, at: usize) -> Option<&Set> {
        if self.parts.is_empty() {
            return self.sets.get(at)?.get();
        }
        let (place, set) = split_joined_set(at);
        self.parts.get(place)?.set(set)
    }

    /// The Redis key of a charge.
    pub(super) fn key(&self, charge: &Charge) -> String {
        let begin = self.set(charge.set).map_or("", |set| &set.begin);
        Name::key(begin, &charge.key)
    }

    /// Whether a quota limits anything: otherwise no call is needed.
    fn limits(&self, charges: &[Charge]) -> bool {
        charges.iter().any(|charge| {
            let rules = self.set(charge.set).map(|set| set.rules.load());
            let rules = rules.iter().flat_map(|rules| rules.iter().enumerate());
            let mut rules = rules.map(|(at, default)| charge.rule(at).unwrap_or(default));
            rules.any(is_limiting)
        })
    }

    /// The rules in force for each charge.
    pub(super) fn rules(&self, charges: &[Charge]) -> Vec<KeyRules> {
        charges.iter().map(|charge| self.rules_of(charge)).collect()
    }

    pub(super) fn rules_of(&self, charge: &Charge) -> KeyRules {
        let Some(set) = self.set(charge.set) else {
            return KeyRules::new();
        };
        let defaults = set.rules.load();
        let defaults = defaults.iter().enumerate();
        defaults
            .map(|(at, default)| *charge.rule(at).unwrap_or(default))
            .collect()
    }

    /// Decides by the failure mode.
    #[cold]
    fn without_redis(&self, charges: &[Charge], cost: u32, mode: Mode) -> Reply<Decision> {
        // A peek decides no request.
        if mode == Mode::Take {
            let events = self.client().events();
            events.decided_without(self.store.options.on_failure);
        }
        match (&self.share, &self.store.options.on_failure) {
            (Some(share), _) => {
                let rules: Vec<_> = self.rules(charges).into_iter().flatten().collect();
                share.decide(charges, cost, mode == Mode::Take, &rules)
            }
            (None, FailureMode::Open) => Reply::Ready(Decision::unlimited()),
            // Also a mode that this version does not know.
            (None, _) => Reply::Ready(Decision::unavailable()),
        }
    }

    /// Records the decision for the cache and the local share.
    fn learn(
        &self,
        charges: &[Charge],
        cost: u32,
        mode: Mode,
        asked: Instant,
        decision: &Decision,
    ) {
        if mode != Mode::Take {
            return;
        }
        if !decision.is_admitted() {
            self.denials.keep(charges, cost, asked, decision);
        } else if let Some(share) = &self.share
            && cost > 0
        {
            // Otherwise the share would be a fresh burst when Redis fails.
            share.charge(charges, cost);
        }
    }
}
