//! Metrics of a store: availability, failures, and decisions made without it.

use std::sync::Once;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use tower_admission::observe::MetricsObserver;
use tower_admission::store::{FailureKind, FailureMode};

use super::StoreObserver;

/// Describes the metrics, with their units, on the first call.
fn describe() {
    static DESCRIBED: Once = Once::new();
    DESCRIBED.call_once(|| {
        describe_counter!(
            "admission_store_errors_total",
            Unit::Count,
            "Calls to the store that failed, by kind of failure."
        );
        describe_gauge!(
            "admission_store_up",
            "1 while the store can be reached, else 0."
        );
        describe_counter!(
            "admission_failure_mode_decisions_total",
            Unit::Count,
            "Decisions by a failure mode, because the store did not decide."
        );
        describe_counter!(
            "admission_denial_cache_hits_total",
            Unit::Count,
            "Rejections without a call, for keys that the store has just rejected."
        );
    });
}

impl StoreObserver for MetricsObserver {
    fn failed(&self, kind: FailureKind) {
        describe();
        counter!("admission_store_errors_total", "kind" => kind.as_str()).increment(1);
    }

    fn reachable(&self, reachable: bool) {
        describe();
        gauge!("admission_store_up").set(if reachable { 1.0 } else { 0.0 });
        for kind in FailureKind::ALL {
            counter!("admission_store_errors_total", "kind" => kind.as_str()).increment(0);
        }
        let share = FailureMode::LocalShare { replicas: 1 };
        for mode in [FailureMode::Open, FailureMode::Closed, share] {
            counter!("admission_failure_mode_decisions_total", "mode" => mode.as_str())
                .increment(0);
        }
        counter!("admission_denial_cache_hits_total").increment(0);
    }

    fn decided_without(&self, mode: FailureMode) {
        describe();
        counter!("admission_failure_mode_decisions_total", "mode" => mode.as_str()).increment(1);
    }

    fn denied_from_cache(&self) {
        counter!("admission_denial_cache_hits_total").increment(1);
    }
}
