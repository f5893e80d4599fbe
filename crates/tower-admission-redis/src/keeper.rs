//! The task that extends the permits of one limiter, and releases dropped ones.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::call_error::CallError;
use super::client::Retry;
use super::leases::{LATE, OfKeys, Slots};
use super::sync::lock;
use tower_admission::provider::{SingletonTask, TaskTerm};
use tower_admission::store::FailureKind;

/// The maximum number of leases in one call of the keeper.
const BATCH: usize = 256;

/// The maximum number of queued releases. Further ones expire in Redis.
const MAX_RELEASES: usize = 1 << 16;

/// The pause after a failed call.
const RETRY: Duration = Duration::from_millis(100);

/// The leases of a limiter, and the task that looks after them.
#[derive(Default)]
pub(super) struct Keeper {
    task: SingletonTask,
    wake: Notify,
    /// Leases to extend, with the Redis keys of their keys.
    held: Mutex<HashMap<u64, OfKeys>>,
    /// Leases to release, the oldest first.
    releases: Mutex<VecDeque<Release>>,
    /// Batches of releases in progress.
    releasing: watch::Sender<usize>,
    /// Whether all leases must be written to Redis at once.
    asserts: AtomicBool,
    ended: AtomicBool,
}

struct Release {
    id: u64,
    of_keys: OfKeys,
    /// When the lease expires in Redis.
    until: Instant,
}

impl Keeper {
    pub(super) fn assert(&self) {
        self.asserts.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// No more leases will be added: the task ends when none is left.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn has_work(&self) -> bool {
        self.asserts.load(Ordering::Acquire) || !lock(&self.releases).is_empty()
    }

    fn queue(&self, ended: impl IntoIterator<Item = Release>) {
        let mut releases = lock(&self.releases);
        let room = MAX_RELEASES.saturating_sub(releases.len());
        releases.extend(ended.into_iter().take(room));
    }

    /// Ends the task if there is nothing left to do.
    fn ends(&self, term: &mut TaskTerm) -> bool {
        let is_idle = || lock(&self.held).is_empty() && lock(&self.releases).is_empty();
        if !is_idle() {
            return false;
        }
        self.task.release(*term);
        // A lease that was added meanwhile has either started another task, or is visible here.
        if is_idle() {
            return true;
        }
        match self.task.claim() {
            Some(new_term) => {
                *term = new_term;
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

    pub(super) fn queue_release(self: &Arc<Self>, id: u64, of_keys: OfKeys) {
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

    /// Sends all queued releases, and waits for those in progress.
    pub(super) async fn flush(&self) -> Result<(), CallError> {
        loop {
            self.release_some().await?;
            // A batch in progress may return to the queue. This keeper owns the sender, so it exists.
            let mut releasing = self.keeper.releasing.subscribe();
            let _ = releasing.wait_for(|batches| *batches == 0).await;
            if lock(&self.keeper.releases).is_empty() {
                return Ok(());
            }
        }
    }

    /// Sends a batch of releases.
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
        let released = client.run_apart(script, &keys, &*ids, deadline, Retry::Once);
        match released.await {
            Ok(wrong) => {
                self.found_wrong(wrong);
                Ok(())
            }
            Err(error) => {
                // Later, unless they have expired by then.
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
            let answer = client.run_apart(script, &keys, &*arguments, deadline, Retry::Once);
            let answer = answer.await.inspect_err(|_| {
                // As soon as possible.
                self.keeper.asserts.store(true, Ordering::Release);
            })?;
            let (outcome, time, epoch, wrong): (i64, u64, Vec<u8>, u64) = answer;
            self.learn(time, epoch);
            if outcome == LATE {
                // The estimate of the server's clock was wrong; this answer corrected it.
                self.keeper.asserts.store(true, Ordering::Release);
            }
            self.found_wrong(wrong);
            self.release_what_ended(batch);
        }
        Ok(())
    }

    /// A lease that was released during its heartbeat may exist again.
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

    /// Arguments for several leases: the Redis key of the total, then one for each key of each lease, and the id of the
    /// lease for each of these.
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

/// A batch in progress, also when its caller was dropped.
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

/// The running keeper. Frees its place when it ends, also with its runtime.
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
            // One batch at a time, so that heartbeats do not wait for all releases: more may arrive at any time.
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
