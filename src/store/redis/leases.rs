//! The slots of one limiter in Redis: sorted sets of leases, by when they expire.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::Inner;
use super::client::Again;
use super::failure::{FailureKind, StoreError};
use super::keeper::Keeper;
use super::names::LeaseNames;
use super::script::Script;
use crate::key::Key;
use crate::store::{
    FailureMode, Held, LeaseLimits, LeaseName, LeaseSlots, LeaseUsage, Leased, NamedLease,
    NamedLeased, NamedLimits, Reply, Standing,
};
use crate::sync::lock;

pub(super) struct RedisLeases(Arc<Slots>);

pub(super) struct Slots {
    pub(super) store: Arc<Inner>,
    pub(super) names: LeaseNames,
    pub(super) keeper: Keeper,
    /// The server's time at a moment of ours, by the last answer.
    clock: Mutex<Option<(Instant, u64)>>,
    /// The last answer's.
    epoch: Mutex<Vec<u8>>,
}

/// The slots of all limiters of a store and its clones, for as long as somebody uses them.
#[derive(Clone, Default)]
pub(super) struct Opened(Arc<Mutex<Vec<Weak<Slots>>>>);

impl Opened {
    pub(super) fn open(&self, store: Arc<Inner>, name: &str) -> RedisLeases {
        let leases = RedisLeases::new(store, name);
        let mut opened = lock(&self.0);
        opened.retain(|slots| slots.strong_count() > 0);
        opened.push(Arc::downgrade(&leases.0));
        leases
    }

    pub(super) async fn flush(&self) -> Result<(), StoreError> {
        let opened: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        for slots in opened {
            slots.flush().await?;
        }
        Ok(())
    }
}

/// A script that goes by the server's clock.
macro_rules! on_clock {
    ($script:literal) => {
        concat!(include_str!("lease_clock.lua"), include_str!($script))
    };
}
pub(super) use on_clock;

pub(super) struct Scripts {
    acquire: Script,
    pub(super) heartbeat: Script,
    pub(super) release: Script,
    usage: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            acquire: Script::new(on_clock!("acquire.lua")),
            heartbeat: Script::new(on_clock!("heartbeat.lua")),
            release: Script::new(include_str!("release.lua")),
            usage: Script::new(on_clock!("usage.lua")),
        }
    }
}

/// The Redis keys that hold the leases of the keys of one lease.
pub(super) type OfKeys = SmallVec<[String; 2]>;

/// A lease, from before it is asked for: however its story ends, it is given back.
struct Lease {
    slots: Arc<Slots>,
    id: u64,
    of_keys: OfKeys,
    /// Whether the store was asked and has not said no.
    may_be_taken: bool,
}

impl Held for Lease {}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.may_be_taken {
            let of_keys = std::mem::take(&mut self.of_keys);
            self.slots.give_back(self.id, of_keys);
        }
    }
}

/// What `acquire.lua` answers.
pub(super) const GRANTED: i64 = 1;
pub(super) const FULL: i64 = 0;
pub(super) const KEY_FULL: i64 = -1;
pub(super) const LATE: i64 = -2;
const WRONG: i64 = -3;

/// The same, of a lease without a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Granted,
    Full,
    KeyFull {
        place: usize,
    },
    Late,
    /// One of its keys holds something else.
    Wrong,
}

impl Outcome {
    fn parse(numbers: &[redis::Value]) -> Option<Self> {
        let [redis::Value::Int(outcome), redis::Value::Int(place)] = *numbers else {
            return None;
        };
        match outcome {
            GRANTED => Some(Self::Granted),
            FULL => Some(Self::Full),
            KEY_FULL => usize::try_from(place)
                .ok()
                .map(|place| Self::KeyFull { place }),
            LATE => Some(Self::Late),
            WRONG => Some(Self::Wrong),
            _ => None,
        }
    }
}

/// A lease that is asked for.
struct Asked<'a> {
    id: u64,
    of_keys: &'a [String],
    limits: &'a LeaseLimits,
}

impl RedisLeases {
    fn new(store: Arc<Inner>, name: &str) -> Self {
        Self(Arc::new(Slots {
            names: store.names.leases(name),
            store,
            keeper: Keeper::default(),
            clock: Mutex::new(None),
            epoch: Mutex::default(),
        }))
    }
}

impl LeaseSlots for RedisLeases {
    fn acquire(&self, limits: LeaseLimits) -> Reply<Leased> {
        let slots = self.0.clone();
        if slots.check().is_err() {
            return Reply::Ready(Leased::Unavailable(slots.failure_mode()));
        }
        Reply::Pending(Box::pin(async move {
            let leased = slots.clone().acquire(limits).await;
            leased.unwrap_or_else(|_| Leased::Unavailable(slots.failure_mode()))
        }))
    }

    fn usage_at(&self, key: Option<&Key>, place: usize) -> Reply<Option<LeaseUsage>> {
        let slots = self.0.clone();
        let of_key = key.map(|key| slots.names.of_key(place, key));
        Reply::Pending(Box::pin(async move { slots.usage(of_key).await.ok() }))
    }

    fn acquire_named(&self, lease: &NamedLease, limits: NamedLimits) -> Reply<NamedLeased> {
        let slots = self.0.clone();
        if slots.check().is_err() {
            return Reply::Ready(NamedLeased::NotAsked(slots.failure_mode()));
        }
        let lease = *lease;
        Reply::Pending(Box::pin(async move {
            let leased = slots.acquire_named(lease, limits).await;
            leased.unwrap_or_else(|error| match error.was_sent() {
                true => NamedLeased::Unavailable(slots.failure_mode()),
                false => NamedLeased::NotAsked(slots.failure_mode()),
            })
        }))
    }

    fn heartbeat(&self, name: &LeaseName, holder: Option<u64>, ttl: Duration) -> Reply<Standing> {
        let (slots, name) = (self.0.clone(), *name);
        Reply::Pending(Box::pin(async move {
            slots.heartbeat_named(name, holder, ttl).await
        }))
    }

    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<Standing> {
        let (slots, name) = (self.0.clone(), *name);
        Reply::Pending(Box::pin(
            async move { slots.release_named(name, holder).await },
        ))
    }

    fn place(&self) -> Option<&str> {
        Some(&self.0.names.total)
    }
}

impl Drop for RedisLeases {
    fn drop(&mut self) {
        self.0.keeper.end();
    }
}

impl Slots {
    async fn acquire(self: Arc<Self>, limits: LeaseLimits) -> Result<Leased, StoreError> {
        let of_keys = limits.keys().iter().enumerate();
        let of_keys = of_keys.map(|(place, (key, _))| self.names.of_key(place, key));
        let of_keys: OfKeys = of_keys.collect();
        let mut lease = Lease {
            id: new_id(),
            of_keys: of_keys.clone(),
            may_be_taken: true,
            slots: self,
        };
        let slots = lease.slots.clone();
        let deadline = slots.store.client.deadline();
        let id = lease.id;
        let asked = [Asked {
            id,
            of_keys: &of_keys,
            limits: &limits,
        }];
        let mut outcomes = slots.ask(&asked, deadline).await.inspect_err(|error| {
            // If it was not sent, there is nothing to give back.
            lease.may_be_taken = error.was_sent();
        })?;
        if outcomes[0] == Outcome::Late {
            // But here is its asker, waiting. So it is the first, or the clocks have drifted apart
            // since the last answer, and with this one's time it is in time.
            outcomes = slots.ask(&asked, deadline).await?;
        }
        let outcome = outcomes[0];
        if outcome == Outcome::Granted {
            slots.hold(id, lease.of_keys.clone());
            return Ok(Leased::Granted(Box::new(lease)));
        }
        lease.may_be_taken = false;
        Ok(match outcome {
            Outcome::Full => Leased::Full,
            Outcome::KeyFull { place } => Leased::KeyFull { place },
            Outcome::Granted | Outcome::Late | Outcome::Wrong => {
                Leased::Unavailable(slots.failure_mode())
            }
        })
    }

    /// Asks for leases in their order of arrival.
    async fn ask(
        &self,
        leases: &[Asked<'_>],
        deadline: Instant,
    ) -> Result<Vec<Outcome>, StoreError> {
        let mut keys = vec![self.names.total.clone()];
        let mut arguments = self.arguments(Instant::now(), self.ttl());
        for lease in leases {
            let limits = lease.limits.keys();
            keys.extend_from_slice(lease.of_keys);
            arguments.extend([self.member(lease.id), or_none(lease.limits.total)]);
            arguments.push(limits.len().to_string());
            arguments.extend(limits.iter().map(|(_, limit)| limit.to_string()));
        }
        let client = &self.store.client;
        let script = &self.store.leases.acquire;
        // The ids make a second one the same as the first.
        let answer = client.run(script, &keys, &*arguments, deadline, Again::Once);
        let wrong = || client.failed(StoreError::new(FailureKind::WrongData).after_sending());
        let answer: Vec<redis::Value> = answer.await?;
        let [time, epoch, outcomes @ ..] = &*answer else {
            return Err(wrong());
        };
        let time = redis::from_redis_value_ref(time).map_err(|_| wrong())?;
        let epoch = redis::from_redis_value_ref(epoch).map_err(|_| wrong())?;
        self.learn(time, epoch);
        let outcomes: Vec<_> = outcomes.chunks(2).map_while(Outcome::parse).collect();
        if outcomes.len() != leases.len() {
            return Err(wrong());
        }
        if outcomes.contains(&Outcome::Wrong) {
            wrong();
        }
        Ok(outcomes)
    }

    /// What a lease without a name is called in Redis.
    pub(super) fn member(&self, id: u64) -> String {
        format!("{id} {}", self.ttl().as_millis())
    }

    /// What scripts that take leases take first: a word for the epoch, the time to live, and until
    /// when they are not too late.
    pub(super) fn arguments(&self, asked: Instant, ttl: Duration) -> Vec<String> {
        vec![
            format!("epoch {}", new_id()),
            ttl.as_millis().to_string(),
            self.not_after(asked).to_string(),
        ]
    }

    async fn usage(&self, of_key: Option<String>) -> Result<LeaseUsage, StoreError> {
        let mut keys = vec![self.names.total.clone()];
        keys.extend(of_key);
        let script = &self.store.leases.usage;
        let deadline = self.store.client.deadline();
        let counts = self.store.client.run(
            script,
            &keys,
            self.ttl().as_millis() as u64,
            deadline,
            Again::Once,
        );
        let counts: Vec<u64> = counts.await?;
        Ok(LeaseUsage::new(
            counts.first().copied().unwrap_or(0),
            counts.get(1).copied(),
        ))
    }

    /// Fails at once while the server of these slots cannot be reached.
    fn check(&self) -> Result<(), StoreError> {
        self.store.client.check(|| self.names.total.clone())
    }

    /// How a request is decided that Redis does not decide. Reports one such decision.
    pub(super) fn failure_mode(&self) -> FailureMode {
        let mode = self.store.options.on_failure;
        self.store.client.events().decided_without(mode);
        mode
    }

    pub(super) fn ttl(&self) -> Duration {
        self.store.options.lease_ttl
    }

    /// The server's time after which a call that was sent now has been given up. A client's timeout
    /// does not take back a command that was sent.
    fn not_after(&self, asked: Instant) -> u64 {
        let Some((at, time)) = *lock(&self.clock) else {
            // Always too late: the answer has the time, and who waits for it asks again.
            return 1;
        };
        // The answer took up to a deadline to get here, so the server is ahead by as much.
        let patience = 2 * self.store.options.client.deadline + asked.saturating_duration_since(at);
        time + patience.as_millis() as u64
    }

    /// Takes note of the server's clock and epoch. Another epoch means that its data is lost, so
    /// what is held is told to it at once.
    pub(super) fn learn(&self, time: u64, epoch: Vec<u8>) {
        *lock(&self.clock) = Some((Instant::now(), time));
        if epoch.is_empty() {
            return;
        }
        let before = std::mem::replace(&mut *lock(&self.epoch), epoch.clone());
        if !before.is_empty() && before != epoch {
            self.keeper.assert();
        }
    }
}

/// A limit as scripts take it.
pub(super) fn or_none(limit: Option<u64>) -> String {
    limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string())
}

/// A number that no other lease of any replica has: random, and counted on from there.
fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).expect("the operating system gives random bytes");
        // 2^63 apart from others is far; a race to start is no harm.
        let _ = NEXT.compare_exchange(
            0,
            u64::from_le_bytes(bits) | 1,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
    NEXT.fetch_add(1, Ordering::Relaxed)
}
