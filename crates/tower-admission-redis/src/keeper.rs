//! The task that keeps the slots of one limiter alive, and gives back those that are free.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::client::Again;
use super::failure::CallError;
use super::leases::{LATE, OfKeys, Slots};
use super::sync::lock;
use tower_admission::provider::{SingletonTask, TaskTerm};
use tower_admission::store::FailureKind;

/// Leases in one call of the keeper's.
const BATCH: usize = 256;

/// Releases that wait for their turn at most. What is above is left to expire.
const MOST_RELEASES: usize = 1 << 16;

/// The pause after a call that failed.
const RETRY: Duration = Duration::from_millis(100);

/// What is looked after, and whether anybody does.
#[derive(Default)]
pub(super) struct Keeper {
    task: SingletonTask,
    wake: Notify,
    /// Leases to keep alive, with the Redis keys that hold those of their keys.
    held: Mutex<HashMap<u64, OfKeys>>,
    /// Leases to give back, those that have waited longest in front.
    releases: Mutex<VecDeque<Release>>,
    /// Batches of them that are on their way.
    releasing: watch::Sender<usize>,
    /// Whether what is held is to be told to Redis at once.
    asserts: AtomicBool,
    ended: AtomicBool,
}

struct Release {
    id: u64,
    of_keys: OfKeys,
    /// When it has expired by itself.
    until: Instant,
}

impl Keeper {
    pub(super) fn assert(&self) {
        self.asserts.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// No more leases will come: the task ends once nothing is held.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn has_work(&self) -> bool {
        self.asserts.load(Ordering::Acquire) || !lock(&self.releases).is_empty()
    }

    fn queue(&self, ended: impl IntoIterator<Item = Release>) {
        let mut releases = lock(&self.releases);
        let room = MOST_RELEASES.saturating_sub(releases.len());
        releases.extend(ended.into_iter().take(room));
    }

    /// Ends the task if there is nothing left to look after.
    fn ends(&self, term: &mut TaskTerm) -> bool {
        let is_idle = || lock(&self.held).is_empty() && lock(&self.releases).is_empty();
        if !is_idle() {
            return false;
        }
        self.task.release(*term);
        // Whoever came in between has either started another or is seen here.
        if is_idle() {
            return true;
        }
        match self.task.claim() {
            Some(again) => {
                *term = again;
                false
            }
            None => true,
        }
    }
}

impl Slots {
    pub(super) fn hold(self: &Arc<Self>, id: u64, of_keys: OfKeys) {
        lock(&self.keeper.held).insert(id, of_keys);
        self.keep();
    }

    pub(super) fn give_back(self: &Arc<Self>, id: u64, of_keys: OfKeys) {
        lock(&self.keeper.held).remove(&id);
        self.keeper.queue([self.release(id, of_keys)]);
        self.keep();
        self.keeper.wake.notify_one();
    }

    fn release(&self, id: u64, of_keys: OfKeys) -> Release {
        let until = Instant::now() + self.ttl();
        Release { id, of_keys, until }
    }

    /// Starts the keeper unless it runs.
    fn keep(self: &Arc<Self>) {
        let Some(term) = self.keeper.task.claim() else {
            return;
        };
        let kept = Kept {
            slots: self.clone(),
            term,
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(kept.look_after())),
            Err(_) => drop(kept),
        }
    }

    /// Gives back all that is to be given back, and waits for what is on its way.
    pub(super) async fn flush(&self) -> Result<(), CallError> {
        loop {
            self.release_some().await?;
            // What the task has in hand may come back to the queue. The sender is ours, and stays.
            let mut releasing = self.keeper.releasing.subscribe();
            let _ = releasing.wait_for(|batches| *batches == 0).await;
            if lock(&self.keeper.releases).is_empty() {
                return Ok(());
            }
        }
    }

    /// Gives back a batch of what is to be given back.
    async fn release_some(&self) -> Result<(), CallError> {
        let (batch, _releasing) = {
            let mut releases = lock(&self.keeper.releases);
            let size = releases.len().min(BATCH);
            let batch: Vec<Release> = releases.drain(..size).collect();
            (batch, Releasing::new(&self.keeper.releasing))
        };
        if batch.is_empty() {
            return Ok(());
        }
        let (keys, ids) = self.entries(batch.iter().map(|of| (of.id, &of.of_keys)));
        let client = &self.store.client;
        let script = &self.store.leases.release;
        let deadline = client.deadline();
        let released = client.run_apart(script, &keys, &*ids, deadline, Again::Once);
        match released.await {
            Ok(wrong) => {
                self.found_wrong(wrong);
                Ok(())
            }
            Err(error) => {
                // Later, as long as they have not expired by then.
                let now = Instant::now();
                self.keeper
                    .queue(batch.into_iter().filter(|release| release.until > now));
                Err(error)
            }
        }
    }

    async fn heartbeat(&self) -> Result<(), CallError> {
        let held: Vec<(u64, OfKeys)> = {
            let held = lock(&self.keeper.held);
            held.iter()
                .map(|(id, of_keys)| (*id, of_keys.clone()))
                .collect()
        };
        for batch in held.chunks(BATCH) {
            let (keys, ids) = self.entries(batch.iter().map(|(id, of_keys)| (*id, of_keys)));
            let mut arguments = self.arguments(Instant::now(), self.ttl());
            arguments.extend(ids);
            let client = &self.store.client;
            let script = &self.store.leases.heartbeat;
            let deadline = client.deadline();
            let answer = client.run_apart(script, &keys, &*arguments, deadline, Again::Once);
            let answer = answer.await.inspect_err(|_| {
                // As soon as it can be done.
                self.keeper.asserts.store(true, Ordering::Release);
            })?;
            let (outcome, time, epoch, wrong): (i64, u64, Vec<u8>, u64) = answer;
            self.learn(time, epoch);
            if outcome == LATE {
                // Our idea of the server's clock was wrong, which it no longer is.
                self.keeper.asserts.store(true, Ordering::Release);
            }
            self.found_wrong(wrong);
            self.release_what_ended(batch);
        }
        Ok(())
    }

    /// A lease that was given back while its heartbeat was on its way may be there again.
    fn release_what_ended(&self, batch: &[(u64, OfKeys)]) {
        let ended: Vec<_> = {
            let held = lock(&self.keeper.held);
            let ended = batch.iter().filter(|(id, _)| !held.contains_key(id));
            ended
                .map(|(id, of_keys)| self.release(*id, of_keys.clone()))
                .collect()
        };
        self.keeper.queue(ended);
    }

    /// What scripts take of several leases: the Redis key of all of them, then one for each key of
    /// each lease, and the id of the lease that each of these is for.
    fn entries<'a>(
        &self,
        leases: impl Iterator<Item = (u64, &'a OfKeys)>,
    ) -> (Vec<String>, Vec<String>) {
        let (mut keys, mut ids) = (vec![self.names.total.clone()], Vec::new());
        for (id, of_keys) in leases {
            let total = std::slice::from_ref(&self.names.total);
            let in_keys = if of_keys.is_empty() { total } else { of_keys };
            keys.extend_from_slice(in_keys);
            ids.extend(in_keys.iter().map(|_| self.member(id)));
        }
        (keys, ids)
    }

    fn found_wrong(&self, keys: u64) {
        for _ in 0..keys {
            let error = CallError::new(FailureKind::WrongData);
            self.store.client.failed(error);
        }
    }
}

/// A batch on its way, also if nobody waits for it any more.
struct Releasing<'a>(&'a watch::Sender<usize>);

impl<'a> Releasing<'a> {
    fn new(batches: &'a watch::Sender<usize>) -> Self {
        batches.send_modify(|batches| *batches += 1);
        Self(batches)
    }
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|batches| *batches -= 1);
    }
}

/// The keeper at work. When it ends, also with its runtime, there is none any more.
struct Kept {
    slots: Arc<Slots>,
    term: TaskTerm,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.slots.keeper.task.release(self.term);
    }
}

impl Kept {
    async fn look_after(mut self) {
        let slots = self.slots.clone();
        let keeper = &slots.keeper;
        let interval = slots.ttl() / 3;
        let mut next = Instant::now() + jittered(interval);
        loop {
            if !keeper.has_work() {
                tokio::select! {
                    () = keeper.wake.notified() => {}
                    () = tokio::time::sleep_until(next) => {}
                }
            }
            // A batch at a time, so that heartbeats do not wait until all is given back: there may
            // always be more.
            let released = slots.release_some().await;
            let asserts = keeper.asserts.swap(false, Ordering::AcqRel);
            let kept = if asserts || Instant::now() >= next {
                next = Instant::now() + jittered(interval);
                slots.heartbeat().await
            } else {
                Ok(())
            };
            if released.and(kept).is_err() {
                tokio::time::sleep(RETRY).await;
            }
            if keeper.ended.load(Ordering::Acquire) && keeper.ends(&mut self.term) {
                return;
            }
        }
    }
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + fastrand::f64() / 5.0)
}
