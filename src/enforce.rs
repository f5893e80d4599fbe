//! The part of the rejections that a layer enforces, to introduce a limit gradually.

use std::sync::Arc;

use crate::key::Key;
use crate::sync::{AtomicU64, Ordering};

/// The percentage of rejections that are enforced; a layer admits the others and reports them to
/// its observers.
///
/// A key is either enforced or not, so that a client does not see its requests rejected by chance.
/// The choice depends on the process's [`Secret`](crate::Secret): a client cannot compute it, and
/// replicas with the same secret agree. A key that is enforced at some percentage is enforced at
/// every higher one.
///
/// Requests without a key of their own are taken in turn: exactly the percentage of any 100.
#[derive(Clone, Debug)]
pub struct Enforce {
    percent: u8,
    /// How many rejections without a key there were. Shared by the clones of a layer.
    turn: Arc<AtomicU64>,
}

impl Enforce {
    /// Rejects nothing.
    pub(crate) const DRY_RUN: u8 = 0;
    /// Rejects everything that is to be rejected.
    pub const ALL: u8 = 100;

    /// Enforces `percent` of 100 rejections.
    ///
    /// # Panics
    ///
    /// When `percent` is above 100.
    #[must_use]
    #[track_caller]
    pub fn new(percent: u8) -> Self {
        assert!(
            percent <= Self::ALL,
            "{percent} percent of the rejections cannot be enforced: use 0 to 100"
        );
        Self {
            percent,
            turn: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Whether no rejection is enforced.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.percent == Self::DRY_RUN
    }

    /// Whether every rejection is enforced.
    pub(crate) fn is_full(&self) -> bool {
        self.percent == Self::ALL
    }

    /// Whether to enforce a rejection of this key.
    #[must_use]
    pub fn decides(&self, key: Option<&Key>) -> bool {
        let all = u64::from(Self::ALL);
        let percent = u64::from(self.percent);
        match key {
            _ if percent == all => true,
            _ if percent == 0 => false,
            // These keys are many clients: by key, all of them or none would be rejected.
            None | Some(&Key::UNKNOWN | &Key::SHARED) => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % all;
                (turn + 1) * percent / all > turn * percent / all
            }
            Some(key) => key.place_bits()[1] % all < percent,
        }
    }
}

/// Enforces everything.
impl Default for Enforce {
    fn default() -> Self {
        Self::new(Self::ALL)
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    fn keys() -> impl Iterator<Item = Key> {
        (0..10_000u32).map(|n| Key::new("bearer", &n.to_le_bytes()))
    }

    #[test]
    fn nothing_and_everything_are_exact() {
        let (dry_run, all) = (Enforce::new(0), Enforce::default());
        for key in keys().map(Some).chain([None, Some(Key::SHARED)]) {
            assert!(!dry_run.decides(key.as_ref()));
            assert!(all.decides(key.as_ref()));
        }
        assert!(dry_run.is_dry_run() && !all.is_dry_run());
    }

    #[test]
    fn a_key_is_enforced_always_or_never() {
        let enforce = Enforce::new(50);
        for key in keys().chain([Key::ip([192, 0, 2, 1].into())]) {
            let first = enforce.decides(Some(&key));
            assert!((0..10).all(|_| enforce.decides(Some(&key)) == first));
            assert_eq!(Enforce::new(50).decides(Some(&key)), first);
        }
    }

    #[test]
    fn a_key_that_is_enforced_stays_so_at_a_higher_percentage() {
        for percent in 1..100 {
            let (lower, higher) = (Enforce::new(percent - 1), Enforce::new(percent));
            assert!(keys().all(|key| !lower.decides(Some(&key)) || higher.decides(Some(&key))));
        }
    }

    /// 10,000 keys at 25 percent: 2,500 with a standard deviation of 43.
    #[test]
    fn keys_are_enforced_in_proportion() {
        let enforce = Enforce::new(25);
        let enforced = keys().filter(|key| enforce.decides(Some(key))).count();
        assert!((2_200..2_800).contains(&enforced), "{enforced}");
    }

    #[test]
    fn requests_without_a_key_take_turns() {
        for percent in [1, 25, 50, 99] {
            for key in [None, Some(Key::SHARED), Some(Key::UNKNOWN)] {
                let enforce = Enforce::new(percent);
                for _ in 0..3 {
                    let hundred = (0..100).filter(|_| enforce.decides(key.as_ref()));
                    assert_eq!(hundred.count(), usize::from(percent));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "use 0 to 100")]
    fn more_than_all_panics() {
        let _ = Enforce::new(101);
    }
}
