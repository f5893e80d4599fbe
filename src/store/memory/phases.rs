//! Converts what was used under one default rule to the next.
//!
//! Each change of a quota's default starts a *phase*. Its number differs from those of all phases
//! that still matter. An entry names the phase that charged it. A decision in a later phase
//! converts the entry through each phase in between, as of the time when that phase began. The
//! number of used requests stays the same, up to the debt of an empty bucket.

use std::sync::Arc;

use crate::rule::Rule;
use crate::sync::{AtomicU64, Ordering};

/// The number of a phase, below [`FIRST_OVERRIDE`], or of an override's interval.
pub(super) type RuleNumber = u16;

/// The first number of an override's interval.
pub(super) const FIRST_OVERRIDE: RuleNumber = 1 << 15;

/// The maximum number of phases. A key that was unused during so many changes, within the time in
/// which its bucket fills, counts as unused.
const MAX_PHASES: usize = 1 << 14;

/// The sub-windows of a sliding window that count, and one more for a clock that stepped back.
const RETAINED_SUB_WINDOWS: u64 = 17;

/// The phases that may have charged an entry, the oldest first. The last one is in force.
///
/// Empty until the default is a rate.
#[derive(Clone, Debug)]
pub(super) struct Phases {
    list: Box<[Phase]>,
    /// The number of the newest phase, in this list or in a later one.
    newest: Arc<AtomicU64>,
}

/// A period in which one default rule was in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    number: RuleNumber,
    since: u64,
    rule: RateParams,
}

/// A rate in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateParams {
    /// The emission interval of a bucket, or the length of a sub-window.
    pub(super) length: u64,
    /// The largest cost that is admitted at once.
    pub(super) limit: u32,
    /// The time in which an empty bucket fills.
    pub(super) refill: u64,
}

/// The phase that charged an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryPhase {
    /// The phase in force.
    Current,
    /// An earlier phase, with its index.
    Past(usize),
    /// A phase so old that even a used-up entry is unused by now.
    Expired,
    /// A phase that started after this list was read: the list is stale.
    Newer,
}

impl RateParams {
    /// `rule` must be a rate.
    #[inline]
    pub(super) fn from_rule(rule: &Rule) -> Self {
        Self {
            length: rule.length_nanos(),
            limit: rule.limit(),
            refill: rule.refill_nanos(),
        }
    }
}

impl Phases {
    /// Starts with one phase.
    pub(super) fn starting_with(rule: RateParams) -> Self {
        let (number, since) = (0, 0);
        let first = Phase {
            number,
            since,
            rule,
        };
        Self {
            list: Box::new([first]),
            ..Self::default()
        }
    }

    /// The number of the phase in force.
    #[inline]
    pub(super) fn number(&self) -> RuleNumber {
        self.list.last().map_or(0, |phase| phase.number)
    }

    /// The numbers of the phase in force.
    #[inline]
    pub(super) fn rule(&self) -> Option<RateParams> {
        self.list.last().map(|phase| phase.rule)
    }

    #[inline]
    pub(super) fn phase_of(&self, number: RuleNumber) -> EntryPhase {
        if number == self.number() {
            return EntryPhase::Current;
        }
        self.past_phase_of(number)
    }

    #[cold]
    fn past_phase_of(&self, number: RuleNumber) -> EntryPhase {
        match self.list.iter().rposition(|phase| phase.number == number) {
            Some(at) => EntryPhase::Past(at),
            // A very old number looks like a future one, unless newer phases exist.
            None if is_after(number, self.number()) && self.have_successor() => EntryPhase::Newer,
            None => EntryPhase::Expired,
        }
    }

    /// Whether newer phases exist. Set before any entry has the number of a newer phase.
    fn have_successor(&self) -> bool {
        self.newest.load(Ordering::Acquire) != u64::from(self.number())
    }

    /// Converts `full_at` from the rule of an earlier phase to the rule in force.
    #[cold]
    pub(super) fn convert_full_at(&self, from: usize, full_at: u64) -> u64 {
        let mut full_at = full_at;
        for at in from + 1..self.list.len() {
            let Phase { since, rule, .. } = self.list[at];
            let debt = rescaled(full_at.saturating_sub(since), self.list[at - 1].rule, rule);
            if debt == 0 {
                return full_at.min(since);
            }
            full_at = since.saturating_add(debt);
        }
        full_at
    }

    /// The conversions from a phase on: the sub-window length before, the rule after, and the time
    /// of the change.
    pub(super) fn conversions(
        &self,
        from: usize,
    ) -> impl Iterator<Item = (u64, RateParams, u64)> + '_ {
        let pairs = self.list[from..].windows(2);
        pairs.map(|pair| (pair[0].rule.length, pair[1].rule, pair[1].since))
    }

    /// Adds a phase that starts at `now` and drops phases that no longer matter. Marks this list as
    /// replaced.
    pub(super) fn with_next(&self, rule: RateParams, now: u64, is_sliding: bool) -> Self {
        let number = match self.list.last() {
            Some(last) => (last.number + 1) % FIRST_OVERRIDE,
            None => 0,
        };
        let mut phases = self.list.to_vec();
        phases.push(Phase {
            number,
            since: now,
            rule,
        });
        let is_relevant = |from: &usize| match is_sliding {
            true => Self::is_window_relevant(&phases[*from..], now),
            false => Self::is_bucket_relevant(&phases[*from..], now),
        };
        let last = phases.len() - 1;
        let first = (0..last).find(is_relevant).unwrap_or(last);
        let first = first.max(phases.len().saturating_sub(MAX_PHASES));
        self.newest.store(number.into(), Ordering::Release);
        Self {
            list: phases[first..].into(),
            newest: self.newest.clone(),
        }
    }

    /// Whether a bucket that was empty at the end of the first phase is not full yet.
    fn is_bucket_relevant(phases: &[Phase], now: u64) -> bool {
        let mut debt = phases[0].rule.refill;
        for at in 1..phases.len() {
            let Phase { since, rule, .. } = phases[at];
            let end = phases.get(at + 1).map_or(now, |next| next.since);
            let passed = end.saturating_sub(since);
            debt = rescaled(debt, phases[at - 1].rule, rule).saturating_sub(passed);
        }
        debt > 0
    }

    /// The same for a window that was used up.
    fn is_window_relevant(phases: &[Phase], now: u64) -> bool {
        let gone =
            |since: u64, rule: RateParams| since.saturating_add(rule.length * RETAINED_SUB_WINDOWS);
        let mut until = gone(phases[1].since, phases[0].rule);
        for pair in phases.windows(2) {
            if until <= pair[1].since {
                return false;
            }
            if pair[0].rule.length != pair[1].rule.length {
                // After a conversion, all costs are as young as possible.
                until = gone(pair[1].since, pair[1].rule);
            }
        }
        until > now
    }
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            list: Box::default(),
            newest: Arc::new(AtomicU64::new(0)),
        }
    }
}

/// Whether `number` follows `other`: half of the numbers do.
fn is_after(number: RuleNumber, other: RuleNumber) -> bool {
    let distance = number.wrapping_sub(other) % FIRST_OVERRIDE;
    distance < FIRST_OVERRIDE / 2
}

/// Converts a debt to another rule. The number of used requests stays the same, rounded up to a
/// nanosecond and clamped to the debt of an empty bucket.
#[inline]
pub(super) fn rescaled(debt: u64, from: RateParams, to: RateParams) -> u64 {
    rescaled_unclamped(debt, from.length, to.length).min(to.refill)
}

/// The same conversion without the clamp.
#[inline]
pub(super) fn rescaled_unclamped(debt: u64, from: u64, to: u64) -> u64 {
    if from == to || from == 0 {
        return debt;
    }
    let scaled = u128::from(debt) * u128::from(to);
    u64::try_from(scaled.div_ceil(u128::from(from))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    const SECOND: u64 = 1_000_000_000;

    fn numbers(text: &str) -> RateParams {
        RateParams::from_rule(&Rule::new(text.parse::<Quota>().unwrap()))
    }

    /// The phases after changes at these seconds.
    fn phases(first: &str, changes: &[(u64, &str)]) -> Phases {
        let first = Phases::starting_with(numbers(first));
        changes.iter().fold(first, |phases, (second, text)| {
            phases.with_next(numbers(text), second * SECOND, text.contains("sliding"))
        })
    }

    #[test]
    fn a_debt_is_converted_at_the_time_of_each_change() {
        // 7 s of debt at 1/s. After 3 s, 4 requests are left: 8 s at 1 per 2 s. After 5 s, 1.5 are
        // left: 1.5 s.
        let phases = phases(
            "1/s burst 10",
            &[(3, "1 per 2s burst 10"), (8, "1/s burst 10")],
        );
        let EntryPhase::Past(first) = phases.phase_of(0) else {
            panic!("{:?}", phases.phase_of(0));
        };
        assert_eq!(
            phases.convert_full_at(first, 7 * SECOND),
            8 * SECOND + SECOND * 3 / 2
        );
        // The bucket is full before the second change, and before the first.
        assert_eq!(phases.convert_full_at(first, 5 * SECOND), 7 * SECOND);
        assert_eq!(phases.convert_full_at(first, 2 * SECOND), 2 * SECOND);
        assert_eq!(phases.phase_of(2), EntryPhase::Current);
        assert_eq!(phases.phase_of(3), EntryPhase::Expired, "no such phase");
        let _ = phases.with_next(numbers("3/s"), 9 * SECOND, false);
        assert_eq!(phases.phase_of(3), EntryPhase::Newer);
    }

    #[test]
    fn a_conversion_rounds_up() {
        let (seven, three) = (numbers("7/min"), numbers("3/min"));
        assert_eq!(
            (seven.length, three.length),
            (8_571_428_572, 20_000_000_000)
        );
        for (debt, converted) in [(1, 3), (8_571_428_572, 20_000_000_000), (3, 7)] {
            assert_eq!(rescaled(debt, seven, three), converted, "{debt}");
        }
        assert_eq!(
            rescaled(u64::MAX, seven, three),
            three.refill,
            "the result is clamped"
        );
    }

    #[test]
    fn a_change_back_to_an_equal_rule_starts_another_phase() {
        // After both changes, at most the debt of an empty bucket of the smaller rule is left.
        let phases = phases("1/s burst 10", &[(0, "1/s burst 2"), (0, "1/s burst 10")]);
        assert_eq!(phases.convert_full_at(0, 9 * SECOND), 2 * SECOND);
        assert_eq!(phases.number(), 2);
    }

    #[test]
    fn a_phase_is_dropped_when_an_empty_bucket_is_full() {
        let phase_count = |second| {
            let changes = [(1, "2/s burst 10"), (second, "3/s burst 10")];
            phases("1/s burst 10", &changes).list.len()
        };
        // Ten requests take five seconds, and that phase ended with an empty bucket.
        assert_eq!(phase_count(5), 3);
        assert_eq!(phase_count(6), 2);
        let window_phase_count = |second| {
            let changes = [(1, "11/min sliding"), (second, "11 per 30s sliding")];
            phases("10/min sliding", &changes).list.len()
        };
        assert_eq!(window_phase_count(68), 3);
        assert_eq!(window_phase_count(69), 2);
    }

    #[test]
    fn a_thousand_changes_leave_only_relevant_phases() {
        let mut phases = Phases::starting_with(numbers("1/s"));
        for n in 1..=1_000 {
            let rule = numbers(if n % 2 == 0 { "1/s" } else { "2/s" });
            phases = phases.with_next(rule, n * SECOND / 10, false);
            assert!(phases.list.len() <= 12, "{}", phases.list.len());
        }
        phases = phases.with_next(numbers("1/s"), 1_000 * SECOND, false);
        assert_eq!(phases.list.len(), 2);
        assert_eq!(phases.phase_of(5), EntryPhase::Expired);
    }

    #[test]
    fn the_number_of_phases_is_bounded() {
        let of = |phases: &Phases, list| Phases {
            list,
            newest: phases.newest.clone(),
        };
        let mut phases = Phases::starting_with(numbers("1/day"));
        let all = 2 * u64::from(FIRST_OVERRIDE) + 7;
        for n in 1..=all {
            let rule = numbers(if n % 2 == 0 { "1/day" } else { "2/day" });
            // Tests the bound alone: each change copies the list.
            let from = phases.list.len().saturating_sub(3);
            phases = of(&phases, phases.list[from..].into()).with_next(rule, n, false);
        }
        assert_eq!(u64::from(phases.number()), all % u64::from(FIRST_OVERRIDE));
        let last = phases.number();
        let before = |n| (last + FIRST_OVERRIDE - n) % FIRST_OVERRIDE;
        assert_eq!(phases.phase_of(last), EntryPhase::Current);
        assert_eq!(phases.phase_of(before(1)), EntryPhase::Past(2));
        assert_eq!(phases.phase_of(before(9)), EntryPhase::Expired);
        // The oldest numbers that are possible.
        for n in [9, FIRST_OVERRIDE / 2, FIRST_OVERRIDE - 9] {
            assert_eq!(phases.phase_of(before(n)), EntryPhase::Expired, "{n}");
        }
        let many = of(&phases, vec![phases.list[0]; MAX_PHASES + 5].into());
        assert_eq!(
            many.with_next(numbers("1/day"), all, false).list.len(),
            MAX_PHASES
        );
    }
}
