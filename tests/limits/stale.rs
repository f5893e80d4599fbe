//! Decisions by what was replaced long ago or a moment ago, and what keys without a rate give back.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tower_admission::store::MemoryStore;
use tower_admission::{Key, Limits, LimitsError, Policy, Quota, RateLimiter};

use super::races::{together, used};
use super::{Bench, SECOND, name, now};

fn quota(text: &str) -> Quota {
    text.parse().unwrap()
}

fn acme() -> Key {
    Key::id("org", "acme")
}

/// Entries have the number of a change modulo 2^15, so that one of long ago looks as if it was of one to come.
#[test]
fn a_key_that_slept_through_any_number_of_changes_is_decided_about() {
    for kind in ["", " sliding"] {
        let bench = Bench::new(quota(&format!("1000/s{kind}")));
        let key = acme();
        assert!(bench.limiter.check_now(&key).unwrap().is_admitted());
        for n in 0..20_000 {
            bench.clock.advance(10 * SECOND);
            let rate = 1_000 + n % 2;
            bench
                .limiter
                .set_policy(quota(&format!("{rate}/s{kind}")))
                .unwrap();
        }
        let (decided, decision) = mpsc::channel();
        let limiter = bench.limiter.clone();
        thread::spawn(move || decided.send(limiter.check_now(&key).unwrap().remaining()));
        let remaining = decision.recv_timeout(Duration::from_secs(30));
        assert_eq!(remaining, Ok(Some(1_000)), "{kind}");
    }
}

#[test]
fn rates_of_windows_count_as_the_rates_that_buckets_have_of_them() {
    let limits = Limits::new();
    let set = |n: usize| {
        let limit = format!("{n}/min sliding").parse().unwrap();
        now(limits.set(&name(&format!("org:{n}")), limit))
    };
    for n in 1..=Limits::MAX_RATES {
        set(n).unwrap();
    }
    let error = set(Limits::MAX_RATES + 1).unwrap_err();
    assert!(matches!(error, LimitsError::TooManyRates), "{error:?}");
}

#[test]
fn what_was_admitted_without_a_limit_gives_nothing_back() {
    for kind in ["", " sliding"] {
        let bench = Bench::new(quota(&format!("10/h{kind}")));
        assert_eq!(bench.burst(&acme()), 10);
        bench.set("org:acme", "unlimited");
        for _ in 0..5 {
            assert!(bench.limiter.check_now(&acme()).unwrap().is_admitted());
            bench.limiter.refund(&acme(), 1).now().unwrap();
        }
        bench.delete("org:acme");
        assert_eq!(used(&bench.limiter, &acme()), [10], "{kind}");
    }
}

#[test]
fn a_request_that_loses_a_race_gives_back_only_what_it_took() {
    const KEYS: usize = 3_000;
    let bench = Bench::new(Policy::new("first", quota("10/h")).and("second", quota("3/h")));
    let key = |n: usize| Key::id("org", &n.to_string());
    for n in 0..KEYS {
        // 3 of `first` are used, and none of `second`.
        bench.set(&format!("org:{n}"), "second=unlimited");
        assert!(
            bench
                .limiter
                .check_n(&key(n), 3)
                .now()
                .unwrap()
                .is_admitted()
        );
        bench.set(&format!("org:{n}"), "first=unlimited");
    }
    together(KEYS, |n| {
        let _ = bench.limiter.check_n(&key(n), 3).now();
    });
    for n in 0..KEYS {
        bench.delete(&format!("org:{n}"));
        assert_eq!(used(&bench.limiter, &key(n)), [3, 3]);
    }
}

#[test]
#[should_panic(expected = "at most 16 tiers")]
fn more_tiers_than_a_limiter_has_are_called_that() {
    let limits = (0..16).fold(Limits::new(), |limits, n| {
        limits.tier(&n.to_string(), "5/s")
    });
    let policy = Policy::from(quota("1/s")).tier("pro", "2/s");
    let _ = RateLimiter::with_limits(policy, &MemoryStore::new(), &limits);
}
