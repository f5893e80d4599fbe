//! The metrics of a store.

use std::collections::BTreeMap;

use ::metrics::set_default_local_recorder;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower_admission::observe::MetricsObserver;
use tower_admission::store::{FailureKind, FailureMode};
use tower_admission_redis::StoreObserver;

/// The value of each metric by its name and labels.
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

#[test]
fn the_health_and_the_failures_of_a_store_are_metrics() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = set_default_local_recorder(&recorder);
    let observer = MetricsObserver::new();
    observer.reachable(true);
    observer.failed(FailureKind::Timeout);
    observer.failed(FailureKind::Timeout);
    observer.failed(FailureKind::ReadOnly);
    observer.denied_from_cache();
    observer.decided_without(FailureMode::Open);
    observer.decided_without(FailureMode::LocalShare { replicas: 3 });
    observer.decided_without(FailureMode::LocalShare { replicas: 3 });
    observer.reachable(false);
    let mut measured = measured(&snapshotter);
    let zeros = measured.len();
    // Counters exist as 0 before the first event, so that the first event is an increase.
    measured.retain(|name, values| name == "admission_store_up " || values[0] > 0.0);
    assert_eq!(zeros - measured.len(), 12, "{measured:?}");
    let expected = [
        ("admission_denial_cache_hits_total ", 1.0),
        (
            "admission_failure_mode_decisions_total mode=local_share",
            2.0,
        ),
        ("admission_failure_mode_decisions_total mode=open", 1.0),
        ("admission_store_errors_total kind=read_only", 1.0),
        ("admission_store_errors_total kind=timeout", 2.0),
        ("admission_store_up ", 0.0),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), vec![value]));
    assert_eq!(measured, expected.into());
}
