//! What is used under one default rule, as it reads under the next.
//!
//! Each change of a quota's default begins a *phase*, with a number that no phase that still counts has. An entry
//! says in which phase it was charged. A decision of a later phase converts it along the phases in between, each as of
//! the time when it began: as many requests stay used, and no more than an empty bucket lacks.

use std::sync::Arc;

use crate::rule::Rule;
use crate::sync::{AtomicU64, Ordering};

/// The number of a phase: below [`FIRST_OVERRIDE`], so that overrides have numbers as well.
pub(super) type Number = u16;

/// Numbers from here on are those of overrides.
pub(super) const FIRST_OVERRIDE: Number = 1 << 15;

/// Phases that are kept at most. A key that was not used during so many changes within the time that its
/// bucket takes to fill counts as unused.
const MAX_PHASES: usize = 1 << 14;

/// Sub-windows of a sliding window that count, and one for a clock that stepped back.
const COUNTED: u64 = 17;

/// The phases that an entry may have been charged in, the oldest first. The last one is in force.
///
/// Empty while the default never was a rate.
#[derive(Clone, Debug)]
pub(super) struct Phases {
    list: Box<[Phase]>,
    /// The number of the newest phase that there is, of these or of those after them.
    newest: Arc<AtomicU64>,
}

/// The time in which one default rule was in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    number: Number,
    since: u64,
    rule: Numbers,
}

/// The numbers of a rate, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    /// The interval of a bucket, or the length of a sub-window.
    pub(super) length: u64,
    /// The most that is admitted at once.
    pub(super) limit: u32,
    /// The time in which an empty bucket fills.
    pub(super) refill: u64,
}

/// In which phase an entry was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The phase in force.
    Current,
    /// The phase at this place.
    Past(usize),
    /// A phase in which even an entry that was used up is unused by now.
    Gone,
    /// One that began after these phases were read: they are stale.
    Newer,
}

impl Numbers {
    /// Of a rule that is a rate.
    #[inline]
    pub(super) fn of(rule: &Rule) -> Self {
        Self {
            length: rule.length_nanos(),
            limit: rule.limit(),
            refill: rule.refill_nanos(),
        }
    }
}

impl Phases {
    /// With the first phase.
    pub(super) fn starting(rule: Numbers) -> Self {
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
    pub(super) fn number(&self) -> Number {
        self.list.last().map_or(0, |phase| phase.number)
    }

    /// The numbers of the phase in force.
    #[inline]
    pub(super) fn rule(&self) -> Option<Numbers> {
        self.list.last().map(|phase| phase.rule)
    }

    #[inline]
    pub(super) fn origin(&self, number: Number) -> Origin {
        if number == self.number() {
            return Origin::Current;
        }
        self.origin_of_past(number)
    }

    #[cold]
    fn origin_of_past(&self, number: Number) -> Origin {
        match self.list.iter().rposition(|phase| phase.number == number) {
            Some(at) => Origin::Past(at),
            // Of so long ago that it looks as if it was to come, unless there are newer phases.
            None if is_after(number, self.number()) && self.are_replaced() => Origin::Newer,
            None => Origin::Gone,
        }
    }

    /// Whether there are newer ones. Known before any entry has the number of one.
    fn are_replaced(&self) -> bool {
        self.newest.load(Ordering::Acquire) != u64::from(self.number())
    }

    /// When a bucket is full by the rule in force that was to be full at a time by the rule of a phase.
    #[cold]
    pub(super) fn carried(&self, from: usize, full_at: u64) -> u64 {
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

    /// The phases from one on, as steps: the length of its sub-windows, that of the next phase's, and when that began.
    pub(super) fn steps(&self, from: usize) -> impl Iterator<Item = (u64, Numbers, u64)> + '_ {
        let pairs = self.list[from..].windows(2);
        pairs.map(|pair| (pair[0].rule.length, pair[1].rule, pair[1].since))
    }

    /// With another phase from `now` on, and without those that do not count any more. These are replaced by then.
    pub(super) fn then(&self, rule: Numbers, now: u64, sliding: bool) -> Self {
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
        let counts = |from: &usize| match sliding {
            true => Self::window_counts(&phases[*from..], now),
            false => Self::bucket_counts(&phases[*from..], now),
        };
        let last = phases.len() - 1;
        let first = (0..last).find(counts).unwrap_or(last);
        let first = first.max(phases.len().saturating_sub(MAX_PHASES));
        self.newest.store(number.into(), Ordering::Release);
        Self {
            list: phases[first..].into(),
            newest: self.newest.clone(),
        }
    }

    /// Whether a bucket that was empty when the first of these phases ended is not full yet.
    fn bucket_counts(phases: &[Phase], now: u64) -> bool {
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
    fn window_counts(phases: &[Phase], now: u64) -> bool {
        let gone = |since: u64, rule: Numbers| since.saturating_add(rule.length * COUNTED);
        let mut until = gone(phases[1].since, phases[0].rule);
        for pair in phases.windows(2) {
            if until <= pair[1].since {
                return false;
            }
            if pair[0].rule.length != pair[1].rule.length {
                // All of it is then as young as it can be.
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

/// Whether a number was given after another: the next half of them were.
fn is_after(number: Number, other: Number) -> bool {
    let distance = number.wrapping_sub(other) % FIRST_OVERRIDE;
    distance < FIRST_OVERRIDE / 2
}

/// A debt under another rule: as many requests stay used, rounded up to a nanosecond, but for what an empty bucket
/// does not lack.
#[inline]
pub(super) fn rescaled(debt: u64, from: Numbers, to: Numbers) -> u64 {
    rescaled_length(debt, from.length, to.length).min(to.refill)
}

/// The same without a bound.
#[inline]
pub(super) fn rescaled_length(debt: u64, from: u64, to: u64) -> u64 {
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

    fn numbers(text: &str) -> Numbers {
        Numbers::of(&Rule::new(text.parse::<Quota>().unwrap()))
    }

    /// The phases after changes at these seconds.
    fn phases(first: &str, changes: &[(u64, &str)]) -> Phases {
        let first = Phases::starting(numbers(first));
        changes.iter().fold(first, |phases, (second, text)| {
            phases.then(numbers(text), second * SECOND, text.contains("sliding"))
        })
    }

    #[test]
    fn a_debt_is_carried_as_of_each_change() {
        // 7 s at 1/s; 3 s later 4 requests are left, which are 8 s at 1 in 2 s; 5 s later 1.5 are left, 1.5 s.
        let phases = phases(
            "1/s burst 10",
            &[(3, "1 per 2s burst 10"), (8, "1/s burst 10")],
        );
        let Origin::Past(first) = phases.origin(0) else {
            panic!("{:?}", phases.origin(0));
        };
        assert_eq!(
            phases.carried(first, 7 * SECOND),
            8 * SECOND + SECOND * 3 / 2
        );
        // Full before the second change, and before the first.
        assert_eq!(phases.carried(first, 5 * SECOND), 7 * SECOND);
        assert_eq!(phases.carried(first, 2 * SECOND), 2 * SECOND);
        assert_eq!(phases.origin(2), Origin::Current);
        assert_eq!(phases.origin(3), Origin::Gone, "there is none");
        let _ = phases.then(numbers("3/s"), 9 * SECOND, false);
        assert_eq!(phases.origin(3), Origin::Newer);
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
            "and is clamped"
        );
    }

    #[test]
    fn an_equal_rule_is_another_phase() {
        // There and back: an empty bucket of the smaller one is all that is left.
        let phases = phases("1/s burst 10", &[(0, "1/s burst 2"), (0, "1/s burst 10")]);
        assert_eq!(phases.carried(0, 9 * SECOND), 2 * SECOND);
        assert_eq!(phases.number(), 2);
    }

    #[test]
    fn phases_go_when_an_empty_bucket_is_full() {
        let kept = |second| {
            let changes = [(1, "2/s burst 10"), (second, "3/s burst 10")];
            phases("1/s burst 10", &changes).list.len()
        };
        // Ten requests take five seconds, and that phase ended with an empty bucket itself.
        assert_eq!(kept(5), 3);
        assert_eq!(kept(6), 2);
        let windows = |second| {
            let changes = [(1, "11/min sliding"), (second, "11 per 30s sliding")];
            phases("10/min sliding", &changes).list.len()
        };
        assert_eq!(windows(68), 3);
        assert_eq!(windows(69), 2);
    }

    #[test]
    fn a_thousand_changes_leave_what_counts() {
        let mut phases = Phases::starting(numbers("1/s"));
        for n in 1..=1_000 {
            let rule = numbers(if n % 2 == 0 { "1/s" } else { "2/s" });
            phases = phases.then(rule, n * SECOND / 10, false);
            assert!(phases.list.len() <= 12, "{}", phases.list.len());
        }
        phases = phases.then(numbers("1/s"), 1_000 * SECOND, false);
        assert_eq!(phases.list.len(), 2);
        assert_eq!(phases.origin(5), Origin::Gone);
    }

    #[test]
    fn changes_without_end_keep_a_bounded_number_of_phases() {
        let of = |phases: &Phases, list| Phases {
            list,
            newest: phases.newest.clone(),
        };
        let mut phases = Phases::starting(numbers("1/day"));
        let all = 2 * u64::from(FIRST_OVERRIDE) + 7;
        for n in 1..=all {
            let rule = numbers(if n % 2 == 0 { "1/day" } else { "2/day" });
            // Of the bound alone: each of these copies what is kept.
            let from = phases.list.len().saturating_sub(3);
            phases = of(&phases, phases.list[from..].into()).then(rule, n, false);
        }
        assert_eq!(u64::from(phases.number()), all % u64::from(FIRST_OVERRIDE));
        let last = phases.number();
        let before = |n| (last + FIRST_OVERRIDE - n) % FIRST_OVERRIDE;
        assert_eq!(phases.origin(last), Origin::Current);
        assert_eq!(phases.origin(before(1)), Origin::Past(2));
        assert_eq!(phases.origin(before(9)), Origin::Gone);
        // As long ago as it may be.
        for n in [9, FIRST_OVERRIDE / 2, FIRST_OVERRIDE - 9] {
            assert_eq!(phases.origin(before(n)), Origin::Gone, "{n}");
        }
        let many = of(&phases, vec![phases.list[0]; MAX_PHASES + 5].into());
        assert_eq!(
            many.then(numbers("1/day"), all, false).list.len(),
            MAX_PHASES
        );
    }
}
