//! The slowest decision while a table grows from no key to a million.

use std::time::Duration;

use http::StatusCode;

use crate::Effort;
use crate::contenders::*;
use crate::measure::{Timed, timed};
use crate::report::{Report, title};
use crate::requests::{Setting::Bare, request};

const KEYS: u64 = 1_000_000;

/// Every maximum contains interruptions by the machine. So the result is the smallest maximum of
/// several growths, by the processor time of the deciding thread.
pub fn slowest(effort: Effort, report: &mut Report) {
    title("Slowest decision while the table grows to 1000000 keys, microseconds");
    println!(
        "{:20} {:>12} {:>12} {:>14} {:>12} {:>12}",
        "", "max, wall", "max, cpu", "99.99%, cpu", "> 1 ms, wall", "> 1 ms, cpu"
    );
    once(tower_governor(Allowance::AMPLE, Bare));
    let maxima = (0..effort.growths).map(|_| once(ours(Allowance::AMPLE, Bare)));
    let least = maxima.fold(f64::INFINITY, f64::min);
    report.at_most("slowest insert, milliseconds", least / 1000.0, 1.0);
}

/// Prints one growth and returns its maximum by processor time.
fn once(entry: Entry) -> f64 {
    let name = entry.name;
    let times = grow(entry);
    let wall = sorted(&times, |time| time.wall);
    let cpu = sorted(&times, |time| time.cpu);
    let last = times.len() - 1;
    println!(
        "{name:20} {:12.1} {:12.1} {:14.1} {:12} {:12}",
        wall[last],
        cpu[last],
        cpu[last - last / 10_000],
        over_a_millisecond(&wall),
        over_a_millisecond(&cpu),
    );
    cpu[last]
}

fn grow(mut entry: Entry) -> Vec<Timed> {
    let mut one = Vec::with_capacity(1);
    let decide = |client| {
        one.push(request(client, Bare));
        timed(|| {
            entry.contender.serve(&mut one, StatusCode::OK);
        })
    };
    (0..KEYS).map(decide).collect()
}

/// In microseconds.
fn sorted(times: &[Timed], which: impl Fn(&Timed) -> Duration) -> Vec<f64> {
    let micros = |time| which(time).as_secs_f64() * 1e6;
    let mut sorted: Vec<_> = times.iter().map(micros).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn over_a_millisecond(micros: &[f64]) -> usize {
    micros.iter().filter(|micros| **micros > 1000.0).count()
}
