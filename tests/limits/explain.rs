//! Which limit applies to a key, where it comes from, and what the next request would get.

use std::time::Duration;

use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;
use tower_admission::{
    ConcurrencyLimitLayer, Key, KeyName, Leases, LimitExplanation, LimitSource, LimitVerdict,
    Limits, Override, Policy, Quota, RateLimiter, Reason,
};

fn acme() -> KeyName {
    "org:acme".parse().unwrap()
}

/// The explanations for a name, as `limit source`.
async fn of(limits: &Limits, tier: Option<&str>, name: &str) -> Vec<String> {
    let explained = limits.explain(&acme(), tier).await;
    let explained = explained.iter().filter(|limit| *limit.name == *name);
    let shown = explained.map(|limit| format!("{} {}", limit.limit, limit.source.as_str()));
    shown.collect()
}

async fn one(limits: &Limits, name: &str) -> LimitExplanation {
    let explained = limits.explain(&acme(), None).await;
    explained
        .into_iter()
        .find(|limit| *limit.name == *name)
        .unwrap()
}

async fn set(limits: &Limits, limit: &str) {
    limits.set(&acme(), limit.parse().unwrap()).await.unwrap();
}

#[tokio::test]
async fn the_explained_source_of_a_rate_is_the_one_that_decides() {
    let limits = Limits::new().tier("pro", "burst=100/s");
    let policy = Policy::new("burst", Quota::per_second(10)).and("daily", Quota::per_day(50));
    let policy = policy.tier("max", "burst=1000/s, daily=unlimited");
    let calls = RateLimiter::with_limits(policy, &MemoryStore::new(), &limits);

    for (own, requested, burst, daily) in [
        (None, None, "10/s default", "50/day default"),
        (None, Some("pro"), "100/s request_tier", "50/day default"),
        (
            None,
            Some("max"),
            "1000/s request_tier",
            "unlimited request_tier",
        ),
        (None, Some("other"), "10/s default", "50/day default"),
        (
            Some("tier=max"),
            Some("pro"),
            "1000/s stored_tier",
            "unlimited stored_tier",
        ),
        (
            Some("tier=pro"),
            Some("max"),
            "100/s stored_tier",
            "50/day default",
        ),
        (
            Some("tier=pro, daily=7/day"),
            None,
            "100/s stored_tier",
            "7/day override",
        ),
        (
            Some("burst=5/s"),
            Some("pro"),
            "5/s override",
            "50/day default",
        ),
        (
            Some("unlimited"),
            Some("pro"),
            "unlimited override",
            "unlimited override",
        ),
        (
            Some("deny all"),
            None,
            "deny all override",
            "deny all override",
        ),
        // A limit without a name applies to policies of a single quota.
        (Some("1/h"), None, "10/s default", "50/day default"),
    ] {
        match own {
            Some(own) => set(&limits, own).await,
            None => {
                limits.delete(&acme()).await.unwrap();
            }
        }
        assert_eq!(
            of(&limits, requested, "burst").await,
            [burst],
            "{own:?} {requested:?}"
        );
        assert_eq!(
            of(&limits, requested, "daily").await,
            [daily],
            "{own:?} {requested:?}"
        );
    }
    limits.delete(&acme()).await.unwrap();
    let base = Override::new("daily=9/day".parse().unwrap());
    limits.set_base([(acme(), base)]).unwrap();
    assert_eq!(of(&limits, None, "daily").await, ["9/day file"]);
    set(&limits, "daily=8/day").await;
    assert_eq!(of(&limits, None, "daily").await, ["8/day override"]);
    drop(calls);
    assert_eq!(limits.explain(&acme(), None).await, []);
}

/// The verdict matches the next request, in each tier and under each override.
#[tokio::test]
async fn a_verdict_is_what_the_next_request_gets_and_charges_nothing() {
    for quota in [Quota::per_hour(2), Quota::per_hour(2).sliding()] {
        verdicts(quota).await;
    }
}

async fn verdicts(quota: Quota) {
    let limits = Limits::new().tier("pro", "4/h");
    let store = MemoryStore::new().clock(TestClock::default());
    let calls = RateLimiter::with_limits(Policy::new("calls", quota), &store, &limits);
    let key = Key::id("org", "acme");
    for own in [
        None,
        Some("3/h"),
        Some("tier=pro"),
        Some("deny all"),
        Some("unlimited"),
    ] {
        if let Some(own) = own {
            set(&limits, own).await;
        }
        for _ in 0..6 {
            let before = one(&limits, "calls").await;
            assert_eq!(
                before.used,
                one(&limits, "calls").await.used,
                "nothing was charged"
            );
            let decision = calls.check(&key).await;
            match before.verdict {
                LimitVerdict::Admitted { remaining } => {
                    assert!(decision.is_admitted(), "{own:?}");
                    assert_eq!(remaining, decision.remaining().map(u64::from), "{own:?}");
                }
                LimitVerdict::Rejected {
                    reason,
                    retry_after,
                } => {
                    assert!(!decision.is_admitted(), "{own:?}");
                    let denied = own == Some("deny all");
                    assert_eq!(reason == Reason::Denied, denied);
                    assert_eq!(retry_after, decision.retry_after());
                    assert_eq!(retry_after.is_none(), denied);
                }
                verdict => panic!("{verdict:?}"),
            }
        }
    }
}

#[tokio::test]
async fn slots_are_explained_for_the_key_and_in_total() {
    let limits = Limits::new().tier("pro", "chat=3 concurrent, jobs=8 concurrent");
    let key = Key::id("org", "acme");
    let layer = ConcurrencyLimitLayer::new(4)
        .name("chat")
        .per_key(|_: tower_admission::RequestHead<'_>| None, 1)
        .limits(&limits);
    let chat = layer.limiter();
    let leases = Leases::new()
        .name("jobs")
        .per_tenant(2)
        .total(2)
        .limits(&limits);

    let held = chat.try_acquire_for(&key).unwrap();
    let job = leases.acquire(&key, "1").await.unwrap();
    let explained = limits.explain(&acme(), None).await;
    let shown: Vec<_> = explained
        .iter()
        .map(|limit| {
            (
                &*limit.name,
                limit.is_total,
                &*limit.limit,
                limit.used,
                limit.verdict,
            )
        })
        .collect();
    let full = LimitVerdict::Rejected {
        reason: Reason::KeyAtCapacity,
        retry_after: Some(Duration::from_secs(1)),
    };
    let left = |n| LimitVerdict::Admitted { remaining: Some(n) };
    assert_eq!(
        shown,
        [
            ("chat", false, "1 concurrent", Some(1), full),
            ("chat", true, "4 concurrent", Some(1), left(2)),
            ("jobs", false, "2 concurrent", Some(1), left(0)),
            ("jobs", true, "2 concurrent", Some(1), left(0)),
        ]
    );
    for (own, requested, chat) in [
        (None, Some("pro"), "3 concurrent request_tier"),
        (Some("tier=pro"), None, "3 concurrent stored_tier"),
        (
            Some("chat=9 concurrent"),
            Some("pro"),
            "9 concurrent override",
        ),
        (Some("deny all"), None, "deny all override"),
    ] {
        if let Some(own) = own {
            set(&limits, own).await;
        }
        assert_eq!(of(&limits, requested, "chat").await[0], chat);
        let jobs = match own {
            Some("tier=pro") => "8 concurrent stored_tier",
            Some("deny all") => "deny all override",
            // A lease belongs to no request.
            _ => "2 concurrent default",
        };
        assert_eq!(of(&limits, requested, "jobs").await[0], jobs, "{own:?}");
    }
    let denied = one(&limits, "chat").await;
    assert_eq!((denied.source, denied.tier), (LimitSource::Override, None));
    let expected = LimitVerdict::Rejected {
        reason: Reason::Denied,
        retry_after: None,
    };
    assert_eq!(denied.verdict, expected);
    limits.delete(&acme()).await.unwrap();

    let others: Vec<_> = (0..3).map(|_| chat.try_acquire().unwrap()).collect();
    let total = &limits.explain(&acme(), None).await[1];
    assert!(
        matches!(
            total.verdict,
            LimitVerdict::Rejected {
                reason: Reason::AtCapacity,
                ..
            }
        ),
        "{total:?}"
    );
    drop((held, job, others));
}
