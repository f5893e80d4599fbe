//! Limits in layers.

use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_admission::extract::{ByToken, RequestHead};
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, Key, KeyName, Leases, Limits, Policy, Quota,
    RateLimitByTokenLayer, RateLimitLayer,
};

use super::{name, now};

type Answer = Result<Response<String>, std::convert::Infallible>;

fn request(token: &str) -> Request<()> {
    let authorization = format!("Bearer {token}");
    let request = Request::builder().header("authorization", authorization);
    request.body(()).unwrap()
}

fn set(limits: &Limits, key: &str, limit: &str) {
    now(limits.set(&name(key), limit.parse().unwrap())).unwrap();
}

#[tokio::test]
async fn the_headers_report_the_quotas_of_the_key() {
    let limits = Limits::new();
    let layer =
        RateLimitByTokenLayer::new(Policy::new("calls", Quota::per_minute(10))).limits(&limits);
    let inner = service_fn(|_: Request<()>| async { Answer::Ok(Response::default()) });
    let service = layer.layer(inner);
    set(&limits, "bearer:alice", "1000/h");
    let told = async |token: &str| {
        let response = service.clone().oneshot(request(token)).await.unwrap();
        ["ratelimit-policy", "ratelimit"]
            .map(|name| response.headers()[name].to_str().unwrap().to_owned())
    };
    assert_eq!(
        told("alice").await,
        ["\"calls\";q=1000;w=3600", "\"calls\";r=999;t=4"]
    );
    assert_eq!(
        told("bob").await,
        ["\"calls\";q=10;w=60", "\"calls\";r=9;t=6"]
    );
    let calls = layer.limiter();
    calls
        .set_policy(Policy::new("calls", Quota::per_minute(20)))
        .unwrap();
    assert_eq!(
        told("bob").await,
        ["\"calls\";q=20;w=60", "\"calls\";r=18;t=6"]
    );
    now(limits.delete(&name("bearer:alice"))).unwrap();
    assert_eq!(told("alice").await[0], "\"calls\";q=20;w=60");
}

#[tokio::test]
async fn each_key_of_a_decision_has_its_own_override() {
    let limits = Limits::new();
    let by = |header: &'static str| {
        move |head: RequestHead<'_>| {
            let value = head.headers.get(header)?.to_str().ok()?;
            Some(Key::id(header, value))
        }
    };
    let layer = RateLimitLayer::by(by("user"), Policy::new("user", Quota::per_hour(2)))
        .and_by(by("org"), Policy::new("org", Quota::per_hour(3)))
        .limits(&limits);
    let inner = service_fn(|_: Request<()>| async { Answer::Ok(Response::default()) });
    let service = layer.layer(inner);
    set(&limits, "org:acme", "5/h");
    let mut admitted = Vec::new();
    for user in ["alice", "bob", "carol", "dave"] {
        for _ in 0..3 {
            let request = Request::builder()
                .header("user", user)
                .header("org", "acme");
            let request = request.body(()).unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            let policy = response.headers()["ratelimit-policy"].to_str().unwrap();
            assert_eq!(policy, "\"user\";q=2;w=3600, \"org\";q=5;w=3600");
            admitted.push(response.status() == StatusCode::OK);
        }
    }
    let admitted = admitted.iter().filter(|admitted| **admitted).count();
    assert_eq!(admitted, 5);
}

#[tokio::test]
async fn each_key_has_its_own_concurrency_override() {
    for of_all in [2, 0] {
        let limits = Limits::new();
        let layer = ConcurrencyLimitLayer::new(100)
            .per_key(ByToken::default(), of_all)
            .limits(&limits)
            .name("chat");
        let limiter = layer.limiter();
        let take = |token: &str, most: usize| {
            let key = Key::new("bearer", token.as_bytes());
            let held: Vec<_> = (0..most)
                .map_while(|_| limiter.try_acquire_for(&key).ok())
                .collect();
            held
        };
        set(&limits, "bearer:alice", "chat=3 concurrent");
        set(&limits, "bearer:eve", "deny all");
        set(&limits, "bearer:bob", "batch=1 concurrent");
        let expected = if of_all == 0 { 50 } else { of_all };
        let (alice, bob) = (take("alice", 50), take("bob", 50));
        assert_eq!((alice.len(), bob.len()), (3, expected));
        assert_eq!(take("eve", 50).len(), 0);
        let denied = limiter.try_acquire_for(&Key::new("bearer", b"eve"));
        assert_eq!(denied.unwrap_err().retry_after_seconds(), None);

        let usage = now(limits.usage(&KeyName::from(Key::new("bearer", b"alice"))));
        let [usage] = &usage[..] else {
            panic!("{usage:?}")
        };
        assert_eq!((&*usage.name, usage.sort), ("chat", "concurrency"));
        assert_eq!(
            (usage.used, usage.limit, usage.is_override),
            (3, Some(3), true)
        );
        let [total] = &now(limits.totals())[..] else {
            panic!()
        };
        let all = 3 + expected as u64;
        assert_eq!((total.used, total.limit), (all, Some(100)));

        // When a limit is lowered, requests in flight continue and new ones are rejected.
        set(&limits, "bearer:alice", "chat=1 concurrent");
        assert_eq!(take("alice", 50).len(), 0);
        drop(alice);
        assert_eq!(take("alice", 50).len(), 1);
        limiter.set_limit_per_key(0, 1);
        assert_eq!(take("carol", 50).len(), 1);
    }
}

/// A key is reported once, for the position with the fewest slots left. An override applies at each
/// position.
#[tokio::test]
async fn a_key_is_limited_and_reported_wherever_it_is_charged() {
    let limits = Limits::new();
    let layer = ConcurrencyLimitLayer::new(100)
        .per_key(ByToken::default(), 4)
        .per_key(ClientIp::peer(), 2)
        .limits(&limits);
    let limiter = layer.limiter();
    let (token, address) = (Key::new("bearer", b"alice"), Key::ip([192, 0, 2, 1].into()));
    let used = |key: Key| {
        let usage = now(limits.usage(&KeyName::from(key)));
        usage
            .iter()
            .map(|usage| (usage.used, usage.limit))
            .collect::<Vec<_>>()
    };
    assert_eq!(used(token), [(0, Some(4))]);
    let held = limiter.try_acquire_for_all(&[token, address]).unwrap();
    assert_eq!(
        (used(token), used(address)),
        (vec![(1, Some(4))], vec![(1, Some(2))])
    );
    let anonymous = limiter.try_acquire_for_all(&[address, address]).unwrap();
    assert_eq!(used(address), [(2, Some(2))]);
    limiter.set_limit_per_key(1, 9);
    assert_eq!(
        used(address),
        [(1, Some(4))],
        "three slots are left where the address replaces a token"
    );
    set(&limits, "ip:192.0.2.1", "1 concurrent");
    assert_eq!(used(address), [(1, Some(1))]);
    assert!(limiter.try_acquire_for_all(&[address, address]).is_err());
    assert!(limiter.try_acquire_for_all(&[token, address]).is_err());
    drop((held, anonymous));
    let _held = limiter.try_acquire_for_all(&[token, address]).unwrap();
    assert!(limiter.try_acquire_for_all(&[token, address]).is_err());
}

/// Requests are counted before a key has a limit, so that they count when it gets one.
#[tokio::test]
async fn requests_in_flight_before_an_override_count_under_it() {
    let limits = Limits::new();
    let layer = ConcurrencyLimitLayer::new(0)
        .name("jobs")
        .per_key(ByToken::default(), 0)
        .limits(&limits);
    let limiter = layer.limiter();
    let key = Key::new("bearer", b"alice");
    let held: Vec<_> = (0..5)
        .map(|_| limiter.try_acquire_for(&key).unwrap())
        .collect();
    set(&limits, "bearer:alice", "2 concurrent");
    assert!(limiter.try_acquire_for(&key).is_err());
    drop(held);
    assert!(limiter.try_acquire_for(&key).is_ok());
    let others = Key::new("bearer", b"bob");
    let held = limiter.try_acquire_for(&others).unwrap();
    limiter.set_limit_per_key(0, 1);
    assert!(limiter.try_acquire_for(&others).is_err());
    drop(held);
    assert!(limiter.try_acquire_for(&others).is_ok());
}

#[tokio::test]
async fn a_layer_checks_keys_that_have_overrides() {
    let limits = Limits::new();
    let layer = ConcurrencyLimitLayer::new(0)
        .per_key(ByToken::default(), 0)
        .limits(&limits);
    set(&limits, "bearer:eve", "deny all");
    let inner = service_fn(|_: Request<()>| async { Answer::Ok(Response::default()) });
    let service = layer.layer(inner);
    let status = async |token: &str| {
        let response = service.clone().oneshot(request(token)).await.unwrap();
        response.status()
    };
    assert_eq!(status("eve").await, StatusCode::FORBIDDEN);
    assert_eq!(status("alice").await, StatusCode::OK);
}

#[tokio::test]
async fn each_tenant_has_its_own_lease_override() {
    let limits = Limits::new();
    let leases = Leases::new()
        .name("jobs")
        .limits(&limits)
        .per_tenant(2)
        .total(9);
    let take = async |org: &str| {
        let tenant = Key::id("org", org);
        let mut held = Vec::new();
        while let Ok(lease) = leases.acquire_new(&tenant).await {
            held.push(lease);
        }
        held
    };
    set(&limits, "org:acme", "jobs=4 concurrent");
    set(&limits, "org:eve", "deny all");
    let (acme, other, eve) = (take("acme").await, take("other").await, take("eve").await);
    assert_eq!((acme.len(), other.len(), eve.len()), (4, 2, 0));
    let usage = limits.usage(&name("org:acme")).await;
    let [usage] = &usage[..] else {
        panic!("{usage:?}")
    };
    assert_eq!((&*usage.name, usage.sort), ("jobs", "lease"));
    assert_eq!(
        (usage.used, usage.limit, usage.is_override),
        (4, Some(4), true)
    );
    let [total] = &limits.totals().await[..] else {
        panic!()
    };
    assert_eq!((total.used, total.limit), (6, Some(9)));
    // A tenant at its limit is rejected; a lowered limit releases nothing.
    set(&limits, "org:acme", "jobs=1 concurrent");
    let refused = leases
        .acquire_new(&Key::id("org", "acme"))
        .await
        .unwrap_err();
    let occupancy = refused.occupancy().unwrap();
    assert_eq!((occupancy.used, occupancy.allowed), (4, 1));
    now(limits.delete(&name("org:acme"))).unwrap();
    drop(acme);
    assert_eq!(take("acme").await.len(), 2);
}
