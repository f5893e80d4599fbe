//! Times contenders in turn, round after round.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::time::{ClockId, clock_gettime};

use crate::contenders::Entry;
use crate::requests::{Clients, Setting, request};

/// The task of the contenders of one table.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub clients: u64,
    pub setting: Setting,
    pub status: StatusCode,
    pub rounds: usize,
    /// Chunks per turn of a contender. With many clients, the caches need some of them to hold its
    /// table again.
    pub turn: usize,
    /// Calls that are timed as one.
    pub chunk: usize,
}

/// The median cost of a contender's calls.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub name: &'static str,
    pub nanos: f64,
    /// The cost above that of the first contender.
    pub over: f64,
    /// The machine was too busy for a reliable figure.
    pub disturbed: bool,
}

/// The duration of a chunk by the wall clock and by this thread's processor time.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    pub start: Instant,
    pub wall: Duration,
    pub cpu: Duration,
}

#[expect(
    clippy::disallowed_methods,
    reason = "only the crate itself needs its clocks"
)]
pub fn timed(work: impl FnOnce()) -> Timed {
    let cpu = cpu_time();
    let start = Instant::now();
    work();
    let wall = start.elapsed();
    Timed {
        start,
        wall,
        cpu: cpu_time().saturating_sub(cpu),
    }
}

/// The processor time of this thread.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a clock that counts from 0")
}

impl Timed {
    /// Whether this thread had the processor all the time.
    fn undisturbed(&self) -> bool {
        self.cpu + Duration::from_micros(2) >= self.wall
    }

    fn overlaps(&self, other: &Self) -> bool {
        let start = self.start.max(other.start);
        let end = (self.start + self.wall).min(other.start + other.wall);
        end.saturating_duration_since(start) * 10 >= self.wall.max(other.wall) * 8
    }
}

impl Task {
    /// Sends one request of every client to every contender.
    pub fn introduce(&self, entries: &mut [Entry]) {
        let mut requests = Vec::new();
        for entry in entries {
            for client in 0..self.clients {
                requests.push(request(client, self.setting));
                if requests.len() == self.chunk || client + 1 == self.clients {
                    entry.contender.serve(&mut requests, self.status);
                }
            }
        }
    }

    pub fn one_thread(&self, entries: &mut [Entry]) -> Vec<Cost> {
        let mut clients = Clients::new(self.clients, 1);
        let mut samples = vec![Samples::default(); entries.len()];
        let mut requests = Vec::with_capacity(self.chunk);
        for round in 0..self.rounds {
            for which in turns(entries.len(), round, self.turn) {
                clients.fill(&mut requests, self.chunk, self.setting);
                let time = self.time_chunk(&mut entries[which], &mut requests);
                samples[which].add(self.per_call(time.wall), time.undisturbed());
            }
        }
        costs(entries, &samples)
    }

    /// Runs both threads at once on clones of the same services. Only chunks that ran in parallel
    /// count.
    pub fn two_threads(&self, entries: &[Entry]) -> Vec<Cost> {
        let mut samples = vec![Samples::default(); entries.len()];
        for batch in 0..BATCHES {
            self.add_side_by_side(entries, batch, &mut samples);
            if samples.iter().all(Samples::are_enough) {
                break;
            }
        }
        costs(entries, &samples)
    }

    fn add_side_by_side(&self, entries: &[Entry], batch: u64, samples: &mut [Samples]) {
        let barrier = Barrier::default();
        let work = |thread| {
            let mut entries: Vec<_> = entries.iter().map(Entry::fork).collect();
            let barrier = &barrier;
            move || {
                let mut clients = Clients::new(self.clients, 2 * batch + thread);
                let mut requests = Vec::with_capacity(self.chunk);
                let mut times = Vec::new();
                for round in 0..self.rounds {
                    for which in turns(entries.len(), round, self.turn) {
                        clients.fill(&mut requests, self.chunk, self.setting);
                        barrier.wait();
                        let time = self.time_chunk(&mut entries[which], &mut requests);
                        times.push((which, time));
                    }
                }
                times
            }
        };
        let (one, two) = thread::scope(|scope| {
            let (one, two) = (scope.spawn(work(0)), scope.spawn(work(1)));
            (one.join().expect("no panic"), two.join().expect("no panic"))
        });
        for ((which, one), (_, two)) in one.into_iter().zip(two) {
            let valid = one.undisturbed() && two.undisturbed() && one.overlaps(&two);
            samples[which].add(self.per_call(one.wall + two.wall) / 2.0, valid);
        }
    }

    fn time_chunk(&self, entry: &mut Entry, requests: &mut Vec<http::Request<()>>) -> Timed {
        let mut as_expected = 0;
        let time = timed(|| as_expected = entry.contender.serve(requests, self.status));
        // The baseline cannot reject.
        assert!(
            as_expected == self.chunk || entry.name == NO_MIDDLEWARE,
            "{} answered {as_expected} of {} with {}",
            entry.name,
            self.chunk,
            self.status
        );
        time
    }

    fn per_call(&self, wall: Duration) -> f64 {
        wall.as_nanos() as f64 / self.chunk as f64
    }
}

/// The name of the baseline.
pub const NO_MIDDLEWARE: &str = "no middleware";

/// The order of the contenders: each round starts with the next one, so that each follows every
/// other.
fn turns(entries: usize, round: usize, turn: usize) -> impl Iterator<Item = usize> {
    (0..entries).flat_map(move |next| std::iter::repeat_n((next + round) % entries, turn))
}

/// How often two threads retry until they ran in parallel often enough.
const BATCHES: u64 = 4;

/// The nanoseconds of a call in each round.
#[derive(Clone, Default)]
struct Samples {
    valid: Vec<f64>,
    disturbed: Vec<f64>,
}

impl Samples {
    fn add(&mut self, nanos: f64, valid: bool) {
        let samples = if valid {
            &mut self.valid
        } else {
            &mut self.disturbed
        };
        samples.push(nanos);
    }

    fn are_enough(&self) -> bool {
        self.valid.len() >= 30
    }

    /// The median of the valid rounds. If there are too few, the median of all rounds, and the flag
    /// is set.
    fn median(&self) -> (f64, bool) {
        let mut samples = self.valid.clone();
        if !self.are_enough() {
            samples.extend(&self.disturbed);
        }
        (median(samples), !self.are_enough())
    }
}

pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn costs(entries: &[Entry], samples: &[Samples]) -> Vec<Cost> {
    let (baseline, _) = samples[0].median();
    let cost = |(entry, samples): (&Entry, &Samples)| {
        let (nanos, disturbed) = samples.median();
        Cost {
            name: entry.name,
            nanos,
            over: nanos - baseline,
            disturbed,
        }
    };
    entries.iter().zip(samples).map(cost).collect()
}

/// Two threads wait for each other without sleeping, so that they start at the same time.
#[derive(Default)]
struct Barrier(AtomicUsize);

impl Barrier {
    fn wait(&self) {
        let arrived = self.0.fetch_add(1, Ordering::AcqRel);
        let all = arrived - arrived % 2 + 2;
        let mut spins = 0_u32;
        while self.0.load(Ordering::Acquire) < all {
            spins += 1;
            if spins.is_multiple_of(4096) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}
