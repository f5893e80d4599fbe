//! The script for rates, compared with a naive model, when replicas use different quotas, some of which are off.
//!
//! The test passes the time to the script, so the times in answers are exact to the microsecond.

use proptest::prelude::*;
use redis::aio::MultiplexedConnection;

use crate::server::Server;

const TAKE: &str = concat!(
    include_str!("../../../src/scripts/take.lua"),
    include_str!("../../../src/scripts/take_general.lua")
);

/// An interval in microseconds, and the most that is admitted at once.
type Quota = (u64, u64);

#[derive(Clone, Debug)]
struct Step {
    /// Those of one key; `None` is off.
    quotas: [Option<Quota>; 2],
    cost: u64,
    is_refund: bool,
    /// How much time passes first.
    pass: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Products of all these are exact in the script.
    let interval = prop_oneof![Just(1), 1..100_u64, 1..1_000_000_u64];
    let quota = proptest::option::weighted(0.8, (interval, 1..200_u64));
    let pass = prop_oneof![Just(0), 1..100_u64, 1..20_000_000_u64];
    let step = ([quota.clone(), quota], 1..200_u64, 0..4_u8, pass);
    let step = step.prop_map(|(quotas, cost, refund, pass)| Step {
        quotas,
        cost: 1 + cost
            % quotas
                .iter()
                .flatten()
                .map(|quota| quota.1)
                .min()
                .unwrap_or(200),
        is_refund: refund == 0,
        pass,
    });
    proptest::collection::vec(step, 1..20)
}

/// The debt, in the interval of the quota that charged it last.
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
}

struct Script {
    connection: MultiplexedConnection,
    source: String,
    key: String,
}

impl Script {
    /// What is left of each quota, and how long to wait.
    async fn run(&mut self, now: u64, mode: &str, step: &Step) -> [[u64; 2]; 2] {
        let letters = step
            .quotas
            .map(|quota| if quota.is_some() { 'b' } else { '-' });
        let head = format!("{mode} 0 {}", letters.iter().collect::<String>());
        let numbers = step.quotas.map(|quota| quota.unwrap_or((0, 0)));
        let mut run = redis::pipe();
        let run = run.atomic().del("clock").ignore();
        let run = run.rpush("clock", &[now / 1_000_000, now % 1_000_000]);
        let run = run.ignore().cmd("EVAL").arg(&self.source);
        let run = run.arg(1).arg(&self.key).arg(head);
        for (interval, limit) in numbers {
            run.arg(interval).arg(limit);
        }
        let run = run.arg(step.cost).arg(1);
        // The server's own time is another.
        run.cmd("PERSIST").arg(&self.key).ignore();
        let (answer,): (Vec<i64>,) = run.query_async(&mut self.connection).await.unwrap();
        let numbers = match *answer {
            [1, left, _, second, _] => [[left, 0], [second, 0]],
            [0, left, _, wait, second, _, then] => [[left, wait], [second, then]],
            _ => panic!("the answer about a request: {answer:?}"),
        };
        numbers.map(|quota| quota.map(|number| number.max(0).unsigned_abs()))
    }

    async fn stored(&mut self) -> Option<String> {
        let mut get = redis::cmd("GET");
        let get = get.arg(&self.key);
        get.query_async(&mut self.connection).await.unwrap()
    }
}

async fn run(script: &mut Script, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut models = [Model::default(); 2];
    let mut now = 1_800_000_000_000_000;
    for step in steps {
        let cost = step.cost;
        now += step.pass;
        for model in &mut models {
            model.debt = model.debt.saturating_sub(step.pass);
        }
        // One that is off stays as it is.
        let quotas = step.quotas.iter().enumerate();
        let on: Vec<_> = quotas
            .filter_map(|(at, quota)| Some((at, (*quota)?)))
            .collect();
        if step.is_refund {
            script.run(now, "give", step).await;
            for (at, _) in on {
                let model = &mut models[at];
                model.debt = model.debt.saturating_sub(cost * model.interval);
            }
            continue;
        }
        let fits = |models: &[Model; 2], (at, (interval, limit)): (usize, Quota)| {
            models[at].owed(interval) + cost * interval <= limit * interval
        };
        let is_admitted = on.iter().all(|quota| fits(&models, *quota));
        let before = script.stored().await;
        let answer = script.run(now, "take", step).await;
        for quota in &on {
            let (at, (interval, limit)) = *quota;
            let [left, wait] = answer[at];
            let fits = fits(&models, *quota);
            prop_assert_eq!(wait == 0, fits, "{:?}", step);
            let owed = models[at].owed(interval);
            if is_admitted {
                models[at] = Model {
                    interval,
                    debt: owed + cost * interval,
                };
            }
            let owed = models[at].owed(interval).div_ceil(interval);
            prop_assert_eq!(left, limit.saturating_sub(owed), "{:?}", step);
            if !fits {
                prop_assert!(wait <= models[at].debt, "{:?}", step);
                let early = script.run(now + wait - 1, "look", step).await[at];
                let then = script.run(now + wait, "look", step).await[at];
                prop_assert_eq!([early[1], then[1]], [1, 0], "{:?}", step);
            }
        }
        if !is_admitted {
            prop_assert_eq!(script.stored().await, before, "a rejection writes nothing");
        }
    }
    Ok(())
}

#[test]
fn buckets_match_a_naive_model_with_different_quotas_in_replicas() {
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
        source: TAKE.replace(time, "redis.call('LRANGE', 'clock', 0, 1)"),
        key: String::new(),
    });
    let mut runner = crate::random_histories(200);
    let case = std::cell::Cell::new(0);
    let ran = runner.run(&steps(), |steps| {
        case.set(case.get() + 1);
        let mut script = script.borrow_mut();
        script.key = format!("case {}", case.get());
        runtime.block_on(run(&mut script, &steps))
    });
    ran.unwrap();
}
