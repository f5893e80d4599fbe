//! Parses the answers of the script that decides requests.

use std::time::Duration;

use smallvec::SmallVec;

use super::arguments::{KeyRules, Run, micros_per_request};
use super::call_error::CallError;
use tower_admission::Usage;
use tower_admission::store::FailureKind;
use tower_admission::{Rule, provider::RuleKind};

/// The outcome of one run.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The number of admitted requests, which are the first ones of the run.
    pub(super) granted: u32,
    cost: u32,
    /// The quotas of its keys, one key after the other.
    quotas: SmallVec<[QuotaOutcome; 2]>,
}

#[derive(Clone, Copy, Debug)]
struct QuotaOutcome {
    rule: Rule,
    /// After the first admission.
    first: Room,
    /// After the last admission.
    rest: Room,
    /// The time in microseconds until a rejected request fits: 0 for now, -1 for never.
    wait: i64,
}

/// The room of a quota.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    left: u64,
    /// In microseconds.
    reset: u64,
}

impl Outcome {
    /// The usage of each quota, in order, for the n-th request of the run, counted from 0; `None` for a quota that is
    /// off.
    pub(super) fn usages(&self, nth: u32) -> impl Iterator<Item = Option<Usage>> {
        self.quotas.iter().map(move |quota| {
            let limits = quota.rule.kind() != RuleKind::Unlimited;
            limits.then(|| match nth < self.granted {
                true => quota.granted(self.cost, nth),
                false => quota.not_granted(),
            })
        })
    }
}

impl QuotaOutcome {
    fn granted(&self, cost: u32, nth: u32) -> Usage {
        let before = u64::from(cost) * u64::from(nth);
        let later = match self.rule.kind() {
            RuleKind::Bucket => before.saturating_mul(micros_per_request(&self.rule)),
            _ => 0,
        };
        let left = self.first.left.saturating_sub(before);
        let reset = micros(self.first.reset.saturating_add(later));
        Usage::admitted(self.rule.limit(), in_u32(left), reset).with_rule(&self.rule)
    }

    fn not_granted(&self) -> Usage {
        let (limit, left, reset) = (
            self.rule.limit(),
            in_u32(self.rest.left),
            micros(self.rest.reset),
        );
        let usage = match self.wait {
            0 => Usage::admitted(limit, left, reset),
            wait => {
                let wait = u64::try_from(wait).ok().map(micros);
                Usage::rejected(limit, left, reset, wait)
            }
        };
        usage.with_rule(&self.rule)
    }
}

fn in_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn micros(number: u64) -> Duration {
    Duration::from_micros(number)
}

/// The outcomes of runs; `None` for a run with a key that holds other data.
pub(super) fn parse(
    numbers: &[i64],
    rules: &[KeyRules],
    runs: &[Run],
) -> Result<Vec<Option<Outcome>>, CallError> {
    let mut numbers = numbers.iter().copied();
    let outcomes = runs.iter().map(|run| outcome(&mut numbers, rules, run));
    let outcomes: Option<Vec<_>> = outcomes.collect();
    outcomes
        .filter(|_| numbers.next().is_none())
        .ok_or_else(|| CallError::new(FailureKind::WrongData).after_sending())
}

/// The outer `None` means that the answer is invalid.
fn outcome(
    numbers: &mut impl Iterator<Item = i64>,
    rules: &[KeyRules],
    run: &Run,
) -> Option<Option<Outcome>> {
    let granted = match numbers.next()? {
        -1 => return Some(None),
        granted => u32::try_from(granted).ok()?,
    };
    if granted > run.count {
        return None;
    }
    let mut quotas = SmallVec::<[QuotaOutcome; 2]>::new();
    for key in &run.keys {
        for rule in rules.get(usize::from(*key))? {
            quotas.push(QuotaOutcome {
                rule: *rule,
                first: Room::default(),
                rest: Room::default(),
                wait: 0,
            });
        }
    }
    if granted > 0 {
        for quota in &mut quotas {
            quota.first = room(numbers)?;
        }
    }
    if granted < run.count {
        for quota in &mut quotas {
            quota.rest = room(numbers)?;
            quota.wait = numbers.next()?;
        }
    }
    Some(Some(Outcome {
        granted,
        cost: run.cost,
        quotas,
    }))
}

fn room(numbers: &mut impl Iterator<Item = i64>) -> Option<Room> {
    let mut number = || Some(u64::try_from(numbers.next()?.max(0)).unwrap_or(0));
    Some(Room {
        left: number()?,
        reset: number()?,
    })
}

/// The usages of an unused key, for a key whose server is unavailable when other keys have rejected.
pub(super) fn unused(rules: &[Rule]) -> Vec<Option<Usage>> {
    let limiting = |rule: &Rule| rule.kind() != RuleKind::Unlimited;
    let usage = |rule: &Rule| Usage::admitted(rule.limit(), rule.limit(), Duration::ZERO);
    rules
        .iter()
        .map(|rule| limiting(rule).then(|| usage(rule).with_rule(rule)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use tower_admission::Decision;
    use tower_admission::Quota;

    fn rules() -> [KeyRules; 2] {
        let from_quotas = |quotas: &[Quota]| quotas.iter().copied().map(Rule::new).collect();
        [
            from_quotas(&[Quota::per_second(10), Quota::off()]),
            from_quotas(&[Quota::per_minute(60).sliding()]),
        ]
    }

    fn run(cost: u32, count: u32) -> Run {
        Run {
            count,
            ..Run::single(cost, 2)
        }
    }

    #[test]
    fn later_admissions_follow_from_the_first() {
        let numbers = [
            2, 8, 200_000, 0, 0, 58, 60_000_000, 6, 400_000, 0, 0, 0, 0, 56, 60_000_000, 5,
        ];
        let outcomes = parse(&numbers, &rules(), &[run(2, 3)]).unwrap();
        let [Some(outcome)] = &*outcomes else {
            panic!("one outcome: {outcomes:?}");
        };
        let decision = |nth| Decision::from_usages(outcome.usages(nth));
        let second = decision(1);
        assert!(second.is_admitted());
        let usages = |decision: &Decision| {
            let usages = decision.usages().iter();
            let usages = usages.map(|usage| (usage.index(), usage.remaining(), usage.reset()));
            usages.collect::<Vec<_>>()
        };
        let (bucket, window) = (micros(400_000), micros(60_000_000));
        assert_eq!(usages(&second), [(0, 6, bucket), (2, 56, window)]);
        let third = decision(2);
        assert_eq!(usages(&third), [(0, 6, bucket), (2, 56, window)]);
        assert_eq!(third.retry_after(), Some(micros(5)));
    }

    #[test]
    fn a_key_with_other_data_does_not_affect_other_runs() {
        let numbers = [-1, 1, 9, 0, 0, 0, 59, 0];
        let outcomes = parse(&numbers, &rules(), &[run(1, 3), run(1, 1)]).unwrap();
        assert!(matches!(&*outcomes, [None, Some(_)]), "{outcomes:?}");
    }

    proptest! {
        #[test]
        fn no_answer_panics(
            numbers in proptest::collection::vec(
                prop_oneof![4 => -2..4_i64, 1 => any::<i64>()],
                0..40,
            ),
            counts in proptest::collection::vec((any::<u32>(), 1..4_u32), 0..3),
        ) {
            let runs: Vec<_> = counts.iter().map(|(cost, count)| run(*cost, *count)).collect();
            if let Ok(outcomes) = parse(&numbers, &rules(), &runs) {
                for outcome in outcomes.iter().flatten() {
                    for nth in [0, 1, u32::MAX] {
                        let _ = Decision::from_usages(outcome.usages(nth));
                    }
                }
            }
        }
    }
}
