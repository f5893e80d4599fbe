//! A short list of what has a name, which readers take no lock for.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// How many there can be. What comes after them is left out.
const MOST: usize = 64;

/// What is known of each limiter.
pub(super) struct Named<T>(ArcSwap<Vec<Arc<T>>>);

impl<T> Named<T> {
    /// Has `with` see the one that `is` says yes to, and makes it if there is none.
    ///
    /// There are few and they do not change after the first requests, so they are looked through in turn.
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
        if items.len() >= MOST {
            return;
        }
        let made = Arc::new(make());
        // Another thread may have been first.
        self.0.rcu(|items| {
            let mut items = Vec::clone(items);
            if items.len() < MOST && !items.iter().any(|item| is(item)) {
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

// Not derived: that would ask it of `T`.
impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn makes_each_once_and_no_more_than_fit() {
        let named = Named::<(usize, AtomicU32)>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for name in 0..MOST + 10 {
                        named.with(
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
        let all = named.all();
        assert_eq!(all.len(), MOST);
        let counts = all.iter().map(|item| item.1.load(Ordering::Relaxed));
        assert!(counts.eq([4; MOST]));
    }
}
