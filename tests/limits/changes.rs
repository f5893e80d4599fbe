//! The effect of a change on used requests.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use tower_admission::{
    Key, KeyName, Limits, LimitsError, Policy, Quota, RateLimiter, SetPolicyError,
};

use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;

use super::{Bench, SECOND, acme, name, now};

#[test]
fn raising_a_limit_adds_only_the_difference() {
    for sliding in [false, true] {
        let kind = |quota: Quota| if sliding { quota.sliding() } else { quota };
        let bench = Bench::new(kind(Quota::per_hour(10)));
        assert_eq!(bench.burst(&acme()), 10);
        // From the default to an override, to another override, and back.
        assert_eq!(bench.set("org:acme", "25/h"), None);
        assert_eq!(bench.burst(&acme()), 15, "sliding: {sliding}");
        bench.set("org:acme", "100/h");
        assert_eq!(bench.burst(&acme()), 75, "sliding: {sliding}");
        bench.delete("org:acme");
        assert_eq!(bench.burst(&acme()), 0, "sliding: {sliding}");
        // Other keys are unaffected.
        assert_eq!(bench.burst(&Key::id("org", "other")), 10);
    }
}

#[test]
fn a_change_of_the_period_keeps_the_used_requests() {
    for (quota, own, rest) in [
        // 6 of 10 are left, in a period of any length.
        ("10/h", "10/min", 6),
        ("10/min", "10/h", 6),
        ("10/h sliding", "10/min", 6),
        ("10/min sliding", "10/h", 6),
        ("10/h", "1000/s burst 10", 6),
    ] {
        let bench = Bench::new(quota.parse::<Quota>().unwrap());
        for _ in 0..4 {
            assert!(bench.limiter.check_now(&acme()).unwrap().is_admitted());
        }
        bench.set("org:acme", own);
        assert_eq!(
            bench.limiter.peek(&acme()).now().unwrap().remaining(),
            Some(rest),
            "{quota} {own}"
        );
        bench.delete("org:acme");
        assert_eq!(
            bench.limiter.peek(&acme()).now().unwrap().remaining(),
            Some(rest),
            "{quota} {own}"
        );
    }
}

/// One nanosecond less than a request at 7/min is less than a request at 11/min, and never less
/// than what was used.
#[test]
fn used_requests_are_rounded_up_when_the_interval_changes() {
    let (before, after): (Quota, Quota) = ("7/min".parse().unwrap(), "11/min".parse().unwrap());
    for is_override in [true, false] {
        let bench = Bench::new(before);
        assert!(
            bench
                .limiter
                .check_n(&acme(), 1)
                .now()
                .unwrap()
                .is_admitted()
        );
        bench.clock.advance(Duration::from_nanos(1));
        let reset = || bench.limiter.peek(&acme()).now().unwrap().reset();
        assert_eq!(reset(), Some(Duration::from_nanos(8_571_428_571)));
        if is_override {
            bench.set("org:acme", "11/min");
        } else {
            bench.limiter.set_policy(after).unwrap();
        }
        // 5,454,545,454.4 nanoseconds.
        assert_eq!(reset(), Some(Duration::from_nanos(5_454_545_455)));
    }
}

#[test]
fn a_lowered_limit_is_used_up_and_recovers_at_its_own_rate() {
    let bench = Bench::new(Quota::per_second(1).burst(1000));
    assert_eq!(bench.burst(&acme()), 1000);
    bench.set("org:acme", "1/s burst 10");
    let denied = bench.limiter.check_now(&acme()).unwrap();
    assert_eq!((denied.limit(), denied.remaining()), (Some(10), Some(0)));
    assert_eq!(denied.retry_after(), Some(SECOND));
    bench.clock.advance(10 * SECOND);
    assert_eq!(bench.burst(&acme()), 10);
    // The same with another period.
    bench.set("org:acme", "1 per 2s burst 3");
    assert_eq!(
        bench.limiter.check_now(&acme()).unwrap().retry_after(),
        Some(2 * SECOND)
    );
    bench.clock.advance(6 * SECOND);
    assert_eq!(bench.burst(&acme()), 3);
}

#[test]
fn a_lowered_window_does_not_underflow() {
    let bench = Bench::new(Quota::per_minute(1000).sliding());
    assert_eq!(bench.burst(&acme()), 1000);
    bench.set("org:acme", "10/min");
    let denied = bench.limiter.check_now(&acme()).unwrap();
    assert_eq!((denied.limit(), denied.remaining()), (Some(10), Some(0)));
    bench.clock.advance(denied.retry_after().unwrap());
    assert_eq!(bench.burst(&acme()), 10);
}

#[test]
fn a_refund_goes_to_the_keys_override() {
    for own in ["5/h", "5/h sliding"] {
        let quota: Quota = own.replace('5', "2").parse().unwrap();
        let bench = Bench::new(quota);
        bench.set("org:acme", own);
        assert_eq!(bench.burst(&acme()), 5);
        bench.limiter.refund(&acme(), 3).now().unwrap();
        assert_eq!(bench.burst(&acme()), 3, "{own}");
        bench.limiter.refund(&acme(), 100).now().unwrap();
        assert_eq!(bench.burst(&acme()), 5, "{own}");
    }
}

#[test]
fn a_key_can_be_denied_and_admitted_again() {
    for quota in ["10/h", "10/h sliding"] {
        let bench = Bench::new(quota.parse::<Quota>().unwrap());
        assert!(bench.limiter.check_now(&acme()).unwrap().is_admitted());
        bench.set("org:acme", "deny all");
        let denied = bench.limiter.check_now(&acme()).unwrap();
        assert!(!denied.is_admitted() && denied.retry_after().is_none());
        bench.set("org:acme", "20/h");
        assert_eq!(bench.burst(&acme()), 19, "{quota}");
    }
    let nobody = Bench::new(Quota::deny_all());
    nobody.set("org:acme", "3/h");
    assert_eq!(nobody.burst(&acme()), 3);
    assert_eq!(nobody.burst(&Key::id("org", "other")), 0);
}

#[test]
fn a_clock_that_steps_back_blocks_no_key() {
    let bench = Bench::new(Quota::per_minute(60));
    bench.set("org:acme", "60/min burst 10");
    assert_eq!(bench.burst(&acme()), 10);
    bench.clock.step_back(100_000 * SECOND);
    assert!(!bench.limiter.check_now(&acme()).unwrap().is_admitted());
    bench.clock.advance(10 * SECOND);
    assert_eq!(bench.burst(&acme()), 10);
}

#[test]
fn a_changed_policy_keeps_the_used_requests() {
    for sliding in ["", " sliding"] {
        let quota = |text: &str| format!("{text}{sliding}").parse::<Quota>().unwrap();
        let bench = Bench::new(quota("10/h"));
        let (used, unseen) = (acme(), Key::id("org", "unseen"));
        for key in [&used, &unseen] {
            assert_eq!(bench.burst(key), 10);
        }
        bench.limiter.set_policy(quota("15/h")).unwrap();
        assert_eq!(bench.burst(&used), 5);
        // A key that is unused between two changes is converted through both.
        bench.limiter.set_policy(quota("20/h")).unwrap();
        assert_eq!(bench.burst(&unseen), 10);
        assert_eq!(bench.burst(&used), 5);
        // The same for a key that also gets an override.
        bench.set("org:acme", "30/h");
        assert_eq!(bench.burst(&used), 10);
        let decision = bench.limiter.peek(&unseen).now().unwrap();
        assert_eq!(decision.limit(), Some(20));
        assert_eq!(bench.limiter.current_policies(), [quota("20/h").into()]);
        // When every bucket is full again, nothing is converted.
        bench.clock.advance(3 * 3600 * SECOND);
        assert_eq!(bench.burst(&unseen), 20);
        assert_eq!(bench.burst(&used), 30);
    }
}

/// Requests used before a change are converted once, even if the new bucket is full early and its
/// slot is reused.
#[test]
fn used_requests_are_converted_only_once() {
    let bench = Bench::new(Quota::new(1, 4 * SECOND).burst(4));
    let keys: Vec<_> = (0..64).map(|n| Key::id("org", &n.to_string())).collect();
    for key in &keys {
        assert!(bench.limiter.check_n(key, 3).now().unwrap().is_admitted());
    }
    bench
        .limiter
        .set_policy(Quota::per_second(1).burst(1))
        .unwrap();
    for key in &keys {
        assert!(!bench.limiter.check_now(key).unwrap().is_admitted());
    }
    // Under the old quota it would have taken twelve seconds.
    bench.clock.advance(3 * SECOND);
    for (n, key) in keys.iter().enumerate() {
        bench.set(&format!("org:{n}"), "1/s burst 2");
        bench.delete(&format!("org:{n}"));
        assert!(bench.limiter.check_now(key).unwrap().is_admitted(), "{n}");
    }
}

/// With any changes in between, and whether the key is used or not.
#[test]
fn many_changes_grant_no_fresh_burst() {
    for kind in ["", " sliding"] {
        for seen in [true, false] {
            let quota = |text: &str| format!("{text}{kind}").parse::<Quota>().unwrap();
            let bench = Bench::new(quota("10/day"));
            assert_eq!(bench.burst(&acme()), 10);
            for n in 0..1_000 {
                let next = match n % 5 {
                    0 => Quota::deny_all(),
                    1 => quota("11/day"),
                    2 => quota("20/day"),
                    3 => Quota::off(),
                    _ => quota("10/day"),
                };
                bench.limiter.set_policy(next).unwrap();
                if seen {
                    let _ = bench.limiter.check_now(&acme()).unwrap();
                }
            }
            assert_eq!(bench.burst(&acme()), 0, "{kind}, {seen}");
            bench.limiter.set_policy(quota("30/day")).unwrap();
            // A window still counts what was admitted while the limit was 20.
            let room = if seen && !kind.is_empty() { 10 } else { 20 };
            assert_eq!(bench.burst(&acme()), room, "{kind}, {seen}");
        }
    }
}

/// Also if the key is not used.
#[test]
fn a_key_recovers_at_the_new_rate_after_a_change() {
    let bench = Bench::new(Quota::per_second(10));
    assert_eq!(bench.burst(&acme()), 10);
    bench.limiter.set_policy(Quota::per_hour(10)).unwrap();
    bench.clock.advance(SECOND);
    assert_eq!(bench.burst(&acme()), 0);
    bench.clock.advance(360 * SECOND);
    assert_eq!(bench.burst(&acme()), 1);
}

/// Keys without room share an entry; a conversion for one of them must not empty it.
#[test]
fn changes_grant_no_fresh_burst_to_keys_that_share_an_entry() {
    for kind in ["", " sliding"] {
        let quota = |text: &str| format!("{text}{kind}").parse::<Quota>().unwrap();
        let clock = TestClock::default();
        clock.advance(1_000_000 * SECOND);
        let store = MemoryStore::new().max_keys(1).clock(clock);
        let limits = Limits::new();
        let limiter = RateLimiter::with_limits(quota("10/h"), &store, &limits);
        let burst = |id: &str| {
            let key = Key::id("org", id);
            (0..100)
                .filter(|_| limiter.check_now(&key).unwrap().is_admitted())
                .count()
        };
        let mut admitted: usize = (0..4).map(|id| burst(&id.to_string())).sum();
        for round in 0..20 {
            let id = (round % 4).to_string();
            let key = name(&format!("org:{id}"));
            now(limits.set(&key, "10/h".parse().unwrap())).unwrap();
            now(limits.delete(&key)).unwrap();
            admitted += burst(&id);
        }
        // Each key has its own bucket, or shares one.
        assert!(admitted <= 60, "{kind}: {admitted}");
    }
}

#[test]
fn a_policy_with_another_shape_is_rejected() {
    let policy = Policy::new("burst", Quota::per_second(1)).and("daily", Quota::per_day(10));
    let bench = Bench::new(policy.clone());
    for other in [
        Policy::from(Quota::per_second(1)),
        Policy::new("burst", Quota::per_second(1)),
        Policy::new("daily", Quota::per_second(1)).and("burst", Quota::per_day(10)),
        Policy::new("burst", Quota::per_second(1).sliding()).and("daily", Quota::per_day(10)),
    ] {
        assert_eq!(bench.limiter.set_policy(other), Err(SetPolicyError::Shape));
    }
    assert_eq!(
        bench.limiter.current_policies(),
        std::slice::from_ref(&policy)
    );
    // A detour over a denying policy is rejected too.
    let bucket = Bench::new(Quota::per_hour(1));
    bucket.limiter.set_policy(Quota::deny_all()).unwrap();
    let sliding = Quota::per_hour(1).sliding();
    assert_eq!(
        bucket.limiter.set_policy(sliding),
        Err(SetPolicyError::Shape)
    );
    // The same without limits.
    let limiter = RateLimiter::new(policy.clone());
    assert_eq!(limiter.set_policy(policy), Ok(()));
    let off = RateLimiter::new(Quota::off());
    assert_eq!(off.set_policy(Quota::off()), Err(SetPolicyError::Fixed));
}

#[test]
fn each_of_several_quotas_has_its_own_override() {
    let policy = Policy::new("burst", Quota::per_hour(10)).and("daily", Quota::per_day(100));
    let bench = Bench::new(policy);
    bench.set("org:acme", "daily=12/day, burst=20/h");
    assert_eq!(bench.burst(&acme()), 12);
    let denied = bench.limiter.check_now(&acme()).unwrap();
    let numbers: Vec<_> = denied
        .usages()
        .iter()
        .map(|u| (u.limit(), u.remaining()))
        .collect();
    // A rejection by one quota charges no other.
    assert_eq!(numbers, [(20, 8), (12, 0)]);
    // A limit without a quota name applies to no quota of a policy with several.
    bench.set("org:acme", "20/h");
    assert_eq!(bench.limiter.check_now(&acme()).unwrap().limit(), Some(10));
}

/// The name in logs refers to the same entry.
#[test]
fn a_key_has_one_entry() {
    let bench = Bench::new(Quota::per_hour(10));
    let fingerprint = KeyName::from(acme()).to_string();
    assert_eq!(bench.set(&fingerprint, "5/h"), None);
    let limits = || {
        let list = bench.limits.list().into_iter();
        let list = list.map(|(name, limit)| format!("{name} {limit}"));
        list.collect::<Vec<_>>()
    };
    assert_eq!(bench.set("org:acme", "6/h").unwrap().to_string(), "5/h");
    assert_eq!(limits(), ["org:acme 6/h"]);
    assert_eq!(bench.set(&fingerprint, "7/h").unwrap().to_string(), "6/h");
    assert_eq!(limits(), ["org:acme 7/h"]);
    assert_eq!(
        bench.limits.get(&name(&fingerprint)).unwrap().to_string(),
        "7/h"
    );
    assert_eq!(bench.limiter.check_now(&acme()).unwrap().limit(), Some(7));
    assert_eq!(bench.delete(&fingerprint).unwrap().to_string(), "7/h");
    assert!(bench.limits.is_empty());
    assert_eq!(bench.limiter.check_now(&acme()).unwrap().limit(), Some(10));
}

#[test]
fn overrides_that_were_set_before_a_limiter_was_built_apply() {
    let limits = Limits::new();
    let limit = "3/h, jobs=5 concurrent".parse().unwrap();
    assert_eq!(now(limits.set(&name("org:acme"), limit)).unwrap(), None);
    let store = tower_admission::MemoryStore::new();
    let limiter = RateLimiter::with_limits(Quota::per_hour(1), &store, &limits);
    assert_eq!(limiter.check_now(&acme()).unwrap().remaining(), Some(2));
    let shown = limits.get(&name("org:acme")).unwrap().to_string();
    assert_eq!(shown, "3/h, jobs=5 concurrent");
    assert_eq!(
        (limits.list().len(), limits.len(), limits.is_empty()),
        (1, 1, false)
    );
    let before = now(limits.delete(&name("org:acme"))).unwrap();
    assert_eq!(before.unwrap().to_string(), shown);
    assert_eq!(now(limits.delete(&name("org:acme"))).unwrap(), None);
}

#[test]
fn usage_is_reported_by_limit() {
    let policy = Policy::new("burst", Quota::per_hour(10)).and("daily", Quota::per_day(100));
    let bench = Bench::new(policy);
    bench.set("org:acme", "burst=20/h");
    assert!(
        bench
            .limiter
            .check_n(&acme(), 3)
            .now()
            .unwrap()
            .is_admitted()
    );
    let usage = now(bench.limits.usage(&name("org:acme")));
    let told: Vec<_> = usage
        .iter()
        .map(|u| (&*u.name, u.used, u.limit, u.is_override))
        .collect();
    assert_eq!(
        told,
        [("burst", 3, Some(20), true), ("daily", 3, Some(100), false)]
    );
    let names = bench.limits.names();
    assert_eq!(
        names.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["burst", "daily"]
    );
    drop(bench.limiter);
    assert!(now(bench.limits.usage(&name("org:acme"))).is_empty());
}

/// Eight threads charge while another changes the period. The clock stands still.
#[test]
fn changes_under_load_lose_no_request() {
    for kind in ["", " sliding"] {
        let quota = |text: &str| format!("{text}{kind}");
        let bench = Bench::new(quota("1000/h").parse::<Quota>().unwrap());
        bench.set("org:acme", &quota("1000/day"));
        let admitted = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..120 {
                        if bench.limiter.check_now(&acme()).unwrap().is_admitted() {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            scope.spawn(|| {
                for n in 0..500 {
                    let limit = ["1000/h", "1000/min", "1000/day"][n % 3];
                    bench.set("org:acme", &quota(limit));
                }
            });
        });
        let admitted = admitted.into_inner();
        assert_eq!(admitted, 960);
        // Rounded up with each change, by nanoseconds in total.
        let rest = bench.burst(&acme());
        assert!((39..=40).contains(&rest), "{rest}");
    }
}

/// Keys are first used while they get overrides, which count from then on.
#[test]
fn an_override_counts_requests_that_race_with_its_change() {
    let bench = Bench::new(Quota::per_hour(10));
    let keys: Vec<_> = (0..400).map(|n| n.to_string()).collect();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for id in &keys {
                    let _ = bench.limiter.check_now(&Key::id("org", id)).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for id in &keys {
                bench.set(&format!("org:{id}"), "20/h");
            }
        });
    });
    for id in &keys {
        let decision = bench.limiter.check_now(&Key::id("org", id)).unwrap();
        assert_eq!(decision.limit(), Some(20));
        assert!(decision.remaining() >= Some(16), "{decision:?}");
    }
}

/// However often the default policy changes meanwhile.
#[test]
fn a_change_of_the_policy_loses_no_request() {
    for kind in ["", " sliding"] {
        let quota = |n: usize| {
            format!("{} per 3600s{kind}", 1000 + n % 3)
                .parse::<Quota>()
                .unwrap()
        };
        for round in 0..60 {
            let bench = Bench::new(quota(0));
            let admitted = AtomicU32::new(0);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..100 {
                            let is_admitted =
                                bench.limiter.check_now(&acme()).unwrap().is_admitted();
                            admitted.fetch_add(is_admitted.into(), Ordering::Relaxed);
                        }
                    });
                }
                scope.spawn(|| {
                    for n in 1..60 {
                        bench.limiter.set_policy(quota(n)).unwrap();
                    }
                });
            });
            let decision = bench.limiter.check_n(&acme(), 0).now().unwrap();
            let counted = decision.limit().unwrap() - decision.remaining().unwrap();
            let admitted = admitted.into_inner();
            assert!(
                counted >= admitted,
                "{round}{kind}: {counted} of {admitted}"
            );
        }
    }
}

/// A decision that races with a change counts too; it may count twice but never zero times.
#[test]
fn a_change_of_overrides_loses_no_request() {
    for (kind, changes_first) in [
        ("", false),
        (" sliding", false),
        ("", true),
        (" sliding", true),
    ] {
        let bench = Bench::new(format!("900/h{kind}").parse::<Quota>().unwrap());
        if changes_first {
            let changed: Quota = format!("1000/h{kind}").parse().unwrap();
            bench.limiter.set_policy(changed).unwrap();
        }
        let keys: Vec<_> = (0..300).map(|n| n.to_string()).collect();
        let admitted: Vec<_> = keys.iter().map(|_| AtomicU32::new(0)).collect();
        thread::scope(|scope| {
            for _ in 0..3 {
                let limiter = &bench.limiter;
                let (keys, admitted) = (&keys, &admitted);
                scope.spawn(move || {
                    for (id, admitted) in keys.iter().zip(admitted) {
                        for _ in 0..20 {
                            let is_admitted = limiter
                                .check_now(&Key::id("org", id))
                                .unwrap()
                                .is_admitted();
                            admitted.fetch_add(is_admitted.into(), Ordering::Relaxed);
                        }
                    }
                });
            }
            scope.spawn(|| {
                for id in &keys {
                    bench.set(&format!("org:{id}"), &format!("2000/h{kind}"));
                }
            });
        });
        for (id, admitted) in keys.iter().zip(admitted) {
            let left = bench
                .limiter
                .check_n(&Key::id("org", id), 0)
                .now()
                .unwrap()
                .remaining();
            let counted = 2000 - left.unwrap();
            let admitted = admitted.into_inner();
            assert!(counted >= admitted, "{id}{kind}: {counted} of {admitted}");
            assert!(
                counted <= admitted + 30,
                "{id}{kind}: {counted} of {admitted}"
            );
        }
    }
}

#[tokio::test]
async fn the_number_of_overrides_is_bounded() {
    let limits = Limits::new();
    for n in 0..Limits::MAX_OVERRIDES {
        let key = tower_admission::KeyName::id("org", &n.to_string()).unwrap();
        limits.set(&key, "1/s".parse().unwrap()).await.unwrap();
    }
    let more = limits.set(&name("org:more"), "1/s".parse().unwrap()).await;
    assert!(matches!(more, Err(LimitsError::TooMany)));
    limits
        .set(&name("org:1"), "2/s".parse().unwrap())
        .await
        .unwrap();
    limits.delete(&name("org:2")).await.unwrap();
    limits
        .set(&name("org:more"), "1/s".parse().unwrap())
        .await
        .unwrap();
}

#[test]
fn the_pages_make_up_the_list() {
    let bench = Bench::new(Quota::per_hour(10));
    for key in ["org:c", "ip:192.0.2.1", "org:a", "bearer:hunter2", "org:b"] {
        bench.set(key, "1/h");
    }
    let limits = &bench.limits;
    for count in 1..=6 {
        let mut paged = Vec::new();
        loop {
            let after = paged.last().map(|(key, _)| key);
            let page = limits.list_after(after, count);
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        let paged: Vec<_> = paged
            .into_iter()
            .map(|(key, entry)| (key, entry.limit().clone()))
            .collect();
        assert_eq!(paged, limits.list());
    }
    assert_eq!(limits.list_after(None, 0), []);
    // A name that is not in the list also marks a position.
    let [(key, _)] = &limits.list_after(Some(&name("org:bb")), 9)[..] else {
        panic!()
    };
    assert_eq!(key, &name("org:c"));
}

#[test]
fn a_listed_key_has_the_name_it_was_set_by() {
    let bench = Bench::new(Quota::per_hour(10));
    let unnamed = bench.limits.name_of(&acme());
    assert!(unnamed.as_str().starts_with("org#"), "{unnamed}");
    bench.set("org:acme", "1/h");
    assert_eq!(bench.limits.name_of(&acme()), name("org:acme"));
    bench.delete("org:acme");
    assert_eq!(bench.limits.name_of(&acme()), unnamed);
    let address = Key::ip([192, 0, 2, 1].into());
    assert_eq!(bench.limits.name_of(&address), name("ip:192.0.2.1"));
}

#[test]
fn refunded_requests_are_not_converted_again() {
    for sliding in ["", " sliding"] {
        let quota = |text: &str| format!("{text}{sliding}").parse::<Quota>().unwrap();
        let bench = Bench::new(quota("5 per 60s"));
        let key = Key::id("org", "acme");
        assert!(bench.limiter.check_n(&key, 4).now().unwrap().is_admitted());
        bench.limiter.set_policy(quota("4 per 60s")).unwrap();
        bench.limiter.refund(&key, 4).now().unwrap();
        // A full bucket can be evicted, so that a new key takes its slot.
        bench.clock.advance(2 * SECOND);
        for n in 0..2_000 {
            let other = Key::id("org", &n.to_string());
            assert!(bench.limiter.check_now(&other).unwrap().is_admitted());
        }
        assert_eq!(
            bench.limiter.check_n(&key, 0).now().unwrap().remaining(),
            Some(4)
        );
    }
}

/// What a lower quota clamped does not return.
#[test]
fn clamped_and_refunded_requests_are_not_converted_again() {
    let bench = Bench::new("5 per 60s".parse::<Quota>().unwrap());
    let key = Key::id("org", "acme");
    assert!(bench.limiter.check_n(&key, 5).now().unwrap().is_admitted());
    let lower: Quota = "5 per 60s burst 2".parse().unwrap();
    bench.limiter.set_policy(lower).unwrap();
    bench.limiter.refund(&key, 2).now().unwrap();
    bench.clock.advance(2 * SECOND);
    for n in 0..2_000 {
        let other = Key::id("org", &n.to_string());
        assert!(bench.limiter.check_now(&other).unwrap().is_admitted());
    }
    assert_eq!(
        bench.limiter.check_n(&key, 0).now().unwrap().remaining(),
        Some(2)
    );
}

/// Each change drops the phases that no longer matter, however frequent the changes are.
#[test]
fn endless_changes_keep_only_relevant_phases() {
    let bench = Bench::new("1/s".parse::<Quota>().unwrap());
    let key = Key::id("org", "acme");
    for n in 0..20_000 {
        let quota = if n % 2 == 0 { "2/s" } else { "1/s" };
        let quota: Quota = quota.parse().unwrap();
        bench.limiter.set_policy(quota).unwrap();
        if n % 100 == 0 {
            // A new key is looked up in the whole table.
            let new = Key::id("org", &n.to_string());
            assert!(bench.limiter.check_now(&new).unwrap().is_admitted());
        }
        assert!(!bench.limiter.check_n(&key, 3).now().unwrap().is_admitted());
        bench.clock.advance(SECOND / 50);
    }
}

/// Requests under a fast quota count for as long as the slower quota after it requires.
#[test]
fn debt_under_a_slower_quota_outlasts_the_faster_quota() {
    for kind in ["", " sliding"] {
        let quota = |text: &str| format!("{text}{kind}").parse::<Quota>().unwrap();
        let bench = Bench::new(quota("100/s"));
        for _ in 0..100 {
            assert!(bench.limiter.check_now(&acme()).unwrap().is_admitted());
        }
        bench.limiter.set_policy(quota("101/s")).unwrap();
        bench.limiter.set_policy(quota("100/day")).unwrap();
        bench.clock.advance(3 * SECOND);
        bench.limiter.set_policy(quota("101/day")).unwrap();
        bench.clock.advance(60 * SECOND);
        assert_eq!(bench.burst(&acme()), 1, "{kind}");
    }
}

/// So that an application can change a daily quota every hour, indefinitely.
#[test]
fn a_change_is_kept_while_earlier_requests_count() {
    for kind in ["", " sliding"] {
        let bench = Bench::new(format!("1000/day{kind}").parse::<Quota>().unwrap());
        for n in 0..500 {
            // A window with a new period counts all costs as young as the youngest.
            let shorter = if kind.is_empty() { n % 2 } else { 0 };
            let quota = format!("{} per {}h{kind}", 1000 + n % 7, 24 - shorter);
            bench
                .limiter
                .set_policy(quota.parse::<Quota>().unwrap())
                .unwrap();
            assert!(bench.limiter.check_now(&acme()).unwrap().is_admitted());
            bench.clock.advance(3600 * SECOND);
        }
        let left = bench
            .limiter
            .check_n(&acme(), 0)
            .now()
            .unwrap()
            .remaining()
            .unwrap();
        // One change per hour.
        assert!((940..=1006).contains(&left), "{left}{kind}");
    }
}

#[test]
fn an_override_under_a_denying_default_keeps_the_used_requests() {
    for kind in ["", " sliding"] {
        let quota = |text: &str| format!("{text}{kind}").parse::<Quota>().unwrap();
        let bench = Bench::new(quota("3/h"));
        assert_eq!(bench.burst(&acme()), 3);
        bench.limiter.set_policy(Quota::deny_all()).unwrap();
        bench.set("org:acme", "5/h");
        assert_eq!(bench.burst(&acme()), 2, "{kind}");
    }
}
