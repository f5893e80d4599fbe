//! A background task of which at most one runs at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const IDLE: u64 = 0;

/// Elects the one task that may run. A task that was replaced, and notices late, cannot end its successor.
#[derive(Debug, Default)]
pub struct SingletonTask(AtomicU64);

/// One run of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskTerm(u64);

impl SingletonTask {
    /// Starts a run unless one is in progress.
    #[must_use = "the claimed task stays claimed until `release`"]
    pub fn claim(&self) -> Option<TaskTerm> {
        // Reads first: callers ask far more often than the task is idle.
        self.is_idle().then(|| self.replace(IDLE)).flatten()
    }

    /// Whether no run is in progress.
    pub fn is_idle(&self) -> bool {
        self.0.load(Ordering::Acquire) == IDLE
    }

    /// Starts a run in place of the one in progress.
    #[must_use = "the claimed task stays claimed until `release`"]
    pub fn take_over(&self) -> Option<TaskTerm> {
        self.replace(self.0.load(Ordering::Acquire))
    }

    /// Whether this is the run in progress.
    pub fn is_current(&self, term: TaskTerm) -> bool {
        self.0.load(Ordering::Acquire) == term.0
    }

    /// Ends a run, unless another run has replaced it.
    pub fn release(&self, term: TaskTerm) {
        let _ = self
            .0
            .compare_exchange(term.0, IDLE, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn replace(&self, holder: u64) -> Option<TaskTerm> {
        static NEXT: AtomicU64 = AtomicU64::new(IDLE + 1);
        let term = NEXT.fetch_add(1, Ordering::Relaxed);
        self.0
            .compare_exchange(holder, term, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then_some(TaskTerm(term))
    }
}

/// Ends a run when the task is dropped, also when its runtime ends.
#[derive(Debug)]
pub(crate) struct ReleaseOnDrop {
    task: Arc<SingletonTask>,
    term: TaskTerm,
}

impl ReleaseOnDrop {
    pub(crate) fn new(task: Arc<SingletonTask>, term: TaskTerm) -> Self {
        Self { task, term }
    }
}

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        self.task.release(self.term);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_run_does_not_end_its_successor() {
        let task = SingletonTask::default();
        let first = task.claim().unwrap();
        assert_eq!(task.claim(), None);
        task.release(first);
        let second = task.claim().unwrap();
        task.release(first);
        assert_eq!(task.claim(), None);
        let third = task.take_over().unwrap();
        assert!(task.is_current(third) && !task.is_current(second));
        task.release(second);
        assert!(task.is_current(third));
        task.release(third);
        assert!(task.claim().is_some());
    }
}
