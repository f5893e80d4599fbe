//! The script for rates, on random histories with a clock that the test sets: a call for many requests decides like one
//! call for each, and the fast branches decide like the general path.

use std::fmt::Debug;

use proptest::prelude::*;
use redis::aio::MultiplexedConnection;

use crate::server::Server;

const TAKE: &str = concat!(
    include_str!("../../src/scripts/take.lua"),
    include_str!("../../src/scripts/take_general.lua")
);

/// Puts the script on a clock of the test's, and what it stores on a clock that never ends it.
fn shimmed(script: &str) -> String {
    let clock = "redis.call('TIME')";
    let set = "redis.call('SET', ";
    assert!(script.contains(clock) && script.contains(set));
    let script = script.replace(clock, "redis.call('LRANGE', 'clock', 0, 1)");
    let script = script.replace(set, "keep(");
    format!(
        "local function keep(key, value, _, expiry)
           redis.call('SET', key, value)
           redis.call('SET', 'expiry of ' .. key, expiry)
         end
         {script}"
    )
}

/// The script without its early branches.
fn general(script: &str) -> String {
    let early = [
        ("if head == '", "if head == 'not "),
        ("string.find(head, '^take", "string.find('', '^take"),
    ];
    early
        .iter()
        .fold(script.to_owned(), |script, (early, never)| {
            assert!(script.contains(early));
            script.replace(early, never)
        })
}

/// The quotas of each key by their letters, which its name tells.
const SHAPES: [&str; 7] = ["b", "b", "b", "bb", "s", "sb", "bs"];

/// A quota of a key: its letter, its length and its limit.
type Rule = (char, u64, u64);

/// The limits of the keys, and requests.
#[derive(Clone, Debug)]
struct Step {
    /// How far the clock goes, in microseconds.
    passed: i64,
    /// Of each key; the script is told of those that are charged.
    rules: Vec<Vec<Rule>>,
    mode: &'static str,
    runs: Vec<Run>,
    /// A key that holds something else during this step.
    junk: Option<(usize, bool)>,
}

#[derive(Clone, Debug)]
struct Run {
    cost: u64,
    count: u64,
    /// Places of keys among all.
    keys: Vec<usize>,
}

fn rule(letter: char) -> impl Strategy<Value = Rule> {
    let lengths = prop_oneof![
        4 => Just(1_000_000_u64),
        2 => Just(700_001),
        1 => Just(3),
        1 => Just(1),
        1 => Just(999_999_937),
        1 => Just(86_400_000_000),
        1 => Just(250_000_000_000_000),
    ];
    let limits = prop_oneof![
        1 => Just(0_u64),
        5 => 1..12_u64,
        1 => Just(u64::from(u32::MAX)),
    ];
    let letter = prop_oneof![9 => Just(letter), 1 => Just('-')];
    let length = move |(letter, length, limit): (char, u64, u64)| match limit {
        // A bucket fills in less than a century.
        4_294_967_295 => (letter, length.min(700_001), limit),
        // A quota that denies everything has no length.
        0 => (letter, 0, 0),
        _ => (letter, length, limit),
    };
    (letter, lengths, limits).prop_map(length)
}

fn rules() -> impl Strategy<Value = Vec<Vec<Rule>>> {
    let of_key = |letters: &str| letters.chars().map(rule).collect::<Vec<_>>();
    SHAPES
        .iter()
        .map(|letters| of_key(letters))
        .collect::<Vec<_>>()
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let named = prop_oneof![
        // A hot key, keys that are apart, and a key that all share next to one of their own.
        3 => (0..SHAPES.len()).prop_map(|key| vec![vec![key]]),
        1 => (0..SHAPES.len(), 0..SHAPES.len()).prop_map(|(one, two)| vec![vec![one], vec![two]]),
        2 => (0..SHAPES.len(), 1..SHAPES.len()).prop_map(|(shared, by)| {
            let other = |by| (shared + by) % SHAPES.len();
            let last = by % (SHAPES.len() - 1) + 1;
            vec![vec![other(by), shared], vec![other(last), shared]]
        }),
        1 => Just(vec![vec![0, 1, 2], vec![3, 1, 5]]),
    ];
    named.prop_flat_map(|tuples| {
        let run = (
            prop_oneof![1 => Just(0_u64), 9 => 1..6_u64, 1 => Just(4_294_967_295_u64), 1 => 1..4_294_967_295_u64],
            1..5_u64,
            0..tuples.len(),
        );
        let runs = proptest::collection::vec(run, 1..6);
        runs.prop_map(move |runs| {
            let run = |(cost, count, tuple): (u64, u64, usize)| Run {
                cost,
                count,
                keys: tuples[tuple].clone(),
            };
            runs.into_iter().map(run).collect()
        })
    })
}

fn histories() -> impl Strategy<Value = Vec<Step>> {
    let passed = prop_oneof![
        4 => Just(0_i64),
        2 => 0..100_000_i64,
        6 => 0..5_000_000_i64,
        2 => 0..30_000_000_i64,
        1 => Just(86_400_000_000 * 3),
        1 => Just(-3_600_000_000),
    ];
    let mode = prop_oneof![8 => Just("take"), 1 => Just("look"), 2 => Just("give")];
    let junk = proptest::option::weighted(0.05, (0..SHAPES.len(), any::<bool>()));
    // The rules change now and then.
    let changed = proptest::option::weighted(0.3, rules());
    let step = (passed, changed, mode, runs(), junk);
    (rules(), proptest::collection::vec(step, 1..25)).prop_map(|(mut rules, steps)| {
        let step = |(passed, changed, mode, runs, junk)| {
            rules = Option::unwrap_or_else(changed, || rules.clone());
            Step {
                passed,
                rules: rules.clone(),
                mode,
                runs,
                junk,
            }
        };
        steps.into_iter().map(step).collect()
    })
}

/// What a request learns of each quota that is not off: what is left, the reset and the wait; nothing if a key
/// holds something else.
type Answer = Option<(bool, Vec<[i64; 3]>)>;

/// A way to decide, on keys of its own.
struct Way {
    connection: MultiplexedConnection,
    namespace: String,
    script: String,
    is_batch: bool,
}

impl Way {
    fn key(&self, at: usize) -> String {
        format!("{}:{at}", self.namespace)
    }

    async fn call(&mut self, step: &Step, runs: &[Run]) -> Vec<Answer> {
        let mut charged: Vec<usize> = Vec::new();
        for key in runs.iter().flat_map(|run| &run.keys) {
            if !charged.contains(key) {
                charged.push(*key);
            }
        }
        let is_named = runs.iter().any(|run| run.keys != charged);
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.script).arg(charged.len());
        for key in &charged {
            command.arg(self.key(*key));
        }
        let named = if is_named { runs[0].keys.len() } else { 0 };
        let mut head = format!("{} {named}", step.mode);
        let mut numbers = Vec::new();
        let mut before = None;
        for key in &charged {
            let rules = &step.rules[*key];
            head.push(' ');
            if before == Some(rules) {
                head.push('=');
                continue;
            }
            before = Some(rules);
            head.extend(rules.iter().map(|(letter, ..)| *letter));
            numbers.extend(
                rules
                    .iter()
                    .flat_map(|(_, length, limit)| [*length, *limit]),
            );
        }
        command.arg(head).arg(numbers);
        for run in runs {
            command.arg(run.cost).arg(run.count);
            for key in run.keys.iter().filter(|_| is_named) {
                let at = charged.iter().position(|charged| charged == key);
                command.arg(at.unwrap() + 1);
            }
        }
        let answer: redis::RedisResult<Vec<i64>> = command.query_async(&mut self.connection).await;
        match answer {
            Ok(numbers) => answers(&numbers, step, runs),
            Err(error) => {
                assert!(
                    matches!(error.code(), Some("JUNK" | "WRONGTYPE")),
                    "{error}"
                );
                assert_eq!(runs.len(), 1);
                vec![None; runs[0].count as usize]
            }
        }
    }

    async fn decide(&mut self, step: &Step) -> Vec<Answer> {
        if self.is_batch {
            return self.call(step, &step.runs).await;
        }
        let mut answers = Vec::new();
        for run in &step.runs {
            let request = Run {
                count: 1,
                ..run.clone()
            };
            let mut of_run = Vec::new();
            for _ in 0..run.count {
                of_run.extend(self.call(step, std::slice::from_ref(&request)).await);
            }
            if step.mode == "give" {
                // A run is answered when all of it is given back, with what a look then finds.
                let look = Step {
                    mode: "look",
                    ..step.clone()
                };
                let found = self.call(&look, std::slice::from_ref(&request)).await;
                of_run.fill(found[0].clone());
            }
            answers.extend(of_run);
        }
        answers
    }

    /// What is stored for each key, and for how long.
    async fn stored(&mut self, now: i64) -> Vec<(Option<String>, Option<f64>)> {
        let mut stored = Vec::new();
        for at in 0..SHAPES.len() {
            let key = self.key(at);
            let expiry = format!("expiry of {key}");
            let get = redis::cmd("MGET").arg(key).arg(expiry).to_owned();
            let (value, expiry): (Option<String>, Option<f64>) =
                get.query_async(&mut self.connection).await.unwrap();
            let expiry = expiry.filter(|_| value.is_some());
            stored.push((value.map(|value| current(&value, now)), expiry));
        }
        stored
    }

    async fn run(&mut self, words: &[&str]) {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let ran = command.query_async::<redis::Value>(&mut self.connection);
        ran.await.unwrap();
    }
}

/// A stored value without what is as good as unused, which may stay in it.
fn current(value: &str, now: i64) -> String {
    let part = |part: &str| {
        let numbers: Vec<i64> = part.split(' ').skip(1).flat_map(str::parse).collect();
        let is_used = match (part.chars().next(), &*numbers) {
            (Some('b'), [_, arrival, _]) => *arrival > now,
            (Some('s'), [length, newest, counts @ ..]) => {
                let youngest = counts.iter().position(|count| *count > 0);
                youngest.is_some_and(|age| (newest + 16 - age as i64) * length > now)
            }
            _ => false,
        };
        if is_used {
            part.to_owned()
        } else {
            "-".to_owned()
        }
    };
    value.split(';').map(part).collect::<Vec<_>>().join(";")
}

/// What the numbers of a call say to each request.
fn answers(numbers: &[i64], step: &Step, runs: &[Run]) -> Vec<Answer> {
    let mut numbers = numbers.iter().copied();
    let mut next = || numbers.next().expect("a number for everything");
    let mut answers = Vec::new();
    for run in runs {
        let granted = next();
        if granted < 0 {
            answers.extend((0..run.count).map(|_| None));
            continue;
        }
        let rules: Vec<_> = run.keys.iter().flat_map(|key| &step.rules[*key]).collect();
        let is_off = |rule: &&&Rule| rule.0 == '-';
        if granted > 0 {
            let first: Vec<_> = rules.iter().map(|_| [next(), next()]).collect();
            for nth in 0..granted {
                let quotas = rules.iter().zip(&first).filter(|(rule, _)| !is_off(rule));
                let quotas = quotas.map(|((letter, length, _), [left, reset])| {
                    let before = nth * run.cost as i64;
                    let later = if *letter == 'b' {
                        before * *length as i64
                    } else {
                        0
                    };
                    [left - before, reset + later, 0]
                });
                answers.push(Some((true, quotas.collect())));
            }
        }
        if granted < run.count as i64 {
            let rest: Vec<_> = rules.iter().map(|_| [next(), next(), next()]).collect();
            let quotas = rules.iter().zip(rest).filter(|(rule, _)| !is_off(rule));
            let quotas: Vec<_> = quotas.map(|(_, quota)| quota).collect();
            let fits = quotas.iter().all(|[_, _, wait]| *wait == 0);
            let is_asked = step.mode != "take" || run.cost == 0;
            assert!(is_asked || !fits, "a request that fits is granted");
            let answer = Some((is_asked && fits, quotas));
            answers.extend((granted as u64..run.count).map(|_| answer.clone()));
        }
    }
    assert_eq!(numbers.next(), None);
    answers
}

fn agree<T: PartialEq + Debug>(all: &[T], step: &Step) -> Result<(), TestCaseError> {
    for other in &all[1..] {
        prop_assert_eq!(other, &all[0], "after {:?}", step);
    }
    Ok(())
}

async fn run(ways: &mut [Way], history: &[Step]) -> Result<(), TestCaseError> {
    ways[0].run(&["FLUSHDB"]).await;
    let mut now = 1_800_000_000_123_456_i64;
    for step in history {
        now += step.passed;
        let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
        ways[0].run(&["DEL", "clock"]).await;
        let clock = [seconds, micros].map(|number| number.to_string());
        ways[0].run(&["RPUSH", "clock", &clock[0], &clock[1]]).await;
        let mut answered = Vec::new();
        let mut stored = Vec::new();
        for way in &mut *ways {
            if let Some((at, is_set)) = step.junk {
                let key = way.key(at);
                way.run(&["DEL", &key]).await;
                let words = if is_set {
                    ["SADD", &key, "x"]
                } else {
                    ["SET", &key, "x;"]
                };
                way.run(&words).await;
            }
            answered.push(way.decide(step).await);
            if let Some((at, _)) = step.junk {
                let key = way.key(at);
                way.run(&["DEL", &key]).await;
            }
            stored.push(way.stored(now).await);
        }
        agree(&answered, step)?;
        agree(&stored, step)?;
    }
    Ok(())
}

#[test]
fn a_call_for_many_requests_decides_like_one_call_for_each() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(Server::start());
    let scripts = [shimmed(TAKE), general(&shimmed(TAKE))];
    let ways = [
        ("one", 0, false),
        ("batch", 0, true),
        ("general", 1, false),
        ("both", 1, true),
    ];
    let ways = ways.map(|(name, script, is_batch)| {
        let script = &scripts[script];
        runtime.block_on(async {
            let mut connection = server.connection().await.unwrap();
            let load = redis::cmd("SCRIPT").arg("LOAD").arg(script).to_owned();
            Way {
                script: load.query_async(&mut connection).await.unwrap(),
                connection,
                namespace: name.to_owned(),
                is_batch,
            }
        })
    });
    let ways = std::cell::RefCell::new(ways);
    let config = ProptestConfig {
        cases: 20,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let ran = runner.run(&histories(), |history| {
        runtime.block_on(run(&mut *ways.borrow_mut(), &history))
    });
    ran.unwrap();
}
