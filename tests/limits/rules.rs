//! Guarantees that hold under every rule and across changes of rules.

use proptest::prelude::*;
use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, Limits, LimitsError, Quota, RateLimiter};

use super::{Bench, SECOND, name, now};

fn quota(text: &str) -> Quota {
    text.parse().unwrap()
}

#[test]
fn a_change_and_its_reversal_forget_only_what_the_smaller_bucket_clamps() {
    let acme = Key::id("org", "acme");
    for (other, left) in [("20/h", 0), ("10 per 7min", 0), ("10/h burst 4", 6)] {
        // The default, and an override.
        let bench = Bench::new(quota("10/h"));
        assert_eq!(bench.burst(&acme), 10);
        bench.limiter.set_policy(quota(other)).unwrap();
        bench.limiter.set_policy(quota("10/h")).unwrap();
        assert_eq!(bench.burst(&acme), left, "{other}");
        let bench = Bench::new(quota("10/h"));
        assert_eq!(bench.burst(&acme), 10);
        bench.set("org:acme", other);
        bench.delete("org:acme");
        assert_eq!(bench.burst(&acme), left, "{other}");
    }
}

/// A bucket that rejects is never evicted, whether it rejects under a default, a previous default
/// or an override.
#[test]
fn a_key_that_denies_is_never_evicted() {
    const BOUND: usize = 2_000;
    let clock = TestClock::default();
    clock.advance(1_000_000 * SECOND);
    let store = MemoryStore::new().max_keys(BOUND).clock(clock.clone());
    let limits = Limits::new();
    let limiter = RateLimiter::with_limits(quota("5/h"), &store, &limits);
    let exhaust = |key: &Key| while limiter.check_now(key).unwrap().is_admitted() {};
    let key = |n: u32| Key::id("org", &n.to_string());
    (0..200).for_each(|n| exhaust(&key(n)));
    limiter.set_policy(quota("7/day burst 5")).unwrap();
    (200..400).for_each(|n| exhaust(&key(n)));
    for n in 400..600 {
        let limit = ["3/day", "50/h", "1000/day"][n as usize % 3];
        now(limits.set(&name(&format!("org:{n}")), limit.parse().unwrap())).unwrap();
        exhaust(&key(n));
    }
    for n in 1_000..200_000 {
        let flood = Key::id("flood", &n.to_string());
        let _ = limiter.check_now(&flood).unwrap();
    }
    assert!(limiter.stats().unwrap().tracked_keys <= BOUND as u64);
    for n in 0..600 {
        assert!(!limiter.check_now(&key(n)).unwrap().is_admitted(), "{n}");
    }
}

#[test]
fn the_number_of_distinct_override_rates_is_bounded() {
    let limits = Limits::new();
    let set = |id: usize, rate: usize| {
        let limit = format!("{rate} per 1000s").parse().unwrap();
        now(limits.set(&name(&format!("org:{id}")), limit))
    };
    for n in 1..=Limits::MAX_RATES {
        set(n, n).unwrap();
    }
    let error = set(0, Limits::MAX_RATES + 1).unwrap_err();
    assert!(matches!(error, LimitsError::TooManyRates), "{error:?}");
    assert!(error.to_string().contains("30000"), "{error}");
    // An existing rate, and a rate that replaces another.
    set(0, 7).unwrap();
    now(limits.delete(&name("org:9"))).unwrap();
    set(0, Limits::MAX_RATES + 1).unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Take(u32),
    Pass(u64),
    Set(usize),
    Delete,
    SetAll(usize),
}

const QUOTAS: [&str; 6] = [
    "7/min",
    "11/min burst 3",
    "13/h",
    "1/s burst 5",
    "90/h burst 2",
    "3/min burst 9",
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1..4_u32).prop_map(Step::Take),
        3 => (1..20_000_u64).prop_map(Step::Pass),
        1 => (0..6_usize).prop_map(Step::Set),
        1 => Just(Step::Delete),
        2 => (0..6_usize).prop_map(Step::SetAll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..Default::default() })]

    /// `Retry-After` is exact to the nanosecond as long as the rule does not change.
    #[test]
    fn the_promised_wait_is_enough_and_no_longer_than_needed(
        sliding: bool,
        cost in 1..3_u32,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let of = |n: usize| quota(&format!("{}{}", QUOTAS[n], if sliding { " sliding" } else { "" }));
        let bench = Bench::new(of(0));
        let acme = Key::id("org", "acme");
        let check = |cost| bench.limiter.check_n(&acme, cost).now().unwrap();
        for step in steps {
            match step {
                Step::Take(cost) => drop(check(cost)),
                Step::Pass(millis) => bench.clock.advance(SECOND / 1_000 * millis as u32),
                Step::Set(n) => drop(bench.set("org:acme", &of(n).to_string())),
                Step::Delete => drop(bench.delete("org:acme")),
                Step::SetAll(n) => bench.limiter.set_policy(of(n)).unwrap(),
            }
        }
        let mut denied = check(cost);
        while denied.is_admitted() {
            denied = check(cost);
        }
        let wait = denied.retry_after().unwrap();
        let nanosecond = std::time::Duration::from_nanos(1);
        bench.clock.advance(wait - nanosecond);
        prop_assert!(!check(cost).is_admitted(), "{:?}", wait);
        bench.clock.advance(nanosecond);
        prop_assert!(check(cost).is_admitted(), "{:?}", wait);
    }
}
