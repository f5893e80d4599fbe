//! A job that one task at a time has.

use std::sync::atomic::{AtomicU64, Ordering};

const VACANT: u64 = 0;

/// Who has the job. A task that lost it, and notices late, cannot put out its successor.
#[derive(Default)]
pub(crate) struct Post(AtomicU64);

/// One task's time in the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Term(u64);

impl Post {
    /// Takes the job unless somebody has it.
    pub(crate) fn take(&self) -> Option<Term> {
        // Read first, as this is asked much more often than it is so.
        self.is_vacant().then(|| self.replace(VACANT)).flatten()
    }

    pub(crate) fn is_vacant(&self) -> bool {
        self.0.load(Ordering::Acquire) == VACANT
    }

    /// Takes the job from whoever has it.
    pub(crate) fn take_over(&self) -> Option<Term> {
        self.replace(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn is(&self, term: Term) -> bool {
        self.0.load(Ordering::Acquire) == term.0
    }

    pub(crate) fn leave(&self, term: Term) {
        let _ = self
            .0
            .compare_exchange(term.0, VACANT, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn replace(&self, holder: u64) -> Option<Term> {
        static NEXT: AtomicU64 = AtomicU64::new(VACANT + 1);
        let term = NEXT.fetch_add(1, Ordering::Relaxed);
        self.0
            .compare_exchange(holder, term, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then_some(Term(term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_late_leaves_the_successor_alone() {
        let post = Post::default();
        let first = post.take().unwrap();
        assert_eq!(post.take(), None);
        post.leave(first);
        let second = post.take().unwrap();
        post.leave(first);
        assert_eq!(post.take(), None);
        let third = post.take_over().unwrap();
        assert!(post.is(third) && !post.is(second));
        post.leave(second);
        assert!(post.is(third));
        post.leave(third);
        assert!(post.take().is_some());
    }
}
