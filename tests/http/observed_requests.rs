//! The request of a decision as observers see it: in logs, on spans and in counts.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower::Layer;
use tower_admission::observe::{MetricsObserver, TracingObserver};
use tower_admission::{
    AccessLayer, BearerToken, ClientIp, ConcurrencyLimitLayer, Limit, Limits, Override, PeerAddr,
    Policy, Quota, RateLimitByTokenLayer, RateLimitLayer, admission_span,
};
use tracing::field::{Field, Visit};
use tracing::{Instrument, Level, Subscriber, span};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::common::{Counting, bearer, by_user, status, user};

type Fields = BTreeMap<String, String>;

/// Collects the fields of events and of spans.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<(Vec<Fields>, Fields)>>);

struct Into<'a>(&'a mut Fields);

impl Visit for Into<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.to_string(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.to_string(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Collected {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Into(&mut fields));
        self.0.lock().unwrap().0.push(fields);
    }

    fn on_record(&self, _: &span::Id, values: &span::Record<'_>, _: Context<'_, S>) {
        values.record(&mut Into(&mut self.0.lock().unwrap().1));
    }
}

impl Collected {
    fn new() -> (Self, tracing::subscriber::DefaultGuard) {
        let collected = Self::default();
        let subscriber = tracing_subscriber::registry().with(collected.clone());
        (collected, tracing::subscriber::set_default(subscriber))
    }

    /// The fields of the only rejection.
    fn rejection(&self) -> Fields {
        let events = std::mem::take(&mut self.0.lock().unwrap().0);
        let mut rejections = events
            .into_iter()
            .filter(|event| event["message"] == "request rejected");
        let rejection = rejections.next().expect("a rejection");
        assert!(rejections.next().is_none());
        rejection
    }

    /// What was recorded on spans after they were made.
    fn recorded(&self) -> Fields {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }
}

fn listed(key: &str, limit: Limit) -> Limits {
    let limits = Limits::new();
    let entry = (key.parse().unwrap(), Override::new(limit));
    limits.set_base([entry]).unwrap();
    limits
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn through_proxy(path: &str) -> http::Request<()> {
    let mut request = http::Request::post(path)
        .header("authorization", "Bearer hunter2")
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .header("x-request-id", "req-1")
        .header("x-forwarded-for", "2001:db8::7")
        .body(())
        .unwrap();
    let peer = "10.0.0.1:1234".parse().unwrap();
    request.extensions_mut().insert(PeerAddr(peer));
    request
}

#[tokio::test]
async fn a_rejection_is_logged_with_its_request() {
    let (collected, _guard) = Collected::new();
    let trusted = || ClientIp::forwarded_by(["10.0.0.0/8".parse().unwrap()]);
    let rate = RateLimitByTokenLayer::new(Quota::deny_all())
        .client_ip(trusted())
        .observe(TracingObserver::new());
    let in_flight = ConcurrencyLimitLayer::deny_all()
        .client_ip(trusted())
        .observe(TracingObserver::new());
    let lists = AccessLayer::new(&listed("ip:2001:db8::/32", Limit::deny_all()))
        .client_ip(trusted())
        .observe(TracingObserver::new());
    for (rejected, expected) in [
        (
            status(
                &lists.layer(Counting::default()),
                through_proxy("/v1/chat?key=hunter2"),
            )
            .await,
            403,
        ),
        (
            status(
                &rate.layer(Counting::default()),
                through_proxy("/v1/chat?key=hunter2"),
            )
            .await,
            403,
        ),
        (
            status(
                &in_flight.layer(Counting::default()),
                through_proxy("/v1/chat?key=hunter2"),
            )
            .await,
            503,
        ),
    ] {
        assert_eq!(rejected, expected);
    }
    let events = std::mem::take(&mut collected.0.lock().unwrap().0);
    assert_eq!(events.len(), 3);
    for (event, expected) in events.iter().zip(["403", "403", "503"]) {
        assert_eq!(event["http.response.status_code"], expected);
        assert_eq!(event["http.request.method"], "POST");
        assert_eq!(event["url.path"], "/v1/chat");
        assert_eq!(event["client.address"], "2001:db8::7");
        assert_eq!(event["trace_id"], TRACE);
        assert_eq!(event["http.request.header.x-request-id"], "req-1");
        assert!(!format!("{event:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn unchecked_values_of_a_client_are_not_logged() {
    let (collected, _guard) = Collected::new();
    let layer = RateLimitByTokenLayer::new(Quota::deny_all()).observe(TracingObserver::new());
    let long = "a".repeat(10_000);
    let request = http::Request::builder()
        .method(long.as_str())
        .uri(format!("/{long}"))
        .header("traceparent", &long)
        .header("x-request-id", &long)
        .header("x-forwarded-for", "192.0.2.66")
        .body(())
        .unwrap();
    assert_eq!(
        status(&layer.layer(Counting::default()), request).await,
        403
    );
    let event = collected.rejection();
    assert_eq!(event["http.request.method"], "_OTHER");
    assert_eq!(event["url.path"].len(), 259);
    for field in [
        "trace_id",
        "http.request.header.x-request-id",
        "client.address",
    ] {
        assert!(!event.contains_key(field), "{field}");
    }
}

#[tokio::test]
async fn a_rejection_is_recorded_on_a_span_that_declares_its_fields() {
    let (collected, _guard) = Collected::new();
    let observer = TracingObserver::new();
    let rate = RateLimitLayer::by(by_user, Policy::new("burst", Quota::per_hour(1)))
        .name("api")
        .observe(observer.clone());
    let in_flight = ConcurrencyLimitLayer::new(9).name("api").observe(observer);
    let service = in_flight.layer(rate.layer(Counting::default()));
    let declares = || admission_span!(Level::INFO, "request", url.path = "/");
    let ask = |span: tracing::Span| status(&service, user("alice")).instrument(span);

    assert_eq!(ask(declares()).await, 200);
    assert_eq!(collected.recorded(), Fields::new(), "nothing to say twice");
    assert_eq!(ask(declares()).await, 429);
    let mut recorded = collected.recorded();
    let key = recorded.remove("admission.key").unwrap();
    assert!(key.starts_with("user#"), "{key}");
    let expected = [
        ("error.type", "quota_exceeded"),
        ("admission.limit_type", "http"),
        ("admission.limiter", "api"),
        ("admission.policy", "burst"),
    ];
    let expected = expected.map(|(field, value)| (field.to_owned(), value.to_owned()));
    assert_eq!(recorded, Fields::from(expected));
    // tracing ignores a field that was not declared.
    assert_eq!(ask(tracing::info_span!("request")).await, 429);
    assert_eq!(collected.recorded(), Fields::new());
}

/// A service under nested limits.
#[tokio::test]
async fn nested_limits_count_a_request_once() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let observer = MetricsObserver::new();
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(2))
        .name("inner")
        .observe(observer);
    let outer = RateLimitLayer::by(by_user, Quota::per_hour(9))
        .name("outer")
        .dry_run(true)
        .observe(observer);
    let in_flight = ConcurrencyLimitLayer::new(9)
        .name("outermost")
        .skip(|head| head.uri.path() == "/skipped")
        // Ignored, because it does not count requests.
        .observe(TracingObserver::new())
        .observe(observer);
    let service = in_flight.layer(outer.layer(rate.layer(Counting::default())));
    for expected in [200, 200, 429, 429, 429] {
        assert_eq!(status(&service, bearer("alice")).await, expected);
    }
    let mut skipped = bearer("bob");
    *skipped.uri_mut() = "/skipped".parse().unwrap();
    assert_eq!(status(&service, skipped).await, 200);

    assert_eq!(
        requests(&snapshotter),
        counts([
            ("_total outermost", 5),
            ("_total outer", 1),
            ("_rejected_total inner", 3),
        ])
    );
}

/// The counts of requests above 0, as `metric limiter`.
fn requests(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        if let (Some(name), DebugValue::Counter(count @ 1..)) =
            (key.key().name().strip_prefix("admission_requests"), value)
        {
            let limiter = key.key().labels().next().unwrap().value();
            counts.insert(format!("{name} {limiter}"), count);
        }
    }
    counts
}

fn counts<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    let counts = counts.map(|(name, count)| (name.to_owned(), count));
    counts.into()
}

#[tokio::test]
async fn a_listed_request_is_counted_once_at_any_layer() {
    let observer = MetricsObserver::new();
    let in_flight = ConcurrencyLimitLayer::new(9)
        .name("capacity")
        .observe(observer);
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(1))
        .name("rate")
        .observe(observer);
    let limited = rate.layer(Counting::default());
    for (limit, answer, outcome) in [
        (Limit::unlimited(), 200, "_exempt_total lists"),
        (Limit::deny_all(), 403, "_rejected_total lists"),
    ] {
        let lists = AccessLayer::new(&listed("bearer:alice", limit))
            .key(BearerToken)
            .name("lists")
            .observe(observer);
        for (is_outermost, first) in [(true, "_total lists"), (false, "_total capacity")] {
            let recorder = DebuggingRecorder::new();
            let _recording = metrics::set_default_local_recorder(&recorder);
            for _ in 0..3 {
                let answered = if is_outermost {
                    let service = lists.layer(in_flight.layer(limited.clone()));
                    status(&service, bearer("alice")).await
                } else {
                    let service = in_flight.layer(lists.layer(limited.clone()));
                    status(&service, bearer("alice")).await
                };
                assert_eq!(answered, answer);
            }
            assert_eq!(
                requests(&recorder.snapshotter()),
                counts([(first, 3), (outcome, 3)])
            );
        }
    }
}
