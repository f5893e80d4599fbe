//! Whether all servers of a store can be reached, for its observers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing yet: the first attempt is not over.
    Unknown,
    Up,
    Down,
    /// It is not needed.
    Closed,
}

/// Counts servers by condition.
#[derive(Default)]
pub(super) struct Health {
    unknown: AtomicUsize,
    down: AtomicUsize,
    changed: AtomicBool,
    /// What observers were told last. The lock is held while they are called, and nobody waits for it.
    told: Mutex<Option<bool>>,
}

impl Health {
    /// Counts a change. [`report`](Self::report) has to follow, outside of locks.
    pub(super) fn count(&self, before: Condition, now: Condition) {
        if before == now {
            return;
        }
        // What is counted anew comes first, so that in between nothing seems well that is not.
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

    /// Has observers told when something changed for them, in the order in which it did.
    pub(super) fn report(&self, tell: impl Fn(bool)) {
        self.changed.store(true, Ordering::SeqCst);
        while self.changed.load(Ordering::SeqCst) {
            let mut told = match self.told.try_lock() {
                Ok(told) => told,
                // An observer panicked.
                Err(TryLockError::Poisoned(told)) => told.into_inner(),
                // Its holder looks again.
                Err(TryLockError::WouldBlock) => return,
            };
            self.changed.store(false, Ordering::SeqCst);
            let now = match self.all_are_up() {
                true => Some(true),
                false if self.any_is_down() => Some(false),
                // A new server is no outage until it cannot be reached.
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
    fn observers_see_changes_of_the_whole() {
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
