//! The buckets of one limiter in Redis.

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::Inner;
use super::charged::{Arguments, Charge, Charged, Mode};
use super::client::Client;
use super::denied::Denials;
use super::failure::StoreError;
use super::names::Name;
use super::script::Script;
use super::share::Share;
use crate::decision::{Decision, Usage};
use crate::key::{Key, KeyMap};
use crate::policy::{Binding, Policy};
use crate::store::{AdjustableBuckets, FailureMode, InTier, RateBuckets, Reply, Tiered};

/// Clones share the buckets.
#[derive(Clone)]
pub(super) struct RedisBuckets(Arc<Buckets>);

struct Buckets {
    store: Arc<Inner>,
    name: Name,
    /// Of keys that have no quotas of their own.
    all: ArcSwap<Charged>,
    /// For each policy, what keys have of their own.
    own: Box<[KeyMap<Policy>]>,
    /// What binds a request of no tier.
    binding: Binding,
    denials: Denials,
    /// This replica's share, for when Redis is away.
    share: Option<Share>,
}

pub(super) fn script() -> Script {
    Script::new(include_str!("take.lua"))
}

impl RedisBuckets {
    pub(super) fn new(store: Arc<Inner>, policies: &[Policy]) -> Self {
        let name = store.names.claim(policies);
        Self::called(name, store, policies)
    }

    /// Those that are called so already.
    pub(super) fn called(name: Name, store: Arc<Inner>, policies: &[Policy]) -> Self {
        let share = match store.options.on_failure {
            FailureMode::LocalShare { replicas } => Some(Share::open(policies, replicas)),
            FailureMode::Open | FailureMode::Closed => None,
        };
        Self(Arc::new(Buckets {
            name,
            all: ArcSwap::from_pointee(Charged::new(policies.to_vec(), false)),
            own: policies.iter().map(|_| KeyMap::default()).collect(),
            binding: Binding::of(policies, None),
            denials: Denials::new(),
            share,
            store,
        }))
    }

    /// Asks Redis, unless it is known to be away.
    fn ask(&self, binding: &Binding, keys: &[Key], cost: u32, mode: Mode) -> Reply<Decision> {
        if self.0.client().check().is_err() {
            return self.0.without_redis(binding, keys, cost, mode);
        }
        let this = self.clone();
        let binding = binding.clone();
        let keys: Keys = keys.into();
        Reply::Pending(Box::pin(async move {
            let asked = Instant::now();
            let charged = this.0.charged(&keys);
            match this.0.decide(&charged, &binding, &keys, cost, mode).await {
                Ok(decision) => {
                    let decision = charged.tell(&binding, decision);
                    this.0.learn(&binding, &keys, cost, mode, asked, &decision);
                    decision
                }
                Err(_) => this.0.without_redis(&binding, &keys, cost, mode).await,
            }
        }))
    }
}

type Keys = SmallVec<[Key; 2]>;

impl RateBuckets for RedisBuckets {
    fn take(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.take_in(&self.0.binding, keys, cost)
    }

    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.peek_in(&self.0.binding, keys, cost)
    }

    fn tier(self: Arc<Self>, tier: &str) -> Option<Arc<dyn RateBuckets>> {
        let binding = Binding::of_tier(&self.0.all.load().policies, tier)?;
        let buckets = self;
        Some(Arc::new(InTier { buckets, binding }))
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        self.0.denials.forget(keys);
        if let Some(share) = &self.0.share {
            let _ = share.buckets.refund(keys, cost);
        }
        if self.0.client().check().is_err() {
            return Reply::Ready(());
        }
        let this = self.clone();
        let keys: Keys = keys.into();
        Reply::Pending(Box::pin(async move {
            // What cannot be given back refills with time.
            let _ = this.0.give_back(&keys, cost).await;
            // Once more, as one that was denied in the meantime would be admitted now.
            this.0.denials.forget(&keys);
        }))
    }
}

impl Tiered for RedisBuckets {
    fn take_in(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision> {
        if let Some(denied) = self.0.denials.find(binding.tier(), keys, cost) {
            self.0.client().events().denied_from_cache();
            return Reply::Ready(denied);
        }
        self.ask(binding, keys, cost, Mode::Take)
    }

    fn peek_in(&self, binding: &Binding, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.ask(binding, keys, cost, Mode::Peek)
    }
}

impl AdjustableBuckets for RedisBuckets {
    fn set_policies(&self, policies: &[Policy]) -> bool {
        let this = &*self.0;
        if let Some(share) = &this.share
            && !share.set_policies(policies)
        {
            return false;
        }
        this.all
            .store(Arc::new(Charged::new(policies.to_vec(), true)));
        this.denials.forget_all();
        true
    }

    fn can_set_policies(&self) -> bool {
        let share = self.0.share.as_ref();
        share.is_none_or(|share| share.buckets.can_set_policies())
    }

    fn set_own(&self, policy: usize, key: &Key, own: Option<&Policy>) {
        let this = &*self.0;
        if let Some(by_key) = this.own.get(policy) {
            by_key.set(key, own.cloned());
        }
        if let Some(share) = &this.share {
            share.set_own(policy, key, own);
        }
        this.denials.forget_all();
    }

    fn retire(&self) {
        self.0.name.give_up();
    }

    fn place(&self) -> Option<&str> {
        self.0.name.place()
    }
}

impl Buckets {
    fn client(&self) -> &Client {
        &self.store.client
    }

    /// What keys are charged to.
    fn charged(&self, keys: &[Key]) -> Arc<Charged> {
        let all = self.all.load();
        let mut policies = Cow::Borrowed(&*all.policies);
        for (at, (own, key)) in self.own.iter().zip(keys).enumerate() {
            if let Some(own) = own.find(key, Policy::clone) {
                policies.to_mut()[at] = own;
            }
        }
        match policies {
            Cow::Borrowed(_) => Guard::into_inner(all),
            Cow::Owned(policies) => Arc::new(Charged::new(policies, true)),
        }
    }

    /// What the failure mode says.
    #[cold]
    fn without_redis(
        &self,
        binding: &Binding,
        keys: &[Key],
        cost: u32,
        mode: Mode,
    ) -> Reply<Decision> {
        match (&self.share, &self.store.options.on_failure) {
            (Some(share), _) => {
                let charged = self.charged(keys);
                let decided = if mode == Mode::Take {
                    share.take(binding, keys, cost)
                } else {
                    share.peek(binding, keys, cost)
                };
                match decided {
                    // It never fits the share, and will fit when Redis is back.
                    Reply::Ready(decision)
                        if decision.is_hopeless() && charged.holds(binding, keys, cost) =>
                    {
                        Reply::Ready(Decision::unavailable())
                    }
                    // A client is told of its quota, not of this replica's share of it.
                    Reply::Ready(decision) => Reply::Ready(charged.tell(binding, decision)),
                    decided => decided,
                }
            }
            (None, FailureMode::Closed) if self.charged(keys).binds(binding, keys) => {
                Reply::Ready(Decision::unavailable())
            }
            (None, _) => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Keeps what Redis said for later.
    fn learn(
        &self,
        binding: &Binding,
        keys: &[Key],
        cost: u32,
        mode: Mode,
        asked: Instant,
        decision: &Decision,
    ) {
        if mode == Mode::Peek {
            return;
        }
        if !decision.is_admitted() {
            self.denials
                .keep(binding.tier(), keys, cost, asked, decision);
        } else if let Some(share) = &self.share
            && cost > 0
        {
            // So that the share is no fresh burst when Redis goes away.
            share.buckets.charge(keys, cost);
        }
    }

    async fn decide(
        &self,
        charged: &Charged,
        binding: &Binding,
        keys: &[Key],
        cost: u32,
        mode: Mode,
    ) -> Result<Decision, StoreError> {
        let deadline = self.client().deadline();
        let charges = &charged.charges(binding, keys);
        let keys = &keys[..charges.len()];
        if keys.len() > 1 && self.client().is_cluster() {
            return self.decide_apart(charges, keys, cost, mode, deadline).await;
        }
        let usages = self.call(charges, 0, keys, cost, mode, deadline).await?;
        Ok(Decision::from_usages(usages))
    }

    /// The keys of one decision lie in different parts of a cluster, where no script reaches all.
    /// So they are charged in turn, addresses first, and what was charged before a refusal is
    /// given back.
    async fn decide_apart(
        &self,
        charges: &[Charge<'_>],
        keys: &[Key],
        cost: u32,
        mode: Mode,
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&at| !keys[at].is_ip());
        let mut usages: Vec<Vec<Usage>> = vec![Vec::new(); keys.len()];
        let mut refused = false;
        let mut held = Vec::new();
        for at in order {
            let mode = match mode {
                Mode::Take if !refused => Mode::Hold,
                _ => Mode::Peek,
            };
            usages[at] = match self
                .call(charges, at, &keys[at..=at], cost, mode, deadline)
                .await
            {
                Ok(found) => found,
                // It is refused whatever this part of the cluster holds.
                Err(_) if refused => charges[at].unused(),
                Err(error) => return Err(error),
            };
            let fits = usages[at].iter().all(Usage::fits);
            refused |= !fits;
            if fits && mode == Mode::Hold {
                held.push(at);
            }
        }
        for at in held {
            let key = &keys[at..=at];
            if !refused {
                if charges[at].has_others() && cost > 0 {
                    // It is admitted, whether that can be counted or not; there is time for it.
                    let deadline = self.client().deadline();
                    let counted = self.call(charges, at, key, cost, Mode::Count, deadline);
                    let _ = counted.await;
                }
                continue;
            }
            // What cannot be given back refills with time, and is told as it was found.
            if self
                .call(charges, at, key, cost, Mode::Return, deadline)
                .await
                .is_ok()
                && let Ok(found) = self
                    .call(charges, at, key, cost, Mode::Peek, deadline)
                    .await
            {
                usages[at] = found;
            }
        }
        Ok(Decision::from_usages(usages.into_iter().flatten()))
    }

    async fn give_back(&self, keys: &[Key], cost: u32) -> Result<(), StoreError> {
        let deadline = self.client().deadline();
        let charged = self.charged(keys);
        let charges = &charged.charges(&self.binding, keys);
        let keys = &keys[..charges.len()];
        if !self.client().is_cluster() {
            return self
                .call(charges, 0, keys, cost, Mode::Refund, deadline)
                .await
                .map(drop);
        }
        // There the keys lie in different parts.
        for at in 0..keys.len() {
            self.call(charges, at, &keys[at..=at], cost, Mode::Refund, deadline)
                .await?;
        }
        Ok(())
    }

    /// Charges keys to what those from `first` on are charged to.
    async fn call(
        &self,
        charges: &[Charge<'_>],
        first: usize,
        keys: &[Key],
        cost: u32,
        mode: Mode,
        deadline: Instant,
    ) -> Result<Vec<Usage>, StoreError> {
        let charges = &charges[first..first + keys.len()];
        let names = keys.iter().enumerate();
        let keys: Vec<_> = names
            .map(|(n, key)| self.name.key(first + n, key))
            .collect();
        let arguments = &Arguments {
            cost,
            mode,
            charges,
        };
        let call = self
            .client()
            .run(&self.store.rates, &keys, arguments, deadline);
        let numbers: Vec<i64> = call.await?;
        let mut numbers = &*numbers;
        let mut usages = Vec::new();
        for charge in charges {
            let (of_key, rest) = numbers.split_at((3 * charge.len()).min(numbers.len()));
            usages.extend(charge.usages(of_key));
            numbers = rest;
        }
        Ok(usages)
    }
}
