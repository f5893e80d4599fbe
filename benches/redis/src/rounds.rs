//! Times all contestants of a table in turn, round after round.

use std::fmt;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;

use crate::contestants::{Contestant, MANY};
use crate::server;

/// How long to measure.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    /// The time of one contestant in one round.
    pub time: Duration,
}

/// The load of a table.
#[derive(Clone, Copy, PartialEq)]
pub struct Setting {
    /// Tasks that decide concurrently, each one decision after the other.
    pub tasks: usize,
    pub keys: Keys,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Keys {
    One,
    Many,
    /// Each request has one of many keys, and one key that all requests share.
    ManyAndGlobal,
}

impl Figures {
    /// Whether the server had to wait for a processor.
    pub fn are_disturbed(&self) -> bool {
        self.script > self.server
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks = self.tasks;
        let s = if tasks == 1 { "" } else { "s" };
        match self.keys {
            Keys::One => write!(f, "{tasks} task{s}, one key"),
            Keys::Many => write!(f, "{tasks} task{s}, {MANY} keys"),
            Keys::ManyAndGlobal => write!(f, "{tasks} task{s}, {MANY} tokens and a global key"),
        }
    }
}

/// Medians of rounds; times are in microseconds.
#[derive(Clone, Copy)]
pub struct Figures {
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    /// The processor time of the server's process per decision, by `INFO cpu`.
    pub server: f64,
    /// The server's time in client commands per decision, by `INFO commandstats`. It is wall time:
    /// it exceeds the processor time only if the server waited for a processor.
    pub script: f64,
    /// Client commands per decision.
    pub calls: f64,
}

/// Requests that each key is charged before a table. Its bucket then takes minutes to fill, so that
/// each decision of the table finds it stored, as for an active client.
const DEBT: u32 = 5_000;

impl Setting {
    /// The figures of each contestant, in their order.
    pub async fn measure(
        &self,
        effort: Effort,
        contestants: &[Contestant],
        connection: &mut MultiplexedConnection,
    ) -> Vec<Figures> {
        for contestant in contestants {
            self.introduce(contestant).await;
        }
        let mut rounds = vec![Vec::new(); contestants.len()];
        for round in 0..effort.rounds {
            // Each round starts with the next contestant, so that each follows every other.
            for turn in 0..contestants.len() {
                let which = (turn + round) % contestants.len();
                let figures = self.round(effort.time, &contestants[which], connection);
                rounds[which].push(figures.await);
            }
        }
        rounds.iter().map(|rounds| medians(rounds)).collect()
    }

    fn key_count(&self) -> usize {
        match self.keys {
            Keys::One => 1,
            Keys::Many | Keys::ManyAndGlobal => MANY,
        }
    }

    async fn introduce(&self, contestant: &Contestant) {
        const AT_ONCE: usize = 64;
        let mut tasks = Vec::new();
        for first in 0..AT_ONCE {
            let mut contestant = contestant.clone();
            let keys = (first..self.key_count()).step_by(AT_ONCE);
            tasks.push(tokio::spawn(async move {
                for key in keys {
                    contestant.decide(key, DEBT).await;
                }
            }));
        }
        for task in tasks {
            task.await.expect("no panic");
        }
        contestant.finish().await;
    }

    async fn round(
        &self,
        time: Duration,
        contestant: &Contestant,
        connection: &mut MultiplexedConnection,
    ) -> Figures {
        server::reset(connection).await;
        let before = server::usage(connection).await;
        let started = now();
        let end = started + time;
        let tasks: Vec<_> = (0..self.tasks)
            .map(|task| tokio::spawn(self.decide_until(end, contestant.clone(), task)))
            .collect();
        let mut nanos = Vec::new();
        for task in tasks {
            nanos.extend(task.await.expect("no panic"));
        }
        contestant.finish().await;
        let took = started.elapsed();
        let after = server::usage(connection).await;
        let decisions = nanos.len() as f64;
        nanos.sort_unstable();
        let percentile = |part: f64| {
            let at = (decisions * part) as usize;
            f64::from(nanos[at.min(nanos.len() - 1)]) / 1000.0
        };
        Figures {
            per_second: decisions / took.as_secs_f64(),
            p50: percentile(0.5),
            p99: percentile(0.99),
            server: (after.processor - before.processor) * 1e6 / decisions,
            script: after.micros / decisions,
            calls: after.calls / decisions,
        }
    }

    /// Decides for one key after the other, and returns the nanoseconds of each decision.
    fn decide_until(
        &self,
        end: Instant,
        mut contestant: Contestant,
        task: usize,
    ) -> impl Future<Output = Vec<u32>> + Send + use<> {
        let keys = self.key_count();
        // Tasks start far apart, so that two of them rarely share a key unless there is only one.
        let mut key = task * keys / self.tasks;
        async move {
            let mut nanos = Vec::new();
            let mut asked = now();
            while asked < end {
                contestant.decide(key, 1).await;
                key = (key + 1) % keys;
                let answered = now();
                let took = (answered - asked).as_nanos();
                nanos.push(u32::try_from(took).unwrap_or(u32::MAX));
                asked = answered;
            }
            nanos
        }
    }
}

fn medians(rounds: &[Figures]) -> Figures {
    let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure).collect());
    Figures {
        per_second: of(|figures| figures.per_second),
        p50: of(|figures| figures.p50),
        p99: of(|figures| figures.p99),
        server: of(|figures| figures.server),
        script: of(|figures| figures.script),
        calls: of(|figures| figures.calls),
    }
}

pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[expect(
    clippy::disallowed_methods,
    reason = "only the crate itself needs its clocks"
)]
pub fn now() -> Instant {
    Instant::now()
}
