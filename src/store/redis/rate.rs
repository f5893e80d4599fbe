//! The buckets of one limiter in Redis.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisWrite, ToRedisArgs};
use smallvec::SmallVec;
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
    sliding: bool,
    /// In microseconds: a bucket's interval, or the length of a window's sub-windows.
    length: u64,
    /// The most that is admitted at once; 0 admits nothing.
    limit: u32,
}

/// What becomes of a cost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Take,
    Peek,
    Refund,
}

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Peek => "look",
            Self::Refund => "give",
        }
    }
}

pub(super) fn script() -> Script {
    Script::new(include_str!("take.lua"))
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

type Keys = SmallVec<[Key; 2]>;

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
            // What cannot be given back refills with time.
            let _ = this.0.give_back(&keys, cost).await;
            // Once more, as one that was denied in the meantime would be admitted now.
            this.0.denials.forget(&keys);
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
            (Some(share), _) => {
                let decided = if mode == Mode::Take {
                    share.take(keys, cost)
                } else {
                    share.peek(keys, cost)
                };
                match decided {
                    // It never fits the share, and will fit when Redis is back.
                    Reply::Ready(decision) if decision.is_hopeless() && self.holds(keys, cost) => {
                        Reply::Ready(Decision::unavailable())
                    }
                    decided => decided,
                }
            }
            (None, FailureMode::Closed) => Reply::Ready(Decision::unavailable()),
            (None, _) => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Whether so much fits the quotas when nothing of them is used.
    fn holds(&self, keys: &[Key], cost: u32) -> bool {
        let windows = self.policies.iter().take(keys.len());
        windows.flat_map(|w| &w.0).all(|w| cost <= w.limit)
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
        let usages = self.call(0, keys, cost, mode, deadline).await?;
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
            let mode = if refused { Mode::Peek } else { mode };
            usages[at] = match self.call(at, &keys[at..=at], cost, mode, deadline).await {
                Ok(found) => found,
                // It is refused whatever this part of the cluster holds.
                Err(_) if refused => self.policies[at].unused(),
                Err(error) => return Err(error),
            };
            let fits = usages[at].iter().all(Usage::fits);
            refused |= !fits;
            if fits && mode == Mode::Take {
                taken.push(at);
            }
        }
        if refused {
            for at in taken {
                let key = &keys[at..=at];
                // What cannot be given back refills with time, and is told as it was found.
                if self
                    .call(at, key, cost, Mode::Refund, deadline)
                    .await
                    .is_ok()
                    && let Ok(found) = self.call(at, key, cost, Mode::Peek, deadline).await
                {
                    usages[at] = found;
                }
            }
        }
        Ok(Decision::from_usages(usages.into_iter().flatten()))
    }

    async fn give_back(&self, keys: &[Key], cost: u32) -> Result<(), StoreError> {
        let deadline = self.client().deadline();
        let keys = &keys[..keys.len().min(self.policies.len())];
        if !self.client().is_cluster() {
            return self
                .call(0, keys, cost, Mode::Refund, deadline)
                .await
                .map(drop);
        }
        // There the keys lie in different parts.
        for at in 0..keys.len() {
            self.call(at, &keys[at..=at], cost, Mode::Refund, deadline)
                .await?;
        }
        Ok(())
    }

    /// Charges keys to the policies from `first` on.
    async fn call(
        &self,
        first: usize,
        keys: &[Key],
        cost: u32,
        mode: Mode,
        deadline: Instant,
    ) -> Result<Vec<Usage>, StoreError> {
        let policies = &self.policies[first..first + keys.len()];
        let names = keys.iter().enumerate();
        let keys: Vec<_> = names
            .map(|(n, key)| self.name.key(first + n, key))
            .collect();
        let arguments = &Arguments {
            cost,
            mode,
            policies,
        };
        let call = self
            .client()
            .run(&self.store.rates, &keys, arguments, deadline);
        let numbers: Vec<i64> = call.await?;
        let windows = policies.iter().flat_map(|windows| &windows.0);
        Ok(windows
            .zip(numbers.chunks_exact(3))
            .map(|(window, numbers)| usage(window, numbers))
            .collect())
    }
}

/// What the script takes next to its keys.
struct Arguments<'a> {
    cost: u32,
    mode: Mode,
    policies: &'a [Windows],
}

impl ToRedisArgs for Arguments<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self.cost);
        out.write_arg(self.mode.word().as_bytes());
        for windows in self.policies {
            out.write_arg_fmt(windows.0.len());
            for window in &windows.0 {
                out.write_arg_fmt(u8::from(window.sliding));
                out.write_arg_fmt(window.length);
                out.write_arg_fmt(window.limit);
            }
        }
    }
}

/// What a script answered about one quota.
fn usage(window: &Window, numbers: &[i64]) -> Usage {
    let micros = |number: i64| Duration::from_micros(number.max(0).unsigned_abs());
    let (remaining, reset) = (numbers[0].max(0) as u32, micros(numbers[1]));
    match numbers[2] {
        0 => Usage::admitted(window.limit, remaining, reset),
        wait => {
            let wait = (wait > 0).then(|| micros(wait));
            Usage::refused(window.limit, remaining, reset, wait)
        }
    }
}

impl Windows {
    fn of(policy: &Policy) -> Self {
        let quotas = policy.quotas().iter().map(NamedQuota::quota);
        let limiting = quotas.filter(|quota| !quota.is_off());
        Self(limiting.map(Window::of).collect())
    }

    /// What is told of a key that cannot be asked about when others have refused.
    fn unused(&self) -> Vec<Usage> {
        let windows = self.0.iter().map(|window| window.limit);
        windows
            .map(|limit| Usage::admitted(limit, limit, Duration::ZERO))
            .collect()
    }
}

impl Window {
    fn of(quota: Quota) -> Self {
        match quota.rate() {
            Some(rate) => Self {
                sliding: rate.is_sliding(),
                // Rounded up, so that no more is admitted than was said.
                length: if rate.is_sliding() {
                    rate.period().as_nanos().div_ceil(SUB_WINDOWS * 1000) as u64
                } else {
                    rate.interval().as_nanos().div_ceil(1000) as u64
                },
                limit: rate.limit(),
            },
            None => Self {
                sliding: false,
                length: 0,
                limit: 0,
            },
        }
    }
}

/// In a period; see the [memory store](crate::store::memory#sliding-windows).
const SUB_WINDOWS: u128 = 15;
