//! The cost of one call through each layer compared with no middleware, next to other crates, and
//! its cost in a server.
//!
//! All contenders of a table run in turn in the same rounds, so that other load on the machine
//! affects all of them. Times of different runs or tables are not comparable.

mod alloc;
mod apps;
mod changes;
mod contenders;
mod cores;
mod drive;
mod frames;
mod growth;
mod heap;
mod instructions;
mod load;
mod measure;
mod report;
mod requests;
mod served;
mod server;
mod tables;

use apps::APPS;
use report::Report;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// The amount of measurement.
#[derive(Clone, Copy)]
pub struct Effort {
    /// The rounds of one table.
    pub rounds: usize,
    /// How often a table is filled to find its slowest decision.
    pub growths: usize,
}

type Part = fn(Effort, &mut Report);

/// The parts of the benchmark, by the argument that selects them.
const PARTS: [(&str, &[Part]); 10] = [
    (
        "--limits",
        &[changes::overrides, changes::policy_changes, changes::tiers],
    ),
    ("--concurrency", &[tables::concurrency]),
    ("--frames", &[frames::reclaiming]),
    ("--admitted", &[tables::admitted]),
    ("--address", &[tables::by_address]),
    ("--rejected", &[tables::rejected]),
    ("--heap", &[heap::allocations, heap::memory]),
    ("--growth", &[growth::slowest]),
    ("--served", &[served::throughput]),
    ("--instructions", &[instructions::per_request]),
];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if let ["--serve", app, "--requests", requests] = *arguments {
        let app = APPS.iter().find(|known| known.argument == app);
        let (Some(app), Ok(requests)) = (app, requests.parse()) else {
            usage();
        };
        return instructions::serve_and_exit(app, requests);
    }

    let mut effort = Effort {
        rounds: 600,
        growths: 5,
    };
    let mut chosen = Vec::new();
    for argument in arguments {
        if argument == "--quick" {
            effort = Effort {
                rounds: 150,
                growths: 2,
            };
        } else if PARTS.iter().any(|(part, _)| *part == argument) {
            chosen.push(argument);
        } else {
            usage();
        }
    }

    println!("Nanoseconds of one call, medians; `over` is above no middleware in the same rounds.");
    println!(
        "tower-rate-limiter 0.2.0-alpha.0 needs Rust 1.96, does not build here and is missing."
    );
    let mut report = Report::default();
    for (argument, parts) in PARTS {
        if chosen.is_empty() || chosen.contains(&argument) {
            for part in parts {
                part(effort, &mut report);
            }
        }
    }
    report.print();
}

fn usage() -> ! {
    let parts = PARTS.map(|(part, _)| part).join(" | ");
    let apps = APPS.map(|app| app.argument).join(" | ");
    eprintln!("usage: peers [--quick] [{parts}]...");
    eprintln!("       peers --serve ({apps}) --requests NUMBER");
    std::process::exit(2);
}
