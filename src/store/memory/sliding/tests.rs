//! The guarantees of sliding windows: the bound, evictions, and exact counts.

use std::thread;
use std::time::Duration;

use super::super::clock::TestClock;

use super::super::phases::{Phases, RateParams};
use super::*;
use crate::quota::Quota;
use crate::rule::Rule;

/// Sub-windows of a period.
const PARTS: u64 = 15;

const MINUTE: Duration = Duration::from_secs(60);

/// The windows of one quota with a fixed rule.
struct FixedRuleWindows {
    windows: Windows,
    phases: Phases,
    clock: MonotonicClock,
}

impl FixedRuleWindows {
    fn context(&self) -> WindowContext<'_> {
        WindowContext::for_default(&self.phases).unwrap()
    }

    fn take(&self, key: Key, cost: u32) -> Usage {
        let taken = self
            .windows
            .decide(self.context(), &key, cost, true, &self.clock);
        taken.unwrap()
    }

    fn peek(&self, key: Key, cost: u32) -> Usage {
        let peeked = self
            .windows
            .decide(self.context(), &key, cost, false, &self.clock);
        peeked.unwrap()
    }

    fn refund(&self, key: Key, cost: u32) {
        let refunded = self.windows.refund(self.context(), &key, cost, &self.clock);
        refunded.unwrap();
    }

    fn len(&self) -> usize {
        self.windows.len()
    }
}

fn windows(quota: Quota, max_keys: usize) -> (FixedRuleWindows, TestClock) {
    let clock = TestClock::default();
    let windows = FixedRuleWindows {
        windows: Windows::new(max_keys),
        phases: Phases::starting_with(RateParams::from_rule(&Rule::new(quota))),
        clock: MonotonicClock::Test(clock.clone()),
    };
    (windows, clock)
}

fn key(n: u64) -> Key {
    Key::new("test", &n.to_le_bytes())
}

fn used(windows: &FixedRuleWindows, n: u64) -> u32 {
    let usage = windows.peek(key(n), 0);
    usage.limit() - usage.remaining()
}

#[test]
fn the_bound_holds_at_every_size() {
    for bound in [0, 1, 2, 63, 64, 129, 1_000, 5_000] {
        let (windows, clock) = windows(Quota::per_minute(3).sliding(), bound);
        for n in 0..5 * (bound as u64 + 10) {
            windows.take(key(n), 1 + n as u32 % 3);
            if n % 1_000 == 0 {
                clock.advance(Duration::from_secs(1));
            }
        }
        assert!(
            windows.len() <= bound.max(1),
            "{} of {bound}",
            windows.len()
        );
        // Keys fill the shards unevenly.
        assert!(
            windows.len() >= bound * 3 / 4,
            "{} of {bound}",
            windows.len()
        );
    }
}

#[test]
fn a_flood_of_new_keys_never_evicts_a_denying_key() {
    let (windows, _) = windows(Quota::per_minute(5).sliding(), 2_000);
    for n in 0..500 {
        assert!(windows.take(key(n), 5).fits());
    }
    for n in 500..100_000 {
        windows.take(key(n), 1);
    }
    for n in 0..500 {
        assert!(!windows.take(key(n), 1).fits(), "key {n}");
    }
}

#[test]
fn at_the_bound_the_least_used_entries_are_evicted_first() {
    let (windows, _) = windows(Quota::per_minute(5).sliding(), 2_000);
    for n in 0..500 {
        windows.take(key(n), 4);
    }
    for n in 500..50_000 {
        windows.take(key(n), 1);
    }
    let kept = (0..500).filter(|n| used(&windows, *n) == 4).count();
    assert!(kept >= 490, "{kept} of 500");
}

#[test]
fn keys_without_room_share_one_entry() {
    let (windows, clock) = windows(Quota::per_minute(4).sliding(), 16);
    for n in 0..16 {
        assert!(windows.take(key(n), 4).fits());
    }
    assert!(windows.take(key(100), 3).fits());
    assert_eq!(
        windows.peek(key(101), 0).remaining(),
        1,
        "a peek finds what a take finds"
    );
    assert!(!windows.take(key(101), 2).fits());
    windows.refund(key(101), 4);
    assert!(
        !windows.take(key(102), 2).fits(),
        "a refund of a key without an entry changes nothing"
    );
    assert!(windows.take(key(102), 1).fits());
    assert!(!windows.take(key(103), 1).fits());
    assert_eq!(windows.len(), 16);
    clock.advance(2 * MINUTE);
    assert!(windows.take(key(103), 4).fits());
    assert!(
        windows.take(key(104), 4).fits(),
        "keys with room do not share"
    );
}

#[test]
fn new_keys_reuse_idle_entries() {
    let (windows, clock) = windows(Quota::per_minute(4).sliding(), 1_000_000);
    for n in 0..20_000 {
        windows.take(key(n), 1);
        clock.advance(MINUTE / 100);
    }
    // About one minute of keys, and a few more in each shard.
    assert!(windows.len() < 1_000, "{}", windows.len());
}

#[test]
fn concurrent_requests_admit_exactly_the_limit_of_each_key() {
    const KEYS: u64 = 100;
    let (windows, _) = windows(Quota::per_hour(70).burst(7).sliding(), 10_000);
    let admitted: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let windows = &windows;
                let takes = move || {
                    (0..50 * KEYS)
                        .filter(|n| windows.take(key(n % KEYS), 1).fits())
                        .count()
                };
                scope.spawn(takes)
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(admitted as u64, 77 * KEYS);
}

#[test]
fn a_refund_is_subtracted_from_the_newest_costs() {
    let (windows, clock) = windows(Quota::per_minute(10).sliding(), 10);
    windows.take(key(1), 4);
    clock.advance(MINUTE / 2);
    windows.take(key(1), 3);
    windows.refund(key(1), 2);
    assert_eq!(used(&windows, 1), 5);
    // The first four expire, and one of the three stays.
    clock.advance(MINUTE * 35 / 60);
    assert_eq!(used(&windows, 1), 1);
    windows.take(key(1), 3);
    windows.refund(key(1), u32::MAX);
    assert_eq!(used(&windows, 1), 0);
    assert_eq!(windows.peek(key(1), 1).reset(), Duration::ZERO);
}

#[test]
fn a_window_of_any_length_is_counted() {
    for quota in [
        "1 per 1ns sliding",
        "1 per 3000000000s sliding",
        "1/day sliding",
    ] {
        let (windows, clock) = windows(quota.parse().unwrap(), 10);
        clock.advance(Duration::from_secs(1));
        assert!(windows.take(key(1), 1).fits());
        let wait = windows.take(key(1), 1).retry_after().unwrap();
        clock.advance(wait);
        assert!(windows.take(key(1), 1).fits(), "{quota}");
    }
}

/// Checks the sizes in the store's documentation.
#[test]
fn an_entry_has_the_documented_size() {
    assert!(size_of::<Window>() == 80 && PARTS == 15);
}
