//! The buckets of one limiter in Redis.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::client::Client;
use super::denied::Denials;
use super::failure::StoreError;
use super::names::Name;
use super::script::Script;
use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::policy::{NamedQuota, Policy};
use crate::quota::Quota;
use crate::store::{FailureMode, MemoryStore, RateBuckets, RateStore, Reply};

/// Clones share the buckets.
#[derive(Clone)]
pub(super) struct RedisBuckets(Arc<Buckets>);

struct Buckets {
    store: Arc<Inner>,
    name: Name,
    policies: Vec<Windows>,
    denials: Denials,
    /// This replica's share, for when Redis is away.
    share: Option<Arc<dyn RateBuckets>>,
}

/// The quotas that one key is charged to, as the scripts take them.
#[derive(Clone, Default)]
struct Windows(Vec<Window>);

#[derive(Clone, Copy)]
struct Window {
    interval: u64,
    /// 0 admits nothing.
    burst: u32,
}

pub(super) struct Scripts {
    take: Script,
    refund: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            take: Script::new(include_str!("take.lua")),
            refund: Script::new(include_str!("refund.lua")),
        }
    }
}

/// What becomes of a cost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Take,
    Peek,
}

impl RedisBuckets {
    pub(super) fn new(store: Arc<Inner>, policies: &[Policy]) -> Self {
        let share = match store.options.on_failure {
            FailureMode::LocalShare { replicas } => {
                let policies: Vec<_> = policies.iter().map(|p| p.share(replicas)).collect();
                Some(MemoryStore::new().open(&policies))
            }
            FailureMode::Open | FailureMode::Closed => None,
        };
        Self(Arc::new(Buckets {
            name: store.names.claim(policies),
            policies: policies.iter().map(Windows::of).collect(),
            denials: Denials::new(),
            share,
            store,
        }))
    }

    /// Asks Redis, unless it is known to be away; `local` decides then.
    fn ask(&self, keys: &[Key], cost: u32, mode: Mode) -> Reply<Decision> {
        if self.0.client().check().is_err() {
            return self.0.without_redis(keys, cost, mode);
        }
        let this = self.clone();
        let keys: Keys = keys.into();
        Reply::Pending(Box::pin(async move {
            let asked = Instant::now();
            match this.0.decide(&keys, cost, mode).await {
                Ok(decision) => {
                    this.0.learn(&keys, cost, mode, asked, &decision);
                    decision
                }
                Err(_) => this.0.without_redis(&keys, cost, mode).await,
            }
        }))
    }
}

type Keys = smallvec::SmallVec<[Key; 2]>;

impl RateBuckets for RedisBuckets {
    fn take(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        if let Some(denied) = self.0.denials.find(keys, cost) {
            self.0.client().events().denied_from_cache();
            return Reply::Ready(denied);
        }
        self.ask(keys, cost, Mode::Take)
    }

    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.ask(keys, cost, Mode::Peek)
    }

    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()> {
        self.0.denials.forget(keys);
        if let Some(share) = &self.0.share {
            let _ = share.refund(keys, cost);
        }
        if self.0.client().check().is_err() {
            return Reply::Ready(());
        }
        let this = self.clone();
        let keys: Keys = keys.into();
        Reply::Pending(Box::pin(async move {
            let deadline = this.0.client().deadline();
            // What cannot be given back refills with time.
            let _ = this.0.give_back(&keys, cost, deadline).await;
        }))
    }
}

impl Buckets {
    fn client(&self) -> &Client {
        &self.store.client
    }

    /// What the failure mode says.
    #[cold]
    fn without_redis(&self, keys: &[Key], cost: u32, mode: Mode) -> Reply<Decision> {
        match (&self.share, &self.store.options.on_failure) {
            (Some(share), _) if mode == Mode::Take => share.take(keys, cost),
            (Some(share), _) => share.peek(keys, cost),
            (None, FailureMode::Closed) => Reply::Ready(Decision::unavailable()),
            (None, _) => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Keeps what Redis said for later.
    fn learn(&self, keys: &[Key], cost: u32, mode: Mode, asked: Instant, decision: &Decision) {
        if mode == Mode::Peek {
            return;
        }
        if !decision.is_admitted() {
            self.denials.keep(keys, cost, asked, decision);
        } else if let Some(share) = &self.share {
            // So that the share is no fresh burst when Redis goes away.
            let _ = share.take(keys, cost);
        }
    }

    async fn decide(&self, keys: &[Key], cost: u32, mode: Mode) -> Result<Decision, StoreError> {
        let deadline = self.client().deadline();
        let keys = &keys[..keys.len().min(self.policies.len())];
        if keys.len() > 1 && self.client().is_cluster() {
            return self.decide_apart(keys, cost, mode, deadline).await;
        }
        let charged: Vec<_> = self.policies.iter().zip(keys).collect();
        let usages = self.call(&charged, cost, mode, deadline).await?;
        Ok(Decision::from_usages(usages))
    }

    /// The keys of one decision lie in different parts of a cluster, where no script reaches all.
    /// So they are charged in turn, addresses first, and what was charged before a refusal is
    /// given back.
    async fn decide_apart(
        &self,
        keys: &[Key],
        cost: u32,
        mode: Mode,
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&at| !keys[at].is_ip());
        let mut usages: Vec<Vec<Usage>> = vec![Vec::new(); keys.len()];
        let mut refused = false;
        let mut taken = Vec::new();
        for at in order {
            let charged = [(&self.policies[at], &keys[at])];
            let mode = if refused { Mode::Peek } else { mode };
            let found = self.call(&charged, cost, mode, deadline).await?;
            let fits = found.iter().all(Usage::fits);
            refused |= !fits;
            if fits && mode == Mode::Take {
                taken.push(at);
            }
            usages[at] = found;
        }
        if refused {
            for at in taken {
                let charged = [(&self.policies[at], &keys[at])];
                self.refund_call(&charged, cost, deadline).await?;
                usages[at] = self.call(&charged, cost, Mode::Peek, deadline).await?;
            }
        }
        Ok(Decision::from_usages(usages.into_iter().flatten()))
    }

    async fn give_back(
        &self,
        keys: &[Key],
        cost: u32,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let charged: Vec<_> = self.policies.iter().zip(keys).collect();
        if charged.len() > 1 && self.client().is_cluster() {
            for charged in charged {
                self.refund_call(&[charged], cost, deadline).await?;
            }
            return Ok(());
        }
        self.refund_call(&charged, cost, deadline).await
    }

    async fn refund_call(
        &self,
        charged: &[(&Windows, &Key)],
        cost: u32,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let (keys, arguments) = self.arguments(charged, cost, Mode::Take);
        let script = &self.store.scripts.refund;
        let done: u64 = self
            .client()
            .run(script, &keys, &*arguments, deadline)
            .await?;
        debug_assert_eq!(done, 0);
        Ok(())
    }

    async fn call(
        &self,
        charged: &[(&Windows, &Key)],
        cost: u32,
        mode: Mode,
        deadline: Instant,
    ) -> Result<Vec<Usage>, StoreError> {
        let (keys, arguments) = self.arguments(charged, cost, mode);
        let script = &self.store.scripts.take;
        let numbers: Vec<i64> = self
            .client()
            .run(script, &keys, &*arguments, deadline)
            .await?;
        let windows = charged.iter().flat_map(|(windows, _)| &windows.0);
        Ok(windows
            .zip(numbers.chunks_exact(3))
            .map(|(window, numbers)| usage(window, numbers))
            .collect())
    }

    fn arguments(
        &self,
        charged: &[(&Windows, &Key)],
        cost: u32,
        mode: Mode,
    ) -> (Vec<String>, Vec<u64>) {
        let keys = charged.iter().map(|(_, key)| self.name.key(key)).collect();
        let mut arguments = vec![cost.into(), u64::from(mode == Mode::Take)];
        for (windows, _) in charged {
            arguments.push(windows.0.len() as u64);
            for window in &windows.0 {
                arguments.push(window.interval);
                arguments.push(window.burst.into());
            }
        }
        (keys, arguments)
    }
}

/// What a script answered about one quota.
fn usage(window: &Window, numbers: &[i64]) -> Usage {
    let micros = |number: i64| Duration::from_micros(number.max(0).unsigned_abs());
    let (remaining, reset) = (numbers[0].max(0) as u32, micros(numbers[1]));
    match numbers[2] {
        0 => Usage::admitted(window.burst, remaining, reset),
        wait => {
            let wait = (wait > 0).then(|| micros(wait));
            Usage::refused(window.burst, remaining, reset, wait)
        }
    }
}

impl Windows {
    fn of(policy: &Policy) -> Self {
        let quotas = policy.quotas().iter().map(NamedQuota::quota);
        let limiting = quotas.filter(|quota| !quota.is_off());
        Self(limiting.map(Window::of).collect())
    }
}

impl Window {
    fn of(quota: Quota) -> Self {
        match quota.rate() {
            Some(rate) => Self {
                // In whole microseconds; rounded up, so that no more is admitted than was said.
                interval: rate.interval().as_nanos().div_ceil(1000) as u64,
                burst: rate.burst(),
            },
            None => Self {
                interval: 0,
                burst: 0,
            },
        }
    }
}
