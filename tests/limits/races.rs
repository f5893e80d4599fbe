//! Concurrent decisions, and decisions that race with a change of the policy.
//!
//! The clock stands still, so that the used requests are the charged ones.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;

use tower_admission::{Decision, Key, Policy, Quota, RateLimiter};

use super::Bench;

fn check_n(limiter: &RateLimiter, key: &Key, cost: u32) -> Decision {
    limiter.check_n(key, cost).now().unwrap()
}

/// The used requests of each quota.
pub(crate) fn used(limiter: &RateLimiter, key: &Key) -> Vec<u32> {
    let decision = limiter.peek(key).now().unwrap();
    let usages = decision.usages().iter();
    usages.map(|u| u.limit() - u.remaining()).collect()
}

/// Runs the actions of two threads in rounds that start at the same moment.
pub(crate) fn together(rounds: usize, round: impl Fn(usize) + Sync) {
    const THREADS: usize = 2;
    let arrived = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for n in 0..rounds {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    let mut spins = 0_u32;
                    while arrived.load(Ordering::SeqCst) < THREADS * (n + 1) {
                        spins += 1;
                        // The other thread may be without a processor.
                        if spins.is_multiple_of(1_000) {
                            thread::yield_now();
                        }
                        hint::spin_loop();
                    }
                    round(n);
                }
            });
        }
    });
}

/// Two threads want the last request of the second quota. One of them gets it, and the other
/// refunds what it charged to the first quota.
#[test]
fn a_request_that_loses_a_race_for_one_quota_charges_no_other() {
    const KEYS: usize = 3_000;
    for (first, second) in [
        ("1000/h", "3/h"),
        ("1000/h sliding", "3/h"),
        ("1000/h", "3/h sliding"),
    ] {
        let quota = |text: &str| text.parse::<Quota>().unwrap();
        let policy = Policy::new("first", quota(first)).and("second", quota(second));
        let bench = Bench::new(policy);
        let keys: Vec<_> = (0..KEYS).map(|n| Key::id("org", &n.to_string())).collect();
        let admitted: Vec<_> = keys.iter().map(|_| AtomicU32::new(0)).collect();
        together(KEYS, |n| {
            let is_admitted = check_n(&bench.limiter, &keys[n], 3).is_admitted();
            admitted[n].fetch_add(is_admitted.into(), Ordering::Relaxed);
        });
        for (key, admitted) in keys.iter().zip(admitted) {
            assert_eq!(admitted.into_inner(), 1, "{first}, {second}");
            assert_eq!(used(&bench.limiter, key), [3, 3], "{first}, {second}");
        }
    }
}

/// One thread decides. Another changes the policy back and forth and reads the key after each
/// change, so that a conversion happens while the first thread is deciding.
fn decide_during_changes(kind: &str, quotas: usize, changes: u32) {
    // The used requests convert without rounding.
    let policy = |change: u32| {
        let count = [1_000_000, 500_000][change as usize % 2];
        let quota = format!("{count} per 1000s burst 1000000{kind}");
        let quota = quota.parse::<Quota>().unwrap();
        let first = Policy::new("0", quota);
        (1..quotas).fold(first, |policy, n| policy.and(&n.to_string(), quota))
    };
    let bench = Bench::new(policy(0));
    // Makes decisions look for overrides.
    bench.set("org:other", "0=5/s");
    let key = Key::id("org", "acme");
    let (admitted, changed) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !changed.load(Ordering::SeqCst) {
                assert!(check_n(&bench.limiter, &key, 1).is_admitted());
                admitted.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while admitted.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            for change in 1..=changes {
                bench.limiter.set_policy(policy(change)).unwrap();
                let _ = used(&bench.limiter, &key);
            }
            changed.store(true, Ordering::SeqCst);
        });
    });
    let admitted = admitted.into_inner();
    for used in used(&bench.limiter, &key) {
        assert_eq!(used, admitted, "charged exactly once{kind}");
    }
}

#[test]
fn a_decision_during_the_first_change_of_a_policy_is_charged() {
    for kind in ["", " sliding"] {
        for quotas in [1, 8] {
            for _ in 0..100 {
                decide_during_changes(kind, quotas, 1);
            }
        }
    }
}

#[test]
fn a_decision_during_one_of_many_changes_of_a_policy_is_charged() {
    for kind in ["", " sliding"] {
        for _ in 0..20 {
            decide_during_changes(kind, 8, 50);
        }
    }
}
