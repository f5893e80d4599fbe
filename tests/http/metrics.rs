//! The metrics recorded for requests, permits and messages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::metrics::{Unit, set_default_local_recorder};
use http_body_util::BodyExt;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower::{Layer, Service};
use tower_admission::observe::MetricsObserver;
use tower_admission::test_util::TestClock;
use tower_admission::{
    AccessLayer, Capacity, ClientIp, ConcurrencyLimitLayer, Key, Leases, Limits, MemoryStore,
    Policy, Quota, RateLimitByTokenLayer, RateLimitLayer,
};

use crate::common::{
    Counting, LaterStore, SECOND, bearer, by_user, from_peer, request, send, status, streamed,
    user, user_key,
};

/// Each metric with its labels, and its value or the recorded values of a histogram.
fn measured(snapshotter: &Snapshotter) -> BTreeMap<String, Vec<f64>> {
    let metrics = snapshotter.snapshot().into_vec().into_iter();
    let named = metrics.map(|(key, _, _, value)| {
        let labels: Vec<_> = key
            .key()
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let values = match value {
            DebugValue::Counter(count) => vec![count as f64],
            DebugValue::Gauge(level) => vec![*level],
            DebugValue::Histogram(all) => all.into_iter().map(|one| *one).collect(),
        };
        (format!("{} {}", key.key().name(), labels.join(" ")), values)
    });
    named.collect()
}

/// The counters above 0.
fn counted(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let mut all = counters(snapshotter);
    all.retain(|_, count| *count > 0.0);
    all
}

/// The counters that exist.
fn counters(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let mut all = measured(snapshotter);
    all.retain(|name, _| name.split(' ').next().unwrap().ends_with("_total"));
    all.into_iter().map(|(name, of)| (name, of[0])).collect()
}

/// Prometheus sees no increase if a counter starts at 1.
#[tokio::test]
async fn counters_exist_before_the_first_decision() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let observer = MetricsObserver::new();
    assert_eq!(counters(&snapshotter), counts(&[]));

    let limits = Limits::new();
    let changes = "admission_limit_changes_total change=override";
    let of_limits = [
        format!("{changes} deleted origin=here"),
        format!("{changes} ended origin=here"),
        format!("{changes} set origin=here"),
    ];
    assert!(counters(&snapshotter).into_keys().eq(of_limits));

    let rate = Policy::new("burst", Quota::per_hour(2)).and("daily", Quota::per_day(3));
    let _rate = RateLimitByTokenLayer::new(rate)
        .name("rate")
        .observe(observer)
        .layer(Counting::default());
    let _off = RateLimitByTokenLayer::new(Quota::off())
        .name("off")
        .observe(observer)
        .layer(Counting::default());
    let _concurrency = ConcurrencyLimitLayer::new(1)
        .name("flight")
        .observe(observer)
        .layer(Counting::default());
    let _access = AccessLayer::new(&limits)
        .name("lists")
        .observe(observer)
        .layer(Counting::default());
    let _jobs = Leases::new().observe(observer).name("jobs");
    let mut exists = counters(&snapshotter);
    exists.retain(|name, _| !name.starts_with(changes));
    let exists: Vec<_> = exists.into_keys().collect();
    assert_eq!(
        exists,
        [
            "admission_decisions_total limiter=flight policy= limit_type=concurrency outcome=admitted",
            "admission_decisions_total limiter=flight policy= limit_type=concurrency outcome=at_capacity",
            "admission_decisions_total limiter=flight policy= limit_type=concurrency outcome=dry_run",
            "admission_decisions_total limiter=flight policy= limit_type=concurrency outcome=key_at_capacity",
            "admission_decisions_total limiter=jobs policy= limit_type=lease outcome=admitted",
            "admission_decisions_total limiter=jobs policy= limit_type=lease outcome=at_capacity",
            "admission_decisions_total limiter=jobs policy= limit_type=lease outcome=dry_run",
            "admission_decisions_total limiter=jobs policy= limit_type=lease outcome=key_at_capacity",
            "admission_decisions_total limiter=lists policy= limit_type=access outcome=banned",
            "admission_decisions_total limiter=rate policy=burst limit_type=http outcome=admitted",
            "admission_decisions_total limiter=rate policy=burst limit_type=http outcome=dry_run",
            "admission_decisions_total limiter=rate policy=burst limit_type=http outcome=quota_exceeded",
            "admission_decisions_total limiter=rate policy=daily limit_type=http outcome=admitted",
            "admission_decisions_total limiter=rate policy=daily limit_type=http outcome=dry_run",
            "admission_decisions_total limiter=rate policy=daily limit_type=http outcome=quota_exceeded",
            "admission_reclaimed_total limiter=flight",
            "admission_requests_exempt_total limiter=lists",
            "admission_requests_rejected_total limiter=flight",
            "admission_requests_rejected_total limiter=lists",
            "admission_requests_rejected_total limiter=rate",
            "admission_requests_total limiter=flight",
            "admission_requests_total limiter=lists",
            "admission_requests_total limiter=rate",
            "rate_limit_hits_total limit_type=access",
            "rate_limit_hits_total limit_type=concurrency",
            "rate_limit_hits_total limit_type=http",
            "rate_limit_hits_total limit_type=lease",
        ]
    );
}

fn counts(expected: &[(&str, f64)]) -> BTreeMap<String, f64> {
    expected
        .iter()
        .map(|(name, value)| (name.to_string(), *value))
        .collect()
}

#[tokio::test]
async fn rejections_are_counted_by_type_and_never_by_key() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1))
        .name("api")
        .observe(MetricsObserver::new());
    let service = layer.layer(Counting::default());
    for token in ["a", "b", "c"] {
        assert_eq!(status(&service, bearer(token)).await, 200);
        assert_eq!(status(&service, bearer(token)).await, 429);
    }
    let dry = layer.clone().dry_run(true).layer(Counting::default());
    assert_eq!(status(&dry, bearer("a")).await, 200);
    let decisions = "admission_decisions_total limiter=api policy=default limit_type=http outcome=";
    assert_eq!(
        counted(&snapshotter),
        counts(&[
            ("rate_limit_hits_total limit_type=http", 3.0),
            ("admission_requests_total limiter=api", 7.0),
            ("admission_requests_rejected_total limiter=api", 3.0),
            (&format!("{decisions}admitted"), 3.0),
            (&format!("{decisions}quota_exceeded"), 3.0),
            (&format!("{decisions}dry_run"), 1.0),
        ])
    );
}

#[tokio::test]
async fn the_policy_label_is_the_quota_that_binds() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let policy = Policy::new("burst", Quota::per_hour(2)).and("daily", Quota::per_day(3));
    let addresses = Policy::new("address", Quota::per_hour(1).burst(4));
    let store = MemoryStore::new().clock(TestClock::default());
    let layer = RateLimitLayer::by(by_user, policy)
        .and_by(ClientIp::peer(), addresses)
        .store(store)
        .observe(MetricsObserver::new());
    let service = layer.layer(Counting::default());
    let ask = |name| {
        let mut request = from_peer("192.0.2.1");
        request
            .headers_mut()
            .extend(user(name).headers().clone().drain());
        request
    };
    let mut bound = Vec::new();
    for (name, expected) in [
        ("alice", 200),
        ("alice", 200),
        ("alice", 429),
        ("bob", 200),
        ("carol", 200),
        ("dave", 429),
    ] {
        assert_eq!(status(&service, ask(name)).await, expected, "{name}");
        let mut new = counted(&snapshotter);
        new.retain(|name, count| name.starts_with("admission_decisions") && *count > 0.0);
        let name = new.into_keys().next().expect("a decision");
        bound.push(name.split(' ').nth(2).unwrap().to_owned());
    }
    assert_eq!(
        bound,
        [
            "policy=burst",
            "policy=burst",
            "policy=burst",
            // Bob has as much left of both; the address's resets later.
            "policy=address",
            "policy=address",
            "policy=address"
        ]
    );
}

#[tokio::test]
async fn a_rejection_by_a_guard_names_its_quota() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(9))
        .guard_by_ip(Quota::deny_all())
        .observe(MetricsObserver::new());
    let service = layer.layer(Counting::default());
    let mut guessing = from_peer("192.0.2.1");
    let guess = http::HeaderValue::from_static("Bearer guess");
    guessing.headers_mut().insert("authorization", guess);
    assert_eq!(status(&service, guessing).await, 429);
    let measured = measured(&snapshotter);
    let decision =
        "admission_decisions_total limiter= policy=guard limit_type=http outcome=abnormal_usage";
    assert_eq!(measured[decision], [1.0]);
    assert_eq!(
        measured["admission_decision_seconds limiter="].len(),
        1,
        "decided once"
    );
}

#[tokio::test]
async fn a_denied_request_has_its_own_outcome() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let layer = RateLimitByTokenLayer::new(Quota::deny_all()).observe(MetricsObserver::new());
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, from_peer("192.0.2.1")).await, 403);
    let decision =
        "admission_decisions_total limiter= policy=default limit_type=http outcome=denied";
    assert_eq!(measured(&snapshotter)[decision], [1.0]);
}

#[tokio::test]
async fn requests_in_flight_are_a_gauge_next_to_their_limit() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let layer = ConcurrencyLimitLayer::new(2)
        .observe(MetricsObserver::new())
        .name("ai");
    let service = layer.layer(Counting::default());
    let first = send(&service, request()).await;
    let second = send(&service, request()).await;
    assert_eq!(status(&service, request()).await, 503);
    let gauge = "admission_in_flight limiter=ai";
    let limit = "admission_in_flight_limit limiter=ai";
    let decisions = "admission_decisions_total limiter=ai policy= limit_type=concurrency outcome=";
    let snapshot = measured(&snapshotter);
    assert_eq!(snapshot[gauge], [2.0]);
    assert_eq!(snapshot[limit], [2.0]);
    assert_eq!(
        snapshot["rate_limit_hits_total limit_type=concurrency"],
        [1.0]
    );
    assert_eq!(snapshot[&format!("{decisions}admitted")], [2.0]);
    assert_eq!(snapshot[&format!("{decisions}at_capacity")], [1.0]);
    // A snapshot resets the gauge, so these are changes.
    drop(first);
    assert_eq!(measured(&snapshotter)[gauge], [-1.0]);
    drop(second);
    assert_eq!(measured(&snapshotter)[gauge], [-1.0]);
    layer.limiter().set_limit(7);
    assert_eq!(measured(&snapshotter)[limit], [7.0], "without a request");
    layer.limiter().set_limit(Capacity::Unlimited);
    assert_eq!(measured(&snapshotter)[limit], [f64::INFINITY]);
}

#[tokio::test(start_paused = true)]
async fn the_duration_of_a_decision_includes_its_store() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let store = LaterStore::new(&TestClock::default());
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(1))
        .store(store.clone())
        .name("api")
        .observe(MetricsObserver::new());
    let mut service = layer.layer(Counting::default());
    for (took, expected) in [(0.25, 200), (0.5, 429)] {
        let mut asking = tokio_test::task::spawn(service.call(user("alice")));
        tokio_test::assert_pending!(asking.poll());
        tokio::time::advance(Duration::from_secs_f64(took)).await;
        store.answer(1);
        let response = tokio_test::assert_ready_ok!(asking.poll());
        assert_eq!(response.status().as_u16(), expected);
        let measured = measured(&snapshotter);
        assert_eq!(measured["admission_decision_seconds limiter=api"], [took]);
    }
    let mut leaving = tokio_test::task::spawn(service.call(user("alice")));
    tokio_test::assert_pending!(leaving.poll());
    drop(leaving);
    let measured = measured(&snapshotter);
    assert_eq!(
        measured["admission_decision_seconds limiter=api"], [0.0; 0],
        "nothing was decided"
    );
}

#[tokio::test(start_paused = true)]
async fn a_queue_wait_and_a_streamed_body_are_measured() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let layer = ConcurrencyLimitLayer::new(1)
        .wait(1, SECOND)
        .name("ai")
        .observe(MetricsObserver::new());
    let (frames, body) = streamed();
    let mut service = layer.layer(crate::common::bodies([body]));
    let permit = layer.limiter().try_acquire().unwrap();
    let mut waiting = tokio_test::task::spawn(service.call(request()));
    tokio_test::assert_pending!(waiting.poll());
    tokio::time::advance(SECOND / 2).await;
    drop(permit);
    let response = tokio_test::assert_ready_ok!(waiting.poll());
    let (taken, held) = (
        "admission_decision_seconds limiter=ai",
        "admission_held_seconds limiter=ai",
    );
    let snapshot = measured(&snapshotter);
    assert_eq!(snapshot[taken], [0.5]);
    assert_eq!(snapshot[held], [0.5], "the permit by hand");
    tokio::time::advance(2 * SECOND).await;
    drop(frames);
    let _ = response.into_body().collect().await.unwrap();
    assert_eq!(measured(&snapshotter)[held], [2.0]);
}

#[tokio::test(start_paused = true)]
async fn leases_are_counted_as_decisions() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let jobs = Leases::new()
        .name("jobs")
        .per_tenant(1)
        .observe(MetricsObserver::new());
    let acme = Key::id("organisation", "acme");
    let _held = jobs.acquire(&acme, "1").await.unwrap();
    jobs.acquire(&acme, "2").await.unwrap_err();
    let decisions = "admission_decisions_total limiter=jobs policy= limit_type=lease outcome=";
    let snapshot = measured(&snapshotter);
    assert_eq!(snapshot[&format!("{decisions}admitted")], [1.0]);
    assert_eq!(snapshot[&format!("{decisions}key_at_capacity")], [1.0]);
    assert_eq!(
        snapshot["admission_decision_seconds limiter=jobs"],
        [0.0, 0.0]
    );
}

#[test]
fn keys_and_evictions_are_published() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let metrics = MetricsObserver::new();
    for quota in [Quota::per_hour(9), Quota::per_hour(9).sliding()] {
        let store = MemoryStore::new().max_keys(4).clock(TestClock::default());
        let limiter = RateLimitLayer::by(by_user, quota).store(store).limiter();
        for n in 0..4 {
            let _ = limiter.check_now(&user_key(&n.to_string())).unwrap();
        }
        let stats = limiter.stats().expect("the memory store knows");
        assert_eq!((stats.tracked_keys, stats.evictions), (4, 0));
        // A key whose neighbours are all in use shares a bucket, and evicts none.
        let mut more = 4..100_000;
        let stats = loop {
            let n = more.next().expect("some key is given up");
            let _ = limiter.check_now(&user_key(&n.to_string())).unwrap();
            let stats = limiter.stats().unwrap();
            if stats.evictions > 0 {
                break stats;
            }
        };
        assert_eq!((stats.tracked_keys, stats.evictions), (4, 1));
        metrics.publish("api", stats);
        let snapshot = measured(&snapshotter);
        assert_eq!(snapshot["admission_tracked_keys limiter=api"], [4.0]);
        assert_eq!(snapshot["admission_evictions_total limiter=api"], [1.0]);
    }
}

#[test]
fn replacing_a_full_bucket_is_not_an_eviction() {
    for quota in [Quota::per_second(9), Quota::per_second(9).sliding()] {
        let clock = TestClock::default();
        let store = MemoryStore::new().max_keys(4).clock(clock.clone());
        let limiter = RateLimitLayer::by(by_user, quota).store(store).limiter();
        for n in 0..100 {
            let _ = limiter.check_now(&user_key(&n.to_string())).unwrap();
            clock.advance(3 * SECOND);
        }
        let stats = limiter.stats().unwrap();
        assert_eq!(stats.evictions, 0);
        assert!((1..=4).contains(&stats.tracked_keys), "{stats:?}");
    }
}

#[test]
fn a_limiter_that_is_off_has_no_stats() {
    let limiter = RateLimitLayer::by(by_user, Quota::off()).limiter();
    assert_eq!(limiter.stats(), None);
}

#[test]
fn metrics_are_described() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let layer = ConcurrencyLimitLayer::new(1).observe(MetricsObserver::new());
    drop(layer.limiter().try_acquire().unwrap());
    let mut described = BTreeSet::new();
    for (key, unit, description, _) in snapshotter.snapshot().into_vec() {
        let name = key.key().name().to_owned();
        let seconds = name.ends_with("_seconds");
        let expected = if seconds { Unit::Seconds } else { Unit::Count };
        assert_eq!(unit, Some(expected), "{name}");
        assert!(description.is_some(), "{name}");
        described.insert(name);
    }
    assert_eq!(described.len(), 8, "{described:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reclaimed_permit_is_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let layer = ConcurrencyLimitLayer::new(1)
        .name("api")
        .observe(MetricsObserver::new());
    let (frames, body) = crate::common::streamed();
    let mut response = send(&layer.layer(crate::common::bodies([body])), request()).await;
    frames.send("one");
    assert!(response.frame().await.is_some());
    tokio::time::advance(tower_admission::ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER).await;
    assert_eq!(
        status(&layer.layer(Counting::default()), request()).await,
        200
    );
    let measured = measured(&snapshotter);
    assert_eq!(measured["admission_reclaimed_total limiter=api"], [1.0]);
    assert_eq!(measured["admission_in_flight limiter=api"], [0.0]);
}
