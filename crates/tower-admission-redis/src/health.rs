//! Whether all servers of a store are reachable, for its observers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// The first attempt is in progress.
    Unknown,
    Up,
    Down,
    /// The connection is not needed.
    Closed,
}

/// Counts servers by state.
#[derive(Default)]
pub(super) struct Health {
    unknown: AtomicUsize,
    down: AtomicUsize,
    changed: AtomicBool,
    /// The last report. The lock is held during the calls of observers, and no thread waits for it.
    told: Mutex<Option<bool>>,
}

impl Health {
    /// Counts a change. Call [`report`](Self::report) after it, outside of locks.
    pub(super) fn count(&self, before: Condition, now: Condition) {
        if before == now {
            return;
        }
        // The new state is counted first, so that the store never looks healthy in between.
        if let Some(count) = self.of(now) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(count) = self.of(before) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn of(&self, condition: Condition) -> Option<&AtomicUsize> {
        match condition {
            Condition::Unknown => Some(&self.unknown),
            Condition::Down => Some(&self.down),
            Condition::Up | Condition::Closed => None,
        }
    }

    pub(super) fn any_is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed) > 0
    }

    pub(super) fn all_are_up(&self) -> bool {
        self.down.load(Ordering::SeqCst) == 0 && self.unknown.load(Ordering::SeqCst) == 0
    }

    /// Reports changes to observers, in their order.
    pub(super) fn report(&self, tell: impl Fn(bool)) {
        self.changed.store(true, Ordering::SeqCst);
        while self.changed.load(Ordering::SeqCst) {
            let mut told = match self.told.try_lock() {
                Ok(told) => told,
                // An observer panicked.
                Err(TryLockError::Poisoned(told)) => told.into_inner(),
                // The holder of the lock looks again.
                Err(TryLockError::WouldBlock) => return,
            };
            self.changed.store(false, Ordering::SeqCst);
            let now = match self.all_are_up() {
                true => Some(true),
                false if self.any_is_down() => Some(false),
                // A new server is no outage until it is unreachable.
                false => *told,
            };
            if *told != now {
                *told = now;
                now.into_iter().for_each(&tell);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observers_see_changes_of_the_whole_store() {
        let health = Health::default();
        let told = Mutex::new(Vec::new());
        let change = |before, now| {
            health.count(before, now);
            health.report(|reachable| told.lock().unwrap().push(reachable));
            told.lock().unwrap().pop()
        };
        use Condition::{Closed, Down, Unknown, Up};
        assert_eq!(change(Closed, Unknown), None);
        assert_eq!(change(Closed, Unknown), None);
        assert_eq!(change(Unknown, Up), None, "one is not known yet");
        assert_eq!(change(Unknown, Up), Some(true));
        assert_eq!(change(Up, Down), Some(false));
        assert_eq!(change(Up, Down), None);
        assert_eq!(change(Down, Up), None);
        assert_eq!(change(Closed, Unknown), None, "its successor");
        assert_eq!(change(Down, Closed), None);
        assert_eq!(change(Unknown, Up), Some(true));
        assert!(told.lock().unwrap().is_empty());
    }

    #[test]
    fn an_observer_may_cause_the_next_change() {
        let health = Health::default();
        let told = Mutex::new(Vec::new());
        health.count(Condition::Closed, Condition::Down);
        health.report(|reachable| {
            told.lock().unwrap().push(reachable);
            if !reachable {
                health.count(Condition::Down, Condition::Up);
                health.report(|_| panic!("the outer call goes on"));
            }
        });
        assert_eq!(*told.lock().unwrap(), [false, true]);
    }
}
