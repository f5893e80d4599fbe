//! What a decision over Redis costs next to a bare loop of the client over the very same script.
//!
//! Starts a redis-server of its own. The load runs on one thread, so that the server has the other
//! core of a machine with two. Rounds of both are interleaved, and the medians of rounds printed.

use std::hint::black_box;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo};
use tower_admission::store::{Charge, RateBuckets, RateStore, RedisStore};
use tower_admission::{Key, Policy, Quota, Secret};

const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 9;
const KEYS: usize = 1000;

/// Both ask for this quota, which admits all.
const COUNT: u32 = 1_000_000;

#[derive(Clone)]
enum Contestant {
    Bare(MultiplexedConnection, Arc<str>),
    Ours(Arc<dyn RateBuckets>),
}

/// What a round measured.
#[derive(Clone, Copy, Default)]
struct Round {
    per_second: f64,
    p50: f64,
    p99: f64,
    /// The server's processor time for a decision, in microseconds.
    server: f64,
}

impl Contestant {
    fn name(&self) -> &'static str {
        match self {
            Self::Bare(..) => "bare client, same script",
            Self::Ours(_) => "ours",
        }
    }

    /// Runs `width` tasks, each asking again as soon as it is answered.
    async fn round(&self, width: usize, server: &mut MultiplexedConnection) -> Round {
        let before = processor_time(server).await;
        let started = Instant::now();
        let tasks: Vec<_> = (0..width)
            .map(|task| tokio::spawn(self.clone().ask_for(ROUND, task)))
            .collect();
        let mut nanos = Vec::new();
        for task in tasks {
            nanos.extend(task.await.expect("a task that does not panic"));
        }
        let took = started.elapsed();
        let processor = processor_time(server).await - before;
        nanos.sort_unstable();
        let percentile = |part: f64| {
            let at = (nanos.len() as f64 * part) as usize;
            f64::from(nanos[at.min(nanos.len() - 1)]) / 1000.0
        };
        Round {
            per_second: nanos.len() as f64 / took.as_secs_f64(),
            p50: percentile(0.5),
            p99: percentile(0.99),
            server: processor * 1e6 / nanos.len() as f64,
        }
    }

    /// The nanoseconds of each decision.
    async fn ask_for(self, time: Duration, task: usize) -> Vec<u32> {
        let mut nanos = Vec::new();
        let started = Instant::now();
        let keys: Vec<_> = (0..KEYS)
            .map(|n| (format!("bare:{n}"), Key::id("user", &n.to_string())))
            .collect();
        let mut at = task * 7;
        while started.elapsed() < time {
            at += 1;
            let (text, key) = &keys[at % KEYS];
            let asked = Instant::now();
            match &self {
                Self::Bare(connection, script) => {
                    let mut command = redis::cmd("EVALSHA");
                    command.arg(&**script).arg(1).arg(text);
                    command.arg(1).arg("take").arg(&[1, 0, 1, COUNT]);
                    let mut connection = connection.clone();
                    let answer: Vec<i64> = command
                        .query_async(&mut connection)
                        .await
                        .expect("an answer");
                    black_box(answer);
                }
                Self::Ours(buckets) => {
                    let decision = buckets.take(&[Charge::new(*key, 0)], 1).await;
                    assert!(decision.remaining().is_some(), "decided by Redis");
                }
            }
            nanos.push(u32::try_from(asked.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        nanos
    }
}

async fn processor_time(connection: &mut MultiplexedConnection) -> f64 {
    let mut command = redis::cmd("INFO");
    let info: String = command
        .arg("cpu")
        .query_async(connection)
        .await
        .expect("an answer");
    let of = |name: &str| -> f64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.parse().ok()).unwrap_or(0.0)
    };
    of("used_cpu_sys:") + of("used_cpu_user:")
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut numbers: Vec<f64> = rounds.iter().map(of).collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn main() {
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let _server = Server(
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed"),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async move { tokio::spawn(compare(port)).await.expect("a whole run") });
}

async fn compare(port: u16) {
    let url = format!("redis://127.0.0.1:{port}");
    let info = url.clone().into_connection_info().expect("a URL");
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = Client::open(info).expect("a client");
    let mut connection = loop {
        if let Ok(connection) = client.get_multiplexed_async_connection().await {
            break connection;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let source = include_str!("../../../src/store/redis/take.lua");
    let mut load = redis::cmd("SCRIPT");
    let sha1: String = load
        .arg("LOAD")
        .arg(source)
        .query_async(&mut connection)
        .await
        .expect("a script that loads");
    let store = RedisStore::connect(&url)
        .expect("a URL")
        .deadline(Duration::from_secs(1))
        .secret(Secret::new([7; 16]));
    let buckets = store.open(&[Policy::new("bench", Quota::per_second(COUNT))]);
    let contestants = [
        Contestant::Bare(connection.clone(), sha1.into()),
        Contestant::Ours(buckets),
    ];
    println!("Decisions over Redis; medians of {ROUNDS} interleaved rounds.\n");
    for width in [1, 64, 512] {
        println!("{width} tasks");
        let mut rounds = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS {
            for (contestant, rounds) in contestants.iter().zip(&mut rounds) {
                rounds.push(contestant.round(width, &mut connection).await);
            }
        }
        for (contestant, rounds) in contestants.iter().zip(&rounds) {
            println!(
                "  {:26} {:9.0}/s   p50 {:8.1} us   p99 {:8.1} us   server {:5.2} us",
                contestant.name(),
                median(rounds, |round| round.per_second),
                median(rounds, |round| round.p50),
                median(rounds, |round| round.p99),
                median(rounds, |round| round.server),
            );
        }
        let ratio = |of: fn(&Round) -> f64| median(&rounds[1], of) / median(&rounds[0], of);
        println!(
            "  ours over bare             {:9.2}x    p50 {:8.2}x\n",
            ratio(|round| round.per_second),
            ratio(|round| round.p50),
        );
    }
    denied(&store).await;
}

/// A key that Redis denied, denied again by the cache.
async fn denied(store: &RedisStore) {
    let buckets = store.open(&[Policy::new("denied", Quota::per_day(1))]);
    let key = [Charge::new(Key::id("user", "denied"), 0)];
    let mut nanos = Vec::new();
    for _ in 0..ROUNDS {
        while buckets.take(&key, 1).await.is_admitted() {}
        // Well within the second that a denial is kept.
        const CALLS: u32 = 100_000;
        let started = Instant::now();
        for _ in 0..CALLS {
            let _ = black_box(buckets.take(&key, 1).await);
        }
        nanos.push(started.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    nanos.sort_by(f64::total_cmp);
    println!(
        "a denied key, from the cache: {:.0} ns",
        nanos[nanos.len() / 2]
    );
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
