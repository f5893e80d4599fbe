//! Limits that are enforced for a part of the keys.

use http::Request;
use tower::Layer;
use tower_admission::{BearerToken, ClientIp, Policy, Quota, RateLimitLayer, Shared};

use crate::common::{
    Counting, Seen, answering, by_user, header, ok, peer, request, send, status, timed, user,
};

#[tokio::test]
async fn a_part_of_the_keys_is_rejected_and_always_the_same() {
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

/// The address rejects, so it decides: not the token, which a client can make up.
#[tokio::test]
async fn the_key_that_rejects_decides() {
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

#[tokio::test]
async fn requests_that_share_a_key_take_turns() {
    let layer = RateLimitLayer::by(Shared, Quota::deny_all()).enforce(25);
    let service = layer.layer(Counting::default());
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(status(&service, request()).await);
    }
    assert_eq!(statuses, [200, 200, 200, 403, 200, 200, 200, 403]);
}

#[tokio::test]
async fn the_guard_is_enforced_for_the_same_part_of_the_addresses() {
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
#[should_panic(expected = "101 percent of the rejections cannot be enforced")]
fn more_than_all_rejections_cannot_be_enforced() {
    let _ = RateLimitLayer::by(Shared, Quota::off()).enforce(101);
}
