//! The cost of decisions over Redis for this process and the server, next to minimal clients.
//!
//! Starts its own redis-server. The load runs on one thread, so that the server has the other core
//! of a machine with two. All contestants of a table run in turn in the same rounds, so that other
//! load on the machine affects all of them. Times of different runs or tables are not comparable.

mod contestants;
mod denied;
mod rounds;
mod rows;
mod server;
mod take;

use std::time::Duration;

use rounds::{Effort, Keys, Setting};
use rows::Table;
use server::Server;

const fn with(tasks: usize, keys: Keys) -> Setting {
    Setting { tasks, keys }
}

/// The settings of each part, by its argument. A setting in two parts is measured once.
const PARTS: [(&str, &[Setting]); 6] = [
    ("--latency", &[with(1, Keys::One), with(1, Keys::Many)]),
    ("--hot", &[with(64, Keys::One), with(512, Keys::One)]),
    ("--cost", &[with(64, Keys::Many)]),
    ("--distinct", &[with(64, Keys::Many), with(512, Keys::Many)]),
    (
        "--pair",
        &[
            with(1, Keys::ManyAndGlobal),
            with(64, Keys::ManyAndGlobal),
            with(512, Keys::ManyAndGlobal),
        ],
    ),
    (DENIED, &[]),
];

const DENIED: &str = "--denied";

fn main() {
    let mut effort = Effort {
        rounds: 9,
        time: Duration::from_millis(300),
    };
    let mut threads = 1;
    let mut chosen = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--quick" {
            effort = Effort {
                rounds: 3,
                time: Duration::from_millis(100),
            };
        } else if argument == "--threads" {
            let number = arguments.next().and_then(|number| number.parse().ok());
            threads = number.filter(|&threads| threads > 0).unwrap_or_else(usage);
        } else if PARTS.iter().any(|(part, _)| *part == argument) {
            chosen.push(argument);
        } else {
            usage()
        }
    }
    let is_chosen = |part| chosen.is_empty() || chosen.iter().any(|chosen| chosen == part);
    let mut settings = Vec::new();
    for (part, of_part) in PARTS {
        for setting in of_part {
            if is_chosen(part) && !settings.contains(setting) {
                settings.push(*setting);
            }
        }
    }
    let with_denied = is_chosen(DENIED);

    println!(
        "Decisions over Redis: medians of {} interleaved rounds of {} ms; load threads: {threads}.",
        effort.rounds,
        effort.time.as_millis()
    );
    println!(
        "For each decision: `server` is the processor time of the server, `script` its time in the"
    );
    println!("commands of clients, and `calls` their number.");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("a runtime");
    // On a worker thread; this one is not.
    let run = runtime.spawn(async move { run(effort, &settings, with_denied).await });
    runtime.block_on(run).expect("a whole run");
}

async fn run(effort: Effort, settings: &[Setting], with_denied: bool) {
    let server = Server::start();
    let mut connection = server.connect().await;
    let (one_key, two_keys) = contestants::all(&server).await;
    let mut tables = Vec::new();
    for &setting in settings {
        let contestants = match setting.keys {
            Keys::One | Keys::Many => &one_key,
            Keys::ManyAndGlobal => &two_keys,
        };
        let figures = setting.measure(effort, contestants, &mut connection).await;
        let names = contestants.iter().map(|contestant| contestant.name);
        let rows = names.zip(figures).collect();
        let table = Table { setting, rows };
        table.print();
        tables.push(table);
    }
    if with_denied {
        denied::denied(effort, &server).await;
    }
    if !tables.is_empty() {
        rows::print_ratios(&tables);
    }
}

fn usage<T>() -> T {
    let parts = PARTS.map(|(part, _)| part).join(" | ");
    eprintln!("usage: redis-bench [--quick] [--threads NUMBER] [{parts}]...");
    std::process::exit(2);
}
