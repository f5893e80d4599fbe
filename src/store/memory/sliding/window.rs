//! What one key has used of a sliding window, by sub-window.

use std::time::Duration;

use super::super::bucket::Stale;
use super::super::phases::{Number, Numbers, Origin, Phases};
use crate::decision::Usage;

/// Sub-windows that are counted: the 15 of a period, and the one in which the period begins.
const COUNTED: usize = 16;

/// By which rule a window counts: the phase of a default, or an override's length of a sub-window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Basis(u64);

/// Marks a phase. No sub-window is that long.
const PHASE: u64 = 1 << 63;

/// The rule of one decision.
#[derive(Clone, Copy)]
pub(in super::super) struct By<'a> {
    pub(super) phases: &'a Phases,
    pub(super) rule: Numbers,
    pub(super) basis: Basis,
}

/// The counters of a key. A new one has used nothing.
#[derive(Clone, Debug)]
pub(super) struct Window {
    basis: Basis,
    /// The number of the newest sub-window, as time since the clock's zero over its length.
    newest: u64,
    /// The costs admitted in it and in those before it, the newest first.
    counts: [u32; COUNTED],
}

impl Basis {
    fn phase(self) -> Option<Number> {
        (self.0 & PHASE != 0).then_some(self.0 as Number)
    }
}

impl<'a> By<'a> {
    /// By the default.
    pub(in super::super) fn default_of(phases: &'a Phases) -> Option<Self> {
        let rule = phases.rule()?;
        let basis = Basis(PHASE | u64::from(phases.number()));
        Some(Self {
            phases,
            rule,
            basis,
        })
    }

    /// By an override.
    pub(in super::super) fn overridden(phases: &'a Phases, rule: Numbers) -> Self {
        let basis = Basis(rule.length);
        Self {
            phases,
            rule,
            basis,
        }
    }
}

fn index(rule: Numbers, now: u64) -> u64 {
    now / rule.length
}

impl Window {
    pub(super) fn new(by: By<'_>) -> Self {
        Self {
            basis: by.basis,
            newest: 0,
            counts: [0; COUNTED],
        }
    }

    /// Has it count by this rule from now on.
    pub(super) fn settle(&mut self, by: By<'_>, now: u64) -> Result<&mut Self, Stale> {
        if self.basis != by.basis {
            *self = self.converted(by, now)?;
            self.basis = by.basis;
        }
        Ok(self)
    }

    #[cold]
    fn converted(&self, by: By<'_>, now: u64) -> Result<Self, Stale> {
        let mut window = self.clone();
        let Some(number) = self.basis.phase() else {
            return Ok(window.parted(self.basis.0, by.rule, now));
        };
        let from = match (by.phases.origin(number), by.phases.rule()) {
            (Origin::Newer, _) => return Err(Stale),
            (Origin::Gone, _) | (_, None) => return Ok(Self::new(by)),
            (Origin::Current, Some(rule)) => rule.length,
            (Origin::Past(at), Some(rule)) => {
                for (length, next, since) in by.phases.steps(at) {
                    window = window.parted(length, next, since);
                }
                rule.length
            }
        };
        Ok(window.parted(from, by.rule, now))
    }

    /// What counts of it, if it may be evicted: `None` of one that denies. One that counts by an override is evicted
    /// only when nothing counts.
    pub(super) fn evictable(&self, by: By<'_>, now: u64) -> Option<u32> {
        if self.basis.phase().is_none() {
            let rule = Numbers {
                length: self.basis.0,
                ..by.rule
            };
            return (self.used(rule, now) == 0).then_some(0);
        }
        let default = By::default_of(by.phases)?;
        let used = if self.basis == default.basis {
            self.used(default.rule, now)
        } else {
            self.converted(default, now).ok()?.used(default.rule, now)
        };
        (used < default.rule.limit).then_some(used)
    }

    /// Brings the counters up to a time. A clock that stepped back leaves them no further ahead
    /// than by one sub-window.
    pub(super) fn advance(&mut self, rule: Numbers, now: u64) {
        let index = index(rule, now);
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
    pub(super) fn used(&self, rule: Numbers, now: u64) -> u32 {
        let passed = index(rule, now).saturating_sub(self.newest);
        let counted = (COUNTED as u64).saturating_sub(passed) as usize;
        // Never above the highest limit that the key had.
        self.counts[..counted].iter().sum()
    }

    /// Admits a request that fits, and takes its cost if `takes`.
    pub(super) fn decide(&mut self, rule: Numbers, now: u64, cost: u32, takes: bool) -> Usage {
        self.advance(rule, now);
        let limit = rule.limit;
        // More than the limit is used when it was lowered.
        let left = limit.saturating_sub(self.used(rule, now));
        let reset = |window: &Self| Duration::from_nanos(window.reset(rule, now));
        if left >= cost {
            let taken = if takes { cost } else { 0 };
            self.counts[0] += taken;
            return Usage::admitted(limit, left - taken, reset(self));
        }
        let wait = limit
            .checked_sub(cost)
            .map(|most| Duration::from_nanos(self.wait(most, rule, now)));
        Usage::rejected(limit, left, reset(self), wait)
    }

    /// The same costs by sub-windows of another length: all are as young as the youngest can be,
    /// which is from the end of its sub-window, or from now.
    fn parted(&self, length: u64, rule: Numbers, now: u64) -> Self {
        if length == rule.length || length == 0 {
            return self.clone();
        }
        let used = self.used(Numbers { length, ..rule }, now);
        let youngest = (self.newest.saturating_add(1).saturating_mul(length) - 1) / rule.length;
        let mut counts = [0; COUNTED];
        counts[0] = used;
        Self {
            basis: self.basis,
            newest: youngest.min(index(rule, now)),
            counts,
        }
    }

    /// Charges the newest sub-window, as far as numbers go.
    pub(super) fn charge(&mut self, cost: u32) {
        let room = u32::MAX - self.counts.iter().sum::<u32>();
        self.counts[0] += cost.min(room);
    }

    /// Gives a cost back: to the newest sub-window that was used, and what is more than was used
    /// in it to the one before.
    pub(super) fn give_back(&mut self, mut cost: u32) {
        for count in &mut self.counts {
            let given = cost.min(*count);
            *count -= given;
            cost -= given;
        }
    }

    /// The time until nothing counts any more.
    pub(super) fn reset(&self, rule: Numbers, now: u64) -> u64 {
        let newest_used = self.counts.iter().position(|count| *count > 0);
        newest_used.map_or(0, |age| self.until_gone(age, rule, now))
    }

    /// The time until no more than `most` counts.
    pub(super) fn wait(&self, most: u32, rule: Numbers, now: u64) -> u64 {
        let mut left: u32 = self.counts.iter().sum();
        for (age, count) in self.counts.iter().enumerate().rev() {
            if left <= most {
                break;
            }
            left -= count;
            if left <= most {
                return self.until_gone(age, rule, now);
            }
        }
        0
    }

    /// The time until the counter of this age is no longer counted.
    fn until_gone(&self, age: usize, rule: Numbers, now: u64) -> u64 {
        let gone = (self.newest + COUNTED as u64).saturating_sub(age as u64);
        gone.saturating_mul(rule.length).saturating_sub(now)
    }
}
