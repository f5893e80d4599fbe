//! Observers, metrics and logs.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use tower::{Layer, Service};
use tower_admission::observe::{Observer, TracingObserver};
use tower_admission::{
    ByToken, Capacity, ConcurrencyLimitLayer, ConcurrencyLimiter, Quota, RateLimitByTokenLayer,
};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::SubscriberExt;

use crate::common::{
    Counting, Seen, bearer, by_user, request, send, status, timed, user, user_key, with_header,
};

#[tokio::test]
async fn each_rate_decision_is_observed_once() {
    let (seen, _) = Seen::new();
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1))
        .skip(|head| head.uri.path() == "/health")
        .observe(seen.clone());
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, bearer("a")).await, 200);
    assert_eq!(seen.take(), ["admitted http"]);
    assert_eq!(status(&service, bearer("a")).await, 429);
    assert_eq!(seen.take(), ["rejected http quota_exceeded"]);
    let health = http::Request::get("/health").body(()).unwrap();
    assert_eq!(status(&service, health).await, 200);
    assert_eq!(seen.take(), [""; 0]);
}

#[tokio::test]
async fn each_permit_is_observed_once_acquired_and_once_released() {
    let (seen, _) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(2)
        .name("x")
        .observe(seen.clone());
    let service = layer.layer(Counting::default());
    let first = send(&service, request()).await;
    assert_eq!(seen.take(), ["acquired x 1", "admitted concurrency"]);
    let second = send(&service, request()).await;
    assert_eq!(seen.take(), ["acquired x 2", "admitted concurrency"]);
    assert_eq!(status(&service, request()).await, 503);
    assert_eq!(seen.take(), ["rejected concurrency at_capacity"]);
    let mut body = first.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    assert_eq!(seen.take(), ["released x"]);
    drop((body, second));
    assert_eq!(seen.take(), ["released x"]);
}

#[tokio::test]
async fn a_rejection_of_a_key_acquires_no_permit() {
    let (seen, _) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(9)
        .per_key(by_user, 1)
        .observe(seen.clone());
    let service = layer.layer(Counting::default());
    let _held = send(&service, user("alice")).await;
    seen.take();
    assert_eq!(status(&service, user("alice")).await, 429);
    assert_eq!(seen.take(), ["rejected concurrency key_at_capacity"]);
}

#[tokio::test(start_paused = true)]
async fn a_queued_request_is_observed_when_it_is_decided() {
    let (seen, _) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(1)
        .wait(2, crate::common::SECOND)
        .observe(seen.clone());
    let mut service = layer.layer(Counting::default());
    let permit = layer.limiter().try_acquire().unwrap();
    assert_eq!(seen.take(), ["acquired  1"]);
    let mut waiting = tokio_test::task::spawn(service.call(request()));
    let mut leaving = tokio_test::task::spawn(service.call(request()));
    tokio_test::assert_pending!(waiting.poll());
    tokio_test::assert_pending!(leaving.poll());
    drop(leaving);
    assert_eq!(seen.take(), [""; 0]);
    drop(permit);
    drop(tokio_test::assert_ready_ok!(waiting.poll()));
    assert_eq!(
        seen.take(),
        [
            "released ",
            "acquired  1",
            "admitted concurrency",
            "released "
        ]
    );
    let _held = layer.limiter().try_acquire().unwrap();
    seen.take();
    assert_eq!(status(&service, request()).await, 503);
    assert_eq!(seen.take(), ["rejected concurrency at_capacity"]);
}

#[tokio::test]
async fn permits_taken_without_a_layer_are_observed_and_are_no_decisions() {
    let (seen, _) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(1)
        .name("jobs")
        .observe(seen.clone());
    let permit = layer.limiter().try_acquire_for(&user_key("alice")).unwrap();
    let _ = layer.limiter().try_acquire().unwrap_err();
    drop(permit);
    assert_eq!(seen.take(), ["acquired jobs 1", "released jobs"]);
}

/// Sets the limit to 6 in the hook that reports 5.
struct Meddling {
    limiter: ConcurrencyLimiter,
    told: Arc<Mutex<Vec<Option<u64>>>>,
}

impl Observer for Meddling {
    fn limit(&self, _: &str, limit: Option<u64>) {
        self.told.lock().unwrap().push(limit);
        if limit == Some(5) {
            self.limiter.set_limit(6);
        }
    }
}

#[test]
fn the_last_reported_limit_is_the_current_one() {
    let layer = ConcurrencyLimitLayer::new(1);
    let told = Arc::new(Mutex::new(Vec::new()));
    let meddling = Meddling {
        limiter: layer.limiter(),
        told: told.clone(),
    };
    let limiter = layer.observe(meddling).limiter();
    drop(limiter.try_acquire().unwrap());
    limiter.set_limit(5);
    limiter.set_limit(Capacity::Unlimited);
    assert_eq!(*told.lock().unwrap(), [Some(1), Some(5), Some(6), None]);
}

#[tokio::test]
async fn every_observer_sees_every_decision() {
    let ((one, _), (two, _)) = (Seen::new(), Seen::new());
    let layer = RateLimitByTokenLayer::new(Quota::deny_all());
    let service = layer
        .observe(one.clone())
        .observe(two.clone())
        .layer(Counting::default());
    assert_eq!(status(&service, bearer("a")).await, 403);
    assert_eq!(one.take(), ["rejected http denied"]);
    assert_eq!(two.take(), ["rejected http denied"]);
}

/// Collects the fields of every event of this crate.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

struct Fields(BTreeMap<String, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.to_string(), format!("{value:?}"));
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        fields
            .0
            .insert("level".into(), event.metadata().level().to_string());
        self.0.lock().unwrap().push(fields.0);
    }
}

impl Events {
    fn collect(&self) -> tracing::subscriber::DefaultGuard {
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
    }

    fn take(&self) -> Vec<BTreeMap<String, String>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn each_rejection_is_one_event_without_the_credential() {
    let events = Events::default();
    let _collecting = events.collect();
    let (layer, _clock) = timed(ByToken::default(), Quota::per_hour(1));
    let layer = layer.name("api").observe(TracingObserver::new());
    let service = layer.layer(Counting::default());
    for secret in [bearer("hunter2"), with_header("x-api-key", "hunter2")] {
        let mut again = request();
        *again.headers_mut() = secret.headers().clone();
        assert_eq!(status(&service, secret).await, 200);
        let [event] = &events.take()[..] else {
            panic!("one event");
        };
        assert_eq!(event["level"], "DEBUG");
        assert_eq!(event["message"], "request admitted");
        assert!(!format!("{event:?}").contains("hunter2"));
        assert_eq!(status(&service, again).await, 429);
        let [event] = &events.take()[..] else {
            panic!("one event");
        };
        assert_eq!(event["level"], "WARN");
        assert_eq!(event["message"], "request rejected");
        assert_eq!(event["admission.limit_type"], "\"http\"");
        assert_eq!(event["admission.limiter"], "\"api\"");
        assert_eq!(event["error.type"], "\"quota_exceeded\"");
        assert_eq!(event["admission.limit"], "1");
        assert_eq!(event["admission.remaining"], "0");
        assert_eq!(event["admission.retry_after"], "3600");
        assert_eq!(event["admission.policy"], "\"default\"");
        let kinds = ["bearer#", "api-key#"];
        let kind = kinds
            .iter()
            .any(|kind| event["admission.key"].starts_with(kind));
        assert!(kind, "{event:?}");
        assert!(!format!("{event:?}").contains("hunter2"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_causes_one_warning_until_it_may_retry() {
    let events = Events::default();
    let _collecting = events.collect();
    let (layer, _clock) = timed(by_user, Quota::per_second(1).burst(1));
    let observer = TracingObserver::new();
    let service = layer
        .name("api")
        .observe(observer.clone())
        .layer(Counting::default());
    let levels = || -> Vec<String> {
        let events = events.take().into_iter();
        events
            .filter(|event| event["message"] != "request admitted")
            .map(|event| match event.get("suppressed") {
                Some(suppressed) => format!("{} {suppressed}", event["level"]),
                None => event["level"].clone(),
            })
            .collect()
    };
    for name in ["alice", "bob"] {
        while status(&service, user(name)).await == 200 {}
        assert_eq!(levels(), ["WARN 0"], "{name}");
    }
    for name in ["alice", "bob", "alice"] {
        assert_eq!(status(&service, user(name)).await, 429);
    }
    assert_eq!(levels(), ["DEBUG", "DEBUG", "DEBUG"]);
    // The limiter's clock stands still, so it keeps rejecting.
    tokio::time::advance(crate::common::SECOND).await;
    for _ in 0..2 {
        assert_eq!(status(&service, user("alice")).await, 429);
    }
    assert_eq!(levels(), ["WARN 3", "DEBUG"]);
    // Another limiter that shares the observer warns separately.
    let (other, _clock) = timed(by_user, Quota::deny_all());
    let other = other
        .name("other")
        .observe(observer)
        .layer(Counting::default());
    assert_eq!(status(&other, user("alice")).await, 403);
    assert_eq!(levels(), ["WARN 1"]);
}

#[tokio::test(start_paused = true)]
async fn many_keys_cause_at_most_ten_warnings_per_second() {
    let events = Events::default();
    let _collecting = events.collect();
    let (layer, _clock) = timed(by_user, Quota::deny_all());
    let service = layer
        .observe(TracingObserver::new())
        .layer(Counting::default());
    let mut warnings = Vec::new();
    for n in 0..100 {
        assert_eq!(status(&service, user(&n.to_string())).await, 403);
    }
    warnings.extend(events.take());
    tokio::time::advance(crate::common::SECOND).await;
    assert_eq!(status(&service, user("alice")).await, 403);
    warnings.extend(events.take());
    warnings.retain(|event| event["level"] == "WARN");
    assert_eq!(warnings.len(), 11);
    assert_eq!(warnings[10]["suppressed"], "90");
}

#[tokio::test]
async fn an_address_is_logged_in_clear() {
    let events = Events::default();
    let _collecting = events.collect();
    let layer = RateLimitByTokenLayer::new(Quota::deny_all()).observe(TracingObserver::new());
    let service = layer.layer(Counting::default());
    assert_eq!(
        status(&service, crate::common::from_peer("192.0.2.1")).await,
        403
    );
    let event = &events.take()[0];
    assert_eq!(event["admission.key"], "ip:192.0.2.1");
    assert_eq!(event["client.address"], "192.0.2.1");
}

#[tokio::test(start_paused = true)]
async fn a_denied_key_causes_one_warning_per_minute() {
    let events = Events::default();
    let _collecting = events.collect();
    let (layer, _clock) = timed(by_user, Quota::deny_all());
    let service = layer
        .observe(TracingObserver::new())
        .layer(Counting::default());
    let mut warnings = 0;
    for _ in 0..120 {
        assert_eq!(status(&service, user("eve")).await, 403);
        for event in events.take() {
            assert_eq!(event["error.type"], "\"denied\"");
            warnings += u32::from(event["level"] == "WARN");
        }
        tokio::time::advance(crate::common::SECOND).await;
    }
    assert_eq!(warnings, 2);
}

#[tokio::test]
async fn a_dry_run_is_logged_at_debug() {
    let events = Events::default();
    let _collecting = events.collect();
    let layer = RateLimitByTokenLayer::new(Quota::deny_all())
        .dry_run(true)
        .observe(TracingObserver::new());
    assert_eq!(
        status(&layer.layer(Counting::default()), bearer("a")).await,
        200
    );
    let [event] = &events.take()[..] else {
        panic!("one event");
    };
    assert_eq!(event["level"], "DEBUG");
    assert_eq!(event["message"], "request would be rejected");
}

#[tokio::test]
async fn capacity_is_logged_with_its_name() {
    let events = Events::default();
    let _collecting = events.collect();
    let layer = ConcurrencyLimitLayer::deny_all().name("AI Bridge");
    let service = layer
        .observe(TracingObserver::new())
        .layer(Counting::default());
    assert_eq!(status(&service, bearer("hunter2")).await, 503);
    let [event] = &events.take()[..] else {
        panic!("one event");
    };
    assert_eq!(event["admission.limiter"], "\"AI Bridge\"");
    assert_eq!(event["error.type"], "\"at_capacity\"");
    assert_eq!(event["admission.retry_after"], "1");
    assert_eq!(event["http.response.status_code"], "503");
    assert!(!event.contains_key("admission.key"), "nobody in particular");
}

#[tokio::test(start_paused = true)]
async fn stalled_clients_are_logged() {
    let events = Events::default();
    let _collecting = events.collect();
    let stall = tower_admission::ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER;
    let layer = ConcurrencyLimitLayer::new(1)
        .name("api")
        .observe(TracingObserver::new());
    let mut held = Vec::new();
    let mut messages: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..260 {
        let (frames, body) = crate::common::streamed();
        let service = layer.layer(crate::common::bodies([body]));
        let mut response = send(&service, request()).await;
        if response.status() == 200 {
            frames.send("one");
            let frame = http_body_util::BodyExt::frame(&mut response).await;
            assert!(frame.unwrap().is_ok());
            held.push((frames, response));
        }
        for event in events.take() {
            if event["message"] == "request admitted" {
                continue;
            }
            assert_eq!(event["level"], "WARN");
            assert!(event.values().any(|value| value == "\"api\""), "{event:?}");
            *messages.entry(event["message"].clone()).or_default() += 1;
        }
        tokio::time::advance(stall / 4 * 5).await;
    }
    assert_eq!(held.len(), 257, "the bound is reached");
    let count = |part: &str| -> usize {
        let found = messages
            .iter()
            .filter(|(message, _)| message.contains(part));
        found.map(|(_, count)| count).sum()
    };
    assert_eq!(count("another request got its permit"), 256, "{messages:?}");
    assert_eq!(count("hold capacity"), 3, "{messages:?}");
    assert_eq!(count("request rejected"), 3, "{messages:?}");
}
