//! The measured tables: one function for each group.

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

/// A task with this number of clients.
pub fn with_clients(clients: u64, rounds: usize) -> Task {
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

/// Two threads must run in parallel for long enough.
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
        1.05,
    );

    let costs = side_by_side(task).two_threads(&entries);
    let costs = table(
        "Concurrency limit, admitted, two threads on one limiter",
        costs,
    );
    report.at_most(
        "concurrency admitted, two threads / tower ConcurrencyLimit, LoadShed",
        costs.ratio("ours", "tower ConcurrencyLimit, LoadShed"),
        0.5,
    );

    let task = Task {
        status: StatusCode::SERVICE_UNAVAILABLE,
        rounds: effort.rounds / 4,
        ..CALLS
    };
    let costs = task.one_thread(&mut [none(Bare), our_concurrency_rejecting()]);
    table("Concurrency limit, rejected, one thread", costs);
}

fn side_by_side(task: Task) -> Task {
    Task {
        turn: 1,
        chunk: SIDE_BY_SIDE,
        ..task
    }
}

/// All contenders that limit by bearer token, in the order of the tables.
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
    for (clients, target) in [(1, 0.95), (10_000, 1.0), (1_000_000, 0.35)] {
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
                0.45,
            );
            report.measured(
                "bearer token admitted, headers, bare, two threads / tower_governor, headers",
                costs.ratio("ours, headers", "tower_governor, headers"),
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
        0.8,
    );
    let costs = side_by_side(task).two_threads(&entries);
    let costs = table(
        "Bearer token, admitted, one key, two threads, in a server",
        costs,
    );
    report.at_most(
        "bearer token admitted, headers, in a server, two threads / tower_governor, headers",
        costs.ratio("ours, headers", "tower_governor, headers"),
        0.7,
    );

    // Here this crate's table evicts and reinserts keys, which is its worst case.
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

pub fn by_address(effort: Effort, report: &mut Report) {
    for clients in [1, 10_000] {
        let task = Task {
            setting: Served,
            ..with_clients(clients, effort.rounds)
        };
        let mut entries = [
            none(Served),
            tower_governor_by_address(Allowance::AMPLE),
            ours_by_address(Allowance::AMPLE),
        ];
        task.introduce(&mut entries);
        let costs = task.one_thread(&mut entries);
        let heading = format!("Peer address, admitted, {clients} keys, one thread, in a server");
        let costs = table(&heading, costs);
        let ratio = costs.ratio("ours", "tower_governor");
        let what = format!("peer address admitted, no headers, {clients} keys / tower_governor");
        if clients == 1 {
            report.at_most(&what, ratio, 1.05);
        } else {
            report.measured(&what, ratio);
        }
    }
}

pub fn rejected(effort: Effort, report: &mut Report) {
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
            &format!("Bearer token, rejected, {clients} keys, one thread"),
            costs,
        );
        if clients == 1 {
            report.at_most(
                "bearer token rejected, full problem / tower_governor",
                costs.ratio("ours, headers", "tower_governor"),
                1.0 / 12.0,
            );
            let costs = task.two_threads(&entries);
            table("Bearer token, rejected, one key, two threads", costs);
        }
    }
}
