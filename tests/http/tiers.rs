//! What a request has to fit may come from the request.

use http::Request;
use tower::Layer;
use tower_admission::test_util::TestClock;
use tower_admission::{
    ClientIp, Limits, Policy, Quota, RateLimitHeaders, RateLimitLayer, RateLimitStatus, RequestHead,
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

fn free_and_pro() -> Policy {
    let pro = Policy::new("pro", Quota::per_minute(60).burst(10));
    Policy::new("free", Quota::per_minute(6).burst(3))
        .tier("pro", pro.and("daily", Quota::per_day(20)))
}

#[tokio::test]
async fn each_tier_has_its_policy_and_tells_it() {
    let (layer, clock) = timed(by_user, free_and_pro());
    let service = layer.tier_by(plan).layer(Counting::default());
    let response = send(&service, user("alice")).await;
    assert_eq!(
        header(&response, "ratelimit-policy"),
        Some("\"free\";q=3;w=30")
    );
    assert_eq!(header(&response, "ratelimit"), Some("\"free\";r=2;t=10"));
    let response = send(&service, of_plan("pro")).await;
    assert_eq!(
        header(&response, "ratelimit-policy"),
        Some("\"pro\";q=10;w=10, \"daily\";q=20;w=86400")
    );
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"pro\";r=8;t=2, \"daily\";r=18;t=8640")
    );
    assert_eq!(status(&service, user("alice")).await, 200);
    let refused = send(&service, user("alice")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(retry_after(&refused), Some(10));
    assert_eq!(
        header(&refused, "ratelimit-policy"),
        Some("\"free\";q=3;w=30")
    );
    let body = text(refused).await;
    assert!(body.contains("[\"free\"]"), "{body}");

    for _ in 0..7 {
        assert_eq!(status(&service, of_plan("pro")).await, 200);
    }
    let refused = send(&service, of_plan("pro")).await;
    assert_eq!(retry_after(&refused), Some(1));
    let body = text(refused).await;
    assert!(body.contains("[\"pro\"]"), "{body}");
    clock.advance(10 * SECOND);
    for _ in 0..10 {
        assert_eq!(status(&service, of_plan("pro")).await, 200);
    }
    clock.advance(10 * SECOND);
    let refused = send(&service, of_plan("pro")).await;
    assert_eq!(refused.status(), 429);
    let body = text(refused).await;
    assert!(body.contains("[\"daily\"]"), "{body}");
}

#[tokio::test]
async fn a_tier_that_is_none_is_none() {
    let (layer, _clock) = timed(by_user, free_and_pro());
    let service = layer.clone().tier_by(plan).layer(Counting::default());
    for plan in ["", "PRO", "pro ", "free", "unknown"] {
        let response = send(&service, of_plan(plan)).await;
        let policy = header(&response, "ratelimit-policy");
        assert_eq!(policy, Some("\"free\";q=3;w=30"), "{plan:?}");
    }
    // Without a way to know, all are of none.
    let untold = layer.layer(Counting::default());
    let refused = send(&untold, of_plan("pro")).await;
    assert_eq!(refused.status(), 429);
    // Nor does a policy without tiers ask for more than that.
    let (layer, _clock) = timed(by_user, Quota::per_minute(1));
    let service = layer.tier_by(plan).layer(Counting::default());
    assert_eq!(status(&service, of_plan("pro")).await, 200);
    assert_eq!(status(&service, of_plan("pro")).await, 429);
}

#[tokio::test]
async fn handlers_are_told_of_the_tier() {
    let (layer, _clock) = timed(by_user, free_and_pro());
    let handler = answering(|request: Request<()>| {
        let status = request.extensions().get::<RateLimitStatus>().unwrap();
        let told: Vec<_> = status
            .usages()
            .map(|(name, u)| (name.to_owned(), u.limit()))
            .collect();
        assert_eq!(told, [("pro".to_owned(), 10), ("daily".to_owned(), 20)]);
        ok()
    });
    let service = layer.tier_by(plan).layer(handler);
    assert_eq!(status(&service, of_plan("pro")).await, 200);
}

#[tokio::test]
async fn the_other_policies_are_the_same_in_each() {
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
    assert_eq!(header(&last, "ratelimit"), Some("\"ip\";r=0;t=3600"));
    assert_eq!(status(&service, from("pro")).await, 429);
}

#[tokio::test]
async fn two_policies_with_tiers() {
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
    assert_eq!(status(&service, user("alice")).await, 429);
    // The first policy has no such tier, and is as in none.
    let response = send(&service, of_plan("staff")).await;
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"default\";r=0;t=3600")
    );
    assert_eq!(status(&service, of_plan("staff")).await, 429);
}

#[tokio::test]
async fn a_tier_goes_with_all_that_a_layer_has() {
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
    let pro = layer.limiter();
    let pro = pro.tier("pro").unwrap();
    assert_eq!(pro.check_n(&user_key("alice"), 0).remaining(), Some(5));
    let key = "user:alice".parse().unwrap();
    limits
        .set(&key, "pro=100/min".parse().unwrap())
        .await
        .unwrap();
    let response = send(&service, to("/dear")).await;
    // Its own of that name; of the other quota what all have.
    assert_eq!(header(&response, "x-ratelimit-limit"), Some("20"));
    assert_eq!(header(&response, "x-ratelimit-remaining"), Some("10"));
    assert_eq!(pro.peek(&user_key("alice")).usages()[0].limit(), 100);
    assert_eq!(seen.take(), ["admitted http", "admitted http"]);
}

#[tokio::test]
async fn a_dry_run_tells_of_the_tiers_limit() {
    let (layer, _clock) = timed(by_user, free_and_pro());
    let (seen, _released) = Seen::new();
    let service = layer
        .tier_by(plan)
        .dry_run(true)
        .observe(seen.clone())
        .layer(Counting::default());
    for _ in 0..11 {
        assert_eq!(status(&service, of_plan("pro")).await, 200);
    }
    assert!(seen.take().pop().unwrap().starts_with("would reject"));
}

#[test]
#[should_panic(expected = "this store has no tiers")]
fn a_store_without_tiers_is_refused_at_construction() {
    let later = LaterStore::new(&TestClock::default());
    let _ = RateLimitLayer::by(by_user, free_and_pro()).store(later);
}
