//! Counts a request once when it passes several services of one limit, one inside of the other.
//!
//! A limit whose layer wraps both a router and a router nested in it sees each request twice. The
//! outer service counts the request. While it calls the inner service or polls its future, it lists
//! the limit as *passing* on this thread. A service of the same limit that is called meanwhile finds
//! it there, takes it off the list, and lets the request through uncounted.
//!
//! Taking it off matters: a handler that sends several requests through the same limit, such as a
//! batch endpoint, has one of them uncounted for each request that was counted, and no more.
//!
//! The list is per thread, so a service between the two that calls its inner service in another
//! task (`tower::buffer::Buffer`) hides the outer one, and the request counts twice.

use std::cell::Cell;

use crate::sync::{AtomicU64, Ordering};

/// Marks a limit whose layer was applied once, so that its services cannot be nested.
const APPLIED_ONCE: u64 = 1;

/// Limits that are listed on one thread. A limit beyond that is not listed, and counts twice.
const MAX_DEPTH: usize = 8;

/// What a limit is known by in the list; it has an id once its layer was applied twice.
#[derive(Debug)]
pub(crate) struct Nesting(AtomicU64);

/// A request that a limit has counted, on its way through the inner service.
///
/// [`Passing::NOT_LISTED`] for a limit that cannot be nested, or whose listing was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passing(u64);

struct List {
    depth: Cell<usize>,
    ids: [Cell<u64>; MAX_DEPTH],
}

thread_local! {
    static LIST: List = const {
        List {
            depth: Cell::new(0),
            ids: [const { Cell::new(0) }; MAX_DEPTH],
        }
    };
}

impl Nesting {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Forgets what was applied, for a limit that takes the place of another one.
    #[cfg_attr(
        admission_loom,
        expect(dead_code, reason = "counters are not reused there")
    )]
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Notes that the limit's layer is applied to another service.
    pub(crate) fn apply(&self) {
        static NEXT: std::sync::atomic::AtomicU64 =
            std::sync::atomic::AtomicU64::new(APPLIED_ONCE + 1);
        let id = match self.0.load(Ordering::Relaxed) {
            0 => APPLIED_ONCE,
            APPLIED_ONCE => NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            _ => return,
        };
        // Of two threads that do it at once one is enough: the id only has to be unique.
        self.0.store(id, Ordering::Relaxed);
    }

    /// Notes that the limit's layer will be applied to several services, before the first request.
    pub(crate) fn expect(&self) {
        self.apply();
        self.apply();
    }

    /// Whether an outer service of this limit has counted the request that is being called. It is
    /// to be asked once, because the answer takes the limit off the list.
    pub(crate) fn has_counted(&self) -> bool {
        self.passing().has_counted()
    }

    /// A request of this limit on its way.
    #[inline]
    pub(crate) fn passing(&self) -> Passing {
        match self.0.load(Ordering::Relaxed) {
            0 | APPLIED_ONCE => Passing::NOT_LISTED,
            id => Passing(id),
        }
    }
}

impl Passing {
    pub(crate) const NOT_LISTED: Self = Self(0);

    /// As [`Nesting::has_counted`] of the limit.
    #[inline]
    pub(crate) fn has_counted(self) -> bool {
        self != Self::NOT_LISTED && LIST.with(|list| list.take(self.0))
    }

    /// Lists the limit for as long as the result is there.
    // A guard and not a closure, so that what the inner service returns is not moved once more.
    #[inline]
    pub(crate) fn list(&mut self) -> Option<Listed<'_>> {
        if *self == Self::NOT_LISTED {
            return None;
        }
        Some(Listed::new(self))
    }
}

impl List {
    /// Adds a limit, and returns its depth.
    fn push(&self, id: u64) -> usize {
        let depth = self.depth.get();
        if let Some(place) = self.ids.get(depth) {
            place.set(id);
        }
        self.depth.set(depth + 1);
        depth
    }

    /// Removes the limit at this depth. Returns whether it was still there.
    fn pop(&self, depth: usize) -> bool {
        self.depth.set(depth);
        self.ids.get(depth).is_none_or(|id| id.get() != 0)
    }

    #[inline]
    fn take(&self, id: u64) -> bool {
        if self.depth.get() == 0 {
            return false;
        }
        let listed = &self.ids[..self.depth.get().min(MAX_DEPTH)];
        let Some(place) = listed.iter().find(|listed| listed.get() == id) else {
            return false;
        };
        place.set(0);
        true
    }
}

/// A limit in the list; dropping it removes the limit, also when the inner service panics.
pub(crate) struct Listed<'a> {
    passing: &'a mut Passing,
    depth: usize,
}

impl<'a> Listed<'a> {
    #[inline]
    fn new(passing: &'a mut Passing) -> Self {
        let depth = LIST.with(|list| list.push(passing.0));
        Self { passing, depth }
    }
}

impl Drop for Listed<'_> {
    #[inline]
    fn drop(&mut self) {
        if !LIST.with(|list| list.pop(self.depth)) {
            // Used, so it is not listed for the next poll.
            *self.passing = Passing::NOT_LISTED;
        }
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    fn nested() -> Nesting {
        let nesting = Nesting::new();
        nesting.apply();
        assert_eq!(nesting.passing(), Passing::NOT_LISTED, "applied once");
        nesting.apply();
        assert_ne!(nesting.passing(), Passing::NOT_LISTED);
        nesting
    }

    #[test]
    fn an_inner_service_finds_the_request_counted_once() {
        let nesting = nested();
        assert!(!nesting.has_counted());
        let mut passing = nesting.passing();
        let listed = passing.list();
        assert!(nesting.has_counted());
        assert!(!nesting.has_counted(), "the second request of a handler");
        drop(listed);
        assert_eq!(passing, Passing::NOT_LISTED);
        let listed = passing.list();
        assert!(!nesting.has_counted());
        drop(listed);
        assert!(!nesting.has_counted());
    }

    #[test]
    fn limits_between_do_not_hide_the_outer_one() {
        let (outer, between) = (nested(), nested());
        let (mut in_outer, mut in_between) = (outer.passing(), between.passing());
        let _outer = in_outer.list();
        assert!(!between.has_counted());
        let _between = in_between.list();
        assert!(outer.has_counted());
    }

    #[test]
    fn a_panic_takes_the_limit_off_the_list() {
        let nesting = nested();
        let panicked = std::panic::catch_unwind(|| {
            let mut passing = nested().passing();
            let _listed = passing.list();
            panic!("the inner service");
        });
        assert!(panicked.is_err());
        assert_eq!(LIST.with(|list| list.depth.get()), 0);
        let mut passing = nesting.passing();
        let _listed = passing.list();
        assert_eq!(LIST.with(|list| list.depth.get()), 1);
    }

    #[test]
    fn the_list_is_bounded() {
        fn nest(depth: usize, outermost: &Nesting) {
            if depth == 0 {
                assert!(outermost.has_counted());
                return;
            }
            let nesting = nested();
            let mut passing = nesting.passing();
            let listed = passing.list();
            nest(depth - 1, outermost);
            drop(listed);
            assert!(!nesting.has_counted());
        }
        let outermost = nested();
        let mut passing = outermost.passing();
        let _listed = passing.list();
        nest(20, &outermost);
    }
}
