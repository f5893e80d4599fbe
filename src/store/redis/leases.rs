//! The slots of one limiter in Redis: sorted sets of leases, by when they expire.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Inner;
use super::failure::StoreError;
use super::names::LeaseNames;
use super::script::Script;
use crate::key::Key;
use crate::store::{Held, LeaseLimits, LeaseUsage, Leased, Leases, Reply};
use crate::sync::lock;

/// Leases in one call of the keeper's.
const BATCH: usize = 256;

/// Releases that wait for their turn at most. What is above is left to expire.
const MOST_RELEASES: usize = 1 << 16;

/// The pause after a release that failed.
const RETRY: Duration = Duration::from_millis(100);

pub(super) struct RedisLeases(Arc<Slots>);

struct Slots {
    store: Arc<Inner>,
    names: LeaseNames,
    keeper: Keeper,
    /// The server's time at a moment of ours, by the last answer.
    clock: Mutex<Option<(Instant, u64)>>,
    /// The last answer's.
    epoch: Mutex<String>,
}

/// What the background task, the keeper, looks after.
#[derive(Default)]
struct Keeper {
    runs: AtomicBool,
    wake: Notify,
    /// Leases to keep alive, with the Redis key that holds those of their key.
    held: Mutex<HashMap<u64, Option<String>>>,
    /// Leases to give back: until when that matters.
    releases: Mutex<Vec<Release>>,
    /// Whether what is held is to be told to Redis at once.
    assert: AtomicBool,
    ended: AtomicBool,
}

impl Keeper {
    fn has_work(&self) -> bool {
        self.assert.load(Ordering::Acquire) || !lock(&self.releases).is_empty()
    }

    /// Ends the task if there is nothing left to look after.
    fn ends(&self) -> bool {
        let is_idle = || lock(&self.held).is_empty() && lock(&self.releases).is_empty();
        if !is_idle() {
            return false;
        }
        self.runs.store(false, Ordering::Release);
        // Whoever came in between has either started another or is seen here.
        is_idle() || self.runs.swap(true, Ordering::AcqRel)
    }
}

struct Release {
    id: u64,
    of_key: Option<String>,
    until: Instant,
}

pub(super) struct Scripts {
    acquire: Script,
    heartbeat: Script,
    release: Script,
    usage: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            acquire: Script::new(include_str!("acquire.lua")),
            heartbeat: Script::new(include_str!("heartbeat.lua")),
            release: Script::new(include_str!("release.lua")),
            usage: Script::new(include_str!("usage.lua")),
        }
    }
}

/// A lease, from before it is asked for: however its story ends, it is given back.
struct Lease {
    slots: Arc<Slots>,
    id: u64,
    of_key: Option<String>,
    /// Whether the store was asked and has not said no.
    may_be_taken: bool,
}

impl Held for Lease {}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.may_be_taken {
            self.slots.give_back(self.id, self.of_key.take());
        }
    }
}

/// What `acquire.lua` answers.
const GRANTED: i64 = 1;
const FULL: i64 = 0;
const KEY_FULL: i64 = -1;

impl RedisLeases {
    pub(super) fn new(store: Arc<Inner>, name: &str) -> Self {
        Self(Arc::new(Slots {
            names: store.names.leases(name),
            store,
            keeper: Keeper::default(),
            clock: Mutex::new(None),
            epoch: Mutex::new(String::new()),
        }))
    }
}

impl Leases for RedisLeases {
    fn acquire(&self, limits: LeaseLimits) -> Reply<Leased> {
        let slots = self.0.clone();
        let unavailable = Leased::Unavailable(slots.store.options.on_failure);
        if slots.store.client.check().is_err() {
            return Reply::Ready(unavailable);
        }
        Reply::Pending(Box::pin(async move {
            slots.acquire(limits).await.unwrap_or(unavailable)
        }))
    }

    fn usage(&self, key: Option<&Key>) -> Reply<Option<LeaseUsage>> {
        let slots = self.0.clone();
        let key = key.copied();
        Reply::Pending(Box::pin(async move { slots.usage(key).await.ok() }))
    }
}

impl Drop for RedisLeases {
    fn drop(&mut self) {
        // The keeper ends once nothing is held.
        self.0.keeper.ended.store(true, Ordering::Release);
        self.0.keeper.wake.notify_one();
    }
}

impl Slots {
    async fn acquire(self: Arc<Self>, limits: LeaseLimits) -> Result<Leased, StoreError> {
        let of_key = limits.key.map(|(key, _)| self.names.of_key(&key));
        let mut lease = Lease {
            id: new_id(),
            of_key: of_key.clone(),
            may_be_taken: true,
            slots: self,
        };
        let slots = lease.slots.clone();
        let asked = Instant::now();
        let deadline = slots.store.client.deadline();
        let mut keys = vec![slots.names.total.clone(), slots.names.epoch.clone()];
        keys.extend(of_key);
        let arguments = [
            lease.id.to_string(),
            slots.ttl().as_millis().to_string(),
            slots.not_after(asked).to_string(),
            new_id().to_string(),
            limits.total.unwrap_or(0).to_string(),
            limits.key.map_or(0, |(_, limit)| limit).to_string(),
        ];
        let script = &slots.store.leases.acquire;
        let answer = slots
            .store
            .client
            .run(script, &keys, &arguments[..], deadline);
        let (outcome, time, epoch): (i64, u64, String) = answer.await?;
        slots.learn(time, epoch, false);
        Ok(match outcome {
            GRANTED => {
                slots.hold(&lease);
                Leased::Granted(Box::new(lease))
            }
            outcome => {
                lease.may_be_taken = false;
                match outcome {
                    FULL => Leased::Full,
                    KEY_FULL => Leased::KeyFull,
                    // Too late, so that its asker has given up as well.
                    _ => Leased::Unavailable(slots.store.options.on_failure),
                }
            }
        })
    }

    async fn usage(&self, key: Option<Key>) -> Result<LeaseUsage, StoreError> {
        let mut keys = vec![self.names.total.clone()];
        keys.extend(key.map(|key| self.names.of_key(&key)));
        let script = &self.store.leases.usage;
        let deadline = self.store.client.deadline();
        let counts = self
            .store
            .client
            .run(script, &keys, &[] as &[u64], deadline);
        let counts: Vec<u64> = counts.await?;
        Ok(LeaseUsage::new(
            counts.first().copied().unwrap_or(0),
            counts.get(1).copied(),
        ))
    }

    fn ttl(&self) -> Duration {
        self.store.options.lease_ttl
    }

    /// The server's time after which an acquire that was sent now has been given up; 0 if that
    /// is not known. A client's timeout does not take back a command that was sent.
    fn not_after(&self, asked: Instant) -> u64 {
        let Some((at, time)) = *lock(&self.clock) else {
            return 0;
        };
        // The answer took up to a deadline to get here, so the server is ahead by as much.
        let patience = 2 * self.store.options.client.deadline + asked.saturating_duration_since(at);
        time + patience.as_millis() as u64
    }

    /// Takes note of the server's clock and epoch. Another epoch means that its data is lost, so
    /// what is held is told to it at once.
    fn learn(&self, time: u64, epoch: String, told: bool) {
        *lock(&self.clock) = Some((Instant::now(), time));
        if epoch.is_empty() {
            return;
        }
        let before = std::mem::replace(&mut *lock(&self.epoch), epoch.clone());
        if !before.is_empty() && before != epoch && !told {
            self.keeper.assert.store(true, Ordering::Release);
            self.keeper.wake.notify_one();
        }
    }

    fn hold(self: &Arc<Self>, lease: &Lease) {
        lock(&self.keeper.held).insert(lease.id, lease.of_key.clone());
        self.keep();
    }

    fn give_back(self: &Arc<Self>, id: u64, of_key: Option<String>) {
        lock(&self.keeper.held).remove(&id);
        {
            let mut releases = lock(&self.keeper.releases);
            if releases.len() < MOST_RELEASES {
                let until = Instant::now() + self.ttl();
                releases.push(Release { id, of_key, until });
            }
        }
        self.keep();
        self.keeper.wake.notify_one();
    }

    /// Starts the keeper unless it runs.
    fn keep(self: &Arc<Self>) {
        let keeper = &self.keeper;
        if keeper.runs.load(Ordering::Acquire) || keeper.runs.swap(true, Ordering::AcqRel) {
            return;
        }
        let kept = Kept(self.clone());
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { kept.0.look_after().await })),
            Err(_) => drop(kept),
        }
    }

    async fn look_after(self: &Arc<Self>) {
        let interval = self.ttl() / 3;
        let mut next = Instant::now() + jittered(interval);
        loop {
            let wait = if self.keeper.has_work() {
                Instant::now()
            } else {
                next
            };
            tokio::select! {
                () = self.keeper.wake.notified() => {}
                () = tokio::time::sleep_until(wait) => {}
            }
            let released = self.release_all().await;
            let asserts = self.keeper.assert.swap(false, Ordering::AcqRel);
            let kept = if asserts || Instant::now() >= next {
                next = Instant::now() + jittered(interval);
                self.heartbeat().await
            } else {
                Ok(())
            };
            if released.and(kept).is_err() {
                tokio::time::sleep(RETRY).await;
            }
            if self.keeper.ended.load(Ordering::Acquire) && self.keeper.ends() {
                return;
            }
        }
    }

    /// Gives back what is to be given back, together.
    async fn release_all(&self) -> Result<(), StoreError> {
        loop {
            let batch: Vec<Release> = {
                let mut releases = lock(&self.keeper.releases);
                let from = releases.len().saturating_sub(BATCH);
                releases.split_off(from)
            };
            if batch.is_empty() {
                return Ok(());
            }
            let mut keys = vec![self.names.total.clone()];
            keys.extend(
                batch
                    .iter()
                    .map(|release| self.names.or_total(&release.of_key)),
            );
            let ids: Vec<u64> = batch.iter().map(|release| release.id).collect();
            let client = &self.store.client;
            let script = &self.store.leases.release;
            let released = match client.check() {
                Ok(()) => client.run(script, &keys, &*ids, client.deadline()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = released.map(|_: u64| ()) {
                // Later, as long as they have not expired by then.
                let now = Instant::now();
                let mut releases = lock(&self.keeper.releases);
                releases.extend(batch.into_iter().filter(|release| release.until > now));
                return Err(error);
            }
        }
    }

    async fn heartbeat(&self) -> Result<(), StoreError> {
        let held: Vec<(u64, Option<String>)> = {
            let held = lock(&self.keeper.held);
            held.iter()
                .map(|(id, of_key)| (*id, of_key.clone()))
                .collect()
        };
        for batch in held.chunks(BATCH) {
            let mut keys = vec![self.names.total.clone(), self.names.epoch.clone()];
            keys.extend(batch.iter().map(|(_, of_key)| self.names.or_total(of_key)));
            let mut arguments = vec![new_id(), self.ttl().as_millis() as u64];
            arguments.extend(batch.iter().map(|(id, _)| *id));
            let client = &self.store.client;
            let script = &self.store.leases.heartbeat;
            let answer = match client.check() {
                Ok(()) => {
                    client
                        .run(script, &keys, &*arguments, client.deadline())
                        .await
                }
                Err(error) => Err(error),
            };
            let (_, time, epoch): (u64, u64, String) = answer.inspect_err(|_| {
                // As soon as it can be done.
                self.keeper.assert.store(true, Ordering::Release);
            })?;
            self.learn(time, epoch, true);
            self.release_what_ended(batch);
        }
        Ok(())
    }

    /// A lease that was given back while its heartbeat was on its way may be there again.
    fn release_what_ended(&self, batch: &[(u64, Option<String>)]) {
        let held = lock(&self.keeper.held);
        let ended = batch.iter().filter(|(id, _)| !held.contains_key(id));
        let until = Instant::now() + self.ttl();
        let ended: Vec<_> = ended
            .map(|(id, of_key)| Release {
                id: *id,
                of_key: of_key.clone(),
                until,
            })
            .collect();
        drop(held);
        lock(&self.keeper.releases).extend(ended);
    }
}

/// Says that there is no keeper any more when it ends, also with its runtime.
struct Kept(Arc<Slots>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.keeper.runs.store(false, Ordering::Release);
    }
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + fastrand::f64() / 5.0)
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
