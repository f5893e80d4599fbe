//! The table's promises: the bound, what is forgotten and what never is, and exact counts.

use std::thread;
use std::time::Duration;

use super::super::clock::TestClock;

use super::super::phases::{Numbers, Phases};
use super::*;
use crate::quota::Quota;
use crate::rule::Rule;

/// Sub-windows of a period.
const PARTS: u64 = 15;

const MINUTE: Duration = Duration::from_secs(60);

/// The windows of one quota that does not change.
struct Meter {
    windows: Windows,
    phases: Phases,
    time: Timer,
}

impl Meter {
    fn by(&self) -> By<'_> {
        By::default_of(&self.phases).unwrap()
    }

    fn take(&self, key: Key, cost: u32) -> Usage {
        let taken = self.windows.decide(self.by(), &key, cost, true, &self.time);
        taken.unwrap()
    }

    fn peek(&self, key: Key, cost: u32) -> Usage {
        let peeked = self
            .windows
            .decide(self.by(), &key, cost, false, &self.time);
        peeked.unwrap()
    }

    fn refund(&self, key: Key, cost: u32) {
        let refunded = self.windows.refund(self.by(), &key, cost, &self.time);
        refunded.unwrap();
    }

    fn len(&self) -> usize {
        self.windows.len()
    }
}

fn meter(quota: Quota, max_keys: usize) -> (Meter, TestClock) {
    let clock = TestClock::default();
    let meter = Meter {
        windows: Windows::new(max_keys),
        phases: Phases::starting(Numbers::of(&Rule::new(quota))),
        time: Timer::Test(clock.clone()),
    };
    (meter, clock)
}

fn key(n: u64) -> Key {
    Key::new("test", &n.to_le_bytes())
}

fn used(meter: &Meter, n: u64) -> u32 {
    let usage = meter.peek(key(n), 0);
    usage.limit() - usage.remaining()
}

#[test]
fn the_bound_holds_at_every_size() {
    for bound in [0, 1, 2, 63, 64, 129, 1_000, 5_000] {
        let (meter, clock) = meter(Quota::per_minute(3).sliding(), bound);
        for n in 0..5 * (bound as u64 + 10) {
            meter.take(key(n), 1 + n as u32 % 3);
            if n % 1_000 == 0 {
                clock.advance(Duration::from_secs(1));
            }
        }
        assert!(meter.len() <= bound.max(1), "{} of {bound}", meter.len());
        // Shards fill unevenly.
        assert!(meter.len() >= bound * 3 / 4, "{} of {bound}", meter.len());
    }
}

#[test]
fn a_flood_never_lets_a_denied_key_back_in() {
    let (meter, _) = meter(Quota::per_minute(5).sliding(), 2_000);
    for n in 0..500 {
        assert!(meter.take(key(n), 5).fits());
    }
    for n in 500..100_000 {
        meter.take(key(n), 1);
    }
    for n in 0..500 {
        assert!(!meter.take(key(n), 1).fits(), "key {n}");
    }
}

#[test]
fn at_the_bound_the_least_used_go_first() {
    let (meter, _) = meter(Quota::per_minute(5).sliding(), 2_000);
    for n in 0..500 {
        meter.take(key(n), 4);
    }
    for n in 500..50_000 {
        meter.take(key(n), 1);
    }
    let kept = (0..500).filter(|n| used(&meter, *n) == 4).count();
    assert!(kept >= 490, "{kept} of 500");
}

#[test]
fn keys_without_room_share_what_is_left() {
    let (meter, clock) = meter(Quota::per_minute(4).sliding(), 16);
    for n in 0..16 {
        assert!(meter.take(key(n), 4).fits());
    }
    assert!(meter.take(key(100), 3).fits());
    assert_eq!(meter.peek(key(101), 0).remaining(), 1, "as a take finds it");
    assert!(!meter.take(key(101), 2).fits());
    meter.refund(key(101), 4);
    assert!(!meter.take(key(102), 2).fits(), "no key's own to give back");
    assert!(meter.take(key(102), 1).fits());
    assert!(!meter.take(key(103), 1).fits());
    assert_eq!(meter.len(), 16);
    clock.advance(2 * MINUTE);
    assert!(meter.take(key(103), 4).fits());
    assert!(
        meter.take(key(104), 4).fits(),
        "with room there is no sharing"
    );
}

#[test]
fn idle_room_is_used_again() {
    let (meter, clock) = meter(Quota::per_minute(4).sliding(), 1_000_000);
    for n in 0..20_000 {
        meter.take(key(n), 1);
        clock.advance(MINUTE / 100);
    }
    // A bit over a minute's keys, in each of the shards a few more.
    assert!(meter.len() < 1_000, "{}", meter.len());
}

#[test]
fn threads_admit_the_limit_to_each_key() {
    const KEYS: u64 = 100;
    let (meter, _) = meter(Quota::per_hour(70).burst(7).sliding(), 10_000);
    let admitted: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let meter = &meter;
                let takes = move || {
                    (0..50 * KEYS)
                        .filter(|n| meter.take(key(n % KEYS), 1).fits())
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
fn what_is_given_back_was_used_last() {
    let (meter, clock) = meter(Quota::per_minute(10).sliding(), 10);
    meter.take(key(1), 4);
    clock.advance(MINUTE / 2);
    meter.take(key(1), 3);
    meter.refund(key(1), 2);
    assert_eq!(used(&meter, 1), 5);
    // The first four go, one of the three stays.
    clock.advance(MINUTE * 35 / 60);
    assert_eq!(used(&meter, 1), 1);
    meter.take(key(1), 3);
    meter.refund(key(1), u32::MAX);
    assert_eq!(used(&meter, 1), 0);
    assert_eq!(meter.peek(key(1), 1).reset(), Duration::ZERO);
}

#[test]
fn a_window_of_any_length_is_counted() {
    for quota in [
        "1 per 1ns sliding",
        "1 per 3000000000s sliding",
        "1/day sliding",
    ] {
        let (meter, clock) = meter(quota.parse().unwrap(), 10);
        clock.advance(Duration::from_secs(1));
        assert!(meter.take(key(1), 1).fits());
        let wait = meter.take(key(1), 1).retry_after().unwrap();
        clock.advance(wait);
        assert!(meter.take(key(1), 1).fits(), "{quota}");
    }
}

/// What the documentation of the store says.
#[test]
fn an_entry_is_as_large_as_is_said() {
    assert!(size_of::<Window>() == 80 && PARTS == 15);
}
