//! Releases pending leases, in the background if the store answers later.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::store::{LeaseName, LeaseSlots, LeaseStatus, Reply};
use crate::sync::{Mutex, lock};

/// The maximum number of queued releases for acquires with an unknown result. Others are left to
/// expire. Granted slots have no such bound; they were bounded when they were granted.
const MAX_UNCONFIRMED: usize = 1 << 16;

/// The number of releases in one batch.
const BATCH: usize = 64;

/// The pause after a failed release.
const RETRY: Duration = Duration::from_millis(100);

/// How often the task records progress while it waits for the store. After [`TASK_TIMEOUT`] without
/// progress, its runtime has stalled and another task takes over.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
const TASK_TIMEOUT: Duration = Duration::from_secs(1);

/// A queue of slots to release, and the task that releases them.
#[derive(Clone, Default)]
pub(super) struct Reaper(Arc<ReaperState>);

#[derive(Default)]
struct ReaperState {
    queue: Mutex<ReleaseQueue>,
    /// Notified when slots were released or the task has ended.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct ReleaseQueue {
    granted: VecDeque<PendingRelease>,
    unconfirmed: VecDeque<PendingRelease>,
    /// The releases that the task has sent to the store.
    in_progress: Vec<PendingRelease>,
    task: Option<RunningTask>,
    /// The number of tasks started so far.
    tasks: u64,
}

/// The current task. The number distinguishes it from a replaced task that notices late.
struct RunningTask {
    number: u64,
    progress_at: Instant,
}

/// A slot to release.
#[derive(Clone)]
pub(super) struct PendingRelease {
    pub(super) slots: Arc<dyn LeaseSlots>,
    pub(super) name: LeaseName,
    pub(super) holder: u64,
    /// Whether the slot was granted. If not, the store may have granted it.
    pub(super) was_granted: bool,
    /// The time at which the lease has expired.
    pub(super) until: Instant,
}

impl Reaper {
    /// Releases a slot now if the store can, else in the background. Outside of a tokio runtime,
    /// the release waits for the next call in a runtime.
    pub(super) fn release(&self, pending: PendingRelease) {
        if pending.release_now() {
            return;
        }
        lock(&self.0.queue).add(pending);
        self.ensure_task();
    }

    /// Waits until the queue is empty.
    pub(super) async fn flush(&self) {
        let mut changed = self.0.changed.subscribe();
        loop {
            self.ensure_task();
            if lock(&self.0.queue).is_empty() {
                return;
            }
            // Also restarts the task if necessary. `self` keeps the sender alive.
            let _ = timeout(TASK_TIMEOUT, changed.changed()).await;
        }
    }

    /// Starts a task if there is work and no live task.
    fn ensure_task(&self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let Some(number) = lock(&self.0.queue).start_task() else {
            return;
        };
        let task = ReleaseTask {
            reaper: self.clone(),
            number,
        };
        runtime.spawn(task.run());
    }
}

impl PendingRelease {
    fn release_now(&self) -> bool {
        let ask = || self.slots.release(&self.name, Some(self.holder));
        // A drop must not panic, whatever the store does.
        match catch_unwind(AssertUnwindSafe(ask)) {
            Ok(Reply::Ready(standing)) => standing != LeaseStatus::Unavailable,
            // Nothing was sent: the future was not polled.
            Ok(Reply::Pending(_)) | Err(_) => false,
        }
    }

    async fn release(&self) -> LeaseStatus {
        self.slots.release(&self.name, Some(self.holder)).await
    }
}

impl ReleaseQueue {
    fn is_empty(&self) -> bool {
        self.granted.is_empty() && self.unconfirmed.is_empty() && self.in_progress.is_empty()
    }

    fn add(&mut self, pending: PendingRelease) {
        if pending.was_granted {
            self.granted.push_back(pending);
        } else if self.unconfirmed.len() < MAX_UNCONFIRMED {
            self.unconfirmed.push_back(pending);
        }
    }

    /// Returns the number of a new task, unless one is alive or there is no work.
    fn start_task(&mut self) -> Option<u64> {
        let is_alive = |task: &RunningTask| task.progress_at.elapsed() < TASK_TIMEOUT;
        if self.is_empty() || self.task.as_ref().is_some_and(is_alive) {
            return None;
        }
        self.requeue();
        self.tasks += 1;
        self.task = Some(RunningTask {
            number: self.tasks,
            progress_at: Instant::now(),
        });
        Some(self.tasks)
    }

    /// Requeues what a task was releasing. A second release of the same slot has no effect.
    fn requeue(&mut self) {
        for pending in std::mem::take(&mut self.in_progress) {
            self.add(pending);
        }
    }

    /// Records progress of a task. Returns whether it is still the current task.
    fn record_progress(&mut self, number: u64) -> bool {
        let task = self.task.as_mut().filter(|task| task.number == number);
        task.map(|task| task.progress_at = Instant::now()).is_some()
    }

    fn finish_task(&mut self, number: u64) {
        if self.record_progress(number) {
            self.task = None;
            self.requeue();
        }
    }

    /// The next batch of a task; empty when the task must end.
    fn next(&mut self, number: u64, size: usize) -> Vec<PendingRelease> {
        if !self.record_progress(number) {
            return Vec::new();
        }
        let now = Instant::now();
        while self.in_progress.len() < size
            && let Some(pending) = self
                .granted
                .pop_front()
                .or_else(|| self.unconfirmed.pop_front())
        {
            if pending.until > now {
                self.in_progress.push(pending);
            }
        }
        if self.in_progress.is_empty() {
            // Cleared under the lock, so that the next caller sees that a task is needed.
            self.task = None;
        }
        self.in_progress.clone()
    }

    /// Ends a batch: everything but `failed` was released.
    fn finish_batch(&mut self, number: u64, failed: Vec<PendingRelease>) {
        if self.record_progress(number) {
            self.in_progress = failed;
            self.requeue();
        }
    }
}

struct ReleaseTask {
    reaper: Reaper,
    number: u64,
}

impl ReleaseTask {
    async fn run(self) {
        let shared = &*self.reaper.0;
        let mut size = BATCH;
        loop {
            let batch = lock(&shared.queue).next(self.number, size);
            if batch.is_empty() {
                return;
            }
            let batch_len = batch.len();
            let failed = self.release(batch).await;
            let failures = failed.len();
            lock(&shared.queue).finish_batch(self.number, failed);
            shared.changed.send_replace(());
            // A single release tests whether the store is available again.
            size = if failures == batch_len { 1 } else { BATCH };
            if failures > 0 {
                sleep(RETRY).await;
            }
        }
    }

    /// Returns the releases that failed.
    async fn release(&self, batch: Vec<PendingRelease>) -> Vec<PendingRelease> {
        // One task for each release, so that a store that panics ends only that one.
        let mut releases = JoinSet::new();
        for (n, pending) in batch.iter().cloned().enumerate() {
            releases.spawn(async move { (n, pending.release().await) });
        }
        // After this time every lease has expired, so waiting for the store is pointless.
        let until = batch.iter().map(|pending| pending.until).max();
        let mut failed: Vec<_> = batch.into_iter().map(Some).collect();
        loop {
            match timeout(PROGRESS_INTERVAL, releases.join_next()).await {
                Ok(None) => return failed.into_iter().flatten().collect(),
                Ok(Some(Ok((n, standing)))) if standing != LeaseStatus::Unavailable => {
                    failed[n] = None
                }
                Err(_) if until <= Some(Instant::now()) => {
                    return failed.into_iter().flatten().collect();
                }
                Ok(Some(_)) | Err(_) => {}
            }
            lock(&self.reaper.0.queue).record_progress(self.number);
        }
    }
}

impl Drop for ReleaseTask {
    /// When its runtime ends, a task ends before its work, and another task is needed.
    fn drop(&mut self) {
        lock(&self.reaper.0.queue).finish_task(self.number);
        self.reaper.0.changed.send_replace(());
    }
}
