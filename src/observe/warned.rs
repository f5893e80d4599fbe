//! Who was warned of, for a time: a table of a fixed size, and a bound on warnings per second.

use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// Warnings a second, whoever they are about.
pub(super) const MOST_WARNINGS: u64 = 10;

/// The longest that somebody who was warned of is not warned of again.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// The shortest.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);

/// Places for those warned of. There are at most 600 at a time, which is what the bound per second
/// makes in the longest time, so few meet in a set that is full.
const SETS: usize = 128;
const SET: usize = 8;

/// Somebody who was warned of, and until when that is enough.
#[derive(Clone, Copy, Default)]
struct Place {
    who: u64,
    /// In milliseconds.
    until: u64,
}

/// Those who were warned of: 17 KiB.
pub(super) struct Warned {
    // Random, so that nobody can choose keys that drive others out.
    hasher: RandomState,
    sets: Box<[Mutex<[Place; SET]>]>,
    /// The current second, and how many warnings it has had, in the low byte.
    spent: AtomicU64,
    /// Refusals without a warning since the last one.
    silent: AtomicU64,
}

impl Warned {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            sets: (0..SETS).map(|_| Mutex::default()).collect(),
            spent: AtomicU64::new(0),
            silent: AtomicU64::new(0),
        }
    }

    /// Whether `who` is to be warned of at the time `now`, and then not for `window` again; and if
    /// so, how many were not since the last warning.
    pub(super) fn warns(&self, who: impl Hash, now: Duration, window: Duration) -> Option<u64> {
        let warns = self.takes(self.hasher.hash_one(who), now, window);
        if warns {
            Some(self.silent.swap(0, Ordering::Relaxed))
        } else {
            self.silent.fetch_add(1, Ordering::Relaxed);
            None
        }
    }

    fn takes(&self, who: u64, now: Duration, window: Duration) -> bool {
        let until = millis(now + window.clamp(SHORTEST, LONGEST));
        let now = millis(now);
        let mut set = lock(&self.sets[who as usize % SETS]);
        let is_known = |place: &Place| place.who == who && place.until > now;
        if set.iter().any(is_known) || !self.spend(now / 1_000) {
            return false;
        }
        // The one that is over, or will be first.
        if let Some(place) = set.iter_mut().min_by_key(|place| place.until) {
            *place = Place { who, until };
        }
        true
    }

    /// Takes one of the warnings of this second, if there is one left.
    fn spend(&self, second: u64) -> bool {
        let one_more = |spent: u64| match spent & 0xff {
            // The one that is counted is over. It may also be to come: others read the clock later.
            _ if spent >> 8 < second => Some(second << 8 | 1),
            count if count < MOST_WARNINGS => Some(spent + 1),
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
    fn one_warning_in_a_window_and_a_count_with_the_next() {
        let warned = Warned::new();
        let warns = |now| warned.warns("alice", at(now), at(5_000));
        assert_eq!(warns(0), Some(0));
        assert_eq!(warns(1), None);
        assert_eq!(warns(4_999), None);
        assert_eq!(warns(5_000), Some(2));
        assert_eq!(warns(9_999), None);
    }

    #[test]
    fn a_window_has_its_bounds() {
        let warned = Warned::new();
        let (short, long) = (Duration::ZERO, Duration::MAX);
        assert_eq!(warned.warns("short", at(0), short), Some(0));
        assert_eq!(warned.warns("long", at(0), long), Some(0));
        assert_eq!(warned.warns("short", at(999), short), None);
        assert_eq!(warned.warns("short", at(1_000), short), Some(1));
        assert_eq!(warned.warns("long", at(59_999), long), None);
        assert_eq!(warned.warns("long", at(60_000), long), Some(1));
    }

    #[test]
    fn a_flood_of_keys_has_a_bounded_number_of_warnings_and_is_counted() {
        let warned = Warned::new();
        for second in 0..100 {
            let warnings = (0..5_000)
                .filter_map(|n| warned.warns((second, n), at(second * 1_000 + n / 5), LONGEST))
                .collect::<Vec<_>>();
            assert_eq!(warnings.len() as u64, MOST_WARNINGS);
            let silent = if second == 0 { 0 } else { 4_990 };
            assert_eq!(warnings.iter().sum::<u64>(), silent);
        }
    }

    #[test]
    fn a_key_that_the_flood_left_no_warning_has_one_later() {
        let warned = Warned::new();
        for n in 0..MOST_WARNINGS {
            assert!(warned.warns(n, at(0), LONGEST).is_some());
        }
        assert_eq!(warned.warns("alice", at(0), LONGEST), None);
        assert_eq!(warned.warns("alice", at(1_000), LONGEST), Some(1));
    }

    #[test]
    fn threads_warn_once() {
        let warned = Warned::new();
        let warnings = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let warnings =
                            (0..1_000).filter_map(|_| warned.warns("alice", at(0), LONGEST));
                        warnings.count()
                    })
                })
                .collect();
            let warnings = threads.into_iter().map(|thread| thread.join().unwrap());
            warnings.sum::<usize>()
        });
        assert_eq!(warnings, 1);
        assert_eq!(warned.silent.load(Ordering::Relaxed), 3_999);
    }
}
