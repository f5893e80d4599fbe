//! The calls that decide requests.

use std::sync::Arc;

use tokio::time::Instant;

use super::answers::{Outcome, parse, unused};
use super::arguments::{Arguments, KeyRules, Mode, Run};
use super::call_error::CallError;
use super::client::Retry;
use super::lanes;
use super::rate::{Buckets, is_limiting};
use super::takes::{SEVERAL, Take};
use tower_admission::provider::DenialCache;
use tower_admission::store::Charge;
use tower_admission::store::FailureKind;
use tower_admission::{Decision, Usage};

impl Buckets {
    /// Decides in Redis. If a call fails, returns the charges that were made before.
    pub(super) async fn decide(
        self: &Arc<Self>,
        charges: &Arc<[Charge]>,
        cost: u32,
        mode: Mode,
        asked: Instant,
    ) -> Result<Decision, Vec<Charge>> {
        if charges.len() > 1 && self.client().is_cluster() {
            // Boxed to keep the futures of other requests small.
            return Box::pin(self.decide_apart(charges, cost, mode, asked)).await;
        }
        let usages = self.request(charges.clone(), cost, mode, asked).await;
        usages.map(Decision::from_usages).map_err(|_| Vec::new())
    }

    /// Decides in a cluster, where the keys of one decision are on different masters, and no script reaches all of
    /// them. The keys are charged in turn, addresses first. A rejection refunds the charges before it.
    async fn decide_apart(
        self: &Arc<Self>,
        charges: &[Charge],
        cost: u32,
        mode: Mode,
        asked: Instant,
    ) -> Result<Decision, Vec<Charge>> {
        let rules = self.rules(charges);
        let mut order: Vec<usize> = (0..charges.len()).collect();
        order.sort_by_key(|&at| !charges[at].key.is_ip());
        let mut found: Vec<Vec<Option<Usage>>> = vec![Vec::new(); charges.len()];
        let mut rejected = false;
        let mut taken: Vec<usize> = Vec::new();
        let call = |at: usize, mode| self.request(charges[at..=at].into(), cost, mode, asked);
        for at in order {
            if !rules[at].iter().any(is_limiting) {
                found[at] = unused(&rules[at]);
                continue;
            }
            let mode = if rejected { Mode::Peek } else { mode };
            found[at] = match call(at, mode).await {
                Ok(found) => found,
                // The decision is a rejection already.
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
                // A charge that cannot be refunded refills with time, and is reported as it was.
                if let Ok(left) = call(at, Mode::Refund).await {
                    found[at] = left;
                }
            }
        }
        Ok(Decision::from_usages(found.into_iter().flatten()))
    }

    /// Refunds charges. A charge that cannot be refunded refills with time.
    pub(super) async fn refund_charges(self: &Arc<Self>, charges: &[Charge], cost: u32) {
        let asked = Instant::now();
        let rules = self.rules(charges);
        // In a cluster the keys are on different masters, and each of them may be unavailable.
        let at_a_time = match self.client().is_cluster() {
            true => 1,
            false => charges.len().max(1),
        };
        for (charges, rules) in charges.chunks(at_a_time).zip(rules.chunks(at_a_time)) {
            if rules.iter().flatten().any(is_limiting) {
                let given = self.request(charges.into(), cost, Mode::Refund, asked);
                let _ = given.await;
            }
        }
    }

    /// Calls Redis for one request that charges all these keys. Returns the usage of each quota, in order.
    async fn request(
        self: &Arc<Self>,
        charges: Arc<[Charge]>,
        cost: u32,
        mode: Mode,
        asked: Instant,
    ) -> Result<Vec<Option<Usage>>, CallError> {
        if mode == Mode::Take {
            let lane = match charges.len() {
                1 => DenialCache::fingerprint(&charges),
                _ => SEVERAL,
            };
            let taken = lanes::ask(self, lane, Take { charges, cost }, asked).await;
            let too_late = || self.client().failed(CallError::new(FailureKind::Timeout));
            return Ok(taken.ok_or_else(too_late)??.usages().collect());
        }
        Box::pin(self.request_alone(&charges, cost, mode, asked)).await
    }

    /// The same in a separate call.
    async fn request_alone(
        &self,
        charges: &[Charge],
        cost: u32,
        mode: Mode,
        asked: Instant,
    ) -> Result<Vec<Option<Usage>>, CallError> {
        let keys: Vec<_> = charges.iter().map(|charge| self.key(charge)).collect();
        let runs = [Run::single(cost, keys.len())];
        let rules = self.rules(charges);
        let deadline = asked + self.client().patience();
        let outcomes = self.ask(&keys, &rules, &runs, mode, deadline).await?;
        let outcome = outcomes.into_iter().next().flatten();
        let outcome =
            outcome.ok_or_else(|| CallError::new(FailureKind::WrongData).after_sending())?;
        Ok(outcome.usages(0).collect())
    }

    /// Decides runs of requests in their order. Returns `None` for a run with a key that holds other data; for a single
    /// run that is an error.
    pub(super) async fn ask(
        &self,
        keys: &[String],
        rules: &[KeyRules],
        runs: &[Run],
        mode: Mode,
        deadline: Instant,
    ) -> Result<Vec<Option<Outcome>>, CallError> {
        let arguments = Arguments { mode, rules, runs };
        let client = self.client();
        // A double charge admits too little; a double refund would admit too much.
        let retry = match mode {
            Mode::Take | Mode::Peek => Retry::Once,
            Mode::Refund => Retry::Never,
        };
        let call = client.run(&self.store.rates, keys, arguments, deadline, retry);
        let numbers: Vec<i64> = call.await?;
        let outcomes = parse(&numbers, rules, runs).map_err(|error| client.failed(error))?;
        for _ in outcomes.iter().filter(|outcome| outcome.is_none()) {
            client.failed(CallError::new(FailureKind::WrongData));
        }
        Ok(outcomes)
    }
}
