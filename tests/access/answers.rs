//! A ban precedes the inner limits; the answer to a banned client.

use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::json;
use tower::Layer;
use tower_admission::{
    AccessLayer, ByToken, ClientIp, ConcurrencyLimitLayer, Key, Limits, Quota,
    RateLimitByTokenLayer, RateLimitLayer, Reason, Rejection, RequestHead,
};

use crate::{Counting, Seen, bearer, from, now, send, set, status, with};

fn banning(key: &str) -> Limits {
    let limits = Limits::new();
    set(&limits, key, "deny all");
    limits
}

#[test]
fn made_up_tokens_do_not_evade_the_ban_of_an_address_or_its_network() {
    for entry in ["ip:203.0.113.7", "ip:203.0.113.0/24"] {
        let limits = banning(entry);
        let concurrency = ConcurrencyLimitLayer::new(8).per_key(ByToken::default(), 4);
        let rate = RateLimitByTokenLayer::new(Quota::per_hour(9)).limits(&limits);
        let (inner, seen) = (Counting::default(), Seen::default());
        let service = AccessLayer::new(&limits)
            .key(ByToken::default())
            .name("lists")
            .observe(seen.clone())
            .layer(concurrency.layer(rate.layer(inner.clone())));
        for n in 0..1000 {
            assert_eq!(
                status(&service, bearer("203.0.113.7", &format!("made-up-{n}"))),
                403
            );
        }
        assert_eq!(inner.calls(), 0);
        // No quota was charged, and no key is stored.
        assert_eq!(rate.limiter().stats().unwrap().tracked_keys, 0);
        assert_eq!(concurrency.limiter().in_flight(), 0);
        let seen = seen.take();
        assert_eq!(seen.len(), 1000);
        let banned = format!("banned access lists {entry}");
        assert!(seen.iter().all(|line| *line == banned), "{}", seen[0]);
        assert_eq!(status(&service, bearer("198.51.100.7", "made-up-0")), 200);
    }
}

#[test]
fn the_answer_to_a_banned_client_reveals_nothing_else() {
    let service = AccessLayer::new(&banning("ip:203.0.113.7")).layer(Counting::default());
    let response = send(&service, from("203.0.113.7"));
    assert_eq!(response.status(), 403);
    let headers = response.headers();
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["content-type"], "application/problem+json");
    assert!(!headers.contains_key("retry-after"));
    let body = now(response.into_body().collect()).unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let expected = json!({
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": "Access denied: this client is banned.",
    });
    assert_eq!(problem, expected);
}

#[test]
fn grpc_answers_permission_denied() {
    let service = AccessLayer::new(&banning("ip:203.0.113.7")).layer(Counting::default());
    let request = with(from("203.0.113.7"), "content-type", "application/grpc");
    let response = send(&service, request);
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "7");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "-1");
}

#[test]
fn a_responder_has_the_reason() {
    let service = AccessLayer::new(&banning("ip:203.0.113.7"))
        .respond(|rejection: &Rejection, _: RequestHead<'_>| {
            assert_eq!(rejection.reason(), Reason::Banned);
            Response::builder().status(410).body("gone").unwrap()
        })
        .layer(Counting::default());
    assert_eq!(status(&service, from("203.0.113.7")), 410);
}

#[test]
fn a_guard_does_not_charge_a_ban() {
    let guard = RateLimitLayer::by(ClientIp::peer(), Quota::off()).guard_by_ip(Quota::per_hour(1));
    let limits = banning("bearer:eve");
    let access = AccessLayer::new(&limits).key(ByToken::default());
    let service = guard.layer(access.layer(Counting::default()));
    for _ in 0..3 {
        assert_eq!(status(&service, bearer("192.0.2.1", "eve")), 403);
    }
    assert_eq!(status(&service, bearer("192.0.2.1", "alice")), 200);
}

#[test]
fn a_change_applies_to_the_next_request() {
    let limits = Limits::new();
    let inner = Counting::default();
    let service = AccessLayer::new(&limits).layer(inner.clone());
    let mut expected = 0;
    for _ in 0..3 {
        assert_eq!(status(&service, from("203.0.113.7")), 200);
        set(&limits, "ip:203.0.113.0/24", "deny all");
        assert_eq!(status(&service, from("203.0.113.7")), 403);
        now(limits.delete(&"ip:203.0.113.0/24".parse().unwrap())).unwrap();
        expected += 1;
        assert_eq!(inner.calls(), expected);
    }
}

/// A rejected call releases what the ready inner service had reserved.
#[tokio::test]
async fn a_ban_releases_what_the_inner_service_reserved() {
    use tower::{Service, ServiceExt};

    let limits = banning("ip:203.0.113.7");
    let (inner, mut handle) = tower_test::mock::pair::<Request<()>, Response<String>>();
    let inner = tower::ServiceBuilder::new()
        .concurrency_limit(1)
        .service(inner);
    let mut banned = AccessLayer::new(&limits).layer(inner);
    handle.allow(2);
    let mut other = banned.clone();
    let ready = banned.ready().await.unwrap();
    let response = ready.call(from("203.0.113.7")).await.unwrap();
    assert_eq!(response.status(), 403);
    // The slot is free although the service that was banned still exists.
    let ready = now(other.ready()).unwrap();
    let response = tokio::spawn(ready.call(from("192.0.2.1")));
    let (_, answer) = handle.next_request().await.unwrap();
    answer.send_response(Response::new(String::new()));
    assert_eq!(response.await.unwrap().unwrap().status(), 200);
    drop(banned);
}

#[tokio::test]
async fn the_rest_of_a_banned_upload_can_be_read() {
    use tower::ServiceExt;

    let limits = banning("ip:203.0.113.7");
    let layer =
        AccessLayer::new(&limits).drain_rejected(1 << 20, std::time::Duration::from_secs(9));
    let inner = tower::service_fn(|_: Request<http_body_util::Full<bytes::Bytes>>| async {
        Ok::<_, std::convert::Infallible>(Response::new(String::new()))
    });
    let body = http_body_util::Full::from("upload");
    let request = from("203.0.113.7").map(|()| body);
    let response = layer.layer(inner).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 403);
}

#[test]
fn the_key_of_a_network_is_not_charged() {
    let limits = Limits::new();
    set(&limits, "ip:203.0.113.0/24", "unlimited");
    // Without an access layer, the entry of a network has no effect on rates.
    let rate = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(1)).limits(&limits);
    let service = rate.layer(Counting::default());
    assert_eq!(status(&service, from("203.0.113.7")), 200);
    assert_eq!(status(&service, from("203.0.113.7")), 429);
    let key = Key::ip([203, 0, 113, 8].into());
    assert!(rate.limiter().check_now(&key).unwrap().is_admitted());
}
