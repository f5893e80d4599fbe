//! RateParams the rates of overrides, so that an entry can name the rate that charged its key.

use std::sync::Arc;

use papaya::HashMap;

use super::phases::{FIRST_OVERRIDE, RateParams, RuleNumber};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// The number of a rate when no number is free. When the override then changes, the used time
/// carries over, not the used requests.
pub(super) const UNNUMBERED: RuleNumber = RuleNumber::MAX;

/// Distinct override rates that one quota can number at a time.
const MAX_INTERVALS: usize = (UNNUMBERED - FIRST_OVERRIDE) as usize;

/// RateParams to probe for a free one before a new number is added.
const PROBES: usize = 8;

/// The numbers of one quota's override intervals.
///
/// A number is free again when all buckets that its interval charged are full.
#[derive(Default)]
pub(super) struct Intervals {
    by_length: HashMap<u64, Arc<Interval>>,
    numbered: Mutex<NumberedIntervals>,
}

#[derive(Default)]
struct NumberedIntervals {
    intervals: Vec<Arc<Interval>>,
    /// The number to probe next; it wraps around.
    next_probe: usize,
}

struct Interval {
    number: RuleNumber,
    length: u64,
    /// The time at which all buckets that it charged are full. Written under the lock of
    /// `numbered`.
    used_until: AtomicU64,
}

impl Intervals {
    /// The number of a rule's interval, for a charge at `now`.
    // Not inlined: most decisions use the default.
    #[inline(never)]
    pub(super) fn number(&self, rule: RateParams, now: u64) -> RuleNumber {
        let latest = now.saturating_add(rule.refill);
        let by_length = self.by_length.pin();
        match by_length.get(&rule.length) {
            Some(interval) if latest <= interval.used_until.load(Ordering::Acquire) => {
                interval.number
            }
            _ => self.extend_or_assign(rule, now),
        }
    }

    /// Extends the use of an interval's number, or assigns one.
    #[cold]
    fn extend_or_assign(&self, rule: RateParams, now: u64) -> RuleNumber {
        // Twice the time that is needed, so that few decisions take this path.
        let used_until = now.saturating_add(rule.refill.saturating_mul(2));
        let mut numbered = lock(&self.numbered);
        let by_length = self.by_length.pin();
        if let Some(interval) = by_length.get(&rule.length) {
            interval.used_until.fetch_max(used_until, Ordering::AcqRel);
            return interval.number;
        }
        let Some(at) = numbered.free_index(now) else {
            return UNNUMBERED;
        };
        let interval = Arc::new(Interval {
            number: FIRST_OVERRIDE + at as RuleNumber,
            length: rule.length,
            used_until: AtomicU64::new(used_until),
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

    /// The interval of a number; `None` if the number is not in use.
    #[cold]
    pub(super) fn length(&self, number: RuleNumber) -> Option<u64> {
        let at = usize::from(number.checked_sub(FIRST_OVERRIDE)?);
        let numbered = lock(&self.numbered);
        numbered.intervals.get(at).map(|interval| interval.length)
    }
}

impl NumberedIntervals {
    /// The index of a free number.
    fn free_index(&mut self, now: u64) -> Option<usize> {
        let len = self.intervals.len();
        let probes = if len < MAX_INTERVALS {
            PROBES.min(len)
        } else {
            len
        };
        for _ in 0..probes {
            self.next_probe = (self.next_probe + 1) % len;
            if self.intervals[self.next_probe]
                .used_until
                .load(Ordering::Acquire)
                < now
            {
                return Some(self.next_probe);
            }
        }
        (len < MAX_INTERVALS).then_some(len)
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    fn rule(length: u64) -> RateParams {
        RateParams {
            length,
            limit: 10,
            refill: 10 * length,
        }
    }

    #[test]
    fn an_interval_keeps_its_number_while_it_is_in_use() {
        let intervals = Intervals::default();
        let first = intervals.number(rule(7), 0);
        assert_eq!(intervals.number(rule(9), 0), first + 1);
        for now in 0..100 {
            assert_eq!(intervals.number(rule(7), now), first);
        }
        assert_eq!(intervals.length(first), Some(7));
        assert_eq!(intervals.length(first + 1), Some(9));
        assert_eq!(intervals.length(first + 2), None);
        assert_eq!(intervals.length(3), None, "the number of a phase");
    }

    #[test]
    fn a_number_is_reused_when_its_buckets_are_full() {
        let intervals = Intervals::default();
        let mut highest = 0;
        for n in 1..=10_000 {
            // Each interval stays in use while ten others arrive.
            highest = highest.max(intervals.number(rule(n % 500 + 1), n * 100));
        }
        assert!(
            highest < FIRST_OVERRIDE + 200,
            "{}",
            highest - FIRST_OVERRIDE
        );
        // A number stays in use while its buckets may not be full.
        let in_use = intervals.number(rule(1_000_000), 2_000_000);
        for n in 1..=1_000 {
            let _ = intervals.number(rule(n), 2_000_000 + n * 9_000);
        }
        assert_eq!(intervals.length(in_use), Some(1_000_000));
    }

    #[test]
    fn the_number_of_intervals_is_bounded() {
        let intervals = Intervals::default();
        let numbers = (1..=MAX_INTERVALS as u64).map(|n| intervals.number(rule(1_000 + n), 0));
        let numbers: std::collections::HashSet<_> = numbers.collect();
        assert_eq!(numbers.len(), MAX_INTERVALS);
        assert!(!numbers.contains(&UNNUMBERED));
        assert_eq!(intervals.number(rule(5), 0), UNNUMBERED);
        // RateParams are free again later.
        assert!(numbers.contains(&intervals.number(rule(5), u64::MAX / 2)));
    }
}
