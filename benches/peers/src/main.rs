//! What one call through each layer costs over no middleware, next to its peers.
//!
//! All contenders of a table run in turn in the same rounds, so that whatever else the machine
//! does meets them alike. Times of different runs, or of different tables, do not compare.

mod alloc;
mod contenders;
mod drive;
mod frames;
mod growth;
mod heap;
mod measure;
mod report;
mod requests;
mod tables;

use report::Report;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Rounds of one table.
    pub rounds: usize,
    /// Times that a table is filled to find its slowest decision.
    pub growths: usize,
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let only_limits = arguments.contains(&"--limits");
    let only_frames = arguments.contains(&"--frames");
    let mut others = arguments.iter();
    let effort = match others.find(|argument| !["--limits", "--frames"].contains(argument)) {
        None => Effort {
            rounds: 600,
            growths: 5,
        },
        Some(&"--quick") => Effort {
            rounds: 150,
            growths: 2,
        },
        Some(_) => {
            eprintln!("usage: peers [--quick] [--limits | --frames]");
            std::process::exit(2);
        }
    };

    println!("Nanoseconds of one call, medians; `over` is above no middleware in the same rounds.");
    println!(
        "tower-rate-limiter 0.2.0-alpha.0 needs Rust 1.96, does not build here and is missing."
    );
    let mut report = Report::default();
    if only_frames {
        frames::reclaiming(effort, &mut report);
        report.print();
        return;
    }
    tables::limits(effort, &mut report);
    if only_limits {
        report.print();
        return;
    }
    tables::concurrency(effort, &mut report);
    frames::reclaiming(effort, &mut report);
    tables::admitted(effort, &mut report);
    tables::refused(effort, &mut report);
    heap::allocations(&mut report);
    heap::memory(&mut report);
    growth::slowest(effort, &mut report);
    report.print();
}
