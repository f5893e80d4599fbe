//! Counts a request once when nested services share one limit.
//!
//! A layer around both a router and a router nested in it sees each request twice. The outer service
//! counts the request. While it calls the inner service or polls its future, it lists the limit as
//! *active* on this thread. A service of the same limit that is called meanwhile takes the limit off
//! the list and does not count the request.
//!
//! Taking it off matters for a handler that sends several requests through the same limit, such as a
//! batch endpoint: only one of them is uncounted for each counted request.
//!
//! The list is per thread. A service in between that calls its inner service in another task, such as
//! `tower::buffer::Buffer`, hides the outer service, and the request counts twice.

use std::cell::Cell;

use crate::sync::{AtomicU64, Ordering};

/// The id of a limit whose layer was applied once, so that its services cannot be nested.
const APPLIED_ONCE: u64 = 1;

/// The maximum number of active limits per thread. A limit beyond that is not listed and counts
/// twice.
const MAX_DEPTH: usize = 8;

/// Identifies a limit in the list. It has an id once its layer was applied twice.
#[derive(Debug)]
pub(crate) struct Nesting(AtomicU64);

/// A request that a limit has counted, on its way through the inner service.
///
/// [`CountedRequest::NOT_LISTED`] if the limit cannot be nested, or if an inner service used the
/// listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CountedRequest(u64);

struct ActiveLimits {
    depth: Cell<usize>,
    ids: [Cell<u64>; MAX_DEPTH],
}

thread_local! {
    static ACTIVE: ActiveLimits = const {
        ActiveLimits {
            depth: Cell::new(0),
            ids: [const { Cell::new(0) }; MAX_DEPTH],
        }
    };
}

impl Nesting {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Clears the id, for a limiter that is reused under another limit.
    #[cfg_attr(
        admission_loom,
        expect(dead_code, reason = "counters are not reused there")
    )]
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Records that the limit's layer is applied to another service.
    pub(crate) fn apply(&self) {
        static NEXT: std::sync::atomic::AtomicU64 =
            std::sync::atomic::AtomicU64::new(APPLIED_ONCE + 1);
        let id = match self.0.load(Ordering::Relaxed) {
            0 => APPLIED_ONCE,
            APPLIED_ONCE => NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            _ => return,
        };
        // A race of two threads is harmless: the id only has to be unique.
        self.0.store(id, Ordering::Relaxed);
    }

    /// Announces that the layer will be applied to several services, before the first request.
    pub(crate) fn expect(&self) {
        self.apply();
        self.apply();
    }

    /// Whether an outer service of this limit has already counted the current request. Call it once
    /// per request, because it takes the limit off the list.
    pub(crate) fn take_counted(&self) -> bool {
        self.counted_request().take_counted()
    }

    /// A token for a request that this limit counts.
    #[inline]
    pub(crate) fn counted_request(&self) -> CountedRequest {
        match self.0.load(Ordering::Relaxed) {
            0 | APPLIED_ONCE => CountedRequest::NOT_LISTED,
            id => CountedRequest(id),
        }
    }
}

impl CountedRequest {
    pub(crate) const NOT_LISTED: Self = Self(0);

    /// As [`Nesting::take_counted`] of the limit.
    #[inline]
    pub(crate) fn take_counted(self) -> bool {
        self != Self::NOT_LISTED && ACTIVE.with(|list| list.take(self.0))
    }

    /// Lists the limit until the guard is dropped.
    // A guard, because a closure would move the result of the inner service once more.
    #[inline]
    pub(crate) fn list(&mut self) -> Option<ActiveGuard<'_>> {
        if *self == Self::NOT_LISTED {
            return None;
        }
        Some(ActiveGuard::new(self))
    }
}

impl ActiveLimits {
    /// Adds a limit, and returns its depth.
    fn push(&self, id: u64) -> usize {
        let depth = self.depth.get();
        if let Some(place) = self.ids.get(depth) {
            place.set(id);
        }
        self.depth.set(depth + 1);
        depth
    }

    /// Removes the limit at this depth. Returns whether it was still listed.
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

/// Keeps a limit listed. Dropping the guard removes it, also when the inner service panics.
pub(crate) struct ActiveGuard<'a> {
    counted_request: &'a mut CountedRequest,
    depth: usize,
}

impl<'a> ActiveGuard<'a> {
    #[inline]
    fn new(counted_request: &'a mut CountedRequest) -> Self {
        let depth = ACTIVE.with(|list| list.push(counted_request.0));
        Self {
            counted_request,
            depth,
        }
    }
}

impl Drop for ActiveGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if !ACTIVE.with(|list| list.pop(self.depth)) {
            // An inner service used the listing, so the next poll does not list it again.
            *self.counted_request = CountedRequest::NOT_LISTED;
        }
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    fn nested() -> Nesting {
        let nesting = Nesting::new();
        nesting.apply();
        assert_eq!(
            nesting.counted_request(),
            CountedRequest::NOT_LISTED,
            "applied once"
        );
        nesting.apply();
        assert_ne!(nesting.counted_request(), CountedRequest::NOT_LISTED);
        nesting
    }

    #[test]
    fn an_inner_service_does_not_count_the_request_again() {
        let nesting = nested();
        assert!(!nesting.take_counted());
        let mut counted_request = nesting.counted_request();
        let listed = counted_request.list();
        assert!(nesting.take_counted());
        assert!(!nesting.take_counted(), "the second request of a handler");
        drop(listed);
        assert_eq!(counted_request, CountedRequest::NOT_LISTED);
        let listed = counted_request.list();
        assert!(!nesting.take_counted());
        drop(listed);
        assert!(!nesting.take_counted());
    }

    #[test]
    fn other_limits_in_between_do_not_hide_the_outer_service() {
        let (outer, between) = (nested(), nested());
        let (mut in_outer, mut in_between) = (outer.counted_request(), between.counted_request());
        let _outer = in_outer.list();
        assert!(!between.take_counted());
        let _between = in_between.list();
        assert!(outer.take_counted());
    }

    #[test]
    fn a_panic_takes_the_limit_off_the_list() {
        let nesting = nested();
        let panicked = std::panic::catch_unwind(|| {
            let mut counted_request = nested().counted_request();
            let _listed = counted_request.list();
            panic!("the inner service");
        });
        assert!(panicked.is_err());
        assert_eq!(ACTIVE.with(|list| list.depth.get()), 0);
        let mut counted_request = nesting.counted_request();
        let _listed = counted_request.list();
        assert_eq!(ACTIVE.with(|list| list.depth.get()), 1);
    }

    #[test]
    fn the_list_is_bounded() {
        fn nest(depth: usize, outermost: &Nesting) {
            if depth == 0 {
                assert!(outermost.take_counted());
                return;
            }
            let nesting = nested();
            let mut counted_request = nesting.counted_request();
            let listed = counted_request.list();
            nest(depth - 1, outermost);
            drop(listed);
            assert!(!nesting.take_counted());
        }
        let outermost = nested();
        let mut counted_request = outermost.counted_request();
        let _listed = counted_request.list();
        nest(20, &outermost);
    }
}
