//! Requests per second of an axum server on one core, with the load generator on another.

use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::Effort;
use crate::apps::{APPS, App, OURS, OURS_BOTH, OURS_REJECTING};
use crate::cores;
use crate::load::{Connection, run};
use crate::measure::{median, timed};
use crate::report::{Report, title};
use crate::server::{Server, runtime};

/// Enough that the server always has a request to serve.
const CONNECTIONS: usize = 32;

const WARM_UP: Duration = Duration::from_millis(20);
const SLICE: Duration = Duration::from_millis(100);

pub fn throughput(effort: Effort, report: &mut Report) {
    title("axum, HTTP/1 keep-alive on loopback: requests per second");
    let cores = cores::two();
    if cores.is_none() {
        println!("(server and load share their cores, so this is not a reliable figure)");
    }
    let [server_core, load_core] = match cores {
        Some(cores) => cores.map(Some),
        None => [None, None],
    };
    let server = Server::start(server_core);
    // A separate thread, because pinning would stay with the calling thread.
    let samples = thread::scope(|scope| {
        let load = scope.spawn(|| {
            cores::pin(load_core);
            measure(&server, effort.rounds / 10)
        });
        load.join().expect("no panic")
    });
    print(&samples, report);
}

/// The server's work in a slice of time.
#[derive(Clone, Copy)]
struct Slice {
    per_second: f64,
    /// By the processor time of the server's thread, whatever else the core did.
    per_cpu_second: f64,
    /// The part of the time in which the server's thread had its core. Well below 1, the machine
    /// was too busy.
    busy: f64,
    /// The same for the thread of the load generator.
    load_busy: f64,
}

/// A slice of an app, and the slices of the baseline before and after it.
#[derive(Clone, Copy)]
struct Pair {
    slice: Slice,
    ratio: f64,
    cpu_ratio: f64,
}

/// The slices of each app but the first.
fn measure(server: &Server, rounds: usize) -> Vec<Vec<Pair>> {
    let runtime = runtime();
    let open = async |app: &App, address| {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Connection::open(app, address).await);
        }
        connections
    };
    let apps = APPS.iter().zip(&server.addresses);
    let mut apps: Vec<_> = apps
        .map(|(app, address)| runtime.block_on(open(app, *address)))
        .collect();
    let mut slice = |app: usize| slice(&runtime, server, &mut apps[app]);

    let mut pairs = vec![Vec::new(); APPS.len() - 1];
    let mut before = slice(0);
    for round in 0..rounds {
        for turn in 0..pairs.len() {
            let app = (round + turn) % pairs.len();
            let of_it = slice(app + 1);
            let after = slice(0);
            pairs[app].push(pair(of_it, before, after));
            before = after;
        }
    }
    pairs
}

fn slice(runtime: &Runtime, server: &Server, connections: &mut Vec<Connection>) -> Slice {
    runtime.block_on(run(connections, WARM_UP));
    let cpu = server.cpu_time();
    let mut answered = 0;
    let time = timed(|| answered = runtime.block_on(run(connections, SLICE)));
    let cpu = server.cpu_time().saturating_sub(cpu).as_secs_f64();
    let (answered, wall) = (answered as f64, time.wall.as_secs_f64());
    Slice {
        per_second: answered / wall,
        per_cpu_second: answered / cpu,
        busy: cpu / wall,
        load_busy: time.cpu.as_secs_f64() / wall,
    }
}

fn pair(slice: Slice, before: Slice, after: Slice) -> Pair {
    let ratio = |of: fn(Slice) -> f64| 2.0 * of(slice) / (of(before) + of(after));
    Pair {
        slice,
        ratio: ratio(|slice| slice.per_second),
        cpu_ratio: ratio(|slice| slice.per_cpu_second),
    }
}

fn print(samples: &[Vec<Pair>], report: &mut Report) {
    println!(
        "{:44} {:>10} {:>8} {:>17} {:>12} {:>10}",
        "medians; ratios to no middleware",
        "requests/s",
        "ratio",
        "ratio by cpu time",
        "server busy",
        "load busy"
    );
    for (app, pairs) in APPS.iter().skip(1).zip(samples) {
        let of = |of: fn(&Pair) -> f64| median(pairs.iter().map(of).collect());
        let (per_second, ratio) = (of(|pair| pair.slice.per_second), of(|pair| pair.ratio));
        let (cpu_ratio, busy) = (of(|pair| pair.cpu_ratio), of(|pair| pair.slice.busy));
        let load_busy = of(|pair| pair.slice.load_busy);
        let hint = if busy < 0.9 {
            "  (machine too busy)"
        } else {
            ""
        };
        println!(
            "{:44} {per_second:10.0} {ratio:8.3} {cpu_ratio:17.3} {:11.0}% {:9.0}%{hint}",
            app.name,
            100.0 * busy,
            100.0 * load_busy
        );
        let what = format!(
            "axum served, requests/s, {} / no middleware{hint}",
            app.name
        );
        match app.name {
            OURS => report.at_least(&what, ratio, 0.95),
            OURS_BOTH => report.at_least(&what, ratio, 0.85),
            OURS_REJECTING => report.at_least(&what, ratio, 0.87),
            _ => report.measured(&what, ratio),
        }
    }
}
