//! Takes from buckets: several requests share a call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answers::Outcome;
use super::arguments::{KeyRules, Mode, Run};
use super::call_error::CallError;
use super::lanes::{Calls, LaneKey, Lanes};
use super::rate::Buckets;
use tower_admission::Key;
use tower_admission::Usage;
use tower_admission::store::Charge;
use tower_admission::store::FailureKind;

/// One request.
pub(super) struct Take {
    pub(super) charges: Arc<[Charge]>,
    pub(super) cost: u32,
}

/// The requests of one call.
#[derive(Default)]
pub(super) struct Takes {
    pub(super) names: Vec<String>,
    pub(super) rules: Vec<KeyRules>,
    pub(super) runs: Vec<Run>,
}

/// The outcome of one request.
#[derive(Clone)]
pub(super) struct Taken {
    run: Arc<Outcome>,
    nth: u32,
}

impl Taken {
    pub(super) fn usages(&self) -> impl Iterator<Item = Option<Usage>> {
        self.run.usages(self.nth)
    }
}

/// The maximum number of keys, and of runs, in one call. The server does nothing else while it decides a call: about
/// half a millisecond at this size.
const MAX_BATCH: usize = 128;

/// The lane of requests with several keys, where one script reaches all of them: one call charges shared and separate
/// keys.
pub(super) const SEVERAL: LaneKey = [0, 0];

impl Calls for Buckets {
    type Request = Take;
    type Batch = Takes;
    type Answer = Result<Taken, CallError>;

    fn lanes(&self) -> &Lanes<Self> {
        &self.lanes
    }

    fn patience(&self) -> Duration {
        self.client().patience()
    }

    fn batch<'a>(self: &Arc<Self>, requests: impl Iterator<Item = &'a Take>) -> (Takes, usize) {
        let mut takes = Takes::default();
        let mut requests = requests.peekable();
        // Most calls only have the keys of their first request, and need no table.
        let first = requests.peek().copied();
        let mut known = HashMap::new();
        let mut before: Option<&Take> = None;
        let mut size = 0;
        for take in requests {
            let is_same = before.is_some_and(|before| before.charges == take.charges);
            let run = takes.runs.last_mut();
            if let Some(run) = run.filter(|run| is_same && run.cost == take.cost) {
                run.count += 1;
            } else if !takes.begins(self, &mut known, first, take) {
                break;
            }
            before = Some(take);
            size += 1;
        }
        (takes, size)
    }

    async fn call(
        self: &Arc<Self>,
        takes: Takes,
        deadline: Instant,
    ) -> Vec<Result<Taken, CallError>> {
        let Takes { names, rules, runs } = takes;
        let answer = self.ask(&names, &rules, &runs, Mode::Take, deadline).await;
        let outcomes: Vec<_> = match answer {
            Ok(outcomes) => outcomes.into_iter().map(of_run).collect(),
            Err(error) => vec![Err(error); runs.len()],
        };
        let mut answers = Vec::with_capacity(runs.iter().map(|run| run.count as usize).sum());
        for (outcome, run) in outcomes.into_iter().zip(runs) {
            answers.extend((0..run.count).map(|nth| {
                let run = outcome.clone()?;
                Ok(Taken { run, nth })
            }));
        }
        answers
    }
}

fn of_run(outcome: Option<Outcome>) -> Result<Arc<Outcome>, CallError> {
    let outcome = outcome.map(Arc::new);
    outcome.ok_or_else(|| CallError::new(FailureKind::WrongData).after_sending())
}

impl Takes {
    /// Begins a run with this request. Returns false if the request must wait for the next call: there are too many
    /// keys or runs, or one of its keys has other rules.
    fn begins<'a>(
        &mut self,
        buckets: &Buckets,
        known: &mut HashMap<(Key, usize), (u16, &'a Charge)>,
        first: Option<&'a Take>,
        take: &'a Take,
    ) -> bool {
        let charges = &*take.charges;
        let Some(run) = self.runs.first() else {
            self.names = charges.iter().map(|charge| buckets.key(charge)).collect();
            self.rules = buckets.rules(charges);
            self.runs.push(Run::single(take.cost, charges.len()));
            return true;
        };
        // All runs of a call name the same number of keys.
        if self.runs.len() == MAX_BATCH || run.keys.len() != charges.len() {
            return false;
        }
        if known.is_empty() {
            let first = first.iter().flat_map(|first| first.charges.iter());
            known.extend(
                first
                    .enumerate()
                    .map(|(at, charge)| ((charge.key, charge.set), (at as u16, charge))),
            );
        }
        let mut is_new = 0;
        for charge in charges {
            match known.get(&(charge.key, charge.set)) {
                Some((_, known)) if *known != charge => return false,
                Some(_) => {}
                None => is_new += 1,
            }
        }
        if self.names.len() + is_new > MAX_BATCH {
            return false;
        }
        let places = charges.iter().map(|charge| {
            let place = known.entry((charge.key, charge.set));
            let (place, _) = *place.or_insert_with(|| {
                self.names.push(buckets.key(charge));
                self.rules.push(buckets.rules_of(charge));
                ((self.names.len() - 1) as u16, charge)
            });
            place
        });
        let keys = places.collect();
        self.runs.push(Run {
            cost: take.cost,
            count: 1,
            keys,
        });
        true
    }
}
