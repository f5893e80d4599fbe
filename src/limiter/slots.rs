//! The counter of a concurrency limit, and its wait queue.

use std::collections::VecDeque;
use std::fmt;

use tokio::sync::oneshot;

use super::stalled::{Charged, Search, StalledResponses, max_reclaimed};
use crate::nesting::Nesting;
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock};

/// Set while the wait queue is not empty. New requests must then join the queue, and each released
/// slot must wake a waiter.
const WAITING: u64 = 1 << 63;
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
pub(super) struct Slots {
    state: AtomicU64,
    limit: AtomicU64,
    waiting: AtomicUsize,
    line: Mutex<VecDeque<Waiter>>,
    pub(super) stalled: StalledResponses,
    pub(super) nesting: Nesting,
}

/// A queued request.
struct Waiter {
    slot: oneshot::Sender<Slot>,
    counted: Counted,
}

/// Whether a request counts as waiting: until a slot is sent to it, or it leaves the queue.
#[derive(Clone)]
struct Counted(Arc<AtomicBool>);

/// A slot. Dropping it releases it.
pub(super) struct Slot(&'static Slots);

/// A request's position in the wait queue.
pub(super) struct Place {
    slots: &'static Slots,
    counted: Counted,
    pub(super) slot: oneshot::Receiver<Slot>,
}

#[cfg(not(admission_loom))]
static RECYCLED: Mutex<Vec<&'static Slots>> = Mutex::new(Vec::new());

impl Slots {
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
            line: Mutex::new(VecDeque::new()),
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
        lock(&self.line).clear();
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
            let _line = lock(&self.line);
            self.limit.store(limit, Ordering::SeqCst);
        }
        if self.state.load(Ordering::SeqCst) & WAITING != 0 {
            self.serve_line();
        }
    }

    /// Takes a slot if one is free and no request waits for it. A rejection writes nothing.
    #[inline]
    pub(super) fn try_take(&'static self) -> Option<Slot> {
        self.take_unless(WAITING)
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
    pub(super) fn join_line(&'static self, max_waiting: usize) -> Option<Place> {
        let one_more = |waiting| (waiting < max_waiting).then_some(waiting + 1);
        let waiting = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .ok()?;
        let (sender, slot) = oneshot::channel();
        let counted = Counted(Arc::new(AtomicBool::new(true)));
        {
            let mut line = lock(&self.line);
            if line.len() > 2 * waiting + 16 {
                // Most of them have left. Each removal is paid for by one join.
                line.retain(|waiter| !waiter.slot.is_closed());
            }
            line.push_back(Waiter {
                slot: sender,
                counted: counted.clone(),
            });
            self.state.fetch_or(WAITING, Ordering::AcqRel);
        }
        // A slot may have been released before the flag was visible.
        self.serve_line();
        Some(Place {
            slots: self,
            counted,
            slot,
        })
    }

    /// Sends free slots to the waiters at the head of the queue.
    #[cold]
    fn serve_line(&'static self) {
        loop {
            let (waiter, slot) = {
                let mut line = lock(&self.line);
                while line.front().is_some_and(|waiter| waiter.slot.is_closed()) {
                    line.pop_front();
                }
                if line.is_empty() {
                    self.state.fetch_and(!WAITING, Ordering::AcqRel);
                    return;
                }
                let Some(slot) = self.take_unless(0) else {
                    return;
                };
                let Some(waiter) = line.pop_front() else {
                    return;
                };
                (waiter, slot)
            };
            self.stop_counting(&waiter.counted);
            // Outside of the lock: this wakes a task, which can run any code.
            if let Err(slot) = waiter.slot.send(slot) {
                // The waiter left at this moment. Release the slot here: `drop` would call this
                // function recursively, once for each waiter that left.
                std::mem::forget(slot);
                let before = self.state.fetch_sub(1, Ordering::AcqRel);
                if before & RETIRED != 0 {
                    return self.after_give_back(before);
                }
            }
        }
    }

    fn stop_counting(&self, counted: &Counted) {
        if counted.0.swap(false, Ordering::AcqRel) {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Reclaims the permit of a stalled response, of one that counts for `charged` if given.
    #[cold]
    pub(super) fn reclaim(&self, charged: Option<Charged<'_>>, spare: bool) -> Search {
        let slots = match self.limit() {
            // Only the keys have limits.
            UNLIMITED => self.in_flight(),
            limit => limit,
        };
        self.stalled.reclaim(charged, max_reclaimed(slots), spare)
    }

    #[inline]
    fn give_back(&'static self) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & (WAITING | RETIRED) != 0 {
            self.after_give_back(before);
        }
    }

    #[cold]
    fn after_give_back(&'static self, before: u64) {
        if before & RETIRED == 0 {
            self.serve_line();
        } else if before & COUNT == 1 {
            self.recycle();
        }
    }
}

impl Slot {
    pub(super) fn slots(&self) -> &'static Slots {
        self.0
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.0.in_flight()
    }
}

impl Drop for Slot {
    #[inline]
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The receiver is dropped after this; a slot that was sent to it releases itself.
        self.slots.stop_counting(&self.counted);
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots")
            .field("in_flight", &self.in_flight())
            .field("limit", &self.limit())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_writes_nothing() {
        let slots = Slots::new(1);
        let held = slots.try_take().unwrap();
        let before = slots.state.load(Ordering::SeqCst);
        assert!(slots.try_take().is_none());
        assert_eq!(slots.state.load(Ordering::SeqCst), before);
        drop(held);
        assert!(slots.try_take().is_some());
    }

    #[test]
    fn many_who_went_away_do_not_exhaust_the_stack_or_keep_a_slot() {
        let slots = Slots::new(1);
        let held = slots.try_take().unwrap();
        let gone: Vec<_> = (0..100_000)
            .map(|_| slots.join_line(usize::MAX).unwrap())
            .collect();
        drop(gone);
        let mut last = slots.join_line(usize::MAX).unwrap();
        drop(held);
        let slot = last.slot.try_recv().expect("the one who stayed is served");
        drop((slot, last));
        assert_eq!(slots.in_flight(), 0);
        assert!(slots.try_take().is_some(), "the line is closed again");
    }

    /// A live waiter is at the head, because each join removes departed waiters from the head only.
    #[test]
    fn the_line_forgets_those_who_went_away_behind_a_waiter() {
        let slots = Slots::new(1);
        let _held = slots.try_take().unwrap();
        let mut first = slots.join_line(4).unwrap();
        for _ in 0..10_000 {
            drop(slots.join_line(4).unwrap());
        }
        let mut last = slots.join_line(4).unwrap();
        assert!(lock(&slots.line).len() < 64);
        // Live waiters keep their order.
        slots.set_limit(2);
        let _slot = first.slot.try_recv().expect("the first is served");
        assert!(last.slot.try_recv().is_err());
        slots.set_limit(3);
        assert!(last.slot.try_recv().is_ok());
    }

    #[test]
    fn a_retired_counter_is_used_again_only_when_its_slots_are_back() {
        let slots = Slots::new(2);
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
    fn never_more_than_the_limit_and_all_come_back() {
        loom::model(|| {
            let slots = Slots::new(1);
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
    fn whoever_waits_is_served() {
        loom::model(|| {
            let slots = Slots::new(1);
            let held = slots.try_take().unwrap();
            let leaving = thread::spawn(move || drop(held));
            let mut place = slots.join_line(1).unwrap();
            leaving.join().unwrap();
            let slot = place.slot.try_recv().expect("served by one of the two");
            assert_eq!(slots.in_flight(), 1);
            drop((slot, place));
            assert_eq!(slots.in_flight(), 0);
            assert_eq!(slots.state.load(Ordering::SeqCst) & WAITING, 0);
        });
    }

    #[test]
    fn whoever_goes_away_leaves_the_slot_to_others() {
        loom::model(|| {
            let slots = Slots::new(1);
            let held = slots.try_take().unwrap();
            let place = slots.join_line(1).unwrap();
            let going = thread::spawn(move || drop(place));
            drop(held);
            going.join().unwrap();
            assert_eq!(slots.in_flight(), 0);
            assert!(slots.try_take().is_some());
        });
    }

    #[test]
    fn raising_the_limit_serves_the_line() {
        loom::model(|| {
            let slots = Slots::new(1);
            let _held = slots.try_take().unwrap();
            let raising = thread::spawn(move || slots.set_limit(2));
            let mut place = slots.join_line(1).unwrap();
            raising.join().unwrap();
            assert!(place.slot.try_recv().is_ok());
        });
    }
}
