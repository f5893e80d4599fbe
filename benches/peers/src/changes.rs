//! The cost of a decision when keys have overrides, policies were changed, or requests have tiers.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tower::Layer;
use tower_admission::{
    Key, KeyName, Limit, Limits, Policy, Quota, RateLimitByTokenLayer, RateLimitHeaders,
    RateLimiter,
};

use crate::Effort;
use crate::contenders::*;
use crate::measure::Task;
use crate::report::{Report, table};
use crate::requests::{Setting::Bare, token};
use crate::tables::with_clients;

const AMPLE: Allowance = Allowance::AMPLE;

/// Keys with an override and without requests.
const OVERRIDES: u64 = 100_000;

pub fn overrides(effort: Effort, report: &mut Report) {
    let (none_set, others, own) = (
        "limits, none set",
        "limits, 100000 set",
        "also of the clients",
    );
    for clients in [1, 10_000] {
        let task = with_clients(clients, effort.rounds);
        let mut entries = [
            none(Bare),
            ours(AMPLE, Bare),
            with_overrides(none_set, 0, 0),
            with_overrides(others, OVERRIDES, 0),
            with_overrides(own, OVERRIDES, clients),
        ];
        task.introduce(&mut entries);
        let costs = task.one_thread(&mut entries);
        let costs = table(&format!("Overrides of keys, {clients} keys"), costs);

        let row = |row: &str, peer| format!("bearer token, {clients} keys, {row} / {peer}");
        report.measured(&row(none_set, "ours"), costs.ratio(none_set, "ours"));
        report.at_most(&row(others, none_set), costs.ratio(others, none_set), 1.15);
        report.at_most(&row(own, none_set), costs.ratio(own, none_set), 3.5);
    }
}

/// This crate with overrides for this many other keys and client keys.
fn with_overrides(name: &'static str, others: u64, clients: u64) -> Entry {
    let limits = Limits::new();
    let layer = without_numbers().limits(&limits);
    let own = Limit::from(quota(Allowance {
        burst: AMPLE.burst - 1,
        ..AMPLE
    }));
    let set = |key: &KeyName| now(limits.set(key, own.clone())).expect("room for an override");
    for other in 0..others {
        set(&KeyName::id("org", &other.to_string()).expect("a name"));
    }
    for client in 0..clients {
        set(&KeyName::from(Key::new("bearer", token(client).as_bytes())));
    }
    entry(name, layer.layer(Trivial(Bare)))
}

/// Headers and status are off, so a decision need not report what remains.
fn without_numbers() -> RateLimitByTokenLayer {
    our_layer(AMPLE).headers(RateLimitHeaders::Off)
}

/// Handlers can read what remains, so each decision reports it. Headers would cost more than the
/// decision and hide its cost.
fn with_numbers() -> RateLimitByTokenLayer {
    without_numbers().status(true)
}

/// `Limits` in memory complete immediately.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("the future is ready"),
    }
}

const CHANGES: u32 = 100;

pub fn policy_changes(effort: Effort, report: &mut Report) {
    for clients in [1, 10_000] {
        let task = with_clients(clients, effort.rounds);
        for (numbers, layer, most) in [
            ("without numbers", without_numbers(), 1.3),
            ("with numbers", with_numbers(), 1.4),
        ] {
            changed(task, numbers, layer, most, report);
        }
    }
}

fn changed(
    task: Task,
    numbers: &str,
    layer: RateLimitByTokenLayer,
    most: f64,
    report: &mut Report,
) {
    let clients = task.clients;
    let (unchanged, changed) = ("limits, policy unchanged", "limits, policy changed");
    // Each has its own `Limits`, and so its own limiter.
    let layers = [(); 2].map(|()| layer.clone().limits(&Limits::new()));
    let [first, second] = layers.each_ref().map(|layer| layer.layer(Trivial(Bare)));
    let mut entries = [none(Bare), entry(unchanged, first), entry(changed, second)];
    // The clients send requests before the changes, so that the changes convert buckets with debt.
    task.introduce(&mut entries);
    let made = change(&layers[1].limiter());
    task.introduce(&mut entries);

    let costs = task.one_thread(&mut entries);
    let heading = format!("Bearer token, {made} changes of the policy, {clients} keys, {numbers}");
    let costs = table(&heading, costs);
    let ratio = costs.ratio(changed, unchanged);
    let what = format!("bearer token, {clients} keys, {CHANGES} policy changes, {numbers}");
    if made == CHANGES {
        report.at_most(&what, ratio, most);
    } else {
        println!("The limiter accepted only {made} changes; the ratio is {ratio:.3}.");
        report.at_most(&what, f64::INFINITY, most);
    }
}

/// Changes the policy this many times, and returns how many changes succeeded.
fn change(limiter: &RateLimiter) -> u32 {
    let to = |step: u32| {
        let interval = AMPLE.interval - Duration::from_secs(u64::from(step % 7));
        Quota::new(1, interval).burst(AMPLE.burst - step % 5)
    };
    let possible = (1..=CHANGES).take_while(|step| limiter.set_policy(to(*step)).is_ok());
    possible.count() as u32
}

pub fn tiers(effort: Effort, report: &mut Report) {
    const ALL: [&str; 8] = ["pro", "b", "c", "d", "e", "f", "g", "h"];
    let (one, eight) = ("ours, in the only tier", "ours, in one of 8 tiers");
    for clients in [1, 10_000] {
        let task = with_clients(clients, effort.rounds);
        let mut entries = [
            none(Bare),
            ours(AMPLE, Bare),
            in_tier(one, &ALL[..1]),
            in_tier(eight, &ALL),
        ];
        task.introduce(&mut entries);
        let costs = task.one_thread(&mut entries);
        let costs = table(&format!("Tiers, {clients} keys"), costs);
        for row in [one, eight] {
            let what = format!("bearer token, {clients} keys, {row} / ours");
            report.at_most(&what, costs.ratio(row, "ours"), 1.15);
        }
    }
}

/// This crate with all requests in the first of these tiers.
fn in_tier(name: &'static str, tiers: &[&str]) -> Entry {
    let plain = Policy::from(quota(AMPLE));
    let policy = tiers.iter().fold(plain, |policy, tier| {
        let burst = AMPLE.burst - 1;
        policy.tier(tier, quota(Allowance { burst, ..AMPLE }))
    });
    let layer = RateLimitByTokenLayer::new(policy)
        .headers(RateLimitHeaders::Off)
        .tier_by(|_| Some("pro"));
    entry(name, layer.layer(Trivial(Bare)))
}
