//! Limits that are enforced for a percentage of the keys.

use http::Request;
use tower::Layer;
use tower_admission::{
    BearerToken, ClientIp, ConcurrencyLimitLayer, Policy, Quota, RateLimitLayer, Shared,
};

use crate::common::{
    Counting, Seen, answering, by_user, header, ok, peer, request, send, status, timed, user,
};

#[tokio::test]
async fn a_percentage_enforces_the_same_keys_every_time() {
    let (seen, _) = Seen::new();
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let service = layer
        .enforce(25)
        .observe(seen.clone())
        .layer(Counting::default());
    let mut rejected = Vec::new();
    for n in 0..200 {
        let name = n.to_string();
        assert_eq!(status(&service, user(&name)).await, 200);
        let again = status(&service, user(&name)).await;
        for _ in 0..3 {
            assert_eq!(status(&service, user(&name)).await, again);
        }
        rejected.push(again == 429);
    }
    let enforced = rejected.iter().filter(|rejected| **rejected).count();
    // 50 with a standard deviation of 6.
    assert!((10..100).contains(&enforced), "{enforced}");
    let events = seen.take();
    let seen = |event: &str| events.iter().filter(|seen| *seen == event).count();
    assert_eq!(seen("admitted http"), 200);
    assert_eq!(seen("rejected http quota_exceeded"), 4 * enforced);
    let admitted = 4 * (200 - enforced);
    assert_eq!(seen("would reject http quota_exceeded"), admitted);
}

#[tokio::test]
async fn zero_percent_is_a_dry_run_and_a_hundred_is_the_default() {
    let layer = || timed(by_user, Quota::deny_all()).0;
    for (layer, admits) in [
        (layer().enforce(0), true),
        (layer().dry_run(true), true),
        (layer().enforce(100), false),
        (layer().dry_run(true).dry_run(false), false),
        (layer(), false),
    ] {
        let service = layer.layer(Counting::default());
        for n in 0..50 {
            let response = send(&service, user(&n.to_string())).await;
            assert_eq!(response.status() == 200, admits);
            assert_eq!(header(&response, "ratelimit").is_none(), admits);
        }
    }
}

/// The rejecting address decides, and not the token, which a client can make up.
#[tokio::test]
async fn the_key_whose_limit_rejects_decides_about_enforcement() {
    let (layer, _clock) = timed(BearerToken, Policy::new("token", Quota::per_hour(100)));
    let service = layer
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::deny_all()))
        .enforce(50)
        .layer(Counting::default());
    let mut fates = Vec::new();
    for n in 0..64u8 {
        let mut fate = Vec::new();
        for token in ["a", "b", "c", "d"] {
            let request = Request::builder()
                .header("authorization", format!("Bearer {token}-{n}"))
                .extension(peer(&format!("192.0.2.{n}")));
            fate.push(status(&service, request.body(()).unwrap()).await);
        }
        fate.dedup();
        assert_eq!(fate.len(), 1, "one fate for one address");
        fates.push(fate[0]);
    }
    fates.sort();
    fates.dedup();
    assert_eq!(fates, [200, 403]);
}

/// A used-up token whose limit is not enforced does not hide the limit of the address.
#[tokio::test]
async fn one_enforced_key_of_several_that_reject_is_enough() {
    let (layer, _clock) = timed(BearerToken, Policy::new("token", Quota::per_hour(1)));
    let service = layer
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(1)))
        .enforce(50)
        .layer(Counting::default());
    let mut fates = Vec::new();
    for n in 0..64u8 {
        let ask = |token: &str| {
            let request = Request::builder()
                .header("authorization", format!("Bearer {token}-{n}"))
                .extension(peer(&format!("192.0.2.{n}")));
            status(&service, request.body(()).unwrap())
        };
        assert_eq!(ask("used").await, 200);
        let fate = (ask("fresh").await, ask("used").await);
        assert_ne!(fate, (429, 200), "the address is enforced");
        fates.push(fate);
    }
    fates.sort();
    fates.dedup();
    assert_eq!(fates, [(200, 200), (200, 429), (429, 429)]);
}

#[tokio::test]
async fn requests_with_a_shared_key_are_enforced_in_rotation() {
    let layer = RateLimitLayer::by(Shared, Quota::deny_all()).enforce(25);
    let service = layer.layer(Counting::default());
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(status(&service, request()).await);
    }
    assert_eq!(statuses, [200, 200, 200, 403, 200, 200, 200, 403]);
}

#[tokio::test]
async fn the_guard_is_enforced_by_the_same_percentage() {
    let unauthorized = answering(|_: Request<()>| {
        let mut response = ok();
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
        response
    });
    let service = RateLimitLayer::by(BearerToken, Quota::off())
        .guard_by_ip(Quota::per_hour(1))
        .enforce(50)
        .layer(unauthorized);
    let mut statuses = Vec::new();
    for n in 0..64u8 {
        let mut second = 0;
        for _ in 0..2 {
            let request = Request::builder()
                .header("authorization", "Bearer bad")
                .extension(peer(&format!("192.0.2.{n}")));
            second = status(&service, request.body(()).unwrap()).await;
        }
        statuses.push(second);
    }
    statuses.sort();
    statuses.dedup();
    assert_eq!(statuses, [401, 429]);
}

#[test]
#[should_panic(expected = "cannot enforce 101 percent of the rejections")]
fn a_percentage_above_100_panics() {
    let _ = RateLimitLayer::by(Shared, Quota::off()).enforce(101);
}

#[tokio::test]
async fn capacity_is_enforced_in_rotation() {
    let (seen, _) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(1)
        .enforce(25)
        .observe(seen.clone());
    let service = layer.layer(Counting::default());
    let held = send(&service, user("alice")).await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(status(&service, user("alice")).await);
        assert_eq!(layer.limiter().in_flight(), 1, "not counted");
    }
    assert_eq!(statuses, [200, 200, 200, 503, 200, 200, 200, 503]);
    let events = seen.take();
    let seen = |event: &str| events.iter().filter(|seen| *seen == event).count();
    assert_eq!(seen("would reject concurrency at_capacity"), 6);
    assert_eq!(seen("rejected concurrency at_capacity"), 2);
    drop(held);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn a_key_at_its_concurrency_limit_is_enforced_always_or_never() {
    let layer = ConcurrencyLimitLayer::new(0)
        .per_key(by_user, 1)
        .enforce(50);
    let service = layer.layer(Counting::default());
    let mut enforced = 0;
    for n in 0..64 {
        let name = n.to_string();
        let _held = send(&service, user(&name)).await;
        let first = status(&service, user(&name)).await;
        for _ in 0..3 {
            assert_eq!(status(&service, user(&name)).await, first);
        }
        enforced += usize::from(first == 429);
    }
    assert!((1..64).contains(&enforced), "{enforced}");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_of_concurrency_admits_everything_at_once() {
    let (seen, _) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(1)
        .wait(8, std::time::Duration::from_secs(60))
        .dry_run(true)
        .observe(seen.clone());
    let service = layer.layer(Counting::default());
    let _held = send(&service, user("alice")).await;
    let mut call = tokio_test::task::spawn(tower::ServiceExt::oneshot(service, user("bob")));
    let response = tokio_test::assert_ready_ok!(call.poll());
    assert_eq!(response.status(), 200);
    let events = seen.take();
    assert!(events.contains(&"would reject concurrency at_capacity".to_owned()));
    assert_eq!(layer.limiter().in_flight(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_in_vain_is_enforced_in_rotation() {
    let layer = ConcurrencyLimitLayer::new(1)
        .wait(8, std::time::Duration::from_secs(1))
        .enforce(50);
    let service = layer.layer(Counting::default());
    let _held = send(&service, user("alice")).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(status(&service, user("bob")).await);
    }
    assert_eq!(statuses, [200, 503, 200, 503]);
}
