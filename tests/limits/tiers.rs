//! Tiers: named sets of limits that count separately.

use std::sync::atomic::{AtomicU32, Ordering};

use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;
use tower_admission::{
    Capacity, Key, Leases, Limit, Limits, LimitsError, Policy, PolicyError, Quota, RateLimiter,
    SetPolicyError,
};

use super::{Bench, SECOND, acme, name, now};

fn quota(text: &str) -> Quota {
    text.parse().unwrap()
}

/// A limiter without limits, and one with limits.
fn both(policy: impl Into<Policy>) -> [(RateLimiter, TestClock); 2] {
    let policy = policy.into();
    let clock = TestClock::default();
    clock.advance(1_000_000 * SECOND);
    let store = MemoryStore::new().clock(clock.clone());
    let bench = Bench::new(policy.clone());
    [
        (RateLimiter::with_store(policy, &store), clock),
        (bench.limiter, bench.clock),
    ]
}

fn burst(limiter: &RateLimiter, key: &Key) -> u32 {
    let mut admitted = 0;
    while limiter.check_now(key).unwrap().is_admitted() {
        admitted += 1;
    }
    admitted
}

fn left(limiter: &RateLimiter, key: &Key) -> Option<u32> {
    limiter.peek(key).now().unwrap().remaining()
}

#[test]
fn each_tier_counts_separately() {
    for kind in ["", " sliding"] {
        let free = quota(&format!("3/h{kind}"));
        let pro: &str = &format!("10/h{kind}");
        for (limiter, _clock) in both(Policy::from(free).tier("pro", pro)) {
            let pro = limiter.tier("pro").unwrap();
            assert_eq!(burst(&limiter, &acme()), 3);
            assert_eq!(
                left(&pro, &acme()),
                Some(10),
                "another tier changes no usage"
            );
            assert_eq!(burst(&pro, &acme()), 10);
            assert_eq!(burst(&limiter, &acme()), 0);
            pro.refund(&acme(), 2).now().unwrap();
            assert_eq!(left(&pro, &acme()), Some(2), "a refund applies to one tier");
            assert_eq!(left(&limiter, &acme()), Some(0));
        }
    }
}

/// With one bucket for all tiers, a rejected request of a small tier would erase the debt of a
/// large one.
#[test]
fn alternating_tiers_admit_exactly_what_each_allows() {
    let policy = Policy::from(quota("10/min burst 3")).tier("pro", "600/min");
    for (limiter, clock) in both(policy) {
        let pro = limiter.tier("pro").unwrap();
        let mut admitted = [0; 2];
        for _ in 0..600 {
            admitted[0] += burst(&limiter, &acme());
            admitted[1] += burst(&pro, &acme());
            let _ = (limiter.check_now(&acme()), pro.check_now(&acme()));
            clock.advance(SECOND / 10);
        }
        assert_eq!(admitted, [3 + 9, 600 + 599]);
    }
}

#[test]
fn a_quota_that_the_tier_does_not_name_keeps_its_default() {
    let policy = Policy::new("burst", quota("5/h")).and("daily", quota("8/day"));
    for (limiter, _clock) in both(policy.tier("pro", "burst=50/h")) {
        let pro = limiter.tier("pro").unwrap();
        assert_eq!(burst(&pro, &acme()), 8);
        assert_eq!(burst(&limiter, &acme()), 5, "it counts separately");
        let names = pro.policies()[0]
            .quotas()
            .iter()
            .map(|q| q.name().to_owned());
        assert_eq!(names.collect::<Vec<_>>(), ["burst", "daily"]);
    }
}

#[test]
fn a_tier_switches_quotas_on_and_off() {
    let policy = Policy::new("a", Quota::off()).and("b", quota("2/h"));
    let policy = policy.tier("guest", "a=1/h").tier("staff", "unlimited");
    for (limiter, _clock) in both(policy) {
        let (guest, staff) = (
            limiter.tier("guest").unwrap(),
            limiter.tier("staff").unwrap(),
        );
        assert_eq!(burst(&limiter, &acme()), 2);
        assert_eq!(burst(&guest, &acme()), 1);
        assert!((0..100).all(|_| staff.check_now(&acme()).unwrap().is_admitted()));
        assert!(
            staff
                .check_n(&acme(), u32::MAX)
                .now()
                .unwrap()
                .is_admitted()
        );
        assert_eq!(left(&staff, &acme()), None);
        let usages = limiter.peek(&acme()).now().unwrap().usages().to_vec();
        assert_eq!(
            usages.iter().map(|usage| usage.index()).collect::<Vec<_>>(),
            [1]
        );
    }
}

#[test]
fn an_override_takes_precedence_over_a_tier_for_each_quota() {
    let policy = Policy::new("burst", quota("5/h")).and("daily", quota("80/day"));
    let bench = Bench::new(policy.tier("pro", "burst=50/h, daily=800/day"));
    let pro = bench.limiter.tier("pro").unwrap();
    let limits = |limiter: &RateLimiter| {
        let decision = limiter.peek(&acme()).now().unwrap();
        let limits = decision.usages().iter().map(|usage| usage.limit());
        limits.collect::<Vec<_>>()
    };
    bench.set("org:acme", "daily=9/day");
    assert_eq!(limits(&bench.limiter), [5, 9]);
    assert_eq!(limits(&pro), [50, 9]);
    bench.set("org:acme", "tier=pro");
    assert_eq!(limits(&bench.limiter), [50, 800], "the stored tier");
    bench.set("org:acme", "tier=pro, burst=7/h");
    assert_eq!(limits(&bench.limiter), [7, 800]);
    bench.delete("org:acme");
    assert_eq!(limits(&bench.limiter), [5, 80]);
}

#[test]
fn a_stored_tier_takes_precedence_over_the_requests_tier() {
    let policy = Policy::from(quota("1/h"))
        .tier("pro", "10/h")
        .tier("max", "20/h");
    let bench = Bench::new(policy);
    let max = bench.limiter.tier("max").unwrap();
    bench.set("org:acme", "tier=pro");
    assert_eq!(left(&max, &acme()), Some(10));
    assert_eq!(burst(&bench.limiter, &acme()), 10);
    assert_eq!(left(&max, &acme()), Some(0), "the same buckets");
    bench.delete("org:acme");
    assert_eq!(burst(&max, &acme()), 20);
    assert_eq!(burst(&bench.limiter, &acme()), 1);
}

#[test]
fn a_stored_tier_replaces_the_requests_tier_for_all_quotas() {
    let limits = Limits::new()
        .tier("stored", "a=50/h, elsewhere=1/h")
        .tier("asked", "a=70/h, b=90/h");
    let policy = Policy::new("a", quota("5/h")).and("b", quota("7/h"));
    let limiter = RateLimiter::with_limits(policy, &MemoryStore::new(), &limits);
    let asked = limiter.tier("asked").unwrap();
    let limits_of = |limiter: &RateLimiter| {
        let decision = limiter.peek(&acme()).now().unwrap();
        let usages = decision.usages().iter();
        usages.map(|usage| usage.limit()).collect::<Vec<_>>()
    };
    assert_eq!(limits_of(&asked), [70, 90]);
    bench_set(&limits, "tier=stored");
    assert_eq!(limits_of(&asked), [50, 7]);
    // Also if the stored tier names no quota of the limiter.
    limits
        .try_tier("stored", "elsewhere=1/h".parse().unwrap())
        .unwrap();
    assert_eq!(limits_of(&asked), [5, 7]);
}

#[test]
fn an_undeclared_tier_gets_the_defaults_and_cannot_be_set() {
    let bench = Bench::new(Policy::from(quota("3/h")).tier("pro", "10/h"));
    let error = now(bench
        .limits
        .set(&name("org:acme"), "tier=max".parse().unwrap()));
    let Err(LimitsError::UnknownTier { tier, known }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(
        (&*tier, &*known),
        ("max", &[std::sync::Arc::<str>::from("pro")][..])
    );
    assert!(bench.limiter.tier("max").is_none());
    // The override was set while the tier was declared.
    let limits = Limits::new();
    bench_set(&limits, "tier=max");
    let store = MemoryStore::new();
    let policy = Policy::from(quota("3/h")).tier("pro", "10/h");
    let limiter = RateLimiter::with_limits(policy, &store, &limits);
    assert_eq!(burst(&limiter, &acme()), 3);
}

fn bench_set(limits: &Limits, limit: &str) {
    let _ = now(limits.set(&name("org:acme"), limit.parse().unwrap())).unwrap();
}

#[test]
fn a_tier_of_the_limits_applies_to_every_limiter_that_it_names() {
    let limits = Limits::new().tier("pro", "requests=600/h, uploads=20/h, jobs=20 concurrent");
    let store = MemoryStore::new();
    let with = |name, quota| RateLimiter::with_limits(Policy::new(name, quota), &store, &limits);
    let requests = with("requests", quota("10/h"));
    let other = with("other", quota("10/h"));
    assert_eq!(left(&requests.tier("pro").unwrap(), &acme()), Some(600));
    // A tier that names no quota of the limiter is the default, with the same usage.
    assert_eq!(burst(&other.tier("pro").unwrap(), &acme()), 10);
    assert_eq!(burst(&other, &acme()), 0);
    assert_eq!(limits.tiers(), [std::sync::Arc::<str>::from("pro")]);
    // A tier that is declared later, and then changed.
    let limits = limits.tier("max", "requests=9000/h");
    assert_eq!(left(&requests.tier("max").unwrap(), &acme()), Some(9000));
    assert_eq!(burst(&requests.tier("pro").unwrap(), &acme()), 600);
    let limits = limits.tier("pro", "requests=601/h");
    assert_eq!(left(&requests.tier("pro").unwrap(), &acme()), Some(1));
    let nested = limits.try_tier("x", "tier=pro".parse().unwrap());
    assert_eq!(nested, Err(PolicyError::Nested));
    for n in 2..Policy::MAX_TIERS {
        let limit = "requests=1/h".parse().unwrap();
        limits.try_tier(&n.to_string(), limit).unwrap();
    }
    let more = limits.try_tier("more", "1/h".parse().unwrap());
    assert_eq!(more, Err(PolicyError::TooManyTiers));
}

#[tokio::test]
async fn leases_use_the_stored_tier() {
    let limits = Limits::new().tier("pro", "jobs=3 concurrent");
    let jobs = Leases::new().name("jobs").per_tenant(1).limits(&limits);
    let _one = jobs.acquire(&acme(), "1").await.unwrap();
    assert!(jobs.acquire(&acme(), "2").await.is_err());
    bench_set(&limits, "tier=pro");
    let _two = jobs.acquire(&acme(), "2").await.unwrap();
    let _three = jobs.acquire(&acme(), "3").await.unwrap();
    assert!(
        jobs.acquire(&acme(), "4").await.is_err(),
        "all tiers share one count"
    );
    let usage = limits.usage(&name("org:acme")).await;
    assert_eq!(
        (usage[0].used, usage[0].limit, usage[0].is_override),
        (3, Some(3), false)
    );
    bench_set(&limits, "tier=pro, jobs=unlimited");
    let _four = jobs.acquire(&acme(), "4").await.unwrap();
}

#[test]
fn a_limit_sets_concurrency_by_name_and_tier() {
    let limit: Limit = "tier=pro, jobs=2 concurrent".parse().unwrap();
    assert_eq!(limit.concurrency("jobs"), Some(Capacity::AtMost(2)));
    assert_eq!(limit.tier(), Some("pro"));
}

#[test]
fn a_changed_policy_changes_its_tiers() {
    let tiered = |free, pro: &str| Policy::from(quota(free)).tier("pro", pro);
    let bench = Bench::new(tiered("3/h", "10/h"));
    let pro = bench.limiter.tier("pro").unwrap();
    assert_eq!(burst(&bench.limiter, &acme()), 3);
    assert_eq!(burst(&pro, &acme()), 10);
    bench.limiter.set_policy(tiered("5/h", "30/h")).unwrap();
    assert_eq!(pro.current_policies(), [quota("30/h").into()]);
    assert_eq!(burst(&pro, &acme()), 20);
    assert_eq!(burst(&bench.limiter, &acme()), 2);
    // Without the tier, its requests get the default. When the tier is declared again, its usage is
    // still there.
    bench.limiter.set_policy(quota("5/h")).unwrap();
    assert_eq!(left(&pro, &acme()), Some(0));
    assert_eq!(pro.peek(&acme()).now().unwrap().limit(), Some(5));
    bench.limiter.set_policy(tiered("5/h", "30/h")).unwrap();
    assert_eq!(pro.peek(&acme()).now().unwrap().limit(), Some(30));
    assert_eq!(left(&pro, &acme()), Some(0));
    // A tier inherits the default in force.
    let two = |daily| {
        Policy::new("burst", quota("5/h"))
            .and("daily", quota(daily))
            .tier("pro", "burst=50/h")
    };
    let bench = Bench::new(two("8/day"));
    let pro = bench.limiter.tier("pro").unwrap();
    bench.limiter.set_policy(two("9/day")).unwrap();
    assert_eq!(left(&pro, &acme()), Some(9));
}

#[test]
fn usage_is_reported_by_tier() {
    let bench = Bench::new(
        Policy::from(quota("3/h"))
            .tier("pro", "10/h")
            .tier("max", "20/h"),
    );
    let usage = || {
        let usage = now(bench.limits.usage(&name("org:acme")));
        let usage = usage.into_iter();
        usage
            .map(|u| {
                format!(
                    "{} {} of {:?}",
                    u.tier.as_deref().unwrap_or("-"),
                    u.used,
                    u.limit
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(usage(), ["- 0 of Some(3)"]);
    let pro = bench.limiter.tier("pro").unwrap();
    assert!(pro.check_n(&acme(), 5).now().unwrap().is_admitted());
    assert_eq!(usage(), ["- 0 of Some(3)", "pro 5 of Some(10)"]);
    bench.set("org:acme", "tier=max");
    assert_eq!(usage(), ["pro 5 of Some(10)", "max 0 of Some(20)"]);
}

#[test]
fn concurrent_requests_of_several_tiers_get_what_each_allows() {
    let policy = Policy::from(quota("100/day"))
        .tier("pro", "1000/day")
        .tier("max", "3000/day");
    for (limiter, _clock) in both(policy) {
        let tiers = [
            limiter.clone(),
            limiter.tier("pro").unwrap(),
            limiter.tier("max").unwrap(),
        ];
        let admitted: [AtomicU32; 3] = Default::default();
        std::thread::scope(|scope| {
            for n in 0..6 {
                let (limiter, admitted) = (&tiers[n % 3], &admitted[n % 3]);
                scope.spawn(move || {
                    for _ in 0..2_000 {
                        let is_admitted = limiter.check_now(&acme()).unwrap().is_admitted();
                        admitted.fetch_add(is_admitted.into(), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(admitted.map(AtomicU32::into_inner), [100, 1000, 3000]);
    }
}

/// Sixteen tiers of a policy and sixteen of the limits are within both bounds.
#[test]
fn tiers_of_a_policy_leave_room_for_tiers_of_the_limits() {
    let clock = TestClock::default();
    let store = MemoryStore::new().clock(clock.clone());
    let limits = (0..16).fold(Limits::new(), |limits, n| {
        limits.tier(&format!("l{n}"), "default=5/h")
    });
    let policy = (0..16).fold(Policy::from(quota("3/h")), |policy, n| {
        policy.tier(&format!("p{n}"), "4/h")
    });
    let limiter = RateLimiter::with_limits(policy, &store, &limits);
    for n in 0..16 {
        let of_limits = limiter.tier(&format!("l{n}")).unwrap();
        assert_eq!(burst(&of_limits, &acme()), 5, "{n}");
        let of_policy = limiter.tier(&format!("p{n}")).unwrap();
        assert_eq!(burst(&of_policy, &acme()), 4, "{n}");
    }
    assert_eq!(burst(&limiter, &acme()), 3);
}

/// If the default has no algorithm, a tier keeps its first algorithm.
#[test]
fn a_tier_cannot_change_its_algorithm() {
    let tiered = |free, pro: &str| Policy::from(quota(free)).tier("pro", pro);
    for (first, then) in [("60/min", "60/min sliding"), ("60/min sliding", "60/min")] {
        let bench = Bench::new(tiered("off", first));
        let changed = bench.limiter.set_policy(tiered("off", then));
        assert_eq!(changed, Err(SetPolicyError::Shape), "{first}");
        let pro = bench.limiter.tier("pro").unwrap();
        assert_eq!(pro.current_policies(), [quota(first).into()]);
        for same in ["unlimited", "deny all", first] {
            bench.limiter.set_policy(tiered("off", same)).unwrap();
        }
        // If the default has an algorithm, the tier has the same.
        bench.limiter.set_policy(tiered("deny all", first)).unwrap();
        assert_eq!(burst(&pro, &acme()), 60);
    }
}
