//! The calls that decide requests.

use tokio::time::Instant;

use super::answers::{Outcome, parse, unused};
use super::charged::{Arguments, KeyRules, Mode, Run};
use super::failure::{FailureKind, StoreError};
use super::rate::{Buckets, is_limiting};
use crate::decision::{Decision, Usage};
use crate::store::Charge;

impl Buckets {
    /// What Redis decides; when it cannot be asked, what was charged before that was known.
    pub(super) async fn decide(
        &self,
        charges: &[Charge],
        cost: u32,
        mode: Mode,
    ) -> Result<Decision, Vec<Charge>> {
        let deadline = self.client().deadline();
        let rules = self.rules(charges);
        if charges.len() > 1 && self.client().is_cluster() {
            return self
                .decide_apart(charges, &rules, cost, mode, deadline)
                .await;
        }
        let outcome = self.request(charges, &rules, cost, mode, deadline).await;
        outcome
            .map(|outcome| outcome.decision(0))
            .map_err(|_| Vec::new())
    }

    /// The keys of one decision lie in different parts of a cluster, where no script reaches all.
    /// So they are charged in turn, addresses first, and what was charged before a rejection is
    /// given back.
    async fn decide_apart(
        &self,
        charges: &[Charge],
        rules: &[KeyRules],
        cost: u32,
        mode: Mode,
        deadline: Instant,
    ) -> Result<Decision, Vec<Charge>> {
        let mut order: Vec<usize> = (0..charges.len()).collect();
        order.sort_by_key(|&at| !charges[at].key.is_ip());
        let mut found: Vec<Vec<Option<Usage>>> = vec![Vec::new(); charges.len()];
        let mut rejected = false;
        let mut taken: Vec<usize> = Vec::new();
        let call = async |at: usize, mode| -> Result<Vec<_>, StoreError> {
            let (charges, rules) = (&charges[at..=at], &rules[at..=at]);
            let outcome = self.request(charges, rules, cost, mode, deadline).await?;
            Ok(outcome.usages(0).collect())
        };
        for at in order {
            if !rules[at].iter().any(is_limiting) {
                found[at] = unused(&rules[at]);
                continue;
            }
            let mode = if rejected { Mode::Peek } else { mode };
            found[at] = match call(at, mode).await {
                Ok(found) => found,
                // It is rejected whatever this part of the cluster holds.
                Err(_) if rejected => unused(&rules[at]),
                Err(_) => return Err(taken.into_iter().map(|at| charges[at].clone()).collect()),
            };
            let fits = found[at].iter().flatten().all(Usage::fits);
            rejected |= !fits;
            if fits && mode == Mode::Take {
                taken.push(at);
            }
        }
        if rejected {
            for at in taken {
                // What cannot be given back refills with time, and is reported as it was found.
                if let Ok(left) = call(at, Mode::Refund).await {
                    found[at] = left;
                }
            }
        }
        Ok(Decision::from_usages(found.into_iter().flatten()))
    }

    /// What cannot be given back refills with time.
    pub(super) async fn give_back(&self, charges: &[Charge], cost: u32) {
        let deadline = self.client().deadline();
        let rules = self.rules(charges);
        // In a cluster the keys lie in different parts, of which each may be down.
        let at_a_time = match self.client().is_cluster() {
            true => 1,
            false => charges.len().max(1),
        };
        for (charges, rules) in charges.chunks(at_a_time).zip(rules.chunks(at_a_time)) {
            if rules.iter().flatten().any(is_limiting) {
                let given = self.request(charges, rules, cost, Mode::Refund, deadline);
                let _ = given.await;
            }
        }
    }

    /// Asks about one request that charges all these keys.
    async fn request(
        &self,
        charges: &[Charge],
        rules: &[KeyRules],
        cost: u32,
        mode: Mode,
        deadline: Instant,
    ) -> Result<Outcome, StoreError> {
        let keys: Vec<_> = charges.iter().map(|charge| self.key(charge)).collect();
        let runs = [Run::single(cost, keys.len())];
        let outcomes = self.call(&keys, rules, &runs, mode, deadline).await?;
        let outcome = outcomes.into_iter().next().flatten();
        outcome.ok_or_else(|| StoreError::new(FailureKind::WrongData).after_sending())
    }

    /// Decides runs of requests in their order. `None` is what becomes of a run with a key that holds something
    /// else than quotas; of a single run it is an error.
    async fn call(
        &self,
        keys: &[String],
        rules: &[KeyRules],
        runs: &[Run],
        mode: Mode,
        deadline: Instant,
    ) -> Result<Vec<Option<Outcome>>, StoreError> {
        let arguments = Arguments { mode, rules, runs };
        let client = self.client();
        let call = client.run(&self.store.rates, keys, arguments, deadline);
        let numbers: Vec<i64> = call.await?;
        parse(&numbers, rules, runs)
    }
}
