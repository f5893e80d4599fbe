//! The script for rates against a naive model, when replicas go by different quotas, in two tiers.
//!
//! The script is given the time, so that what it says of times is known to the microsecond.

use proptest::prelude::*;
use redis::aio::MultiplexedConnection;

use crate::server::Server;

const TAKE: &str = include_str!("../../../src/store/redis/take.lua");

/// An interval in microseconds, and the most that is admitted at once.
type Quota = (u64, u64);

#[derive(Clone, Debug)]
struct Step {
    /// Those of two tiers.
    quotas: [Quota; 2],
    /// Which of them the request has to fit.
    tier: usize,
    cost: u64,
    is_refund: bool,
    /// How much time passes first.
    pass: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Products of all these are exact in the script.
    let interval = prop_oneof![Just(1), 1..100_u64, 1..1_000_000_u64];
    let quota = (interval, 1..200_u64);
    let pass = prop_oneof![Just(0), 1..100_u64, 1..20_000_000_u64];
    let quotas = [quota.clone(), quota];
    let step = (quotas, 0..2_usize, 1..200_u64, 0..4_u8, pass);
    let step = step.prop_map(|(quotas, tier, cost, refund, pass)| Step {
        quotas,
        tier,
        cost: 1 + cost % quotas[tier].1,
        is_refund: refund == 0,
        pass,
    });
    proptest::collection::vec(step, 1..20)
}

/// What is owed, in the time of the quota by which it was charged last.
#[derive(Clone, Copy, Default)]
struct Model {
    interval: u64,
    debt: u64,
}

impl Model {
    /// The same requests in the time of another quota.
    fn owed(&self, interval: u64) -> u64 {
        match self.debt {
            0 => 0,
            debt => (debt * interval).div_ceil(self.interval),
        }
    }

    /// A request that the other tier admitted.
    fn count(&mut self, cost: u64, (interval, limit): Quota) {
        let (owed, full) = (self.owed(interval), interval * limit);
        // What owes more already, as others go by a higher quota, owes it still.
        if owed < full {
            *self = Self {
                interval,
                debt: full.min(owed + cost * interval),
            };
        }
    }
}

struct Script {
    connection: MultiplexedConnection,
    source: String,
    key: String,
}

impl Script {
    /// What is left in the tier of a step, and how long to wait.
    async fn run(&mut self, now: u64, mode: &str, step: &Step) -> [u64; 2] {
        let mut run = redis::pipe();
        let run = run.atomic().cmd("EVAL").arg(&self.source);
        let run = run.arg(1).arg(&self.key).arg(step.cost).arg(mode).arg(2);
        for (tier, (interval, limit)) in step.quotas.into_iter().enumerate() {
            let only_counts = if tier == step.tier { 0 } else { 2 };
            run.arg(&[only_counts, interval, limit]);
        }
        let run = run.arg(&[now / 1_000_000, now % 1_000_000]);
        // The server's own time is another.
        run.cmd("PERSIST").arg(&self.key).ignore();
        let (told,): ([i64; 6],) = run.query_async(&mut self.connection).await.unwrap();
        let [left, _, wait] = told[3 * step.tier..][..3] else {
            unreachable!("three numbers for each");
        };
        [left, wait].map(|number| number.max(0).unsigned_abs())
    }

    async fn stored(&mut self) -> Option<String> {
        let mut get = redis::cmd("GET");
        let get = get.arg(&self.key);
        get.query_async(&mut self.connection).await.unwrap()
    }
}

async fn run(script: &mut Script, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut tiers = [Model::default(); 2];
    let mut now = 1_800_000_000_000_000;
    for step in steps {
        let (quota, cost) = (step.quotas[step.tier], step.cost);
        let (interval, limit) = quota;
        now += step.pass;
        for model in &mut tiers {
            model.debt = model.debt.saturating_sub(step.pass);
        }
        if step.is_refund {
            script.run(now, "give", step).await;
            for model in &mut tiers {
                model.debt = model.debt.saturating_sub(cost * model.interval);
            }
            continue;
        }
        let before = script.stored().await;
        let [left, wait] = script.run(now, "take", step).await;
        let other = 1 - step.tier;
        let model = &mut tiers[step.tier];
        let owed = model.owed(interval);
        let fits = owed + cost * interval <= limit * interval;
        prop_assert_eq!(wait == 0, fits, "{:?}", step);
        if fits {
            *model = Model {
                interval,
                debt: owed + cost * interval,
            };
            prop_assert_eq!(left, limit - model.debt.div_ceil(interval), "{:?}", step);
            tiers[other].count(cost, step.quotas[other]);
            continue;
        }
        prop_assert_eq!(left, limit.saturating_sub(owed.div_ceil(interval)));
        prop_assert_eq!(script.stored().await, before, "a refusal writes nothing");
        prop_assert!(wait <= model.debt, "{:?}", step);
        let [_, early] = script.run(now + wait - 1, "look", step).await;
        let [_, then] = script.run(now + wait, "look", step).await;
        prop_assert_eq!([early, then], [1, 0], "{:?}", step);
    }
    Ok(())
}

#[test]
fn buckets_are_what_a_naive_model_says_whatever_quota_replicas_go_by() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(Server::start());
    let connection = runtime.block_on(server.connection()).unwrap();
    let time = "redis.call('TIME')";
    assert!(TAKE.contains(time));
    let script = std::cell::RefCell::new(Script {
        connection,
        source: TAKE.replace(time, "{ ARGV[#ARGV - 1], ARGV[#ARGV] }"),
        key: String::new(),
    });
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let case = std::cell::Cell::new(0);
    let ran = runner.run(&steps(), |steps| {
        case.set(case.get() + 1);
        let mut script = script.borrow_mut();
        script.key = format!("case {}", case.get());
        runtime.block_on(run(&mut script, &steps))
    });
    ran.unwrap();
}
