//! What is measured: one function for each group of tables.

use http::StatusCode;

use crate::Effort;
use crate::contenders::*;
use crate::measure::Task;
use crate::report::{Report, table};
use crate::requests::{Setting, Setting::Bare, Setting::Served};

pub const CALLS: Task = Task {
    clients: 1,
    setting: Bare,
    status: StatusCode::OK,
    rounds: 0,
    turn: 4,
    chunk: 128,
};

/// A task with so many clients.
fn with_clients(clients: u64, rounds: usize) -> Task {
    let calls = Task {
        clients,
        rounds,
        ..CALLS
    };
    if clients == 1 {
        return calls;
    }
    Task {
        turn: 128,
        rounds: rounds / 24,
        ..calls
    }
}

/// Two threads have to run side by side for long enough.
const SIDE_BY_SIDE: usize = 2048;

pub fn concurrency(effort: Effort, report: &mut Report) {
    let task = Task {
        rounds: effort.rounds,
        ..CALLS
    };
    let mut entries = [
        none(Bare),
        tower_concurrency(),
        tower_load_shed(),
        our_concurrency(Bare),
    ];
    let costs = task.one_thread(&mut entries);
    let costs = table("Concurrency limit, admitted, one thread", costs);
    report.at_most(
        "concurrency admitted, one thread / tower ConcurrencyLimit",
        costs.ratio("ours", "tower ConcurrencyLimit"),
        0.7,
    );

    let costs = side_by_side(task).two_threads(&entries);
    let costs = table(
        "Concurrency limit, admitted, two threads on one limiter",
        costs,
    );
    report.at_most(
        "concurrency admitted, two threads / tower ConcurrencyLimit, LoadShed",
        costs.ratio("ours", "tower ConcurrencyLimit, LoadShed"),
        0.6,
    );

    let task = Task {
        status: StatusCode::SERVICE_UNAVAILABLE,
        rounds: effort.rounds / 4,
        ..CALLS
    };
    let costs = task.one_thread(&mut [none(Bare), our_concurrency_refusing()]);
    table("Concurrency limit, refused, one thread", costs);
}

fn side_by_side(task: Task) -> Task {
    Task {
        turn: 1,
        chunk: SIDE_BY_SIDE,
        ..task
    }
}

/// All who limit by bearer token, in the order of the tables.
pub fn by_token(allowance: Allowance, setting: Setting) -> [Entry; 6] {
    [
        none(setting),
        tower_governor(allowance, setting),
        tower_governor_headers(allowance, setting),
        axum_governor(allowance, setting),
        ours(allowance, setting),
        ours_headers(allowance, setting),
    ]
}

pub fn admitted(effort: Effort, report: &mut Report) {
    for (clients, target) in [(1, 0.6), (10_000, 0.5), (1_000_000, 0.45)] {
        let task = with_clients(clients, effort.rounds);
        let mut entries = by_token(Allowance::AMPLE, Bare);
        task.introduce(&mut entries);
        let costs = task.one_thread(&mut entries);
        let costs = table(
            &format!("Bearer token, admitted, {clients} keys, one thread"),
            costs,
        );
        report.at_most(
            &format!("bearer token admitted, no headers, {clients} keys / tower_governor"),
            costs.ratio("ours", "tower_governor"),
            target,
        );
        if clients == 1 {
            report.measured(
                "bearer token admitted, headers, bare / tower_governor, headers",
                costs.ratio("ours, headers", "tower_governor, headers"),
            );
            let costs = side_by_side(task).two_threads(&entries);
            let costs = table("Bearer token, admitted, one key, two threads", costs);
            report.at_most(
                "bearer token admitted, no headers, one key, two threads / tower_governor",
                costs.ratio("ours", "tower_governor"),
                0.55,
            );
        }
    }

    let task = Task {
        setting: Served,
        rounds: effort.rounds,
        ..CALLS
    };
    let mut entries = by_token(Allowance::AMPLE, Served);
    let costs = task.one_thread(&mut entries);
    let costs = table(
        "Bearer token, admitted, one key, one thread, in a server",
        costs,
    );
    report.at_most(
        "bearer token admitted, headers, in a server / tower_governor, headers",
        costs.ratio("ours, headers", "tower_governor, headers"),
        0.35,
    );

    // Here ours forgets keys and puts them in again, which is its worst case.
    let task = with_clients(1_000_000, effort.rounds);
    let mut entries = [
        none(Bare),
        tower_governor(Allowance::FAST, Bare),
        ours(Allowance::FAST, Bare),
    ];
    task.introduce(&mut entries);
    let costs = task.one_thread(&mut entries);
    table(
        "Bearer token, admitted, 1000000 keys whose buckets are full again",
        costs,
    );
}

pub fn refused(effort: Effort, report: &mut Report) {
    for clients in [1, 10_000, 1_000_000] {
        let task = Task {
            clients,
            status: StatusCode::TOO_MANY_REQUESTS,
            rounds: effort.rounds / 4,
            chunk: 64,
            ..CALLS
        };
        let mut entries = [
            none(Bare),
            tower_governor(Allowance::USED_UP, Bare),
            tower_governor_headers(Allowance::USED_UP, Bare),
            axum_governor(Allowance::USED_UP, Bare),
            ours_headers(Allowance::USED_UP, Bare),
        ];
        task.introduce(&mut entries);
        let costs = task.one_thread(&mut entries);
        let costs = table(
            &format!("Bearer token, refused, {clients} keys, one thread"),
            costs,
        );
        if clients == 1 {
            report.at_most(
                "bearer token refused, full problem / tower_governor",
                costs.ratio("ours, headers", "tower_governor"),
                1.0 / 12.0,
            );
            let costs = task.two_threads(&entries);
            table("Bearer token, refused, one key, two threads", costs);
        }
    }
}

/// What it costs that keys may have limits of their own.
pub fn limits(effort: Effort, report: &mut Report) {
    const SET: u64 = 100_000;
    let (allowance, rows) = (
        Allowance::AMPLE,
        [
            "ours",
            "limits, none set",
            "limits, 100000 set",
            "the clients' own as well",
        ],
    );
    for clients in [1, 10_000] {
        let task = with_clients(clients, effort.rounds);
        let [_, none_set, set, own] = rows;
        let mut entries = [
            none(Bare),
            ours(allowance, Bare),
            ours_with_limits(none_set, allowance, 0, 0),
            ours_with_limits(set, allowance, SET, 0),
            ours_with_limits(own, allowance, SET, clients),
        ];
        task.introduce(&mut entries);
        let costs = task.one_thread(&mut entries);
        let costs = table(&format!("Limits of single keys, {clients} keys"), costs);
        for (row, peer) in [(set, none_set), (own, none_set), (none_set, "ours")] {
            let what = format!("bearer token admitted, {clients} keys, {row} / {peer}");
            if row == set {
                report.at_most(&what, costs.ratio(row, peer), 1.1);
            } else {
                report.measured(&what, costs.ratio(row, peer));
            }
        }
    }
}
