//! Counts of each of the last seconds.

use std::sync::atomic::{AtomicU64, Ordering};

/// The number of seconds with counts.
pub(crate) const SECONDS: u32 = 120;

/// Counts of the last [`SECONDS`], including the current one: 960 bytes.
///
/// Each count is one word: the second in the upper half, the count in the lower half. So counting is an addition, and
/// once per second an exchange.
pub(super) struct PerSecondCounts([AtomicU64; SECONDS as usize]);

impl PerSecondCounts {
    /// Adds one in this second.
    pub(super) fn count(&self, second: u32) {
        let place = self.place(second);
        let mut word = place.load(Ordering::Relaxed);
        while word >> 32 != tag(second) {
            if word >> 32 > tag(second) {
                // This thread was delayed by two minutes.
                return;
            }
            let first = tag(second) << 32 | 1;
            match place.compare_exchange_weak(word, first, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => word = other,
            }
        }
        place.fetch_add(1, Ordering::Relaxed);
    }

    /// The count of a second.
    pub(super) fn of(&self, second: u32) -> u32 {
        let word = self.place(second).load(Ordering::Relaxed);
        if word >> 32 == tag(second) {
            word as u32
        } else {
            0
        }
    }

    fn place(&self, second: u32) -> &AtomicU64 {
        &self.0[(second % SECONDS) as usize]
    }
}

/// The second in a word. An empty word has the tag 0, which is no second.
fn tag(second: u32) -> u64 {
    u64::from(second) + 1
}

impl Default for PerSecondCounts {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; SECONDS as usize])
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_counts_cover_the_last_two_minutes() {
        let seconds = PerSecondCounts::default();
        assert_eq!(seconds.of(0), 0);
        for second in 0..300 {
            for _ in 0..=second % 3 {
                seconds.count(second);
            }
        }
        for second in 0..300 {
            let expected = if second < 180 { 0 } else { second % 3 + 1 };
            assert_eq!(seconds.of(second), expected, "{second}");
        }
        // Old counts are gone, and a late count changes nothing.
        seconds.count(1_000);
        seconds.count(1_000 - SECONDS);
        assert_eq!((seconds.of(1_000), seconds.of(880)), (1, 0));
    }

    #[test]
    fn concurrent_counts_are_not_lost() {
        let seconds = PerSecondCounts::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..40_000).for_each(|n| seconds.count(n / 10_000)));
            }
        });
        assert_eq!([0, 1, 2, 3].map(|second| seconds.of(second)), [40_000; 4]);
    }
}
