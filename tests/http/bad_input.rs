//! Hostile input: each has a defined answer, and none causes a panic or a 500.

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request};
use tower::Layer;
use tower_admission::extract::{ForwardingHeader, KeyExtractor};
use tower_admission::test_util::TestClock;
use tower_admission::{
    ByToken, ClientIp, ConcurrencyLimitLayer, Key, Policy, Quota, RateLimitByTokenLayer,
    RateLimitLayer, RequestHead,
};

use crate::common::{
    Counting, NANO, SECOND, by_user, from_peer, header, retry_after, send, status, timed, user,
    user_key,
};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn with(name: &'static str, value: impl AsRef<[u8]>) -> Request<()> {
    let mut request = from_peer("192.0.2.1");
    let value = HeaderValue::from_bytes(value.as_ref()).unwrap();
    request.headers_mut().insert(name, value);
    request
}

fn ip(address: &str) -> Option<Key> {
    Some(Key::ip(address.parse().unwrap()))
}

fn key(extractor: impl KeyExtractor, request: &Request<()>) -> Option<Key> {
    extractor.extract(RequestHead::from(request)).key()
}

fn trusting() -> [ClientIp; 2] {
    let nets = || {
        [
            "192.0.2.0/24".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
        ]
    };
    [
        ClientIp::forwarded_by(nets()),
        ClientIp::forwarded_by(nets()).header(ForwardingHeader::Forwarded),
    ]
}

/// Headers that layers read.
const READ: [&str; 8] = [
    "authorization",
    "x-api-key",
    "x-forwarded-for",
    "forwarded",
    "accept",
    "content-type",
    "upgrade",
    "x-real-ip",
];

#[tokio::test]
async fn headers_with_any_bytes_and_of_any_length_are_answered() {
    let junk: Vec<u8> = (0x20..=0xff).filter(|byte| *byte != 0x7f).collect();
    let values: [&[u8]; 9] = [
        &junk,
        b"\xff\xfe",
        b"Bearer \xff",
        &[b'a'; 64 * 1024],
        &[b','; 64 * 1024],
        &[b'"'; 64 * 1024 + 1],
        &[b'\\'; 64 * 1024],
        &[b';'; 64 * 1024],
        b"",
    ];
    for extractor in trusting() {
        let [rate, full] = [Quota::per_hour(1), Quota::deny_all()].map(|quota| {
            RateLimitByTokenLayer::by(ByToken::default().client_ip(extractor.clone()), quota)
                .and_by(extractor.clone(), Policy::new("ip", quota))
                .guard_by(extractor.clone(), Quota::per_hour(9))
                .layer(Counting::default())
        });
        let admit = ConcurrencyLimitLayer::new(1).per_key(extractor.clone(), 1);
        let refuse = ConcurrencyLimitLayer::deny_all().layer(Counting::default());
        for name in READ {
            for value in values {
                let expected = |status: u16| [200, 429, 503].contains(&status);
                assert!(expected(status(&rate, with(name, value)).await));
                assert_eq!(status(&full, with(name, value)).await, 403);
                assert_eq!(status(&refuse, with(name, value)).await, 503);
                let service = admit.layer(Counting::default());
                assert_eq!(status(&service, with(name, value)).await, 200);
            }
        }
    }
}

#[test]
fn credentials_that_are_not_text_are_answered() {
    let by = ByToken::default;
    assert_eq!(
        key(by(), &with("authorization", b"Bearer \xff")),
        ip("192.0.2.1")
    );
    let bytes = key(by(), &with("x-api-key", b"\xff\xfe"));
    assert_eq!(bytes, Some(Key::new("api-key", b"\xff\xfe")));
    let long = [b"Bearer ".to_vec(), vec![b'a'; 64 * 1024]].concat();
    assert_eq!(
        key(by(), &with("authorization", &long)).unwrap().kind(),
        "bearer"
    );
}

#[test]
fn many_authorization_headers_are_unusable() {
    let mut request = from_peer("192.0.2.1");
    for n in 0..10_000 {
        let value = HeaderValue::try_from(format!("Bearer t{n}")).unwrap();
        request.headers_mut().append("authorization", value);
    }
    assert_eq!(key(ByToken::default(), &request), ip("192.0.2.1"));
}

#[test]
fn ten_thousand_hops_are_read() {
    let [xff, forwarded] = trusting();
    let hops = |hop: &str| vec![hop; 10_000].join(", ");
    for (client, expected) in [("198.51.100.7", "198.51.100.7"), ("junk", "10.0.0.1")] {
        let chain = format!("1.1.1.1, {client}, {}", hops("10.0.0.1"));
        assert_eq!(
            key(xff.clone(), &with("x-forwarded-for", chain)),
            ip(expected)
        );
        let chain = format!("for=1.1.1.1, for={client}, {}", hops("for=\"10.0.0.1:80\""));
        assert_eq!(
            key(forwarded.clone(), &with("forwarded", chain)),
            ip(expected)
        );
    }
    let quotes = with(
        "forwarded",
        format!("for=1.1.1.1, {}", hops("for=\"10.0.0.1")),
    );
    key(forwarded, &quotes).expect("some address");
}

#[test]
fn ten_thousand_lines_of_hops_are_read() {
    let mut headers = HeaderMap::new();
    let name = HeaderName::from_static("x-forwarded-for");
    headers.append(&name, HeaderValue::from_static("1.1.1.1, 198.51.100.7"));
    for _ in 0..10_000 {
        headers.append(&name, HeaderValue::from_static("10.0.0.1"));
    }
    let mut request = from_peer("192.0.2.1");
    *request.headers_mut() = headers;
    let [xff, _] = trusting();
    assert_eq!(key(xff, &request), ip("198.51.100.7"));
}

#[tokio::test]
async fn extreme_quotas_count_exactly() {
    for (quota, admits) in [
        (Quota::new(u32::MAX, 99 * YEAR), u64::from(u32::MAX)),
        (Quota::new(1, 100 * YEAR), 1),
        (Quota::new(1, NANO), 1),
        (Quota::per_second(1_000_000_000), 1_000_000_000),
        (
            Quota::per_second(1_000_000_000).burst(u32::MAX),
            u64::from(u32::MAX),
        ),
        (Quota::per_day(1).burst(36_500), 36_500),
    ] {
        let (layer, clock) = timed(by_user, quota);
        let service = layer.layer(Counting::default());
        let admitted = send(&service, user("alice")).await;
        assert_eq!(admitted.status(), 200, "{quota}");
        assert!(header(&admitted, "ratelimit").is_some());
        let left = layer_left(&layer);
        assert_eq!(left, admits - 1, "{quota}");
        let rest = layer
            .limiter()
            .check_n(&user_key("alice"), left as u32)
            .now()
            .unwrap();
        assert!(rest.is_admitted(), "{quota}");
        assert_eq!(layer_left(&layer), 0, "{quota}");
        if let Some(wait) = layer
            .limiter()
            .peek(&user_key("alice"))
            .now()
            .unwrap()
            .retry_after()
        {
            let refused = send(&service, user("alice")).await;
            assert_eq!(refused.status(), 429, "{quota}");
            clock.advance(wait);
        }
        assert_eq!(status(&service, user("alice")).await, 200, "{quota}");
    }
}

fn layer_left<K: KeyExtractor>(layer: &RateLimitLayer<K>) -> u64 {
    layer
        .limiter()
        .peek(&user_key("alice"))
        .now()
        .unwrap()
        .remaining()
        .unwrap()
        .into()
}

#[tokio::test]
async fn sixteen_quotas_and_eight_keys_are_one_decision() {
    let policy = (2..=16).fold(Policy::new("q1", Quota::per_hour(99)), |policy, n| {
        policy.and(&format!("q{n}"), Quota::per_hour(100 - n))
    });
    let (mut layer, _clock) = timed(by_user, policy.clone());
    for _ in 1..8 {
        layer = layer.and_by(ClientIp::peer(), policy.clone());
    }
    let service = layer.layer(Counting::default());
    let admitted = send(&service, user("alice")).await;
    assert_eq!(admitted.status(), 200);
    assert_eq!(
        header(&admitted, "ratelimit").unwrap().split(", ").count(),
        8 * 16
    );
    let mut count = 1;
    while status(&service, user("alice")).await == 200 {
        count += 1;
    }
    // Seven keys of the eight are the same and have a bucket each.
    assert_eq!(count, 84);
}

#[tokio::test]
async fn a_stopped_clock_admits_one_burst() {
    let (layer, _clock) = timed(by_user, Quota::per_second(2));
    let service = layer.layer(Counting::default());
    for n in 0..100 {
        let response = send(&service, user("alice")).await;
        assert_eq!(response.status(), if n < 2 { 200 } else { 429 });
        assert_eq!(retry_after(&response), (n >= 2).then_some(1));
    }
}

#[tokio::test]
async fn a_clock_that_jumps_a_year_refills_one_burst() {
    for jumps in [1, 99] {
        let (layer, clock) = timed(by_user, Quota::per_day(3));
        let service = layer.layer(Counting::default());
        for _ in 0..3 {
            while status(&service, user("alice")).await == 200 {}
            clock.advance(jumps * YEAR);
            assert_eq!(layer_left(&layer), 3, "full, and no fuller");
        }
    }
}

/// A key that has used up its five requests at one per second; then the clock steps back.
async fn stepped_back(by: Duration) -> (RateLimitLayer<impl KeyExtractor>, TestClock) {
    let (layer, clock) = timed(by_user, Quota::per_second(1).burst(5));
    clock.advance(10 * YEAR);
    let service = layer.layer(Counting::default());
    for _ in 0..5 {
        assert_eq!(status(&service, user("alice")).await, 200);
    }
    clock.step_back(by);
    (layer, clock)
}

#[tokio::test]
async fn a_clock_that_steps_back_locks_no_client_out() {
    for step in [NANO, SECOND, 5 * SECOND, 3600 * SECOND, YEAR, 20 * YEAR] {
        let (layer, clock) = stepped_back(step).await;
        let service = layer.layer(Counting::default());
        let refused = send(&service, user("alice")).await;
        assert_eq!(refused.status(), 429, "{step:?}");
        assert!(retry_after(&refused).unwrap() <= 5, "{step:?}");
        clock.advance(5 * SECOND);
        assert_eq!(status(&service, user("alice")).await, 200, "{step:?}");
    }
}

#[tokio::test]
async fn retry_after_is_exact_after_a_step_back() {
    for step in [SECOND, 3600 * SECOND] {
        let (layer, clock) = stepped_back(step).await;
        let service = layer.layer(Counting::default());
        let refused = send(&service, user("alice")).await;
        let wait = u32::try_from(retry_after(&refused).unwrap()).unwrap();
        clock.advance(wait * SECOND);
        assert_eq!(status(&service, user("alice")).await, 200, "{step:?}");
    }
}

#[tokio::test]
async fn a_new_key_after_a_step_back_has_a_full_bucket() {
    let (layer, _clock) = stepped_back(YEAR).await;
    let service = layer.layer(Counting::default());
    for _ in 0..5 {
        assert_eq!(status(&service, user("bob")).await, 200);
    }
    assert_eq!(status(&service, user("bob")).await, 429);
}

#[tokio::test]
async fn a_fast_quota_is_not_locked_out_by_a_step_back() {
    let (layer, clock) = timed(by_user, Quota::per_second(100).burst(1));
    clock.advance(YEAR);
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, user("alice")).await, 200);
    clock.step_back(3600 * SECOND);
    assert_eq!(status(&service, user("alice")).await, 429);
    clock.advance(SECOND / 100);
    assert_eq!(status(&service, user("alice")).await, 200);
}

#[tokio::test]
async fn a_step_back_with_a_full_table_locks_no_client_out() {
    let clock = TestClock::default();
    clock.advance(YEAR);
    let layer = RateLimitLayer::by(by_user, Quota::per_second(1).burst(5))
        .store(crate::common::store(&clock).max_keys(1));
    let service = layer.layer(Counting::default());
    // The first client fills the table, the second one uses the overflow bucket.
    for name in ["alice", "bob"] {
        while status(&service, user(name)).await == 200 {}
    }
    clock.step_back(3600 * SECOND);
    // Rejected by the overflow bucket, or given the slot of alice, whose time cannot be valid.
    let _ = status(&service, user("bob")).await;
    clock.advance(5 * SECOND);
    assert_eq!(status(&service, user("bob")).await, 200);
}
