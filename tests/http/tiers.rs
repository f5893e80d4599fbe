//! Tiers: named sets of limits with separate buckets.

use std::sync::{Arc, Mutex};

use http::Request;
use tower::Layer;
use tower_admission::test_util::TestClock;
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, KeyName, Limits, Policy, Quota, RateLimitHeaders,
    RateLimitLayer, RateLimitStatus, RequestHead,
};

use crate::common::{
    Counting, LaterStore, SECOND, Seen, answering, by_user, header, ok, peer, retry_after, send,
    status, store, text, timed, user, user_key,
};

#[derive(Clone)]
struct Plan(&'static str);

fn plan<'a>(head: RequestHead<'a>) -> Option<&'a str> {
    head.extensions.get::<Plan>().map(|plan| plan.0)
}

fn of_plan(plan: &'static str) -> Request<()> {
    let mut request = user("alice");
    request.extensions_mut().insert(Plan(plan));
    request
}

/// Its daily quota is off, but for requests of the tier.
fn free_and_pro() -> Policy {
    Policy::new("calls", Quota::per_minute(6).burst(3))
        .and("daily", Quota::off())
        .tier("pro", "calls=60/min burst 10, daily=20/day")
}

/// The lines that are logged during `job`.
fn logged(job: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, job);
    let bytes = lines.0.lock().unwrap().clone();
    let text = String::from_utf8(bytes).unwrap();
    text.lines().map(str::to_owned).collect()
}

async fn set(limits: &Limits, key: &str, limit: &str) {
    let key: KeyName = key.parse().unwrap();
    limits.set(&key, limit.parse().unwrap()).await.unwrap();
}

#[tokio::test]
async fn each_tier_has_its_numbers_and_separate_buckets() {
    let (layer, clock) = timed(by_user, free_and_pro());
    let service = layer.tier_by(plan).layer(Counting::default());
    for left in [2, 1, 0] {
        let response = send(&service, user("alice")).await;
        assert_eq!(
            header(&response, "ratelimit-policy"),
            Some("\"calls\";q=3;w=30")
        );
        let field = format!("\"calls\";r={left};t={}", 10 * (3 - left));
        assert_eq!(header(&response, "ratelimit"), Some(&*field));
    }
    let rejected = send(&service, user("alice")).await;
    assert_eq!(rejected.status(), 429);
    assert_eq!(retry_after(&rejected), Some(10));
    let body = text(rejected).await;
    assert!(body.contains("[\"calls\"]"), "{body}");

    // None of this counts in the other tier, nor the reverse.
    let response = send(&service, of_plan("pro")).await;
    assert_eq!(
        header(&response, "ratelimit-policy"),
        Some("\"calls\";q=10;w=10, \"daily\";q=20;w=86400")
    );
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"calls\";r=9;t=1, \"daily\";r=19;t=4320")
    );
    for _ in 0..9 {
        assert_eq!(status(&service, of_plan("pro")).await, 200);
    }
    let rejected = send(&service, of_plan("pro")).await;
    assert_eq!(retry_after(&rejected), Some(1));
    clock.advance(10 * SECOND);
    assert_eq!(status(&service, user("alice")).await, 200);
    assert_eq!(status(&service, user("alice")).await, 429);
    for _ in 0..10 {
        assert_eq!(status(&service, of_plan("pro")).await, 200);
    }
    clock.advance(10 * SECOND);
    let rejected = send(&service, of_plan("pro")).await;
    assert_eq!(rejected.status(), 429);
    let body = text(rejected).await;
    assert!(body.contains("[\"daily\"]"), "{body}");
    assert_eq!(status(&service, user("alice")).await, 200);
}

#[tokio::test]
async fn an_unknown_tier_uses_the_defaults() {
    let (layer, _clock) = timed(by_user, free_and_pro());
    let service = layer.clone().tier_by(plan).layer(Counting::default());
    for plan in ["", "PRO", "pro ", "free", "unknown"] {
        let response = send(&service, of_plan(plan)).await;
        let policy = header(&response, "ratelimit-policy");
        assert_eq!(policy, Some("\"calls\";q=3;w=30"), "{plan:?}");
    }
    // Without `tier_by` all requests are of the default.
    let untold = layer.layer(Counting::default());
    assert_eq!(status(&untold, of_plan("pro")).await, 429);
    // As they are where the policy has no tiers.
    let (layer, _clock) = timed(by_user, Quota::per_minute(1));
    let service = layer.tier_by(plan).layer(Counting::default());
    assert_eq!(status(&service, of_plan("pro")).await, 200);
    assert_eq!(status(&service, of_plan("pro")).await, 429);
}

#[test]
fn an_unknown_tier_is_logged_once() {
    let (layer, _clock) = timed(by_user, free_and_pro());
    let service = layer.tier_by(plan).layer(Counting::default());
    let lines = logged(|| {
        for plan in ["gold", "gold", "pro", "silver", "gold"] {
            let _ = tokio_test::block_on(send(&service, of_plan(plan)));
        }
    });
    let [gold, silver] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert!(gold.contains("WARN") && gold.contains("gold"), "{gold}");
    assert!(silver.contains("silver"), "{silver}");
}

#[test]
fn an_override_with_an_unknown_name_logs_a_warning() {
    let limits = Limits::new();
    let alice: KeyName = "user:alice".parse().unwrap();
    let set = |limit: &str| {
        tokio_test::block_on(limits.set(&alice, limit.parse().unwrap())).unwrap();
    };
    let lines = logged(|| {
        set("batch=4/min");
        let _service = RateLimitLayer::by(by_user, Policy::new("api", Quota::per_minute(1)))
            .limits(&limits)
            .layer(Counting::default());
        set("api=4/min");
        set("4/min");
        set("api=5/min, batch=4/min");
    });
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("WARN")).collect();
    let [warning] = &warnings[..] else {
        panic!("{lines:?}")
    };
    assert!(warning.contains("unknown=\"batch\""), "{warning}");
    assert!(warning.contains("known=\"api\""), "{warning}");
}

#[test]
fn an_unknown_tier_is_logged_once_for_concurrency() {
    let limits = Limits::new().tier("pro", "jobs=3 concurrent");
    let policy = Policy::from(Quota::per_hour(9)).tier("staff", Quota::per_hour(90));
    let rate = RateLimitLayer::by(by_user, policy).limits(&limits);
    let _limiter = rate.limiter();
    let service = ConcurrencyLimitLayer::new(10)
        .name("jobs")
        .per_key(by_user, 1)
        .limits(&limits)
        .tier_by(plan)
        .layer(Counting::default());
    let lines = logged(|| {
        for plan in ["gold", "pro", "staff", "gold", "staff"] {
            let _ = tokio_test::block_on(send(&service, of_plan(plan)));
        }
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("WARN") && lines[0].contains("gold"),
        "{lines:?}"
    );
}

/// The key's override, else the tier that is stored for it, else `tier_by`, else the default: quota by quota.
#[tokio::test]
async fn limits_are_resolved_quota_by_quota() {
    let clock = TestClock::default();
    let limits = Limits::new()
        .tier("pro", "calls=60/h, daily=1000/day")
        .tier("staff", "calls=600/h");
    let policy = Policy::new("calls", Quota::per_hour(6)).and("daily", Quota::per_day(100));
    let service = RateLimitLayer::by(by_user, policy)
        .store(store(&clock))
        .limits(&limits)
        .tier_by(plan)
        .layer(Counting::default());
    let numbers = async |plan| {
        let response = send(&service, of_plan(plan)).await;
        let policy = header(&response, "ratelimit-policy").unwrap();
        let quotas = policy.split(", ").map(|member| {
            let q = member.split(';').find_map(|part| part.strip_prefix("q="));
            q.unwrap().parse::<u32>().unwrap()
        });
        let quotas: Vec<_> = quotas.collect();
        <[u32; 2]>::try_from(quotas).unwrap()
    };
    assert_eq!(numbers("").await, [6, 100]);
    assert_eq!(numbers("pro").await, [60, 1000]);
    // A quota that the tier does not name keeps its default.
    assert_eq!(numbers("staff").await, [600, 100]);

    set(&limits, "user:alice", "tier=pro").await;
    assert_eq!(numbers("").await, [60, 1000]);
    assert_eq!(numbers("staff").await, [60, 1000]);

    set(&limits, "user:alice", "tier=staff, daily=7/day").await;
    assert_eq!(numbers("pro").await, [600, 7]);

    set(&limits, "user:alice", "calls=9/h").await;
    assert_eq!(numbers("").await, [9, 100]);
    assert_eq!(numbers("pro").await, [9, 1000]);

    set(&limits, "user:alice", "calls=unlimited").await;
    let response = send(&service, of_plan("pro")).await;
    assert_eq!(
        header(&response, "ratelimit-policy"),
        Some("\"daily\";q=1000;w=86400")
    );

    set(&limits, "user:alice", "unlimited").await;
    let response = send(&service, of_plan("pro")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "ratelimit-policy"), None);

    set(&limits, "user:alice", "deny all").await;
    assert_eq!(status(&service, of_plan("pro")).await, 403);

    let alice: KeyName = "user:alice".parse().unwrap();
    limits.delete(&alice).await.unwrap();
    assert_eq!(numbers("pro").await, [60, 1000]);
}

#[tokio::test]
async fn a_key_that_moves_to_another_tier_finds_its_buckets_there() {
    let clock = TestClock::default();
    let limits = Limits::new().tier("pro", "60/h");
    let service = RateLimitLayer::by(by_user, Quota::per_hour(2))
        .store(store(&clock))
        .limits(&limits)
        .layer(Counting::default());
    for code in [200, 200, 429] {
        assert_eq!(status(&service, user("alice")).await, code);
    }
    set(&limits, "user:alice", "tier=pro").await;
    for _ in 0..60 {
        assert_eq!(status(&service, user("alice")).await, 200);
    }
    assert_eq!(status(&service, user("alice")).await, 429);
    let alice: KeyName = "user:alice".parse().unwrap();
    limits.delete(&alice).await.unwrap();
    assert_eq!(status(&service, user("alice")).await, 429);
    // Moving between tiers never refills a bucket.
    for _ in 0..10 {
        set(&limits, "user:alice", "tier=pro").await;
        assert_eq!(status(&service, user("alice")).await, 429);
        limits.delete(&alice).await.unwrap();
        assert_eq!(status(&service, user("alice")).await, 429);
    }
}

#[tokio::test]
async fn a_tier_that_is_declared_later_applies_and_changes_no_usage() {
    let clock = TestClock::default();
    let limits = Limits::new();
    let service = RateLimitLayer::by(by_user, Quota::per_hour(2))
        .store(store(&clock))
        .limits(&limits)
        .tier_by(plan)
        .layer(Counting::default());
    for code in [200, 200, 429] {
        assert_eq!(status(&service, of_plan("pro")).await, code);
    }
    limits.try_tier("pro", "3/h".parse().unwrap()).unwrap();
    for code in [200, 200, 200, 429] {
        assert_eq!(status(&service, of_plan("pro")).await, code);
    }
    limits.try_tier("pro", "5/h".parse().unwrap()).unwrap();
    for code in [200, 200, 429] {
        assert_eq!(status(&service, of_plan("pro")).await, code);
    }
    assert_eq!(status(&service, user("alice")).await, 429);
}

#[tokio::test]
async fn handlers_find_the_numbers_of_the_tier() {
    let (layer, _clock) = timed(by_user, free_and_pro());
    let handler = answering(|request: Request<()>| {
        let status = request.extensions().get::<RateLimitStatus>().unwrap();
        let told: Vec<_> = status
            .usages()
            .map(|(name, u)| (name.to_owned(), u.limit(), u.remaining()))
            .collect();
        assert_eq!(
            told,
            [("calls".to_owned(), 10, 9), ("daily".to_owned(), 20, 19)]
        );
        ok()
    });
    let service = layer.tier_by(plan).layer(handler);
    assert_eq!(status(&service, of_plan("pro")).await, 200);
}

/// Where the first quota is off, the second has its own name all the same.
#[tokio::test]
async fn handlers_find_each_number_by_its_name() {
    let policy = Policy::new("calls", Quota::off())
        .and("daily", Quota::per_day(20))
        .tier("pro", "calls=60/min burst 10, daily=unlimited");
    let (layer, _clock) = timed(by_user, policy);
    let numbers = |request: &Request<()>| {
        let status = request.extensions().get::<RateLimitStatus>().unwrap();
        let numbers = status.usages();
        let numbers = numbers.map(|(name, usage)| format!("{name}={}", usage.limit()));
        numbers.collect::<Vec<_>>()
    };
    for (plan, expected) in [("pro", "calls=10"), ("free", "daily=20")] {
        let handler = answering(move |request: Request<()>| {
            assert_eq!(numbers(&request), [expected], "{plan}");
            ok()
        });
        let service = layer.clone().tier_by(self::plan).layer(handler);
        assert_eq!(status(&service, of_plan(plan)).await, 200);
    }
}

#[tokio::test]
async fn a_handler_charges_and_refunds_the_tier_of_its_request() {
    let (layer, _clock) = timed(by_user, free_and_pro());
    let limiter = layer.limiter();
    let left = move |tier: Option<&str>| {
        let limiter = match tier {
            Some(tier) => limiter.tier(tier).unwrap(),
            None => limiter.clone(),
        };
        let decision = limiter.peek(&user_key("alice")).now().unwrap();
        decision.usages()[0].remaining()
    };
    let seen = left.clone();
    let handler = answering(move |request: Request<()>| {
        let status = request.extensions().get::<RateLimitStatus>().unwrap();
        status.charge(6).now().unwrap().unwrap();
        assert_eq!((seen(None), seen(Some("pro"))), (3, 3));
        // More than is left in the tier.
        assert!(status.charge(4).now().unwrap().is_err());
        status.refund(2).now().unwrap();
        assert_eq!((seen(None), seen(Some("pro"))), (3, 5));
        status.refund(u32::MAX).now().unwrap();
        assert_eq!((seen(None), seen(Some("pro"))), (3, 10));
        ok()
    });
    let service = layer.tier_by(plan).layer(handler);
    let response = send(&service, of_plan("pro")).await;
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"calls\";r=10;t=0, \"daily\";r=20;t=0")
    );
    assert_eq!((left(None), left(Some("pro"))), (3, 10));
}

#[tokio::test]
async fn the_other_policies_are_the_same_in_each_tier() {
    let (layer, _clock) = timed(
        by_user,
        Policy::from(Quota::per_hour(2)).tier("pro", Quota::off()),
    );
    let layer = layer
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(5)))
        .tier_by(plan);
    let service = layer.layer(Counting::default());
    let from = |tier| {
        let mut request = of_plan(tier);
        request.extensions_mut().insert(peer("192.0.2.1"));
        request
    };
    for tier in ["", "", "pro", "pro"] {
        assert_eq!(status(&service, from(tier)).await, 200);
    }
    assert_eq!(status(&service, from("")).await, 429);
    let last = send(&service, from("pro")).await;
    assert_eq!(header(&last, "ratelimit-policy"), Some("\"ip\";q=5;w=3600"));
    assert_eq!(header(&last, "ratelimit"), Some("\"ip\";r=0;t=3600"));
    assert_eq!(status(&service, from("pro")).await, 429);
}

#[tokio::test]
async fn each_of_two_policies_has_its_tiers() {
    let (layer, _clock) = timed(
        by_user,
        Policy::from(Quota::per_hour(2)).tier("pro", Quota::per_hour(9)),
    );
    let ip = Policy::from(Quota::per_hour(1))
        .tier("pro", Quota::per_hour(3))
        .tier("staff", Quota::off());
    let layer = layer.and_by(ClientIp::peer(), ip).tier_by(plan);
    let service = layer.layer(Counting::default());
    let response = send(&service, of_plan("pro")).await;
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"default\";r=8;t=400, \"default-2\";r=2;t=1200")
    );
    let response = send(&service, user("alice")).await;
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"default\";r=1;t=1800, \"default-2\";r=0;t=3600")
    );
    assert_eq!(status(&service, user("alice")).await, 429);
    // The first policy does not have this tier: its default applies.
    let response = send(&service, of_plan("staff")).await;
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"default\";r=0;t=3600")
    );
    assert_eq!(status(&service, of_plan("staff")).await, 429);
}

#[tokio::test]
async fn a_tier_works_with_every_setting_of_a_layer() {
    let clock = TestClock::default();
    let limits = Limits::new();
    let (seen, _released) = Seen::new();
    let layer = RateLimitLayer::by(by_user, free_and_pro())
        .tier_by(plan)
        .store(store(&clock))
        .headers(RateLimitHeaders::Legacy)
        .cost(|head| if head.uri.path() == "/dear" { 5 } else { 1 })
        .skip(|head| head.uri.path() == "/health")
        .limits(&limits)
        .name("api")
        .observe(seen.clone());
    let service = layer.layer(Counting::default());
    let to = |path: &str| {
        let mut request = of_plan("pro");
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    assert_eq!(status(&service, to("/health")).await, 200);
    let response = send(&service, to("/dear")).await;
    assert_eq!(header(&response, "x-ratelimit-limit"), Some("10"));
    assert_eq!(header(&response, "x-ratelimit-remaining"), Some("5"));
    let pro = layer.limiter().tier("pro").unwrap();
    let peeked = pro.peek(&user_key("alice")).now().unwrap();
    assert_eq!(peeked.remaining(), Some(5));
    set(&limits, "user:alice", "calls=100/min").await;
    let response = send(&service, to("/dear")).await;
    // The override is of one quota; the other one has the numbers of the tier.
    assert_eq!(header(&response, "x-ratelimit-limit"), Some("20"));
    assert_eq!(header(&response, "x-ratelimit-remaining"), Some("10"));
    let peeked = pro.peek(&user_key("alice")).now().unwrap();
    assert_eq!(peeked.usages()[0].limit(), 100);
    assert_eq!(seen.take(), ["admitted http", "admitted http"]);
}

#[tokio::test]
async fn all_dialects_report_the_numbers_of_the_tier() {
    let limits = Limits::new();
    set(&limits, "user:bob", "calls=90/min burst 45").await;
    let layer = RateLimitLayer::by(by_user, free_and_pro())
        .store(store(&TestClock::default()))
        .limits(&limits)
        .tier_by(plan);
    let bob = || {
        let mut request = user("bob");
        request.extensions_mut().insert(Plan("pro"));
        request
    };
    let draft_6 = layer.clone().headers(RateLimitHeaders::Draft6);
    let service = draft_6.layer(Counting::default());
    for (request, limit, policy) in [
        (user("alice"), "3", "3;w=30"),
        (of_plan("pro"), "10", "10;w=10, 20;w=86400"),
        (bob(), "20", "45;w=30, 20;w=86400"),
    ] {
        let response = send(&service, request).await;
        assert_eq!(header(&response, "ratelimit-limit"), Some(limit));
        assert_eq!(header(&response, "ratelimit-policy"), Some(policy));
    }
    let service = layer.clone().layer(Counting::default());
    let response = send(&service, bob()).await;
    assert_eq!(
        header(&response, "ratelimit-policy"),
        Some("\"calls\";q=45;w=30, \"daily\";q=20;w=86400")
    );
    for dialect in [RateLimitHeaders::Legacy, RateLimitHeaders::LegacyEpoch] {
        let service = layer.clone().headers(dialect).layer(Counting::default());
        for (request, limit) in [(user("alice"), "3"), (of_plan("pro"), "10"), (bob(), "20")] {
            let response = send(&service, request).await;
            assert_eq!(header(&response, "x-ratelimit-limit"), Some(limit));
            assert_eq!(header(&response, "ratelimit-policy"), None);
        }
    }
}

#[tokio::test]
async fn a_dry_run_uses_the_limit_of_the_tier() {
    let (layer, _clock) = timed(by_user, free_and_pro());
    let (seen, _released) = Seen::new();
    let service = layer
        .tier_by(plan)
        .dry_run(true)
        .observe(seen.clone())
        .layer(Counting::default());
    for _ in 0..10 {
        assert_eq!(status(&service, of_plan("pro")).await, 200);
    }
    assert_eq!(seen.take(), ["admitted http"; 10]);
    assert_eq!(status(&service, of_plan("pro")).await, 200);
    assert!(seen.take().pop().unwrap().starts_with("would reject"));
}

/// A key has one count in all tiers; the tier only selects the limit.
#[tokio::test]
async fn a_tier_selects_how_many_of_a_key_may_be_in_flight() {
    let limits = Limits::new().tier("pro", "jobs=3 concurrent");
    let layer = ConcurrencyLimitLayer::new(10)
        .name("jobs")
        .per_key(by_user, 1)
        .limits(&limits)
        .tier_by(plan);
    let service = layer.layer(Counting::default());
    // A response holds its permit until its body is dropped.
    let first = send(&service, user("alice")).await;
    assert_eq!(first.status(), 200);
    assert_eq!(status(&service, user("alice")).await, 429);
    assert_eq!(status(&service, of_plan("unknown")).await, 429);
    let second = send(&service, of_plan("pro")).await;
    let third = send(&service, of_plan("pro")).await;
    assert_eq!(
        (second.status(), third.status()),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
    assert_eq!(status(&service, of_plan("pro")).await, 429);
    drop(second);
    assert_eq!(status(&service, user("alice")).await, 429);
    assert_eq!(status(&service, of_plan("pro")).await, 200);

    // A stored tier takes precedence over `tier_by`, and an override over both.
    set(&limits, "user:alice", "tier=pro").await;
    let stored = send(&service, user("alice")).await;
    assert_eq!(stored.status(), 200);
    set(&limits, "user:alice", "tier=pro, jobs=2 concurrent").await;
    drop(stored);
    assert_eq!(status(&service, of_plan("pro")).await, 429);
    drop(third);
    assert_eq!(status(&service, of_plan("pro")).await, 200);
    drop(first);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[test]
#[should_panic(expected = "this store has no tiers")]
fn a_store_without_tiers_is_rejected_when_the_limit_is_opened() {
    let later = LaterStore::new(&TestClock::default());
    let _ = RateLimitLayer::by(by_user, free_and_pro())
        .store(later)
        .limiter();
}

/// A policy that is renamed because its name is taken keeps its tiers.
#[tokio::test]
async fn a_renamed_policy_keeps_its_tiers() {
    let (layer, _clock) = timed(by_user, Policy::new("calls", Quota::per_hour(100)));
    let ip = Policy::new("calls", Quota::per_hour(50))
        .and("daily", Quota::per_hour(60))
        .tier("pro", "calls=3/h");
    let layer = layer.and_by(ClientIp::peer(), ip).tier_by(plan);
    let service = layer.layer(Counting::default());
    let response = send(&service, of_plan("pro")).await;
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"calls\";r=99;t=36, \"calls-2\";r=2;t=1200, \"daily\";r=59;t=60")
    );
}

/// The refund goes to the charged tier, even after the key moved to another tier.
#[tokio::test]
async fn a_refund_goes_to_the_charged_tier() {
    let clock = TestClock::default();
    let limits = Limits::new().tier("pro", "10/h");
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(3))
        .store(store(&clock))
        .limits(&limits);
    let limiter = layer.limiter();
    let left = |tier: Option<&str>| {
        let limiter = match tier {
            Some(tier) => limiter.tier(tier).unwrap(),
            None => limiter.clone(),
        };
        let decision = limiter.peek(&user_key("alice")).now().unwrap();
        decision.usages()[0].remaining()
    };
    let statuses = Arc::new(Mutex::new(Vec::<RateLimitStatus>::new()));
    let seen = statuses.clone();
    let handler = answering(move |request: Request<()>| {
        let status = request.extensions().get::<RateLimitStatus>().unwrap();
        seen.lock().unwrap().push(status.clone());
        ok()
    });
    let service = layer.layer(handler);
    assert_eq!(status(&service, user("alice")).await, 200);
    assert_eq!(status(&service, user("alice")).await, 200);
    assert_eq!(left(None), 1);
    set(&limits, "user:alice", "tier=pro").await;
    for _ in 0..10 {
        assert_eq!(status(&service, user("alice")).await, 200);
    }
    assert_eq!(status(&service, user("alice")).await, 429);
    let first: Vec<_> = statuses.lock().unwrap().drain(..2).collect();
    for status in first {
        status.refund(1).now().unwrap();
    }
    // The refunds did not go to the current tier.
    assert_eq!(status(&service, user("alice")).await, 429);
    limits.delete(&"user:alice".parse().unwrap()).await.unwrap();
    assert_eq!(left(None), 3);
}
