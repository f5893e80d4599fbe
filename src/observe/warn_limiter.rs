//! Suppresses repeated warnings per key, and bounds the warnings per second.

use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// The maximum number of warnings per second over all keys.
pub(super) const MAX_WARNINGS: u64 = 10;

/// The longest time for which warnings about one key are suppressed.
pub(super) const MAX_SUPPRESSION: Duration = Duration::from_secs(60);

/// The shortest time for which warnings about one key are suppressed.
pub(super) const MIN_SUPPRESSION: Duration = Duration::from_secs(1);

/// The size of the table. The bound per second allows at most 600 keys within the longest time, so
/// a set is rarely full.
const SET_COUNT: usize = 128;
const SET_SIZE: usize = 8;

/// A source of warnings, and the end of its suppression.
#[derive(Clone, Copy, Default)]
struct WarnEntry {
    source: u64,
    /// In milliseconds.
    until: u64,
}

/// Suppresses repeated warnings per source. Takes 17 KiB.
pub(super) struct WarnLimiter {
    // Random, so that a client cannot choose keys that evict others.
    hasher: RandomState,
    sets: Box<[Mutex<[WarnEntry; SET_SIZE]>]>,
    /// The current second, and in the low byte its number of warnings.
    spent: AtomicU64,
    /// Rejections without a warning since the last warning.
    suppressed: AtomicU64,
}

impl WarnLimiter {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            sets: (0..SET_COUNT).map(|_| Mutex::default()).collect(),
            spent: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Whether to log a warning about `source` at the time `now`. If so, suppresses further ones
    /// for `window`, and returns how many rejections had no warning since the last one.
    pub(super) fn warns(&self, source: impl Hash, now: Duration, window: Duration) -> Option<u64> {
        let warns = self.try_warn(self.hasher.hash_one(source), now, window);
        if warns {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }

    fn try_warn(&self, source: u64, now: Duration, window: Duration) -> bool {
        let until = millis(now + window.clamp(MIN_SUPPRESSION, MAX_SUPPRESSION));
        let now = millis(now);
        let mut set = lock(&self.sets[source as usize % SET_COUNT]);
        let is_known = |place: &WarnEntry| place.source == source && place.until > now;
        if set.iter().any(is_known) || !self.spend(now / 1_000) {
            return false;
        }
        // Evict the entry that expires first.
        if let Some(place) = set.iter_mut().min_by_key(|place| place.until) {
            *place = WarnEntry { source, until };
        }
        true
    }

    /// Counts a warning in this second. Returns false if there were too many.
    fn spend(&self, second: u64) -> bool {
        let one_more = |spent: u64| match spent & 0xff {
            // Starts a new second. A thread with a late clock may still see an earlier one.
            _ if spent >> 8 < second => Some(second << 8 | 1),
            count if count < MAX_WARNINGS => Some(spent + 1),
            _ => None,
        };
        self.spent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_key_warns_once_per_window() {
        let warned = WarnLimiter::new();
        let warns = |now| warned.warns("alice", at(now), at(5_000));
        assert_eq!(warns(0), Some(0));
        assert_eq!(warns(1), None);
        assert_eq!(warns(4_999), None);
        assert_eq!(warns(5_000), Some(2));
        assert_eq!(warns(9_999), None);
    }

    #[test]
    fn a_window_is_clamped() {
        let warned = WarnLimiter::new();
        let (short, long) = (Duration::ZERO, Duration::MAX);
        assert_eq!(warned.warns("short", at(0), short), Some(0));
        assert_eq!(warned.warns("long", at(0), long), Some(0));
        assert_eq!(warned.warns("short", at(999), short), None);
        assert_eq!(warned.warns("short", at(1_000), short), Some(1));
        assert_eq!(warned.warns("long", at(59_999), long), None);
        assert_eq!(warned.warns("long", at(60_000), long), Some(1));
    }

    #[test]
    fn a_flood_of_keys_logs_a_bounded_number_of_warnings() {
        let warned = WarnLimiter::new();
        for second in 0..100 {
            let warnings = (0..5_000)
                .filter_map(|n| {
                    warned.warns((second, n), at(second * 1_000 + n / 5), MAX_SUPPRESSION)
                })
                .collect::<Vec<_>>();
            assert_eq!(warnings.len() as u64, MAX_WARNINGS);
            let suppressed = if second == 0 { 0 } else { 4_990 };
            assert_eq!(warnings.iter().sum::<u64>(), suppressed);
        }
    }

    #[test]
    fn a_key_without_a_warning_gets_one_after_the_flood() {
        let warned = WarnLimiter::new();
        for n in 0..MAX_WARNINGS {
            assert!(warned.warns(n, at(0), MAX_SUPPRESSION).is_some());
        }
        assert_eq!(warned.warns("alice", at(0), MAX_SUPPRESSION), None);
        assert_eq!(warned.warns("alice", at(1_000), MAX_SUPPRESSION), Some(1));
    }

    #[test]
    fn concurrent_rejections_warn_once() {
        let warned = WarnLimiter::new();
        let warnings = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let warnings = (0..1_000)
                            .filter_map(|_| warned.warns("alice", at(0), MAX_SUPPRESSION));
                        warnings.count()
                    })
                })
                .collect();
            let warnings = threads.into_iter().map(|thread| thread.join().unwrap());
            warnings.sum::<usize>()
        });
        assert_eq!(warnings, 1);
        assert_eq!(warned.suppressed.load(Ordering::Relaxed), 3_999);
    }
}
