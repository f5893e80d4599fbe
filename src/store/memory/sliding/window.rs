//! What one key has used of a sliding window, by sub-window.

use std::time::Duration;

use super::super::bucket::StaleRules;
use super::super::phases::{EntryPhase, Phases, RateParams, RuleNumber};
use crate::decision::Usage;

/// Counted sub-windows: the 15 of a period, and the one in which the period begins.
const COUNTERS: usize = 16;

/// The rule that a window counts by: a phase of the default, or an override's sub-window length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowRule(u64);

/// Marks a phase. No sub-window is that long.
const PHASE_FLAG: u64 = 1 << 63;

/// The rule of one decision.
#[derive(Clone, Copy)]
pub(in super::super) struct WindowContext<'a> {
    pub(super) phases: &'a Phases,
    pub(super) rule: RateParams,
    pub(super) counted_by: WindowRule,
}

/// The counters of a key.
#[derive(Clone, Debug)]
pub(super) struct Window {
    counted_by: WindowRule,
    /// The number of the newest sub-window: the time since the clock's zero divided by its length.
    newest: u64,
    /// The costs admitted in that sub-window and in those before it, the newest first.
    counts: [u32; COUNTERS],
}

impl WindowRule {
    fn phase_number(self) -> Option<RuleNumber> {
        (self.0 & PHASE_FLAG != 0).then_some(self.0 as RuleNumber)
    }
}

impl<'a> WindowContext<'a> {
    /// For a decision under the default.
    pub(in super::super) fn for_default(phases: &'a Phases) -> Option<Self> {
        let rule = phases.rule()?;
        let counted_by = WindowRule(PHASE_FLAG | u64::from(phases.number()));
        Some(Self {
            phases,
            rule,
            counted_by,
        })
    }

    /// For a decision under an override.
    pub(in super::super) fn for_override(phases: &'a Phases, rule: RateParams) -> Self {
        let counted_by = WindowRule(rule.length);
        Self {
            phases,
            rule,
            counted_by,
        }
    }
}

fn index(rule: RateParams, now: u64) -> u64 {
    now / rule.length
}

impl Window {
    pub(super) fn new(context: WindowContext<'_>) -> Self {
        Self {
            counted_by: context.counted_by,
            newest: 0,
            counts: [0; COUNTERS],
        }
    }

    /// Converts the counters to this rule.
    pub(super) fn convert_to(
        &mut self,
        context: WindowContext<'_>,
        now: u64,
    ) -> Result<&mut Self, StaleRules> {
        if self.counted_by != context.counted_by {
            *self = self.converted(context, now)?;
            self.counted_by = context.counted_by;
        }
        Ok(self)
    }

    #[cold]
    fn converted(&self, context: WindowContext<'_>, now: u64) -> Result<Self, StaleRules> {
        let mut window = self.clone();
        let Some(number) = self.counted_by.phase_number() else {
            return Ok(window.rescaled(self.counted_by.0, context.rule, now));
        };
        let from = match (context.phases.phase_of(number), context.phases.rule()) {
            (EntryPhase::Newer, _) => return Err(StaleRules),
            (EntryPhase::Expired, _) | (_, None) => return Ok(Self::new(context)),
            (EntryPhase::Current, Some(rule)) => rule.length,
            (EntryPhase::Past(at), Some(rule)) => {
                for (length, next, since) in context.phases.conversions(at) {
                    window = window.rescaled(length, next, since);
                }
                rule.length
            }
        };
        Ok(window.rescaled(from, context.rule, now))
    }

    /// The costs that count, if the window may be evicted. `None` if it denies. A window under an
    /// override may be evicted only when nothing counts.
    pub(super) fn evictable_cost(&self, context: WindowContext<'_>, now: u64) -> Option<u32> {
        if self.counted_by.phase_number().is_none() {
            let rule = RateParams {
                length: self.counted_by.0,
                ..context.rule
            };
            return (self.used(rule, now) == 0).then_some(0);
        }
        let default = WindowContext::for_default(context.phases)?;
        let used = if self.counted_by == default.counted_by {
            self.used(default.rule, now)
        } else {
            self.converted(default, now).ok()?.used(default.rule, now)
        };
        (used < default.rule.limit).then_some(used)
    }

    /// Advances the counters to a time. After a clock stepped back, they are at most one sub-window
    /// ahead.
    pub(super) fn advance(&mut self, rule: RateParams, now: u64) {
        let index = index(rule, now);
        self.newest = self.newest.min(index + 1);
        let passed = index.saturating_sub(self.newest);
        if passed > 0 {
            // Below the number of counters, or all of them.
            let passed = passed.min(COUNTERS as u64) as usize;
            self.counts.copy_within(..COUNTERS - passed, passed);
            self.counts[..passed].fill(0);
            self.newest = index;
        }
    }

    /// The costs that count at a time.
    pub(super) fn used(&self, rule: RateParams, now: u64) -> u32 {
        let passed = index(rule, now).saturating_sub(self.newest);
        let counted = (COUNTERS as u64).saturating_sub(passed) as usize;
        // The sum never exceeds the highest limit that the key had.
        self.counts[..counted].iter().sum()
    }

    /// Decides a request. If it fits and `should_charge` is set, charges its cost.
    pub(super) fn decide(
        &mut self,
        rule: RateParams,
        now: u64,
        cost: u32,
        should_charge: bool,
    ) -> Usage {
        self.advance(rule, now);
        let limit = rule.limit;
        // After the limit is lowered, more than the limit can be used.
        let left = limit.saturating_sub(self.used(rule, now));
        let reset = |window: &Self| Duration::from_nanos(window.reset(rule, now));
        if left >= cost {
            let taken = if should_charge { cost } else { 0 };
            self.counts[0] += taken;
            return Usage::admitted(limit, left - taken, reset(self));
        }
        let wait = limit
            .checked_sub(cost)
            .map(|most| Duration::from_nanos(self.wait(most, rule, now)));
        Usage::rejected(limit, left, reset(self), wait)
    }

    /// Moves the costs to sub-windows of another length. All costs become as young as the youngest
    /// can be: they date from the end of its sub-window, or from now.
    fn rescaled(&self, length: u64, rule: RateParams, now: u64) -> Self {
        if length == rule.length || length == 0 {
            return self.clone();
        }
        let used = self.used(RateParams { length, ..rule }, now);
        let youngest = (self.newest.saturating_add(1).saturating_mul(length) - 1) / rule.length;
        let mut counts = [0; COUNTERS];
        counts[0] = used;
        Self {
            counted_by: self.counted_by,
            newest: youngest.min(index(rule, now)),
            counts,
        }
    }

    /// Charges the newest sub-window, without overflow.
    pub(super) fn charge(&mut self, cost: u32) {
        let room = u32::MAX - self.counts.iter().sum::<u32>();
        self.counts[0] += cost.min(room);
    }

    /// Refunds a cost to the newest sub-window with costs, and an excess to the ones before it.
    pub(super) fn refund(&mut self, mut cost: u32) {
        for count in &mut self.counts {
            let given = cost.min(*count);
            *count -= given;
            cost -= given;
        }
    }

    /// The time until no cost counts.
    pub(super) fn reset(&self, rule: RateParams, now: u64) -> u64 {
        let newest_used = self.counts.iter().position(|count| *count > 0);
        newest_used.map_or(0, |age| self.time_until_expired(age, rule, now))
    }

    /// The time until at most `most` counts.
    pub(super) fn wait(&self, most: u32, rule: RateParams, now: u64) -> u64 {
        let mut left: u32 = self.counts.iter().sum();
        for (age, count) in self.counts.iter().enumerate().rev() {
            if left <= most {
                break;
            }
            left -= count;
            if left <= most {
                return self.time_until_expired(age, rule, now);
            }
        }
        0
    }

    /// The time until the counter of this age expires.
    fn time_until_expired(&self, age: usize, rule: RateParams, now: u64) -> u64 {
        let gone = (self.newest + COUNTERS as u64).saturating_sub(age as u64);
        gone.saturating_mul(rule.length).saturating_sub(now)
    }
}
