//! Counters and a gauge on the `metrics` facade.

use super::{Observer, Subject};
use crate::rejection::Rejection;
#[cfg(feature = "redis")]
use crate::store::redis::{FailureKind, StoreObserver};

/// Counts decisions with the [`metrics`] facade. No label holds anything a client sent.
///
/// | metric | labels | |
/// |---|---|---|
/// | `rate_limit_hits_total` | `limit_type` | refusals, by sort of limit |
/// | `admission_decisions_total` | `limiter`, `limit_type`, `outcome` | `outcome` is `admitted`, a [`Reason`](crate::Reason) in words, or `dry_run` |
/// | `admission_in_flight` | `limiter` | permits given out and not back yet |
///
/// With feature `redis` it observes [stores](crate::store::redis::RedisStore::observe), too:
///
/// | metric | labels | |
/// |---|---|---|
/// | `admission_store_errors_total` | `kind` | calls that failed, by kind of failure |
/// | `admission_store_up` | | 1 while the store can be reached, else 0 |
/// | `admission_denial_cache_hits_total` | | refusals that took no call |
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct MetricsObserver;

impl MetricsObserver {
    /// An observer that counts on whichever recorder is installed.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

fn decision(subject: &Subject<'_>, outcome: &'static str) {
    metrics::counter!(
        "admission_decisions_total",
        "limiter" => subject.limiter.to_owned(),
        "limit_type" => subject.limit_type,
        "outcome" => outcome,
    )
    .increment(1);
}

impl Observer for MetricsObserver {
    fn admitted(&self, subject: &Subject<'_>) {
        decision(subject, "admitted");
    }

    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        metrics::counter!("rate_limit_hits_total", "limit_type" => subject.limit_type).increment(1);
        decision(subject, rejection.reason().as_str());
    }

    fn would_reject(&self, subject: &Subject<'_>, _: &Rejection) {
        decision(subject, "dry_run");
    }

    fn acquired(&self, limiter: &str, _: u64) {
        metrics::gauge!("admission_in_flight", "limiter" => limiter.to_owned()).increment(1.0);
    }

    fn released(&self, limiter: &str) {
        metrics::gauge!("admission_in_flight", "limiter" => limiter.to_owned()).decrement(1.0);
    }
}

#[cfg(feature = "redis")]
impl StoreObserver for MetricsObserver {
    fn failed(&self, kind: FailureKind) {
        metrics::counter!("admission_store_errors_total", "kind" => kind.as_str()).increment(1);
    }

    fn reachable(&self, reachable: bool) {
        metrics::gauge!("admission_store_up").set(if reachable { 1.0 } else { 0.0 });
    }

    fn denied_from_cache(&self) {
        metrics::counter!("admission_denial_cache_hits_total").increment(1);
    }
}
