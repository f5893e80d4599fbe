//! Decisions under rules that were replaced long ago or just now, and refunds without a rate.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tower_admission::store::{Charge, MemoryStore, RateBuckets, RateStats, RateStore, Reply};
use tower_admission::{Decision, Key, Limits, LimitsError, Policy, Quota, RateLimiter};

use super::races::{together, used};
use super::{Bench, SECOND, acme, name, now};

fn quota(text: &str) -> Quota {
    text.parse().unwrap()
}

/// Entries store the number of a change modulo 2^15, so that a very old number looks like a future
/// one.
#[test]
fn a_key_that_was_unused_during_many_changes_is_decided() {
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
fn window_rates_count_as_the_equivalent_bucket_rates() {
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

    // A replacement does not increase the number of rates, even if it has its rate twice.
    let replace = |limit: &str| now(limits.set(&name("org:1"), limit.parse().unwrap()));
    replace("a=5/day, b=5/day").unwrap();
    replace("a=6/day, b=6/day").unwrap();
    let error = replace("a=6/day, b=7/day").unwrap_err();
    assert!(matches!(error, LimitsError::TooManyRates), "{error:?}");
    // A replaced rate that another override also has frees no place.
    replace("2/min sliding").unwrap();
    set(1).unwrap();
}

#[test]
fn a_refund_of_an_unlimited_request_changes_nothing() {
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
fn a_request_that_loses_a_race_refunds_only_what_it_charged() {
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

/// At the bound, keys without room share a bucket. A key with a smaller burst finds it used up and
/// must leave it so.
#[test]
fn rejected_requests_do_not_empty_a_shared_bucket() {
    let limits = Limits::new();
    let store = MemoryStore::new().max_keys(1);
    let limiter = RateLimiter::with_limits(quota("10/day"), &store, &limits);
    let burst = |key: &Key| {
        let checks = std::iter::from_fn(|| Some(limiter.check_now(key).unwrap().is_admitted()));
        checks.take_while(|is_admitted| *is_admitted).count()
    };
    assert_eq!(burst(&Key::id("org", "first")), 10);
    now(limits.set(&name("org:acme"), "1000/day".parse().unwrap())).unwrap();
    assert_eq!(burst(&acme()), 1_000);
    for n in 0..1_000 {
        let _ = limiter.check_now(&Key::id("made up", &n.to_string()));
    }
    assert_eq!(burst(&acme()), 0);
}

type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Runs a hook once, between the resolution of the rules and the decision.
struct HookedStore {
    store: MemoryStore,
    hook: Hook,
}

struct HookedBuckets {
    buckets: Arc<dyn RateBuckets>,
    hook: Hook,
}

impl HookedBuckets {
    fn before(&self) {
        let hook = self.hook.lock().unwrap().take();
        hook.into_iter().for_each(|hook| hook());
    }
}

impl RateStore for HookedStore {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        Arc::new(HookedBuckets {
            buckets: self.store.open(policies),
            hook: self.hook.clone(),
        })
    }
}

impl RateBuckets for HookedBuckets {
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        self.before();
        self.buckets.take(charges, cost)
    }

    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        self.buckets.peek(charges, cost)
    }

    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()> {
        self.before();
        self.buckets.refund(charges, cost)
    }

    fn settle(&self, charges: &[Charge]) {
        self.buckets.settle(charges);
    }

    fn set_quotas(&self, set: usize, quotas: &[Quota]) -> bool {
        self.buckets.set_quotas(set, quotas)
    }

    fn stats(&self) -> Option<RateStats> {
        self.buckets.stats()
    }
}

/// A thread resolves a smaller rule and is delayed. Meanwhile the rule is replaced and its
/// successor used up.
fn decide_late(
    default: &str,
    before: Option<&str>,
    after: Option<&str>,
    act: fn(&RateLimiter),
) -> Vec<u32> {
    let hook = Hook::default();
    let store = HookedStore {
        store: MemoryStore::new(),
        hook: hook.clone(),
    };
    let limits = Limits::new();
    let limiter = RateLimiter::with_limits(quota(default), &store, &limits);
    let change = |limits: &Limits, limit: Option<&str>| match limit {
        Some(limit) => drop(now(limits.set(&name("org:acme"), limit.parse().unwrap())).unwrap()),
        None => drop(now(limits.delete(&name("org:acme"))).unwrap()),
    };
    change(&limits, before);
    let after = after.map(str::to_owned);
    let (in_hook, admitted) = (limiter.clone(), Arc::new(AtomicU32::new(0)));
    let counted = admitted.clone();
    *hook.lock().unwrap() = Some(Box::new(move || {
        change(&limits, after.as_deref());
        while in_hook.check_now(&acme()).unwrap().is_admitted() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    }));
    act(&limiter);
    assert_eq!(admitted.load(Ordering::Relaxed), 1_000);
    used(&limiter, &acme())
}

#[test]
fn a_delayed_decision_under_a_replaced_smaller_rule_forgives_nothing() {
    for (default, before, after) in [
        ("10/day", None, Some("1000/day")),
        ("1000/day", Some("10/day"), None),
        ("5/day", Some("10/day"), Some("1000/day")),
        ("5/day", Some("1000/day burst 10"), Some("1000/day")),
    ] {
        let check =
            |limiter: &RateLimiter| assert!(!limiter.check_now(&acme()).unwrap().is_admitted());
        assert_eq!(
            decide_late(default, before, after, check),
            [1_000],
            "{default} {before:?} {after:?}"
        );
        let refund = |limiter: &RateLimiter| limiter.refund(&acme(), 1).now().unwrap();
        assert_eq!(
            decide_late(default, before, after, refund),
            [999],
            "{default} {before:?} {after:?}"
        );
    }
}
