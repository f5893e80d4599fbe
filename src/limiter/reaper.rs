//! Releases dropped leases, in the background if the store answers later.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::store::{LeaseName, LeaseSlots, Reply, Standing};
use crate::sync::{Mutex, lock};

/// The maximum number of queued releases for acquires with an unknown result. Others are left to
/// expire. Granted slots have no such bound; they were bounded when they were granted.
const MOST_UNSURE: usize = 1 << 16;

/// The number of releases in one batch.
const BATCH: usize = 64;

/// The pause after a failed release.
const RETRY: Duration = Duration::from_millis(100);

/// How often the task records progress while it waits for the store. After [`TASK_TIMEOUT`] without
/// progress, its runtime has stalled and another task takes over.
const SIGN: Duration = Duration::from_millis(250);
const OVERDUE: Duration = Duration::from_secs(1);

/// A queue of slots to release, and the task that releases them.
#[derive(Clone, Default)]
pub(super) struct Reaper(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when slots were released or the task has ended.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Queue {
    held: VecDeque<Dropped>,
    unsure: VecDeque<Dropped>,
    /// The releases that the task has sent to the store.
    in_hand: Vec<Dropped>,
    task: Option<Running>,
    /// The number of tasks started so far.
    tasks: u64,
}

/// The current task. The number distinguishes it from a replaced task that notices late.
struct Running {
    number: u64,
    seen: Instant,
}

/// A slot to release.
#[derive(Clone)]
pub(super) struct Dropped {
    pub(super) slots: Arc<dyn LeaseSlots>,
    pub(super) name: LeaseName,
    pub(super) holder: u64,
    /// Whether the slot was granted. If not, the store may have granted it.
    pub(super) was_held: bool,
    /// The time at which the lease has expired.
    pub(super) until: Instant,
}

impl Reaper {
    /// Releases a slot now if the store can, else in the background. Outside of a tokio runtime,
    /// the release waits for the next call in a runtime.
    pub(super) fn give_back(&self, dropped: Dropped) {
        if dropped.is_done_at_once() {
            return;
        }
        lock(&self.0.queue).add(dropped);
        self.attend();
    }

    /// Waits until the queue is empty.
    pub(super) async fn flush(&self) {
        let mut changed = self.0.changed.subscribe();
        loop {
            self.attend();
            if lock(&self.0.queue).is_empty() {
                return;
            }
            // Also restarts the task if necessary. `self` keeps the sender alive.
            let _ = timeout(OVERDUE, changed.changed()).await;
        }
    }

    /// Starts a task if there is work and no live task.
    fn attend(&self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let Some(number) = lock(&self.0.queue).take_over() else {
            return;
        };
        let task = Task {
            reaper: self.clone(),
            number,
        };
        runtime.spawn(task.work());
    }
}

impl Dropped {
    fn is_done_at_once(&self) -> bool {
        let ask = || self.slots.release(&self.name, Some(self.holder));
        // A drop must not panic, whatever the store does.
        match catch_unwind(AssertUnwindSafe(ask)) {
            Ok(Reply::Ready(standing)) => standing != Standing::Unavailable,
            // Nothing was sent: the future was not polled.
            Ok(Reply::Pending(_)) | Err(_) => false,
        }
    }

    async fn release(&self) -> Standing {
        self.slots.release(&self.name, Some(self.holder)).await
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.unsure.is_empty() && self.in_hand.is_empty()
    }

    fn add(&mut self, dropped: Dropped) {
        if dropped.was_held {
            self.held.push_back(dropped);
        } else if self.unsure.len() < MOST_UNSURE {
            self.unsure.push_back(dropped);
        }
    }

    /// Returns the number of a new task, unless one is alive or there is no work.
    fn take_over(&mut self) -> Option<u64> {
        let works = |task: &Running| task.seen.elapsed() < OVERDUE;
        if self.is_empty() || self.task.as_ref().is_some_and(works) {
            return None;
        }
        self.put_back();
        self.tasks += 1;
        self.task = Some(Running {
            number: self.tasks,
            seen: Instant::now(),
        });
        Some(self.tasks)
    }

    /// Requeues what a task was releasing. A second release of the same slot has no effect.
    fn put_back(&mut self) {
        for dropped in std::mem::take(&mut self.in_hand) {
            self.add(dropped);
        }
    }

    /// Records progress of a task. Returns whether it is still the current task.
    fn sees(&mut self, number: u64) -> bool {
        let task = self.task.as_mut().filter(|task| task.number == number);
        task.map(|task| task.seen = Instant::now()).is_some()
    }

    fn ends(&mut self, number: u64) {
        if self.sees(number) {
            self.task = None;
            self.put_back();
        }
    }

    /// The next batch of a task; empty when the task must end.
    fn next(&mut self, number: u64, size: usize) -> Vec<Dropped> {
        if !self.sees(number) {
            return Vec::new();
        }
        let now = Instant::now();
        while self.in_hand.len() < size
            && let Some(dropped) = self.held.pop_front().or_else(|| self.unsure.pop_front())
        {
            if dropped.until > now {
                self.in_hand.push(dropped);
            }
        }
        if self.in_hand.is_empty() {
            // Cleared under the lock, so that the next caller sees that a task is needed.
            self.task = None;
        }
        self.in_hand.clone()
    }

    /// Ends a batch: everything but `failed` was released.
    fn done(&mut self, number: u64, left: Vec<Dropped>) {
        if self.sees(number) {
            self.in_hand = left;
            self.put_back();
        }
    }
}

struct Task {
    reaper: Reaper,
    number: u64,
}

impl Task {
    async fn work(self) {
        let shared = &*self.reaper.0;
        let mut size = BATCH;
        loop {
            let batch = lock(&shared.queue).next(self.number, size);
            if batch.is_empty() {
                return;
            }
            let asked = batch.len();
            let left = self.release(batch).await;
            let failed = left.len();
            lock(&shared.queue).done(self.number, left);
            shared.changed.send_replace(());
            // A single release tests whether the store is available again.
            size = if failed == asked { 1 } else { BATCH };
            if failed > 0 {
                sleep(RETRY).await;
            }
        }
    }

    /// Returns the releases that failed.
    async fn release(&self, batch: Vec<Dropped>) -> Vec<Dropped> {
        // One task for each release, so that a store that panics ends only that one.
        let mut releases = JoinSet::new();
        for (n, dropped) in batch.iter().cloned().enumerate() {
            releases.spawn(async move { (n, dropped.release().await) });
        }
        // After this time every lease has expired, so waiting for the store is pointless.
        let until = batch.iter().map(|dropped| dropped.until).max();
        let mut left: Vec<_> = batch.into_iter().map(Some).collect();
        loop {
            match timeout(SIGN, releases.join_next()).await {
                Ok(None) => return left.into_iter().flatten().collect(),
                Ok(Some(Ok((n, standing)))) if standing != Standing::Unavailable => left[n] = None,
                Err(_) if until <= Some(Instant::now()) => {
                    return left.into_iter().flatten().collect();
                }
                Ok(Some(_)) | Err(_) => {}
            }
            lock(&self.reaper.0.queue).sees(self.number);
        }
    }
}

impl Drop for Task {
    /// When its runtime ends, a task ends before its work, and another task is needed.
    fn drop(&mut self) {
        lock(&self.reaper.0.queue).ends(self.number);
        self.reaper.0.changed.send_replace(());
    }
}
