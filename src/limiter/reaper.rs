//! Gives back what was dropped, in the background where the store answers later.

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

/// Acquires whose end is not known and that wait to be given back, at most. What is above is left to
/// expire. Slots that were held have no bound but that they were held.
const MOST_UNSURE: usize = 1 << 16;

/// How many are given back at a time.
const BATCH: usize = 64;

/// The pause after one that could not be given back.
const RETRY: Duration = Duration::from_millis(100);

/// How often the task gives a sign while it waits for the store, and how long there may be none
/// before another takes its place: the runtime that should drive it is there and does not.
const SIGN: Duration = Duration::from_millis(250);
const OVERDUE: Duration = Duration::from_secs(1);

/// A queue of slots to be given back, and a task that does it while there are any.
#[derive(Clone, Default)]
pub(super) struct Reaper(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Told when something was given back, or the task has ended.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Queue {
    held: VecDeque<Dropped>,
    unsure: VecDeque<Dropped>,
    /// What the task asks the store about right now.
    in_hand: Vec<Dropped>,
    task: Option<Running>,
    /// How many tasks there were.
    tasks: u64,
}

/// The task that has the job. One that was replaced, and notices late, is no other's end.
struct Running {
    number: u64,
    seen: Instant,
}

/// A slot to be given back.
#[derive(Clone)]
pub(super) struct Dropped {
    pub(super) slots: Arc<dyn LeaseSlots>,
    pub(super) name: LeaseName,
    pub(super) holder: u64,
    /// Whether it was granted; else it may have been.
    pub(super) was_held: bool,
    /// When it has expired.
    pub(super) until: Instant,
}

impl Reaper {
    /// Gives a slot back now if the store does that, else soon. Outside of a tokio runtime it waits
    /// until somebody comes who is in one.
    pub(super) fn give_back(&self, dropped: Dropped) {
        if dropped.is_done_at_once() {
            return;
        }
        lock(&self.0.queue).add(dropped);
        self.attend();
    }

    /// Waits until none is left.
    pub(super) async fn flush(&self) {
        let mut changed = self.0.changed.subscribe();
        loop {
            self.attend();
            if lock(&self.0.queue).is_empty() {
                return;
            }
            // Looks after the task as well. The sender is in `self`.
            let _ = timeout(OVERDUE, changed.changed()).await;
        }
    }

    /// Starts the task if there is something to do and nobody who does it.
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
        // A drop does not panic, whatever a store does.
        match catch_unwind(AssertUnwindSafe(ask)) {
            Ok(Reply::Ready(standing)) => standing != LeaseStatus::Unavailable,
            // Not asked, as its future was not polled.
            Ok(Reply::Pending(_)) | Err(_) => false,
        }
    }

    async fn release(&self) -> LeaseStatus {
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

    /// A number for a new task, unless there is one that works or nothing to do.
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

    /// What a task had in hand is for its successor. To give a slot back twice is no harm.
    fn put_back(&mut self) {
        for dropped in std::mem::take(&mut self.in_hand) {
            self.add(dropped);
        }
    }

    /// Notes a sign of a task's, and whether it still has the job.
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

    /// What a task does next; nothing when it is not needed any more.
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
            // Under the lock, so that whoever comes now sees that a task is needed.
            self.task = None;
        }
        self.in_hand.clone()
    }

    /// All but these are given back.
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
            // One asks whether the store is there again.
            size = if failed == asked { 1 } else { BATCH };
            if failed > 0 {
                sleep(RETRY).await;
            }
        }
    }

    /// Returns what could not be given back.
    async fn release(&self, batch: Vec<Dropped>) -> Vec<Dropped> {
        // Tasks of their own, so that a store which panics is the end of none but that.
        let mut releases = JoinSet::new();
        for (n, dropped) in batch.iter().cloned().enumerate() {
            releases.spawn(async move { (n, dropped.release().await) });
        }
        // By then there is nothing left to give back, whether the store answers or not.
        let until = batch.iter().map(|dropped| dropped.until).max();
        let mut left: Vec<_> = batch.into_iter().map(Some).collect();
        loop {
            match timeout(SIGN, releases.join_next()).await {
                Ok(None) => return left.into_iter().flatten().collect(),
                Ok(Some(Ok((n, standing)))) if standing != LeaseStatus::Unavailable => {
                    left[n] = None
                }
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
    /// With its runtime a task ends before it is done, and another one is needed.
    fn drop(&mut self) {
        lock(&self.reaper.0.queue).ends(self.number);
        self.reaper.0.changed.send_replace(());
    }
}
