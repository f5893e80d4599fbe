//! A short list of named items that readers search without a lock.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// The maximum number of items. Further items are ignored.
const MAX_ITEMS: usize = 64;

/// The items of each limiter.
pub(super) struct Registry<T>(ArcSwap<Vec<Arc<T>>>);

impl<T> Registry<T> {
    /// Calls `with` with the item that `is` accepts, after inserting it if it is missing.
    ///
    /// A linear search suffices: there are few items, and after the first requests no new ones.
    pub(super) fn with(
        &self,
        is: impl Fn(&T) -> bool,
        make: impl Fn() -> T,
        with: impl Fn(&Arc<T>),
    ) {
        let items = self.0.load();
        if let Some(found) = items.iter().find(|item| is(item)) {
            return with(found);
        }
        if items.len() >= MAX_ITEMS {
            return;
        }
        let made = Arc::new(make());
        // Another thread may have inserted it first.
        self.0.rcu(|items| {
            let mut items = Vec::clone(items);
            if items.len() < MAX_ITEMS && !items.iter().any(|item| is(item)) {
                items.push(made.clone());
            }
            items
        });
        if let Some(found) = self.0.load().iter().find(|item| is(item)) {
            with(found);
        }
    }

    pub(super) fn all(&self) -> Arc<Vec<Arc<T>>> {
        self.0.load_full()
    }
}

// A derive would require `T: Default`.
impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn the_registry_inserts_each_item_once_and_has_a_bound() {
        let registry = Registry::<(usize, AtomicU32)>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for name in 0..MAX_ITEMS + 10 {
                        registry.with(
                            |(other, _)| *other == name,
                            || (name, AtomicU32::new(0)),
                            |item| {
                                item.1.fetch_add(1, Ordering::Relaxed);
                            },
                        );
                    }
                });
            }
        });
        let all = registry.all();
        assert_eq!(all.len(), MAX_ITEMS);
        let counts = all.iter().map(|item| item.1.load(Ordering::Relaxed));
        assert!(counts.eq([4; MAX_ITEMS]));
    }
}
