//! The allocations of a call, and the memory per key.

use http::StatusCode;

use crate::Effort;
use crate::alloc;
use crate::contenders::*;
use crate::measure::Task;
use crate::report::{Report, title};
use crate::requests::{Clients, Setting, Setting::Bare, Setting::Served};
use crate::tables::by_token;

pub fn allocations(_: Effort, report: &mut Report) {
    title("Allocations of one call, over no middleware");
    println!("{:44} {:>6} {:>10}", "", "bare", "in server");
    for (bare, served) in rows(Bare).into_iter().zip(rows(Served)) {
        let (name, bare, served) = (bare.0, bare.1, served.1);
        println!("{name:44} {bare:6.1} {served:10.1}");
        match &*name {
            "concurrency limit, ours" => {
                report.at_most("allocations, concurrency admitted", served, 0.0)
            }
            "ours" => report.at_most("allocations, rate admitted, no headers", served, 0.0),
            "ours, headers" => {
                report.at_most(
                    "allocations, rate admitted, headers, in a server",
                    served,
                    2.0,
                );
                report.measured("allocations, rate admitted, headers, bare", bare);
            }
            _ => {}
        }
    }
}

fn rows(setting: Setting) -> Vec<(String, f64)> {
    let baseline = of_a_call(none(setting), setting);
    let mut rows = vec![(
        String::from("concurrency limit, ours"),
        of_a_call(our_concurrency(setting), setting) - baseline,
    )];
    for entry in by_token(Allowance::AMPLE, setting).into_iter().skip(1) {
        rows.push((entry.name.into(), of_a_call(entry, setting) - baseline));
    }
    let rejecting = [
        tower_governor(Allowance::USED_UP, setting),
        axum_governor(Allowance::USED_UP, setting),
        ours_headers(Allowance::USED_UP, setting),
    ];
    for entry in rejecting {
        rows.push((
            format!("rejected: {}", entry.name),
            of_a_call(entry, setting),
        ));
    }
    rows
}

fn of_a_call(mut entry: Entry, setting: Setting) -> f64 {
    const CALLS: usize = 1000;
    let mut requests = Vec::new();
    let mut chunk = || {
        Clients::new(1, 1).fill(&mut requests, CALLS, setting);
        let serve = || entry.contender.serve(&mut requests, StatusCode::OK);
        alloc::count(serve).1.allocations
    };
    // One-time work is not part of the cost of a call.
    chunk();
    chunk() as f64 / CALLS as f64
}

pub fn memory(_: Effort, report: &mut Report) {
    title("Memory on default settings");
    for clients in [10_000, 1_000_000] {
        for make in [tower_governor, axum_governor, ours] {
            let task = Task {
                clients,
                setting: Bare,
                status: StatusCode::OK,
                rounds: 0,
                turn: 1,
                chunk: 512,
            };
            let (entry, counted) = alloc::count(|| {
                let mut entries = [make(Allowance::AMPLE, Bare)];
                task.introduce(&mut entries);
                entries
            });
            let [Entry { name, .. }] = entry;
            let bytes = counted.bytes as f64;
            let per_key = bytes / clients as f64;
            println!("{name:44} {clients:9} keys {bytes:12} bytes, {per_key:6.1} a key");
            match (name, clients) {
                ("ours", 10_000) => {
                    report.at_most("MiB with 10000 keys", bytes / f64::from(1 << 20), 4.0);
                }
                ("ours", _) => report.at_most("bytes a key, 1000000 keys", per_key, 48.0),
                _ => {}
            }
        }
    }
}
