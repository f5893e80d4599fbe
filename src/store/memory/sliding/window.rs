//! What one key has used of a sliding window, by sub-window.

use std::time::Duration;

use crate::decision::Usage;
use crate::quota::Rate;

/// Sub-windows that a period is divided into.
pub(in super::super) const PARTS: u64 = 15;

/// Sub-windows that are counted: those of a period, and the one in which the period begins.
const COUNTED: usize = PARTS as usize + 1;

/// A quota's numbers.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Numbers {
    pub(in super::super) limit: u32,
    /// The length of a sub-window in nanoseconds; whole microseconds.
    pub(in super::super) part: u64,
}

/// The counters of a key. A new one has used nothing.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Window {
    /// The number of the newest sub-window, as time since the clock's zero over its length.
    newest: u64,
    /// The costs admitted in it and in those before it, the newest first.
    counts: [u32; COUNTED],
}

impl Numbers {
    pub(in super::super) fn of(rate: Rate) -> Self {
        let micros = rate.period().as_nanos().div_ceil(u128::from(PARTS) * 1_000);
        Self {
            limit: rate.limit(),
            // A quota's period is below 100 years.
            part: micros as u64 * 1_000,
        }
    }

    fn index(self, now: u64) -> u64 {
        now / self.part
    }
}

impl Window {
    /// Brings the counters up to a time. A clock that stepped back leaves them no further ahead
    /// than by one sub-window.
    pub(in super::super) fn advance(&mut self, numbers: Numbers, now: u64) {
        let index = numbers.index(now);
        self.newest = self.newest.min(index + 1);
        let passed = index.saturating_sub(self.newest);
        if passed > 0 {
            // Below the number of counters, or all of them.
            let passed = passed.min(COUNTED as u64) as usize;
            self.counts.copy_within(..COUNTED - passed, passed);
            self.counts[..passed].fill(0);
            self.newest = index;
        }
    }

    /// What counts at a time.
    pub(super) fn used(&self, numbers: Numbers, now: u64) -> u32 {
        let passed = numbers.index(now).saturating_sub(self.newest);
        let counted = (COUNTED as u64).saturating_sub(passed) as usize;
        // Never above the highest limit that the key had.
        self.counts[..counted].iter().sum()
    }

    /// Admits a request that fits, and takes its cost if `takes`.
    pub(in super::super) fn decide(
        &mut self,
        numbers: Numbers,
        now: u64,
        cost: u32,
        takes: bool,
    ) -> Usage {
        self.advance(numbers, now);
        let limit = numbers.limit;
        // More than the limit is used when it was lowered.
        let left = limit.saturating_sub(self.used(numbers, now));
        let reset = |window: &Self| Duration::from_nanos(window.reset(numbers, now));
        if left >= cost {
            let taken = if takes { cost } else { 0 };
            self.counts[0] += taken;
            return Usage::admitted(limit, left - taken, reset(self));
        }
        let wait = limit
            .checked_sub(cost)
            .map(|most| Duration::from_nanos(self.wait(most, numbers, now)));
        Usage::refused(limit, left, reset(self), wait)
    }

    /// The same costs by sub-windows of another length: all are as young as the youngest can be,
    /// which is from the end of its sub-window, or from now.
    pub(in super::super) fn parted(&self, length: u64, numbers: Numbers, now: u64) -> Self {
        if length == numbers.part {
            return self.clone();
        }
        let used = self.used(
            Numbers {
                part: length,
                ..numbers
            },
            now,
        );
        let youngest = (self.newest.saturating_add(1).saturating_mul(length) - 1) / numbers.part;
        let mut counts = [0; COUNTED];
        counts[0] = used;
        Self {
            newest: youngest.min(numbers.index(now)),
            counts,
        }
    }

    /// Charges the newest sub-window, as far as numbers go.
    pub(in super::super) fn charge(&mut self, cost: u32) {
        let room = u32::MAX - self.counts.iter().sum::<u32>();
        self.counts[0] += cost.min(room);
    }

    /// Gives a cost back: to the newest sub-window that was used, and what is more than was used
    /// in it to the one before.
    pub(in super::super) fn give_back(&mut self, mut cost: u32) {
        for count in &mut self.counts {
            let given = cost.min(*count);
            *count -= given;
            cost -= given;
        }
    }

    /// The time until nothing counts any more.
    pub(super) fn reset(&self, numbers: Numbers, now: u64) -> u64 {
        let newest_used = self.counts.iter().position(|count| *count > 0);
        newest_used.map_or(0, |age| self.until_gone(age, numbers, now))
    }

    /// The time until no more than `most` counts.
    pub(super) fn wait(&self, most: u32, numbers: Numbers, now: u64) -> u64 {
        let mut left: u32 = self.counts.iter().sum();
        for (age, count) in self.counts.iter().enumerate().rev() {
            if left <= most {
                break;
            }
            left -= count;
            if left <= most {
                return self.until_gone(age, numbers, now);
            }
        }
        0
    }

    /// The time until the counter of this age is no longer counted.
    fn until_gone(&self, age: usize, numbers: Numbers, now: u64) -> u64 {
        let gone = (self.newest + COUNTED as u64).saturating_sub(age as u64);
        gone.saturating_mul(numbers.part).saturating_sub(now)
    }
}
