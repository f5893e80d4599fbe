//! Numbers for the rates of overrides, so that an entry can name the rate that its key was charged by.

use std::sync::Arc;

use papaya::HashMap;

use super::phases::{FIRST_OVERRIDE, Number, Numbers};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// The number of a rate that found none free. What is used then stays used as time and not as requests when the
/// override changes.
pub(super) const UNNUMBERED: Number = Number::MAX;

/// Distinct rates of overrides that one quota has numbers for at a time.
const MAX_INTERVALS: usize = (UNNUMBERED - FIRST_OVERRIDE) as usize;

/// Numbers that are looked at for one that is free before there is one more.
const LOOKS: usize = 8;

/// The numbers of the intervals that overrides of one quota have.
///
/// A number is free again when all buckets that were charged by its interval are full.
#[derive(Default)]
pub(super) struct Intervals {
    by_length: HashMap<u64, Arc<Interval>>,
    numbered: Mutex<Numbered>,
}

#[derive(Default)]
struct Numbered {
    intervals: Vec<Arc<Interval>>,
    /// The next one to look at. It goes round.
    hand: usize,
}

struct Interval {
    number: Number,
    length: u64,
    /// When all buckets that were charged by it are full. Changed with `numbered` locked.
    until: AtomicU64,
}

impl Intervals {
    /// The number of a rule's interval, to charge a bucket by it now.
    // Apart, as most decisions are by the default.
    #[inline(never)]
    pub(super) fn number(&self, rule: Numbers, now: u64) -> Number {
        let latest = now.saturating_add(rule.refill);
        let by_length = self.by_length.pin();
        match by_length.get(&rule.length) {
            Some(interval) if latest <= interval.until.load(Ordering::Acquire) => interval.number,
            _ => self.keep(rule, now),
        }
    }

    /// Keeps the number of an interval for longer, or finds one for it.
    #[cold]
    fn keep(&self, rule: Numbers, now: u64) -> Number {
        // Further than needed, so that not every decision comes here.
        let until = now.saturating_add(rule.refill.saturating_mul(2));
        let mut numbered = lock(&self.numbered);
        let by_length = self.by_length.pin();
        if let Some(interval) = by_length.get(&rule.length) {
            interval.until.fetch_max(until, Ordering::AcqRel);
            return interval.number;
        }
        let Some(at) = numbered.free(now) else {
            return UNNUMBERED;
        };
        let interval = Arc::new(Interval {
            number: FIRST_OVERRIDE + at as Number,
            length: rule.length,
            until: AtomicU64::new(until),
        });
        match numbered.intervals.get_mut(at) {
            Some(old) => {
                by_length.remove(&old.length);
                *old = interval.clone();
            }
            None => numbered.intervals.push(interval.clone()),
        }
        by_length.insert(rule.length, interval.clone());
        interval.number
    }

    /// The interval of a number; `None` of one that is not in use.
    #[cold]
    pub(super) fn length(&self, number: Number) -> Option<u64> {
        let at = usize::from(number.checked_sub(FIRST_OVERRIDE)?);
        let numbered = lock(&self.numbered);
        numbered.intervals.get(at).map(|interval| interval.length)
    }
}

impl Numbered {
    /// The place of a number that is free.
    fn free(&mut self, now: u64) -> Option<usize> {
        let len = self.intervals.len();
        let looks = if len < MAX_INTERVALS {
            LOOKS.min(len)
        } else {
            len
        };
        for _ in 0..looks {
            self.hand = (self.hand + 1) % len;
            if self.intervals[self.hand].until.load(Ordering::Acquire) < now {
                return Some(self.hand);
            }
        }
        (len < MAX_INTERVALS).then_some(len)
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    fn rule(length: u64) -> Numbers {
        Numbers {
            length,
            limit: 10,
            refill: 10 * length,
        }
    }

    #[test]
    fn an_interval_has_one_number_for_as_long_as_it_counts() {
        let intervals = Intervals::default();
        let first = intervals.number(rule(7), 0);
        assert_eq!(intervals.number(rule(9), 0), first + 1);
        for now in 0..100 {
            assert_eq!(intervals.number(rule(7), now), first);
        }
        assert_eq!(intervals.length(first), Some(7));
        assert_eq!(intervals.length(first + 1), Some(9));
        assert_eq!(intervals.length(first + 2), None);
        assert_eq!(intervals.length(3), None, "of a phase");
    }

    #[test]
    fn a_number_is_used_again_when_its_buckets_are_full() {
        let intervals = Intervals::default();
        let mut highest = 0;
        for n in 1..=10_000 {
            // Each is charged for as long as ten others come.
            highest = highest.max(intervals.number(rule(n % 500 + 1), n * 100));
        }
        assert!(
            highest < FIRST_OVERRIDE + 200,
            "{}",
            highest - FIRST_OVERRIDE
        );
        // One whose buckets may not be full is kept.
        let kept = intervals.number(rule(1_000_000), 2_000_000);
        for n in 1..=1_000 {
            let _ = intervals.number(rule(n), 2_000_000 + n * 9_000);
        }
        assert_eq!(intervals.length(kept), Some(1_000_000));
    }

    #[test]
    fn there_is_a_bound_on_numbers() {
        let intervals = Intervals::default();
        let numbers = (1..=MAX_INTERVALS as u64).map(|n| intervals.number(rule(1_000 + n), 0));
        let numbers: std::collections::HashSet<_> = numbers.collect();
        assert_eq!(numbers.len(), MAX_INTERVALS);
        assert!(!numbers.contains(&UNNUMBERED));
        assert_eq!(intervals.number(rule(5), 0), UNNUMBERED);
        // Later there is room again.
        assert!(numbers.contains(&intervals.number(rule(5), u64::MAX / 2)));
    }
}
