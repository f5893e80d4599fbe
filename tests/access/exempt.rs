//! Exemptions.

use std::collections::BTreeMap;

use http::{Request, Response};
use metrics::set_default_local_recorder;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower::{Layer, ServiceExt, service_fn};
use tower_admission::access::is_exempt;
use tower_admission::observe::MetricsObserver;
use tower_admission::{
    AccessLayer, ByToken, ClientIp, ConcurrencyLimitLayer, Limits, Quota, RateLimitByTokenLayer,
    RateLimitLayer, RateLimitStatus,
};

use crate::{Counting, Seen, bearer, from, name, now, send, set, status};

fn exempting(key: &str) -> Limits {
    let limits = Limits::new();
    set(&limits, key, "unlimited");
    limits
}

#[test]
fn rate_limits_do_not_count_an_exempt_request() {
    let limits = exempting("bearer:probe");
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(1))
        .and_by(ClientIp::peer(), Quota::per_hour(1))
        .guard_by_ip(Quota::per_hour(1));
    let seen = Seen::default();
    let service = AccessLayer::new(&limits)
        .key(ByToken::default())
        .name("lists")
        .observe(seen.clone())
        .layer(rate.layer(Counting::default()));
    for _ in 0..5 {
        let response = send(&service, bearer("192.0.2.1", "probe"));
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("ratelimit"));
    }
    assert_eq!(rate.limiter().stats().unwrap().tracked_keys, 0);
    let seen = seen.take();
    assert_eq!(seen.len(), 5);
    let probe = name("bearer:probe");
    assert!(
        seen.iter()
            .all(|line| *line == format!("exempted access lists {probe}"))
    );
    // The address of the request is not exempt.
    assert_eq!(status(&service, from("192.0.2.1")), 200);
    assert_eq!(status(&service, from("192.0.2.1")), 429);
}

#[test]
fn a_guard_does_not_count_answers_to_an_exempt_request() {
    let limits = exempting("bearer:probe");
    let guard = RateLimitLayer::by(ClientIp::peer(), Quota::off()).guard_by_ip(Quota::per_hour(1));
    let unauthorized = service_fn(|_: Request<()>| async {
        let response = Response::builder().status(401).body(String::new());
        Ok::<_, std::convert::Infallible>(response.unwrap())
    });
    let service = AccessLayer::new(&limits)
        .key(ByToken::default())
        .layer(guard.layer(unauthorized));
    for _ in 0..3 {
        assert_eq!(status(&service, bearer("192.0.2.1", "probe")), 401);
    }
    assert_eq!(status(&service, bearer("192.0.2.1", "other")), 401);
    assert_eq!(status(&service, bearer("192.0.2.1", "other")), 429);
}

#[tokio::test]
async fn an_exempt_request_counts_in_the_capacity_and_not_per_key() {
    let limits = exempting("bearer:probe");
    let concurrency = ConcurrencyLimitLayer::new(2).per_key(ByToken::default(), 1);
    let pending = service_fn(|_: Request<()>| async {
        std::future::pending::<()>().await;
        Ok::<_, std::convert::Infallible>(Response::new(String::new()))
    });
    let service = AccessLayer::new(&limits)
        .key(ByToken::default())
        .layer(concurrency.layer(pending));
    let start = |token| {
        let mut task = tokio_test::task::spawn(service.clone().oneshot(bearer("192.0.2.1", token)));
        match task.poll() {
            std::task::Poll::Pending => Ok(task),
            std::task::Poll::Ready(answer) => Err(answer.unwrap().status().as_u16()),
        }
    };
    let first = start("other").unwrap();
    assert_eq!(start("other").map(drop), Err(429));
    drop(first);
    let both = [start("probe").unwrap(), start("probe").unwrap()];
    assert_eq!(concurrency.limiter().in_flight(), 2);
    assert_eq!(start("probe").map(drop), Err(503));
    drop(both);
    assert_eq!(concurrency.limiter().in_flight(), 0);
}

#[test]
fn the_status_of_an_exempt_request_is_unlimited() {
    let limits = exempting("ip:192.0.2.1");
    let handler = service_fn(|request: Request<()>| async move {
        let status: &RateLimitStatus = request.extensions().get().unwrap();
        assert_eq!((status.limit(), status.remaining()), (None, None));
        assert_eq!(status.usages().count(), 0);
        assert!(status.decision().is_admitted());
        status.charge(1_000).await.unwrap();
        status.refund(1_000).await;
        assert!(is_exempt(request.extensions()));
        Ok::<_, std::convert::Infallible>(Response::new(String::new()))
    });
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(1));
    let service = AccessLayer::new(&limits).layer(rate.layer(handler));
    assert_eq!(status(&service, from("192.0.2.1")), 200);
}

#[test]
fn other_requests_are_not_marked() {
    let limits = exempting("ip:192.0.2.1");
    let handler = service_fn(|request: Request<()>| async move {
        let status = if is_exempt(request.extensions()) {
            202
        } else {
            200
        };
        let response = Response::builder().status(status).body(String::new());
        Ok::<_, std::convert::Infallible>(response.unwrap())
    });
    let service = AccessLayer::new(&limits).layer(handler);
    assert_eq!(status(&service, from("192.0.2.1")), 202);
    assert_eq!(status(&service, from("192.0.2.2")), 200);
}

#[test]
fn an_inner_layer_bans_what_an_outer_one_exempts() {
    let (outer, inner) = (exempting("ip:192.0.2.1"), Limits::new());
    set(&inner, "ip:192.0.2.0/24", "deny all");
    let (outer_seen, inner_seen) = (Seen::default(), Seen::default());
    let service = AccessLayer::new(&outer).observe(outer_seen.clone()).layer(
        AccessLayer::new(&inner)
            .observe(inner_seen.clone())
            .layer(Counting::default()),
    );
    assert_eq!(status(&service, from("192.0.2.1")), 403);
    now(inner.delete(&name("ip:192.0.2.0/24"))).unwrap();
    set(&inner, "ip:192.0.2.1", "unlimited");
    inner_seen.take();
    outer_seen.take();
    assert_eq!(status(&service, from("192.0.2.1")), 200);
    // The request was exempted once.
    assert_eq!(outer_seen.take().len(), 1);
    assert_eq!(inner_seen.take().len(), 0);
}

fn counted(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    let metrics = snapshotter.snapshot().into_vec().into_iter();
    let counters = metrics.filter_map(|(key, _, _, value)| {
        let DebugValue::Counter(count) = value else {
            return None;
        };
        let labels = key.key().labels();
        let labels: Vec<_> = labels
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        Some((format!("{} {}", key.key().name(), labels.join(" ")), count))
    });
    counters.collect()
}

#[test]
fn metrics_of_lists_have_no_labels_from_clients() {
    let limits = exempting("ip:192.0.2.1");
    set(&limits, "ip:203.0.113.0/24", "deny all");
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let service = AccessLayer::new(&limits)
        .name("lists")
        .observe(MetricsObserver::new())
        .layer(Counting::default());
    for ip in [
        "192.0.2.1",
        "192.0.2.1",
        "203.0.113.7",
        "203.0.113.8",
        "198.51.100.1",
    ] {
        status(&service, from(ip));
    }
    let banned = "admission_decisions_total limiter=lists policy= limit_type=access outcome=banned";
    let expected = [
        (banned, 2),
        ("admission_requests_total limiter=lists", 4),
        ("admission_requests_rejected_total limiter=lists", 2),
        ("admission_requests_exempt_total limiter=lists", 2),
        ("rate_limit_hits_total limit_type=access", 2),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(counted(&snapshotter), expected.into());
}
