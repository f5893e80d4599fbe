//! Requests that count only if their response does.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt};
use tower_admission::store::{Charge, RateBuckets, RateStore, Reply};
use tower_admission::{
    ByToken, ClientIp, Decision, Key, Limits, Policy, Quota, RateLimitByTokenLayer,
    RateLimitHeaders, RateLimitLayer, RateLimiter,
};
use tower_test::mock;

use crate::common::{
    LaterStore, Ok200, answering, by_user, header, ok, peer, send, status, timed, user, user_key,
};

/// A request of `name` that is answered with this status.
fn answered(name: &str, code: u16) -> Request<()> {
    let mut request = user(name);
    request.headers_mut().insert("code", code.into());
    request.extensions_mut().insert(peer("192.0.2.1"));
    request
}

/// Answers with the status that a request asks for.
fn obeying(request: Request<()>) -> Ok200 {
    let mut response = ok();
    let code = request.headers()["code"].to_str().unwrap().parse().unwrap();
    *response.status_mut() = code;
    response
}

fn left(limiter: &RateLimiter, keys: &[Key]) -> Vec<u32> {
    let peek = limiter.peek_all(keys, 0).into_future();
    let decision = assert_ready!(task::spawn(peek).poll());
    decision.usages().iter().map(|u| u.remaining()).collect()
}

fn alice_and_address() -> [Key; 2] {
    [user_key("alice"), Key::ip([192, 0, 2, 1].into())]
}

#[tokio::test]
async fn only_responses_that_count_are_charged() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(3));
    let service = layer
        .count_if(|response| response.status == 401)
        .layer(answering(obeying));
    for (code, field) in [
        (200, "\"default\";r=3;t=0"),
        (401, "\"default\";r=2;t=1200"),
        (500, "\"default\";r=2;t=1200"),
        (401, "\"default\";r=1;t=2400"),
        (200, "\"default\";r=1;t=2400"),
        (401, "\"default\";r=0;t=3600"),
    ] {
        let response = send(&service, answered("alice", code)).await;
        assert_eq!(response.status(), code);
        assert_eq!(header(&response, "ratelimit"), Some(field));
    }
    assert_eq!(status(&service, answered("alice", 200)).await, 429);
    assert_eq!(status(&service, answered("bob", 401)).await, 401);
}

#[tokio::test]
async fn count_if_sees_the_head_of_a_response() {
    #[derive(Clone)]
    struct FromCache;

    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let service = layer
        .count_if(|response| {
            response.extensions.get::<FromCache>().is_none()
                && !response.headers.contains_key("x-from-cache")
        })
        .layer(answering(|request: Request<()>| {
            let mut response = obeying(request);
            match response.status().as_u16() {
                201 => drop(response.extensions_mut().insert(FromCache)),
                202 => drop(response.headers_mut().insert("x-from-cache", 1.into())),
                _ => {}
            }
            response
        }));
    for code in [201, 202, 201, 200] {
        assert_eq!(status(&service, answered("alice", code)).await, code);
    }
    assert_eq!(status(&service, answered("alice", 201)).await, 429);
}

#[tokio::test]
async fn a_refund_needs_no_headers_and_no_status() {
    for dialect in [RateLimitHeaders::Off, RateLimitHeaders::Legacy] {
        let (layer, _clock) = timed(by_user, Quota::per_hour(1));
        let service = layer
            .headers(dialect)
            .status(false)
            .count_if(|response| response.status == 401)
            .layer(answering(obeying));
        for _ in 0..3 {
            let response = send(&service, answered("alice", 200)).await;
            let told = (dialect == RateLimitHeaders::Legacy).then_some("1");
            assert_eq!(header(&response, "x-ratelimit-remaining"), told);
        }
        assert_eq!(status(&service, answered("alice", 401)).await, 401);
        assert_eq!(status(&service, answered("alice", 200)).await, 429);
    }
}

#[tokio::test]
async fn a_request_in_flight_counts_until_its_response() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let layer = layer.count_if(|response| response.status != 200);
    let (mut service, mut inner) =
        mock::spawn_layer::<Request<()>, Response<Full<Bytes>>, _>(layer);
    inner.allow(10);
    assert_ready_ok!(service.poll_ready());
    let mut first = task::spawn(service.call(user("alice")));
    assert_pending!(first.poll());
    assert_ready_ok!(service.poll_ready());
    let mut second = task::spawn(service.call(user("alice")));
    assert_eq!(assert_ready_ok!(second.poll()).status(), 429);

    let (_, reply) = assert_ready!(inner.poll_request()).unwrap();
    reply.send_response(ok());
    assert_eq!(assert_ready_ok!(first.poll()).status(), 200);
    assert_ready_ok!(service.poll_ready());
    let mut third = task::spawn(service.call(user("alice")));
    assert_pending!(third.poll());
}

#[tokio::test]
async fn a_request_without_a_response_counts() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(3));
    let layer = layer.count_if(|_| false);
    let never = tower::service_fn(|_: Request<()>| async {
        std::future::pending::<Result<Ok200, Infallible>>().await
    });
    let mut hanging_up = task::spawn(layer.layer(never).oneshot(user("alice")));
    assert_pending!(hanging_up.poll());
    drop(hanging_up);
    assert_eq!(left(&layer.limiter(), &[user_key("alice")]), [2]);

    let failing = tower::service_fn(|_: Request<()>| async { Err::<Ok200, _>("broken") });
    let failed = layer.layer(failing).oneshot(user("alice")).await;
    assert_eq!(failed.err(), Some("broken"));
    assert_eq!(left(&layer.limiter(), &[user_key("alice")]), [1]);
}

#[tokio::test]
async fn a_refund_covers_the_whole_cost_and_every_key() {
    let policy = Policy::new("burst", Quota::per_hour(10)).and("daily", Quota::per_day(20));
    let (layer, _clock) = timed(by_user, policy);
    let layer = layer
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(30)))
        .cost(|_| 4)
        .count_if(|response| response.status == 401);
    let service = layer.layer(answering(obeying));
    for _ in 0..5 {
        assert_eq!(status(&service, answered("alice", 200)).await, 200);
    }
    let limiter = layer.limiter();
    assert_eq!(left(&limiter, &alice_and_address()), [10, 20, 30]);
    let counted = send(&service, answered("alice", 401)).await;
    let told = "\"burst\";r=6;t=1440, \"daily\";r=16;t=17280, \"ip\";r=26;t=480";
    assert_eq!(header(&counted, "ratelimit"), Some(told));
}

#[tokio::test]
async fn a_refund_goes_to_the_tier_and_the_override() {
    let clock = tower_admission::test_util::TestClock::default();
    let limits = Limits::new();
    let policy = Policy::from(Quota::per_hour(5)).tier("pro", Quota::per_hour(50));
    let layer = RateLimitLayer::by(by_user, policy)
        .store(crate::common::store(&clock))
        .limits(&limits)
        .tier_by(|head| head.headers.get("tier")?.to_str().ok())
        .count_if(|response| response.status == 401);
    let service = layer.layer(answering(obeying));
    let pro = |name| {
        let mut request = answered(name, 200);
        let tier = http::HeaderValue::from_static("pro");
        request.headers_mut().insert("tier", tier);
        request
    };
    for _ in 0..60 {
        assert_eq!(status(&service, pro("alice")).await, 200);
    }
    let limiter = layer.limiter();
    let alice = [user_key("alice")];
    assert_eq!(left(&limiter, &alice), [5]);
    assert_eq!(left(&limiter.tier("pro").unwrap(), &alice), [50]);

    limits
        .set(&user_key("bob").into(), "2/h".parse().unwrap())
        .await
        .unwrap();
    for _ in 0..5 {
        let response = send(&service, answered("bob", 200)).await;
        assert_eq!(header(&response, "ratelimit"), Some("\"default\";r=2;t=0"));
    }
    assert_eq!(left(&limiter, &[user_key("bob")]), [2]);
}

/// A refund into buckets that were not charged would refill buckets that other requests used up.
#[tokio::test]
async fn a_request_of_an_unlimited_tier_charges_and_refunds_no_other_tier() {
    let policy = Policy::from(Quota::per_hour(5)).tier("free", Quota::off());
    let (layer, _clock) = timed(by_user, policy);
    let layer = layer
        .tier_by(|head| head.headers.get("tier")?.to_str().ok())
        .count_if(|response| response.status == 401);
    let service = layer.layer(answering(obeying));
    let free = |code| {
        let mut request = answered("alice", code);
        let tier = http::HeaderValue::from_static("free");
        request.headers_mut().insert("tier", tier);
        request
    };
    for _ in 0..2 {
        assert_eq!(status(&service, answered("alice", 401)).await, 401);
    }
    for _ in 0..10 {
        assert_eq!(status(&service, free(200)).await, 200);
        assert_eq!(status(&service, free(401)).await, 401);
    }
    assert_eq!(left(&layer.limiter(), &[user_key("alice")]), [3]);
}

/// When requests of all tiers shared buckets, refunds of the larger tier let the smaller one admit more than it allows.
#[tokio::test]
async fn refunds_in_one_tier_admit_nothing_in_another() {
    let policy = Policy::from(Quota::per_hour(3)).tier("pro", Quota::per_hour(50));
    let (layer, _clock) = timed(by_user, policy);
    let layer = layer
        .tier_by(|head| head.headers.get("tier")?.to_str().ok())
        .count_if(|response| response.status == 401);
    let service = layer.layer(answering(obeying));
    let pro = |code| {
        let mut request = answered("alice", code);
        let tier = http::HeaderValue::from_static("pro");
        request.headers_mut().insert("tier", tier);
        request
    };
    let mut admitted = 0;
    for _ in 0..40 {
        assert_eq!(status(&service, pro(200)).await, 200);
        if status(&service, answered("alice", 401)).await == 401 {
            admitted += 1;
        }
        assert_eq!(status(&service, pro(401)).await, 401);
    }
    assert_eq!(admitted, 3);
    let limiter = layer.limiter();
    let alice = [user_key("alice")];
    assert_eq!(left(&limiter, &alice), [0]);
    assert_eq!(left(&limiter.tier("pro").unwrap(), &alice), [10]);
}

#[tokio::test]
async fn a_response_waits_for_the_refund_of_a_store_that_replies_later() {
    let (layer, clock) = timed(by_user, Quota::per_hour(3));
    let later = LaterStore::new(&clock);
    let layer = layer.store(later.clone()).count_if(|_| false);
    let mut service = layer.layer(answering(obeying));
    let mut call = task::spawn(service.call(answered("alice", 200)));
    assert_pending!(call.poll());
    later.answer(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    assert_eq!(left(&layer.limiter(), &[user_key("alice")]), [2]);
    later.answer(1);
    assert!(call.is_woken());
    let response = assert_ready_ok!(call.poll());
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "ratelimit"), Some("\"default\";r=3;t=0"));
    assert_eq!(left(&layer.limiter(), &[user_key("alice")]), [3]);

    // A client that disconnects while the response waits is charged.
    later.answer(1);
    let mut hanging_up = task::spawn(service.call(answered("alice", 200)));
    assert_pending!(hanging_up.poll());
    drop(hanging_up);
    later.answer(1);
    assert_eq!(left(&layer.limiter(), &[user_key("alice")]), [2]);
}

/// Otherwise a client on a dry run could refund the charges of others.
#[tokio::test]
async fn a_request_that_was_not_charged_refunds_nothing() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let layer = layer
        .count_if(|response| response.status == 401)
        .dry_run(true);
    let service = layer.layer(answering(obeying));
    assert_eq!(status(&service, answered("alice", 401)).await, 401);
    assert_eq!(status(&service, answered("alice", 200)).await, 200);
    assert_eq!(left(&layer.limiter(), &[user_key("alice")]), [0]);

    /// Admits everything without counting it.
    #[derive(Clone)]
    struct Uncounted;

    impl RateStore for Uncounted {
        fn open(&self, _: &[Policy]) -> Arc<dyn RateBuckets> {
            Arc::new(Self)
        }
    }

    impl RateBuckets for Uncounted {
        fn take(&self, _: &[Charge], _: u32) -> Reply<Decision> {
            Reply::Ready(Decision::unlimited())
        }

        fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
            self.take(charges, cost)
        }

        fn refund(&self, _: &[Charge], _: u32) -> Reply<()> {
            panic!("nothing was taken")
        }
    }

    let layer = RateLimitLayer::by(by_user, Quota::per_hour(1)).store(Uncounted);
    let service = layer.count_if(|_| false).layer(answering(obeying));
    assert_eq!(status(&service, answered("alice", 200)).await, 200);
}

/// Password guessing: failures are limited per address, and a successful login is not charged.
#[tokio::test]
async fn failed_logins_are_limited_by_address() {
    let layer = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(3))
        .count_if(|response| response.status == 401);
    let service = layer.layer(answering(obeying));
    for code in [200, 401, 200, 401, 200, 401] {
        assert_eq!(status(&service, answered("alice", code)).await, code);
    }
    assert_eq!(status(&service, answered("bob", 200)).await, 429);
}

#[tokio::test]
async fn a_request_that_does_not_count_is_still_guarded() {
    let (layer, _clock) = timed(ByToken::default(), Quota::per_hour(10));
    let layer: RateLimitByTokenLayer = layer
        .count_if(|response| response.status == 200)
        .guard_by_ip(Quota::per_hour(2));
    let service = layer.layer(answering(obeying));
    let guess = || {
        let mut request = answered("alice", 401);
        let token = http::HeaderValue::from_static("Bearer bad");
        request.headers_mut().insert("authorization", token);
        request
    };
    assert_eq!(status(&service, guess()).await, 401);
    let second = send(&service, guess()).await;
    assert_eq!(header(&second, "ratelimit"), Some("\"default\";r=10;t=0"));
    assert_eq!(status(&service, guess()).await, 429);
}
