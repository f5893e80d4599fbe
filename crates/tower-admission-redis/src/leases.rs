//! The leases of one limiter in Redis: sorted sets of lease ids by their expiry.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::Inner;
use super::acquire::LANE;
use super::call_error::CallError;
use super::client::Retry;
use super::keeper::Keeper;
use super::lanes::{self, Lanes};
use super::names::LeaseNames;
use super::script::Script;
use super::sync::lock;
use tower_admission::Key;
use tower_admission::store::FailureKind;
use tower_admission::store::{
    AcquireOutcome, FailureMode, LeaseLimits, LeaseName, LeaseSlots, LeaseStatus, LeaseUsage,
    NamedAcquireOutcome, NamedLease, NamedLimits, Reply, StoreStatus,
};

pub(super) struct RedisLeases(Arc<Slots>);

pub(super) struct Slots {
    pub(super) store: Arc<Inner>,
    pub(super) names: LeaseNames,
    pub(super) keeper: Keeper,
    pub(super) lanes: Lanes<Self>,
    /// The server's time at an instant of this process, from the last answer.
    clock: Mutex<Option<(Instant, u64)>>,
    /// The epoch of the last answer.
    epoch: Mutex<Vec<u8>>,
}

/// The leases of all limiters of a store and its clones that are in use.
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

    pub(super) async fn flush(&self) -> Result<(), CallError> {
        let opened: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        for slots in opened {
            slots.flush().await?;
        }
        Ok(())
    }
}

/// A script that uses the server's clock.
macro_rules! on_clock {
    ($script:literal) => {
        concat!(
            include_str!("scripts/lease_clock.lua"),
            include_str!(concat!("scripts/", $script))
        )
    };
}
pub(super) use on_clock;

pub(super) struct Scripts {
    pub(super) acquire: Script,
    pub(super) heartbeat: Script,
    pub(super) release: Script,
    usage: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            acquire: Script::new(on_clock!("acquire.lua")),
            heartbeat: Script::new(on_clock!("heartbeat.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            usage: Script::new(on_clock!("usage.lua")),
        }
    }
}

/// The Redis keys that hold a lease for each of its keys.
pub(super) type OfKeys = SmallVec<[String; 2]>;

/// Outcomes of `acquire.lua`.
pub(super) const GRANTED: i64 = 1;
pub(super) const FULL: i64 = 0;
pub(super) const KEY_FULL: i64 = -1;
pub(super) const LATE: i64 = -2;

impl RedisLeases {
    fn new(store: Arc<Inner>, name: &str) -> Self {
        Self(Arc::new(Slots {
            names: store.names.leases(name),
            store,
            keeper: Keeper::default(),
            lanes: Lanes::new(),
            clock: Mutex::new(None),
            epoch: Mutex::default(),
        }))
    }
}

impl LeaseSlots for RedisLeases {
    fn acquire(&self, limits: LeaseLimits) -> Reply<AcquireOutcome> {
        let slots = self.0.clone();
        if slots.check().is_err() {
            return Reply::Ready(AcquireOutcome::Unavailable(slots.failure_mode()));
        }
        Reply::Pending(Box::pin(async move {
            let leased = lanes::ask(&slots, LANE, limits, Instant::now()).await;
            let leased = leased.unwrap_or_else(|| {
                slots
                    .store
                    .client
                    .failed(CallError::new(FailureKind::Timeout));
                None
            });
            leased.unwrap_or_else(|| AcquireOutcome::Unavailable(slots.failure_mode()))
        }))
    }

    fn usage_at(&self, key: Option<&Key>, place: usize) -> Reply<Option<LeaseUsage>> {
        let slots = self.0.clone();
        let of_key = key.map(|key| slots.names.of_key(place, key));
        Reply::Pending(Box::pin(async move { slots.usage(of_key).await.ok() }))
    }

    fn acquire_named(&self, lease: &NamedLease, limits: NamedLimits) -> Reply<NamedAcquireOutcome> {
        let slots = self.0.clone();
        if slots.check().is_err() {
            return Reply::Ready(NamedAcquireOutcome::NotAsked(slots.failure_mode()));
        }
        let lease = *lease;
        Reply::Pending(Box::pin(async move {
            let leased = slots.acquire_named(lease, limits).await;
            leased.unwrap_or_else(|error| match error.was_sent() {
                true => NamedAcquireOutcome::Unavailable(slots.failure_mode()),
                false => NamedAcquireOutcome::NotAsked(slots.failure_mode()),
            })
        }))
    }

    fn heartbeat(
        &self,
        name: &LeaseName,
        holder: Option<u64>,
        ttl: Duration,
    ) -> Reply<LeaseStatus> {
        let (slots, name) = (self.0.clone(), *name);
        Reply::Pending(Box::pin(async move {
            slots.heartbeat_named(name, holder, ttl).await
        }))
    }

    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<LeaseStatus> {
        let (slots, name) = (self.0.clone(), *name);
        Reply::Pending(Box::pin(
            async move { slots.release_named(name, holder).await },
        ))
    }

    fn place(&self) -> Option<&str> {
        Some(&self.0.names.total)
    }

    fn status(&self) -> Option<StoreStatus> {
        Some(self.0.store.status())
    }
}

impl Drop for RedisLeases {
    fn drop(&mut self) {
        self.0.keeper.end();
    }
}

impl Slots {
    /// The id of an unnamed lease in Redis.
    pub(super) fn member(&self, id: u64) -> String {
        format!("{id} {}", self.ttl().as_millis())
    }

    /// The first arguments of scripts that take leases: a new epoch, the time to live, and the server's time after
    /// which the call is too late.
    pub(super) fn arguments(&self, asked: Instant, ttl: Duration) -> Vec<String> {
        vec![
            format!("epoch {}", new_id()),
            ttl.as_millis().to_string(),
            self.not_after(asked).to_string(),
        ]
    }

    async fn usage(&self, of_key: Option<String>) -> Result<LeaseUsage, CallError> {
        let mut keys = vec![self.names.total.clone()];
        keys.extend(of_key);
        let script = &self.store.leases.usage;
        let deadline = self.store.client.deadline();
        let counts = self.store.client.run(
            script,
            &keys,
            self.ttl().as_millis() as u64,
            deadline,
            Retry::Once,
        );
        let counts: Vec<u64> = counts.await?;
        Ok(LeaseUsage::new(
            counts.first().copied().unwrap_or(0),
            counts.get(1).copied(),
        ))
    }

    /// Fails at once while the server of these leases is unavailable.
    fn check(&self) -> Result<(), CallError> {
        self.store.client.check(|| self.names.total.clone())
    }

    /// The failure mode that decides a request instead of Redis. Reports that decision.
    pub(super) fn failure_mode(&self) -> FailureMode {
        let mode = self.store.options.on_failure;
        self.store.client.events().decided_without(mode);
        mode
    }

    pub(super) fn ttl(&self) -> Duration {
        self.store.options.lease_ttl
    }

    /// The server's time after which the caller has stopped waiting for a call that is sent now. A timeout here does
    /// not cancel a command that was sent.
    fn not_after(&self, asked: Instant) -> u64 {
        let Some((at, time)) = *lock(&self.clock) else {
            // Always too late: the answer contains the time, and a caller that still waits calls again.
            return 1;
        };
        // The answer took up to a deadline to arrive, so the server's clock is ahead by as much.
        let patience = 2 * self.store.options.client.deadline + asked.saturating_duration_since(at);
        time + patience.as_millis() as u64
    }

    /// Records the server's clock and epoch. A new epoch means that Redis lost its data, so all live leases are written
    /// again at once.
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

/// A limit as an argument of scripts.
pub(super) fn or_none(limit: Option<u64>) -> String {
    limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string())
}

/// A number that no other lease of any replica has: a random start that is counted up.
pub(super) fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).expect("the operating system gives random bytes");
        // Random starts are far apart. A race to set the start is harmless.
        let _ = NEXT.compare_exchange(
            0,
            u64::from_le_bytes(bits) | 1,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
    NEXT.fetch_add(1, Ordering::Relaxed)
}
