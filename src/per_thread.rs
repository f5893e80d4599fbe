//! Copies of a value per thread, so that counting references to it does not contend for one cache line.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

/// The maximum number of copies. More threads share them.
const MAX_COPIES: usize = 16;

thread_local! {
    /// The number of this thread; 0 until it is assigned.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Copies of a value, one per thread up to the number of processors.
#[derive(Debug)]
pub(crate) struct PerThread<T>(Box<[T]>);

impl<T> PerThread<T> {
    pub(crate) fn new(make: impl FnMut() -> T) -> Self {
        let copies = available_parallelism().map_or(1, NonZeroUsize::get);
        Self(
            std::iter::repeat_with(make)
                .take(copies.min(MAX_COPIES))
                .collect(),
        )
    }

    /// The copy for the current thread.
    #[inline]
    pub(crate) fn get(&self) -> &T {
        &self.0[NUMBER.with(number) % self.0.len()]
    }
}

#[inline]
fn number(number: &Cell<usize>) -> usize {
    match number.get() {
        0 => assign(number),
        number => number,
    }
}

/// Numbers threads in order of first use, so that the threads of one pool get different copies.
#[cold]
fn assign(number: &Cell<usize>) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    number.set(NEXT.fetch_add(1, Ordering::Relaxed).max(1));
    number.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_copy() {
        let mut next = 0;
        let copies = PerThread::new(|| {
            next += 1;
            next
        });
        let mine = *copies.get();
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| assert!((1..=MAX_COPIES).contains(copies.get())));
            }
        });
        assert_eq!(*copies.get(), mine);
    }
}
