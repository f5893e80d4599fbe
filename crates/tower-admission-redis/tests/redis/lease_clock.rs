//! Leases with a clock that the test sets: several in one call, and after steps of the clock.

use std::cell::RefCell;

use proptest::prelude::*;
use redis::aio::MultiplexedConnection;
use tower_admission::store::{AcquireOutcome, LeaseLimits, LeaseStore};
use tower_admission::{Key, Leases};

use crate::server::{Server, until};

/// A script for leases on the clock of [`Scripts::set_clock`].
macro_rules! shimmed {
    ($script:literal) => {{
        let script = concat!(
            include_str!("../../src/scripts/lease_clock.lua"),
            include_str!(concat!("../../src/scripts/", $script))
        );
        let clock = "redis.call('TIME')";
        assert!(script.contains(clock));
        script.replace(clock, "redis.call('LRANGE', 'clock', 0, 1)")
    }};
}

const TTL: u64 = 15_000;
const HOUR: i64 = 3_600_000;

/// An answer about a lease: what became of it, and the place of the first key without room.
type Answer = [i64; 2];

const GRANTED: Answer = [1, 0];
const FULL: Answer = [0, 0];

struct Scripts {
    connection: RefCell<MultiplexedConnection>,
    namespace: &'static str,
}

impl Scripts {
    async fn new(server: &Server, namespace: &'static str) -> Self {
        Self {
            connection: RefCell::new(server.connection().await.unwrap()),
            namespace,
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.namespace)
    }

    async fn run<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        let mut connection = self.connection.borrow().clone();
        command.query_async(&mut connection).await.unwrap()
    }

    async fn set_clock(&self, millis: i64) {
        let time = [millis / 1000, millis % 1000 * 1000];
        self.run::<()>(redis::cmd("DEL").arg("clock")).await;
        self.run::<()>(redis::cmd("RPUSH").arg("clock").arg(&time))
            .await;
    }

    /// The keys that a lease is in, next to the total.
    fn of_keys(&self, lease: u64) -> Vec<String> {
        let [one, two] = [format!("of:{}", lease % 3), format!("of2:{}", lease % 2)];
        match lease % 4 {
            0 => vec![],
            1 => vec![self.key(&one)],
            _ => vec![self.key(&one), self.key(&two)],
        }
    }

    async fn acquire(&self, leases: &[u64], total: u64) -> Vec<Answer> {
        let mut keys = vec![self.key("total")];
        let mut arguments = vec!["epoch".to_owned(), TTL.to_string(), "0".to_owned()];
        for lease in leases {
            let of_keys = self.of_keys(*lease);
            arguments.extend([format!("{lease} {TTL}"), total.to_string()]);
            arguments.push(of_keys.len().to_string());
            arguments.extend(of_keys.iter().map(|_| "2".to_owned()));
            keys.extend(of_keys);
        }
        let mut command = redis::cmd("EVAL");
        command
            .arg(shimmed!("acquire.lua"))
            .arg(keys.len())
            .arg(keys);
        let answer: Vec<redis::Value> = self.run(command.arg(arguments)).await;
        let outcomes = answer[2..].chunks(2);
        let number = |value: &redis::Value| redis::from_redis_value_ref(value).unwrap();
        outcomes
            .map(|outcome| [number(&outcome[0]), number(&outcome[1])])
            .collect()
    }

    async fn heartbeat(&self, lease: u64) {
        let mut of_keys = self.of_keys(lease);
        if of_keys.is_empty() {
            of_keys.push(self.key("total"));
        }
        let mut command = redis::cmd("EVAL");
        command
            .arg(shimmed!("heartbeat.lua"))
            .arg(1 + of_keys.len());
        command.arg(self.key("total")).arg(&of_keys);
        command.arg("epoch").arg(TTL).arg(0);
        for _ in of_keys {
            command.arg(format!("{lease} {TTL}"));
        }
        self.run::<redis::Value>(&command).await;
    }

    async fn used(&self) -> u64 {
        let mut command = redis::cmd("EVAL");
        command
            .arg(shimmed!("usage.lua"))
            .arg(1)
            .arg(self.key("total"))
            .arg(TTL);
        let [used]: [u64; 1] = self.run(&command).await;
        used
    }

    async fn acquire_named(&self, name: &str, holder: u64, total: u64, ttl: u64) -> i64 {
        let mut command = redis::cmd("EVAL");
        command.arg(shimmed!("named_acquire.lua")).arg(4);
        let (by, left) = (format!("by:{name}"), format!("left:{name}"));
        command.arg(
            ["total", "of:tenant", &by, &left]
                .map(|name| self.key(name))
                .as_slice(),
        );
        command.arg("epoch").arg(ttl).arg(0);
        command.arg(name).arg(total).arg(-1).arg(holder);
        let answer: Vec<redis::Value> = self.run(&command).await;
        redis::from_redis_value_ref(&answer[0]).unwrap()
    }

    async fn heartbeat_named(&self, name: &str, holder: u64, ttl: u64) -> i64 {
        let mut command = redis::cmd("EVAL");
        command.arg(shimmed!("named_heartbeat.lua")).arg(3);
        let by = format!("by:{name}");
        command.arg(
            ["total", "of:tenant", &by]
                .map(|name| self.key(name))
                .as_slice(),
        );
        self.run(command.arg(name).arg(holder).arg(ttl)).await
    }

    fn all_keys(&self) -> impl Iterator<Item = String> {
        let names = ["total", "of:0", "of:1", "of:2", "of2:0", "of2:1"];
        names.into_iter().map(|name| self.key(name))
    }

    /// The leases that are live, in each key.
    async fn live(&self, now: i64) -> Vec<Vec<(String, f64)>> {
        let mut live = Vec::new();
        for key in self.all_keys() {
            let mut command = redis::cmd("ZRANGEBYSCORE");
            let command = command.arg(key).arg(format!("({now}")).arg("+inf");
            live.push(self.run(command.arg("WITHSCORES")).await);
        }
        live
    }

    /// Removes what has expired, which a call may do or leave to a later one.
    async fn purge(&self, now: i64) {
        for key in self.all_keys() {
            let mut command = redis::cmd("ZREMRANGEBYSCORE");
            self.run::<u64>(command.arg(key).arg("-inf").arg(now)).await;
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Acquire(Vec<u64>),
    Heartbeat(u64),
    Pass(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let leases = proptest::sample::subsequence((0..12_u64).collect::<Vec<_>>(), 1..8);
    let pass = prop_oneof![4 => 0..20_000_i64, 1 => Just(HOUR), 1 => Just(-HOUR)];
    let step = prop_oneof![
        4 => leases.prop_shuffle().prop_map(Step::Acquire),
        1 => (0..12_u64).prop_map(Step::Heartbeat),
        3 => pass.prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..25)
}

async fn agree(ways: &[Scripts; 2], steps: &[Step]) -> Result<(), TestCaseError> {
    let [one, batch] = ways;
    one.run::<()>(&redis::cmd("FLUSHDB")).await;
    let mut now = 1_800_000_000_000;
    one.set_clock(now).await;
    // After a step of the clock there are other leases, of the same keys.
    let mut first = 0;
    for step in steps {
        match step {
            Step::Acquire(leases) => {
                let leases: Vec<_> = leases.iter().map(|lease| first + lease).collect();
                let mut answers = Vec::new();
                for lease in &leases {
                    answers.extend(one.acquire(&[*lease], 5).await);
                }
                prop_assert_eq!(batch.acquire(&leases, 5).await, answers, "{:?}", step);
            }
            Step::Heartbeat(lease) => {
                one.heartbeat(first + lease).await;
                batch.heartbeat(first + lease).await;
            }
            Step::Pass(millis) => {
                // Or it would live again when the clock steps back.
                one.purge(now).await;
                batch.purge(now).await;
                now += millis;
                first += 12 * u64::from(millis.abs() == HOUR);
                one.set_clock(now).await;
            }
        }
        prop_assert_eq!(batch.live(now).await, one.live(now).await, "{:?}", step);
    }
    Ok(())
}

#[test]
fn a_call_for_several_leases_answers_like_one_call_for_each() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(Server::start());
    let ways = ["one", "batch"].map(|name| runtime.block_on(Scripts::new(&server, name)));
    let config = ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let ran = runner.run(&steps(), |steps| runtime.block_on(agree(&ways, &steps)));
    ran.unwrap();
}

#[tokio::test]
async fn a_key_with_other_data_does_not_affect_other_leases_of_the_call() {
    let server = Server::start().await;
    let scripts = Scripts::new(&server, "leases").await;
    scripts.set_clock(1_800_000_000_000).await;
    let [key] = &*scripts.of_keys(1) else {
        panic!("a lease with one key");
    };
    server.command(&["SET", key, "precious"]).await.unwrap();
    let answers = scripts.acquire(&[0, 1, 2], 9).await;
    assert_eq!(answers, [GRANTED, [-3, 0], GRANTED]);
}

#[tokio::test]
async fn the_lease_of_a_dead_holder_expires_in_time_after_the_clock_steps_back() {
    let server = Server::start().await;
    let scripts = Scripts::new(&server, "leases").await;
    let start = 1_800_000_000_000;
    scripts.set_clock(start).await;
    assert_eq!(scripts.acquire(&[0, 4], 2).await, [GRANTED, GRANTED]);
    let stepped = start - HOUR;
    scripts.set_clock(stepped).await;
    assert_eq!(scripts.acquire(&[8], 2).await, [FULL]);
    // One of the two is alive, and is kept so.
    scripts.set_clock(stepped + TTL as i64 - 1).await;
    scripts.heartbeat(4).await;
    assert_eq!(scripts.acquire(&[8], 2).await, [FULL]);
    scripts.set_clock(stepped + TTL as i64).await;
    assert_eq!(scripts.used().await, 1);
    assert_eq!(scripts.acquire(&[8, 12], 2).await, [GRANTED, FULL]);
}

/// A short lease among long ones.
#[tokio::test]
async fn leases_keep_their_time_to_live_after_the_clock_steps_back() {
    let server = Server::start().await;
    let scripts = Scripts::new(&server, "leases").await;
    let start = 1_800_000_000_000;
    scripts.set_clock(start).await;
    assert_eq!(scripts.acquire_named("long", 1, 9, 10 * TTL).await, 1);
    assert_eq!(scripts.acquire_named("other", 1, 9, 10 * TTL).await, 1);
    // It lives from its heartbeat on as long as that says.
    assert_eq!(scripts.heartbeat_named("other", 1, 2 * TTL).await, 1);
    assert_eq!(scripts.acquire(&[0], 9).await, [GRANTED]);
    let stepped = start - HOUR;
    scripts.set_clock(stepped).await;
    assert_eq!(scripts.used().await, 3);
    for (passed, used) in [(1, 2), (2, 1), (9, 1), (10, 0)] {
        scripts.set_clock(stepped + passed * TTL as i64).await;
        assert_eq!(scripts.used().await, used, "after {passed} times");
    }
}

/// The same by the store, with leases as a replica that died has left them before the clock stepped back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_replica_holds_its_permits_no_longer_after_the_clock_steps_back() {
    let server = Server::start().await;
    let ttl = std::time::Duration::from_secs(1);
    let limits = || LeaseLimits::new(Some(2), None);
    let slots = server.store().lease_ttl(ttl).open_leases("jobs");
    let AcquireOutcome::Granted(_alive) = slots.acquire(limits()).await else {
        panic!("a free slot");
    };
    let total = "{admission:lease:jobs}:total";
    let mut connection = server.connection().await.unwrap();
    let mut left = redis::cmd("ZADD");
    let in_an_hour = 4_000_000_000_000_u64;
    left.arg(total).arg(in_an_hour).arg("7 1000");
    left.query_async::<()>(&mut connection).await.unwrap();
    assert!(matches!(
        slots.acquire(limits()).await,
        AcquireOutcome::Full
    ));
    let granted = RefCell::new(None);
    until("its slot is free", async || {
        match slots.acquire(limits()).await {
            AcquireOutcome::Granted(lease) => *granted.borrow_mut() = Some(lease),
            _ => return false,
        }
        true
    })
    .await;
    assert!(matches!(
        slots.acquire(limits()).await,
        AcquireOutcome::Full
    ));
    // Of leases by name as well.
    let leases = Leases::new()
        .name("work")
        .total(1)
        .ttl(ttl)
        .store(server.store());
    let acme = Key::id("organisation", "acme");
    leases.acquire(&acme, "1").await.unwrap().detach();
    let work = "{admission:lease:work}:total";
    let ids: Vec<String> = redis::cmd("ZRANGEBYSCORE")
        .arg(work)
        .arg(0)
        .arg("(+inf")
        .query_async(&mut connection)
        .await
        .unwrap();
    let [id] = &*ids else {
        panic!("one lease: {ids:?}");
    };
    let mut step = redis::cmd("ZADD");
    step.arg(work).arg(in_an_hour).arg(id);
    step.query_async::<()>(&mut connection).await.unwrap();
    assert!(leases.acquire(&acme, "2").await.is_err());
    until("it is free", async || {
        leases.acquire(&acme, "2").await.is_ok()
    })
    .await;
}
