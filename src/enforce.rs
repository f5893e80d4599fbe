//! The percentage of rejections that a layer enforces, to introduce a limit gradually.

use std::sync::Arc;

use crate::key::Key;
use crate::sync::{AtomicU64, Ordering};

/// The percentage of rejections that a layer enforces. It admits the others and reports them to its
/// observers.
///
/// A key is either always enforced or never, so that a client does not see random rejections. The
/// choice depends on the [`Secret`](crate::Secret) of the process: a client cannot compute it, and
/// replicas with the same secret agree. A key that is enforced at one percentage is enforced at
/// every higher one.
///
/// Rejections without an individual key are enforced in rotation: exactly `percent` of any 100.
#[derive(Clone, Debug)]
pub struct Enforcement {
    percent: u8,
    /// The number of rejections without an individual key. Clones of a layer share it.
    rotation: Arc<AtomicU64>,
}

impl Enforcement {
    /// Enforces no rejection.
    pub(crate) const DRY_RUN: u8 = 0;
    /// Enforces every rejection.
    pub const ALL: u8 = 100;

    /// Enforces `percent` percent of the rejections.
    ///
    /// # Panics
    ///
    /// Panics when `percent` is above 100.
    #[must_use]
    #[track_caller]
    pub fn new(percent: u8) -> Self {
        assert!(
            percent <= Self::ALL,
            "cannot enforce {percent} percent of the rejections: use 0 to 100"
        );
        Self {
            percent,
            rotation: Arc::new(AtomicU64::new(0)),
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
    pub fn is_enforced(&self, key: Option<&Key>) -> bool {
        let all = u64::from(Self::ALL);
        let percent = u64::from(self.percent);
        match key {
            _ if percent == all => true,
            _ if percent == 0 => false,
            // Many clients share these keys. A choice by key would reject all of them or none.
            None | Some(&Key::UNKNOWN | &Key::SHARED) => {
                let rotation = self.rotation.fetch_add(1, Ordering::Relaxed) % all;
                (rotation + 1) * percent / all > rotation * percent / all
            }
            Some(key) => key.hash_words()[1] % all < percent,
        }
    }
}

/// Enforces every rejection.
impl Default for Enforcement {
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
    fn zero_and_a_hundred_percent_are_exact() {
        let (dry_run, all) = (Enforcement::new(0), Enforcement::default());
        for key in keys().map(Some).chain([None, Some(Key::SHARED)]) {
            assert!(!dry_run.is_enforced(key.as_ref()));
            assert!(all.is_enforced(key.as_ref()));
        }
        assert!(dry_run.is_dry_run() && !all.is_dry_run());
    }

    #[test]
    fn a_key_is_enforced_always_or_never() {
        let enforce = Enforcement::new(50);
        for key in keys().chain([Key::ip([192, 0, 2, 1].into())]) {
            let first = enforce.is_enforced(Some(&key));
            assert!((0..10).all(|_| enforce.is_enforced(Some(&key)) == first));
            assert_eq!(Enforcement::new(50).is_enforced(Some(&key)), first);
        }
    }

    #[test]
    fn an_enforced_key_stays_enforced_at_a_higher_percentage() {
        for percent in 1..100 {
            let (lower, higher) = (Enforcement::new(percent - 1), Enforcement::new(percent));
            assert!(
                keys().all(|key| !lower.is_enforced(Some(&key)) || higher.is_enforced(Some(&key)))
            );
        }
    }

    /// 10,000 keys at 25 percent: 2,500 expected, with a standard deviation of 43.
    #[test]
    fn keys_are_enforced_in_proportion() {
        let enforce = Enforcement::new(25);
        let enforced = keys().filter(|key| enforce.is_enforced(Some(key))).count();
        assert!((2_200..2_800).contains(&enforced), "{enforced}");
    }

    #[test]
    fn rejections_without_a_key_are_enforced_in_rotation() {
        for percent in [1, 25, 50, 99] {
            for key in [None, Some(Key::SHARED), Some(Key::UNKNOWN)] {
                let enforce = Enforcement::new(percent);
                for _ in 0..3 {
                    let hundred = (0..100).filter(|_| enforce.is_enforced(key.as_ref()));
                    assert_eq!(hundred.count(), usize::from(percent));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "use 0 to 100")]
    fn a_percentage_above_100_panics() {
        let _ = Enforcement::new(101);
    }
}
