//! Gives back what was dropped, in the background where the store answers later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::store::{LeaseName, LeaseSlots, Reply, Standing};
use crate::sync::{Mutex, lock};

/// Slots that wait to be given back at most. What is above is left to expire.
const MOST: usize = 1 << 16;

/// The pause after one that could not be given back.
const RETRY: Duration = Duration::from_millis(100);

/// A queue of slots to be given back, and a task that does it while there are any.
#[derive(Clone, Default)]
pub(super) struct Reaper(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// How many are in the queue or being given back.
    pending: watch::Sender<usize>,
}

#[derive(Default)]
struct Queue {
    slots: VecDeque<Dropped>,
    /// Whether there is a task.
    runs: bool,
}

struct Dropped {
    slots: Arc<dyn LeaseSlots>,
    name: LeaseName,
    holder: u64,
    /// When it has expired.
    until: Instant,
}

impl Reaper {
    /// Gives a slot back now if the store does that, else soon. Outside of a tokio runtime it is
    /// left to expire.
    pub(super) fn give_back(
        &self,
        slots: &Arc<dyn LeaseSlots>,
        name: LeaseName,
        holder: u64,
        ttl: Duration,
    ) {
        let Reply::Pending(_unasked) = slots.release(&name, Some(holder)) else {
            return;
        };
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut queue = lock(&self.0.queue);
        if queue.slots.len() < MOST {
            queue.slots.push_back(Dropped {
                slots: slots.clone(),
                name,
                holder,
                until: Instant::now() + ttl,
            });
            self.0.pending.send_modify(|pending| *pending += 1);
        }
        if !queue.runs {
            queue.runs = true;
            drop(queue);
            let task = Task {
                reaper: self.clone(),
                in_hand: false,
                is_done: false,
            };
            runtime.spawn(task.work());
        }
    }

    /// Waits until none is left.
    pub(super) async fn flush(&self) {
        let mut pending = self.0.pending.subscribe();
        // The sender is in `self`.
        let _ = pending.wait_for(|pending| *pending == 0).await;
    }

    fn next(&self) -> Option<Dropped> {
        let mut queue = lock(&self.0.queue);
        let next = queue.slots.pop_front();
        // Under the lock, so that whoever comes now sees that a task is needed.
        queue.runs = next.is_some();
        next
    }

    fn done_with_one(&self) {
        self.0.pending.send_modify(|pending| *pending -= 1);
    }
}

struct Task {
    reaper: Reaper,
    /// Whether it has one that is not in the queue.
    in_hand: bool,
    is_done: bool,
}

impl Task {
    async fn work(mut self) {
        while let Some(dropped) = self.reaper.next() {
            self.in_hand = true;
            let released = dropped.slots.release(&dropped.name, Some(dropped.holder));
            let released = released.await;
            self.in_hand = false;
            if released == Standing::Unavailable && Instant::now() < dropped.until {
                lock(&self.reaper.0.queue).slots.push_back(dropped);
                sleep(RETRY).await;
            } else {
                self.reaper.done_with_one();
            }
        }
        self.is_done = true;
    }
}

impl Drop for Task {
    /// With its runtime a task ends before it is done, and another one is needed.
    fn drop(&mut self) {
        if self.in_hand {
            self.reaper.done_with_one();
        }
        if !self.is_done {
            lock(&self.reaper.0.queue).runs = false;
        }
    }
}
