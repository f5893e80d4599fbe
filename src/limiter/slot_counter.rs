//! The counter of a concurrency limit, and its wait queue.

use std::collections::VecDeque;
use std::fmt;

use tokio::sync::oneshot;

use super::stalled::{ChargedKey, SearchResult, StalledResponses, max_reclaimed};
use crate::nesting::Nesting;
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock};

/// Set while the wait queue is not empty. New requests must then join the queue, and each released
/// slot must wake a waiter.
const HAS_WAITERS: u64 = 1 << 63;
/// Set when the limiter is dropped. The last released slot then recycles the counter.
const RETIRED: u64 = 1 << 62;
const COUNT: u64 = RETIRED - 1;

/// Stands for no limit.
pub(super) const UNLIMITED: u64 = COUNT;

/// Counts the slots in use against a limit.
///
/// Taking a slot is one compare-and-swap; releasing it is one subtraction. A slot refers to its
/// counter while it is held. An `Arc` would add two contended count changes and double the cost of
/// a request. So counters live as long as the process and are reused: the memory is that of the
/// largest number of limiters that existed at one time.
#[repr(align(128))]
pub(super) struct SlotCounter {
    state: AtomicU64,
    limit: AtomicU64,
    waiting: AtomicUsize,
    wait_queue: Mutex<VecDeque<Waiter>>,
    pub(super) stalled: StalledResponses,
    pub(super) nesting: Nesting,
}

/// A queued request.
struct Waiter {
    slot: oneshot::Sender<Slot>,
    is_waiting: WaitingFlag,
}

/// Whether a request counts as waiting: until a slot is sent to it, or it leaves the queue.
#[derive(Clone)]
struct WaitingFlag(Arc<AtomicBool>);

/// A slot. Dropping it releases it.
pub(super) struct Slot(&'static SlotCounter);

/// A request's position in the wait queue.
pub(super) struct QueuePosition {
    slots: &'static SlotCounter,
    is_waiting: WaitingFlag,
    pub(super) slot: oneshot::Receiver<Slot>,
}

#[cfg(not(admission_loom))]
static RECYCLED: Mutex<Vec<&'static SlotCounter>> = Mutex::new(Vec::new());

impl SlotCounter {
    pub(super) fn new(limit: u64) -> &'static Self {
        #[cfg(not(admission_loom))]
        if let Some(slots) = Self::take_recycled() {
            slots.limit.store(limit, Ordering::SeqCst);
            slots.stalled.set_limit(None);
            slots.nesting.reset();
            return slots;
        }
        Box::leak(Box::new(Self {
            state: AtomicU64::new(0),
            limit: AtomicU64::new(limit),
            waiting: AtomicUsize::new(0),
            wait_queue: Mutex::new(VecDeque::new()),
            stalled: StalledResponses::new(),
            nesting: Nesting::new(),
        }))
    }

    /// Takes a recycled counter whose reclaimed responses are all gone; they would count here.
    #[cfg(not(admission_loom))]
    fn take_recycled() -> Option<&'static Self> {
        let mut recycled = lock(&RECYCLED);
        let place = (recycled.iter()).rposition(|slots| slots.stalled.has_none_reclaimed())?;
        Some(recycled.swap_remove(place))
    }

    /// Marks the counter for reuse once all its slots are released. The wait queue must be empty,
    /// and the caller must not use the counter again.
    pub(super) fn retire(&'static self) {
        if self.state.fetch_or(RETIRED, Ordering::AcqRel) & COUNT == 0 {
            self.recycle();
        }
    }

    #[cold]
    fn recycle(&'static self) {
        // The remaining waiters have left.
        lock(&self.wait_queue).clear();
        self.state.store(0, Ordering::Release);
        #[cfg(not(admission_loom))]
        lock(&RECYCLED).push(self);
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.state.load(Ordering::Acquire) & COUNT
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// Changes the limit. After a reduction, requests in flight continue, and released slots are
    /// not reused until the count is below the new limit.
    pub(super) fn set_limit(&'static self, limit: u64) {
        {
            // Held so that a request that joins the queue sees either the new limit or the wake-up
            // below.
            let _queue = lock(&self.wait_queue);
            self.limit.store(limit, Ordering::SeqCst);
        }
        if self.state.load(Ordering::SeqCst) & HAS_WAITERS != 0 {
            self.wake_waiters();
        }
    }

    /// Takes a slot if one is free and no request waits for it. A rejection writes nothing.
    #[inline]
    pub(super) fn try_take(&'static self) -> Option<Slot> {
        self.take_unless(HAS_WAITERS)
    }

    #[inline]
    fn take_unless(&'static self, flag: u64) -> Option<Slot> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & flag != 0 || state & COUNT >= self.limit.load(Ordering::Acquire) {
                return None;
            }
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(Slot(self)),
                Err(current) => state = current,
            }
        }
    }

    /// Joins the wait queue, unless `max_waiting` requests are in it.
    pub(super) fn join_wait_queue(&'static self, max_waiting: usize) -> Option<QueuePosition> {
        let one_more = |waiting| (waiting < max_waiting).then_some(waiting + 1);
        let waiting = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .ok()?;
        let (sender, slot) = oneshot::channel();
        let is_waiting = WaitingFlag(Arc::new(AtomicBool::new(true)));
        {
            let mut queue = lock(&self.wait_queue);
            if queue.len() > 2 * waiting + 16 {
                // Most of them have left. Each removal is paid for by one join.
                queue.retain(|waiter| !waiter.slot.is_closed());
            }
            queue.push_back(Waiter {
                slot: sender,
                is_waiting: is_waiting.clone(),
            });
            self.state.fetch_or(HAS_WAITERS, Ordering::AcqRel);
        }
        // A slot may have been released before the flag was visible.
        self.wake_waiters();
        Some(QueuePosition {
            slots: self,
            is_waiting,
            slot,
        })
    }

    /// Sends free slots to the waiters at the head of the queue.
    #[cold]
    fn wake_waiters(&'static self) {
        loop {
            let (waiter, slot) = {
                let mut queue = lock(&self.wait_queue);
                while queue.front().is_some_and(|waiter| waiter.slot.is_closed()) {
                    queue.pop_front();
                }
                if queue.is_empty() {
                    self.state.fetch_and(!HAS_WAITERS, Ordering::AcqRel);
                    return;
                }
                let Some(slot) = self.take_unless(0) else {
                    return;
                };
                let Some(waiter) = queue.pop_front() else {
                    return;
                };
                (waiter, slot)
            };
            self.stop_waiting(&waiter.is_waiting);
            // Outside of the lock: this wakes a task, which can run any code.
            if let Err(slot) = waiter.slot.send(slot) {
                // The waiter left at this moment. Release the slot here: `drop` would call this
                // function recursively, once for each waiter that left.
                std::mem::forget(slot);
                let before = self.state.fetch_sub(1, Ordering::AcqRel);
                if before & RETIRED != 0 {
                    return self.after_release(before);
                }
            }
        }
    }

    fn stop_waiting(&self, is_waiting: &WaitingFlag) {
        if is_waiting.0.swap(false, Ordering::AcqRel) {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Reclaims the permit of a stalled response, of one that counts for `charged` if given.
    #[cold]
    pub(super) fn reclaim(&self, charged: Option<ChargedKey<'_>>, spare: bool) -> SearchResult {
        let slots = match self.limit() {
            // Only the keys have limits.
            UNLIMITED => self.in_flight(),
            limit => limit,
        };
        self.stalled.reclaim(charged, max_reclaimed(slots), spare)
    }

    #[inline]
    fn release(&'static self) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & (HAS_WAITERS | RETIRED) != 0 {
            self.after_release(before);
        }
    }

    #[cold]
    fn after_release(&'static self, before: u64) {
        if before & RETIRED == 0 {
            self.wake_waiters();
        } else if before & COUNT == 1 {
            self.recycle();
        }
    }
}

impl Slot {
    pub(super) fn slots(&self) -> &'static SlotCounter {
        self.0
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.0.in_flight()
    }
}

impl Drop for Slot {
    #[inline]
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Drop for QueuePosition {
    fn drop(&mut self) {
        // The receiver is dropped after this; a slot that was sent to it releases itself.
        self.slots.stop_waiting(&self.is_waiting);
    }
}

impl fmt::Debug for SlotCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotCounter")
            .field("in_flight", &self.in_flight())
            .field("limit", &self.limit())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_request_writes_nothing() {
        let slots = SlotCounter::new(1);
        let held = slots.try_take().unwrap();
        let before = slots.state.load(Ordering::SeqCst);
        assert!(slots.try_take().is_none());
        assert_eq!(slots.state.load(Ordering::SeqCst), before);
        drop(held);
        assert!(slots.try_take().is_some());
    }

    #[test]
    fn many_departed_waiters_exhaust_no_stack_and_keep_no_slot() {
        let slots = SlotCounter::new(1);
        let held = slots.try_take().unwrap();
        let gone: Vec<_> = (0..100_000)
            .map(|_| slots.join_wait_queue(usize::MAX).unwrap())
            .collect();
        drop(gone);
        let mut last = slots.join_wait_queue(usize::MAX).unwrap();
        drop(held);
        let slot = last
            .slot
            .try_recv()
            .expect("the remaining waiter gets the slot");
        drop((slot, last));
        assert_eq!(slots.in_flight(), 0);
        assert!(slots.try_take().is_some(), "the wait queue is empty");
    }

    /// A live waiter is at the head, because each join removes departed waiters from the head only.
    #[test]
    fn departed_waiters_behind_a_live_one_are_removed() {
        let slots = SlotCounter::new(1);
        let _held = slots.try_take().unwrap();
        let mut first = slots.join_wait_queue(4).unwrap();
        for _ in 0..10_000 {
            drop(slots.join_wait_queue(4).unwrap());
        }
        let mut last = slots.join_wait_queue(4).unwrap();
        assert!(lock(&slots.wait_queue).len() < 64);
        // Live waiters keep their order.
        slots.set_limit(2);
        let _slot = first
            .slot
            .try_recv()
            .expect("the first waiter gets the slot");
        assert!(last.slot.try_recv().is_err());
        slots.set_limit(3);
        assert!(last.slot.try_recv().is_ok());
    }

    #[test]
    fn a_retired_counter_is_recycled_after_its_slots_are_released() {
        let slots = SlotCounter::new(2);
        let held = slots.try_take().unwrap();
        slots.retire();
        assert_eq!(slots.in_flight(), 1);
        drop(held);
        assert_eq!(slots.state.load(Ordering::SeqCst), 0);
    }
}

#[cfg(all(test, admission_loom))]
mod loom_tests {
    use super::*;
    use loom::thread;

    #[test]
    fn the_limit_holds_and_every_slot_is_released() {
        loom::model(|| {
            let slots = SlotCounter::new(1);
            let inside = loom::sync::Arc::new(AtomicUsize::new(0));
            let take = {
                let inside = inside.clone();
                move || {
                    if let Some(_slot) = slots.try_take() {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            };
            let others: Vec<_> = (0..2).map(|_| thread::spawn(take.clone())).collect();
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(slots.in_flight(), 0);
        });
    }

    #[test]
    fn a_waiter_gets_the_released_slot() {
        loom::model(|| {
            let slots = SlotCounter::new(1);
            let held = slots.try_take().unwrap();
            let leaving = thread::spawn(move || drop(held));
            let mut place = slots.join_wait_queue(1).unwrap();
            leaving.join().unwrap();
            let slot = place
                .slot
                .try_recv()
                .expect("one of the two threads woke the waiter");
            assert_eq!(slots.in_flight(), 1);
            drop((slot, place));
            assert_eq!(slots.in_flight(), 0);
            assert_eq!(slots.state.load(Ordering::SeqCst) & HAS_WAITERS, 0);
        });
    }

    #[test]
    fn a_departing_waiter_leaves_its_slot_free() {
        loom::model(|| {
            let slots = SlotCounter::new(1);
            let held = slots.try_take().unwrap();
            let place = slots.join_wait_queue(1).unwrap();
            let going = thread::spawn(move || drop(place));
            drop(held);
            going.join().unwrap();
            assert_eq!(slots.in_flight(), 0);
            assert!(slots.try_take().is_some());
        });
    }

    #[test]
    fn raising_the_limit_wakes_waiters() {
        loom::model(|| {
            let slots = SlotCounter::new(1);
            let _held = slots.try_take().unwrap();
            let raising = thread::spawn(move || slots.set_limit(2));
            let mut place = slots.join_wait_queue(1).unwrap();
            raising.join().unwrap();
            assert!(place.slot.try_recv().is_ok());
        });
    }
}
