//! Counters, gauges and histograms on the `metrics` facade.

use std::time::Duration;

use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, describe_histogram};
use metrics::{gauge, histogram};

use super::{Observer, Subject};
use crate::key::Key;
use crate::rejection::Rejection;
use crate::store::RateStats;

/// Counts and measures with the [`metrics`] facade. No label holds anything a client sent: all are
/// words of the program's, so there are as many series as it has limiters and quotas.
///
/// | metric | labels | |
/// |---|---|---|
/// | `admission_requests_total` | `limiter` | requests, each once: by the outermost limiter that decided about it |
/// | `admission_requests_rejected_total` | `limiter` | those of them that a layer rejected, by the limiter that did |
/// | `admission_requests_exempt_total` | `limiter` | those of them that an allow list exempted, see [`access`](crate::access) |
/// | `admission_decisions_total` | `limiter`, `policy`, `limit_type`, `outcome` | decisions of each limiter; `outcome` is `admitted`, a [`Reason`](crate::Reason) in words, or `dry_run` |
/// | `rate_limit_hits_total` | `limit_type` | rejections, by sort of limit |
/// | `admission_decision_seconds` | `limiter` | how long a decision took, with its store's round trip and a wait in line |
/// | `admission_in_flight` | `limiter` | permits given out and not back yet |
/// | `admission_in_flight_limit` | `limiter` | how many there may be; `+Inf` when the limit is off |
/// | `admission_held_seconds` | `limiter` | how long a permit was held |
/// | `admission_reclaimed_total` | `limiter` | permits that were taken from a response which its client did not read |
/// | `admission_tracked_keys` | `limiter` | keys that a limiter's store holds, see [`publish`](Self::publish) |
/// | `admission_evictions_total` | `limiter` | keys given up at the store's bound that had used something, see [`publish`](Self::publish) |
/// | `admission_limit_changes_total` | `change`, `origin` | changes of overrides, see [below](#changes-of-overrides); without an observer |
/// | `admission_limits_lost` | | overrides that a shared store has lost; without an observer |
/// | `admission_limits_unreadable` | | overrides in a shared store that this version cannot read; without an observer |
///
/// An `Admission` of the crate `tower-admission-config` (feature `metrics`) has three more, also without an observer:
///
/// | metric | labels | |
/// |---|---|---|
/// | `admission_config_last_reload_successful` | | 1 when the last reload of the configuration succeeded, or the start, and 0 when it was rejected |
/// | `admission_config_last_reload_success_timestamp_seconds` | | when the running configuration was applied, since the Unix epoch |
/// | `admission_limits_enabled` | | 0 while `enabled = false` switches off all limits of the configuration, and 1 otherwise |
///
/// `limiter` is the name of a layer, `policy` that of the quota which
/// [binds](Subject::policy), and `limit_type` one of `http`, `concurrency`, `access`, `ws_connection`,
/// `ws_message` and `lease`, see [`Subject::limit_type`]. In flight are the permits of this process,
/// also where replicas share a limit.
///
/// # From the start
///
/// Counters of a limiter exist with 0 before its first decision, for the outcomes that it usually has: `admitted`,
/// `quota_exceeded`, `at_capacity`, `key_at_capacity`, `banned` and `dry_run`. Prometheus does not see an increase where a
/// counter appears with 1. So install the recorder before you make [`Limits`](crate::Limits), layers and an
/// `Admission`.
///
/// # Changes of overrides
///
/// `change` is `override set`, `override deleted`, `override ended` or `loss of overrides accepted`. `origin` is `here` for
/// a change that this process made, and `elsewhere` for one that another process made in the shared store, such as
/// another replica or `tower-admission --redis`. Each process counts each change once, so **the sum over replicas counts a
/// change as often as there are replicas**. For the number of changes, sum `origin` in each process and take the largest:
///
/// ```text
/// max by (change) (sum by (instance, change) (increase(admission_limit_changes_total[1h])))
/// ```
///
/// The sum over replicas of `origin="here"` is the number of changes that services made. Two changes of one key that come
/// within half a second of more than 1,000 others may count as one.
///
/// # How many requests were admitted
///
/// A request that passes a concurrency limit and a rate limit is two decisions, and both are counted as
/// `admitted`. Requests that were admitted by all limits are `admission_requests_total` without
/// `admission_requests_rejected_total`, each summed over `limiter`: where limiters with different names are
/// around one another, one counts the request and another one rejects it. WebSockets, their messages and
/// leases are decisions and no requests.
///
/// `rate_limit_hits_total` has the name and the label of the metric in services that had a limiter of
/// their own before, so that their dashboards and alerts go on. It counts what
/// `admission_decisions_total` counts with an `outcome` other than `admitted` and `dry_run`, summed by
/// `limit_type`. Use either of them, and add up neither with the other.
///
/// # Stores
///
/// With feature `metrics` of `tower-admission-redis`, `RedisStore::observe` takes this observer as well:
///
/// | metric | labels | |
/// |---|---|---|
/// | `admission_store_errors_total` | `kind` | calls that failed, by [kind of failure](crate::store::FailureKind::as_str) |
/// | `admission_store_up` | | 1 while the store can be reached, in a cluster all its masters, else 0. Exists from the first attempt to connect on |
/// | `admission_failure_mode_decisions_total` | `mode` | decisions of a [failure mode](crate::store::FailureMode::as_str), because the store did not decide: `open`, `closed` or `local_share`. A request under a rate and a concurrency limit has two |
/// | `admission_denial_cache_hits_total` | | rejections that took no call |
///
/// All of these begin at 0 with the first attempt to connect, so that Prometheus sees the first failure as an increase.
///
/// A dashboard for Grafana and alerts for Prometheus on all of these are in the repository, as
/// `dashboards/grafana.json` and `dashboards/alerts.yaml`.
///
/// # Histograms
///
/// An exporter has to be told their buckets; that for Prometheus makes summaries of them otherwise,
/// which cannot be added up over replicas. [`DECISION_BUCKETS`](Self::DECISION_BUCKETS) and
/// [`HELD_BUCKETS`](Self::HELD_BUCKETS) are what the dashboard expects. With
/// `metrics-exporter-prometheus`:
///
/// ```no_run
/// # use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};
/// # use tower_admission::observe::MetricsObserver;
/// # fn main() -> Result<(), BuildError> {
/// let metrics = PrometheusBuilder::new()
///     .set_buckets_for_metric(
///         Matcher::Full("admission_decision_seconds".into()),
///         &MetricsObserver::DECISION_BUCKETS,
///     )?
///     .set_buckets_for_metric(
///         Matcher::Full("admission_held_seconds".into()),
///         &MetricsObserver::HELD_BUCKETS,
///     )?
///     .install_recorder()?;
/// // For `/metrics`.
/// let text = metrics.render();
/// // Each few seconds.
/// metrics.run_upkeep();
/// # Ok(())
/// # }
/// ```
///
/// # Upkeep
///
/// The recorder for Prometheus keeps each measured duration until `render` or `run_upkeep` is called.
/// While nothing scrapes, its memory grows by about 50 bytes a request, without a bound. Call
/// `PrometheusHandle::run_upkeep` every few seconds in a task of your own, as `examples/gateway` does.
/// `PrometheusBuilder::install` starts such a task, with an HTTP endpoint; `install_recorder` does not.
///
/// Costs one look at the clock before and one after each decision, and for each permit; and an entry in the
/// extensions of each admitted request, by which layers further in know that it is counted.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MetricsObserver;

impl MetricsObserver {
    /// Upper bounds for `admission_decision_seconds`: from a decision in memory, below a
    /// microsecond, over one in a store, which has a deadline, to a wait in line.
    pub const DECISION_BUCKETS: [f64; 14] = [
        1e-6, 5e-6, 25e-6, 1e-4, 25e-5, 5e-4, 1e-3, 25e-4, 5e-3, 1e-2, 25e-3, 0.1, 0.5, 2.5,
    ];

    /// Upper bounds for `admission_held_seconds`: from a quick request to a connection that is
    /// kept for an hour.
    pub const HELD_BUCKETS: [f64; 14] = [
        1e-3, 5e-3, 25e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0, 3600.0,
    ];

    /// An observer that counts on whichever recorder is installed. It
    /// [describes](Self::describe) the metrics to that one.
    #[must_use]
    pub fn new() -> Self {
        Self::describe();
        Self
    }

    /// Says what the metrics are, and in which units, to the recorder that is installed now; for
    /// one that was installed after the observer was made.
    pub fn describe() {
        describe_counter!(
            "admission_requests_total",
            Unit::Count,
            "Requests, each once, by the outermost limiter that decided about it."
        );
        describe_counter!(
            "admission_requests_rejected_total",
            Unit::Count,
            "Requests that were rejected, by the limiter that did."
        );
        describe_counter!(
            "admission_decisions_total",
            Unit::Count,
            "Decisions about requests, by quota and outcome."
        );
        describe_counter!(
            "rate_limit_hits_total",
            Unit::Count,
            "Rejections, by sort of limit."
        );
        describe_counter!(
            "admission_requests_exempt_total",
            Unit::Count,
            "Requests that an allow list exempted from rates and limits per key."
        );
        describe_histogram!(
            "admission_decision_seconds",
            Unit::Seconds,
            "How long decisions took, with a store's round trip and a wait in line."
        );
        describe_gauge!(
            "admission_in_flight",
            Unit::Count,
            "Permits that are given out and not back yet."
        );
        describe_gauge!(
            "admission_in_flight_limit",
            Unit::Count,
            "How many permits there may be."
        );
        describe_histogram!(
            "admission_held_seconds",
            Unit::Seconds,
            "How long permits were held."
        );
        describe_counter!(
            "admission_reclaimed_total",
            Unit::Count,
            "Permits that were taken from responses which their clients did not read."
        );
        describe_gauge!(
            "admission_tracked_keys",
            Unit::Count,
            "Keys that are held, once for each quota."
        );
        describe_counter!(
            "admission_evictions_total",
            Unit::Count,
            "Keys that were given up although they had used something."
        );
    }

    /// Sets `admission_tracked_keys` and `admission_evictions_total` of a limiter of this name. These
    /// are asked for and not told, so call it now and then: before each scrape, or once in some
    /// seconds.
    ///
    /// ```
    /// use tower_admission::{Quota, RateLimitByTokenLayer, observe::MetricsObserver};
    ///
    /// let metrics = MetricsObserver::new();
    /// let layer = RateLimitByTokenLayer::new(Quota::per_second(10))
    ///     .name("api")
    ///     .observe(metrics);
    /// let limiter = layer.limiter();
    ///
    /// // Where metrics are read:
    /// if let Some(stats) = limiter.stats() {
    ///     metrics.publish("api", stats);
    /// }
    /// ```
    pub fn publish(&self, limiter: &str, stats: RateStats) {
        let limiter = limiter.to_owned();
        gauge!("admission_tracked_keys", "limiter" => limiter.clone())
            .set(stats.tracked_keys as f64);
        counter!("admission_evictions_total", "limiter" => limiter).absolute(stats.evictions);
    }
}

fn decisions(subject: &Subject<'_>, outcome: &'static str) -> Counter {
    counter!(
        "admission_decisions_total",
        "limiter" => subject.limiter.to_owned(),
        "policy" => subject.policy.to_owned(),
        "limit_type" => subject.limit_type,
        "outcome" => outcome,
    )
}

fn decision(subject: &Subject<'_>, outcome: &'static str) {
    decisions(subject, outcome).increment(1);
}

/// The outcomes that a limiter of this type usually has; they exist from the start.
fn usual_outcomes(limit_type: &str) -> &'static [&'static str] {
    match limit_type {
        "access" => &["banned"],
        "http" | "ws_message" => &["admitted", "quota_exceeded", "dry_run"],
        _ => &["admitted", "at_capacity", "key_at_capacity", "dry_run"],
    }
}

impl Observer for MetricsObserver {
    fn attached(&self, subject: &Subject<'_>) {
        let limiter = || subject.limiter.to_owned();
        for outcome in usual_outcomes(subject.limit_type) {
            decisions(subject, outcome).increment(0);
        }
        counter!("rate_limit_hits_total", "limit_type" => subject.limit_type).increment(0);
        if matches!(subject.limit_type, "http" | "concurrency" | "access") {
            counter!("admission_requests_total", "limiter" => limiter()).increment(0);
            counter!("admission_requests_rejected_total", "limiter" => limiter()).increment(0);
        }
        match subject.limit_type {
            "access" => {
                counter!("admission_requests_exempt_total", "limiter" => limiter()).increment(0);
            }
            "concurrency" => {
                counter!("admission_reclaimed_total", "limiter" => limiter()).increment(0);
            }
            _ => {}
        }
    }

    fn admitted(&self, subject: &Subject<'_>) {
        decision(subject, "admitted");
    }

    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        counter!("rate_limit_hits_total", "limit_type" => subject.limit_type).increment(1);
        if subject.request.is_some() {
            counter!("admission_requests_rejected_total", "limiter" => subject.limiter.to_owned())
                .increment(1);
        }
        decision(subject, rejection.reason().as_str());
    }

    fn exempted(&self, subject: &Subject<'_>) {
        let limiter = subject.limiter.to_owned();
        counter!("admission_requests_exempt_total", "limiter" => limiter).increment(1);
    }

    fn would_reject(&self, subject: &Subject<'_>, _: &Rejection) {
        decision(subject, "dry_run");
    }

    fn decided(&self, subject: &Subject<'_>, took: Duration) {
        histogram!("admission_decision_seconds", "limiter" => subject.limiter.to_owned())
            .record(took);
        // Here, because this is told once for each decision.
        if subject.is_first() {
            counter!("admission_requests_total", "limiter" => subject.limiter.to_owned())
                .increment(1);
        }
    }

    fn counts_requests(&self) -> bool {
        true
    }

    fn acquired(&self, limiter: &str, _: u64) {
        gauge!("admission_in_flight", "limiter" => limiter.to_owned()).increment(1.0);
    }

    fn limit(&self, limiter: &str, limit: Option<u64>) {
        let limit = limit.map_or(f64::INFINITY, |limit| limit as f64);
        gauge!("admission_in_flight_limit", "limiter" => limiter.to_owned()).set(limit);
    }

    fn reclaimed(&self, limiter: &str, _: Option<&Key>, _: Duration) {
        counter!("admission_reclaimed_total", "limiter" => limiter.to_owned()).increment(1);
    }

    fn released(&self, limiter: &str) {
        gauge!("admission_in_flight", "limiter" => limiter.to_owned()).decrement(1.0);
    }

    fn held(&self, limiter: &str, held: Duration) {
        histogram!("admission_held_seconds", "limiter" => limiter.to_owned()).record(held);
    }
}

/// As [`MetricsObserver::new`].
impl Default for MetricsObserver {
    fn default() -> Self {
        Self::new()
    }
}
