//! Counters, gauges and histograms on the `metrics` facade.

use std::time::Duration;

use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, describe_histogram};
use metrics::{gauge, histogram};

use super::{Observer, Subject};
use crate::key::Key;
use crate::rejection::Rejection;
use crate::store::RateStats;

/// Counts and measures with the [`metrics`] facade. The program defines all label values and a
/// client none, so the number of series is bounded by the number of limiters and quotas.
///
/// | metric | labels | meaning |
/// |---|---|---|
/// | `admission_requests_total` | `limiter` | requests, each counted once, by the outermost limiter that decided about it |
/// | `admission_requests_rejected_total` | `limiter` | those of them that a layer rejected, by the rejecting limiter |
/// | `admission_requests_exempt_total` | `limiter` | those of them that an allow list exempted, see [`access`](crate::access) |
/// | `admission_decisions_total` | `limiter`, `policy`, `limit_type`, `outcome` | decisions of each limiter; `outcome` is `admitted`, a [`Reason`](crate::Reason) as a word, or `dry_run` |
/// | `rate_limit_hits_total` | `limit_type` | rejections, by type of limit |
/// | `admission_decision_seconds` | `limiter` | duration of a decision, with the round trip to its store and the wait in the queue |
/// | `admission_in_flight` | `limiter` | permits that are currently held |
/// | `admission_in_flight_limit` | `limiter` | the maximum of them; `+Inf` when the limit is off |
/// | `admission_held_seconds` | `limiter` | the time for which a permit was held |
/// | `admission_reclaimed_total` | `limiter` | permits reclaimed from responses that their clients did not read |
/// | `admission_tracked_keys` | `limiter` | keys that a limiter's store holds, see [`publish`](Self::publish) |
/// | `admission_evictions_total` | `limiter` | keys with used quota that were evicted at the store's bound, see [`publish`](Self::publish) |
/// | `admission_limit_changes_total` | `change`, `origin` | changes of overrides, see [below](#changes-of-overrides); without an observer |
/// | `admission_limits_lost` | | overrides that a shared store has lost; without an observer |
/// | `admission_limits_unreadable` | | overrides in a shared store that this version cannot read; without an observer |
///
/// An `Admission` of the crate `tower-admission-config` (feature `metrics`) has three more, also without an observer:
///
/// | metric | labels | |
/// |---|---|---|
/// | `admission_config_last_reload_successful` | | 1 if the last load of the configuration succeeded, 0 if it was rejected |
/// | `admission_config_last_reload_success_timestamp_seconds` | | when the running configuration was applied, in seconds since the Unix epoch |
/// | `admission_limits_enabled` | | 0 while `enabled = false` switches off all limits of the configuration, and 1 otherwise |
///
/// `limiter` is the name of a layer, `policy` the name of the quota that [binds](Subject::policy),
/// and `limit_type` one of `http`, `concurrency`, `access`, `ws_connection`, `ws_message` and
/// `lease`, see [`Subject::limit_type`]. `admission_in_flight` counts the permits of this process,
/// also if replicas share a limit.
///
/// # Initial values
///
/// Counters of a limiter exist with value 0 before its first decision, for its usual outcomes:
/// `admitted`, `quota_exceeded`, `at_capacity`, `key_at_capacity`, `banned` and `dry_run`.
/// Prometheus would not see an increase if a counter appeared with value 1. Install the recorder
/// before you make [`Limits`](crate::Limits), layers and an `Admission`.
///
/// # Changes of overrides
///
/// `change` is `override set`, `override deleted`, `override ended` or
/// `loss of overrides accepted`. `origin` is `here` for a change made by this process, and
/// `elsewhere` for a change that another process made in the shared store, such as another replica
/// or `tower-admission --redis`. Each process counts each change once, so **the sum over replicas
/// counts a change once per replica**. For the number of changes, sum over `origin` in each process
/// and take the maximum:
///
/// ```text
/// max by (change) (sum by (instance, change) (increase(admission_limit_changes_total[1h])))
/// ```
///
/// The sum of `origin="here"` over replicas is the number of changes made by services. Two changes
/// of one key may count as one if they come within half a second of more than 1,000 others.
///
/// # How many requests were admitted
///
/// A request that passes a concurrency limit and a rate limit is two decisions, both counted as
/// `admitted`. The number of requests admitted by all limits is `admission_requests_total` minus
/// `admission_requests_rejected_total`, each summed over `limiter`: of nested limiters with
/// different names, one counts the request and another one rejects it. WebSockets, their messages
/// and leases are decisions but not requests.
///
/// `rate_limit_hits_total` has a name and a label that common hand-written limiters use, so that
/// existing dashboards and alerts keep working. It counts the decisions of
/// `admission_decisions_total` with an `outcome` other than `admitted` and `dry_run`, summed by
/// `limit_type`. Use one of the two metrics, and do not add them up.
///
/// # Stores
///
/// With feature `metrics` of `tower-admission-redis`, `RedisStore::observe` takes this observer as well:
///
/// | metric | labels | |
/// |---|---|---|
/// | `admission_store_errors_total` | `kind` | calls that failed, by [kind of failure](crate::store::FailureKind::as_str) |
/// | `admission_store_up` | | 1 while the store can be reached (in a cluster, all its masters), else 0. Exists from the first attempt to connect |
/// | `admission_failure_mode_decisions_total` | `mode` | decisions by a [failure mode](crate::store::FailureMode::as_str) in place of the store: `open`, `closed` or `local_share`. A request under a rate limit and a concurrency limit has two |
/// | `admission_denial_cache_hits_total` | | rejections that needed no call |
///
/// All of these start at 0 with the first attempt to connect, so that Prometheus sees the first
/// failure as an increase.
///
/// The repository has a Grafana dashboard (`dashboards/grafana.json`) and Prometheus alerts
/// (`dashboards/alerts.yaml`) for all of these.
///
/// # Histograms
///
/// An exporter needs the buckets of each histogram. Without them the Prometheus exporter makes
/// summaries, which cannot be aggregated over replicas. The dashboard expects
/// [`DECISION_BUCKETS`](Self::DECISION_BUCKETS) and [`HELD_BUCKETS`](Self::HELD_BUCKETS). With
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
/// // Serve this text as `/metrics`.
/// let text = metrics.render();
/// // Call this every few seconds.
/// metrics.run_upkeep();
/// # Ok(())
/// # }
/// ```
///
/// # Upkeep
///
/// The Prometheus recorder keeps each measured duration until `render` or `run_upkeep` is called.
/// If nothing scrapes, its memory grows by about 50 bytes per request, without a bound. Call
/// `PrometheusHandle::run_upkeep` every few seconds in a task, as `examples/gateway` does.
/// `PrometheusBuilder::install` starts such a task with an HTTP endpoint; `install_recorder` does
/// not.
///
/// Cost: the clock is read before and after each decision and each permit. Each admitted request
/// gets an entry in its extensions, so that inner layers do not count it again.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MetricsObserver;

impl MetricsObserver {
    /// Upper bounds for `admission_decision_seconds`: from a decision in memory (below a
    /// microsecond) and a round trip to a store to a wait in the queue.
    pub const DECISION_BUCKETS: [f64; 14] = [
        1e-6, 5e-6, 25e-6, 1e-4, 25e-5, 5e-4, 1e-3, 25e-4, 5e-3, 1e-2, 25e-3, 0.1, 0.5, 2.5,
    ];

    /// Upper bounds for `admission_held_seconds`: from a fast request to a connection that lasts an
    /// hour.
    pub const HELD_BUCKETS: [f64; 14] = [
        1e-3, 5e-3, 25e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0, 3600.0,
    ];

    /// Makes an observer that counts on the installed recorder, and [describes](Self::describe) the
    /// metrics to it.
    #[must_use]
    pub fn new() -> Self {
        Self::describe();
        Self
    }

    /// Describes the metrics and their units to the installed recorder. Call it again if the
    /// recorder was installed after the observer was made.
    pub fn describe() {
        describe_counter!(
            "admission_requests_total",
            Unit::Count,
            "Requests, each counted once, by the outermost limiter that decided about it."
        );
        describe_counter!(
            "admission_requests_rejected_total",
            Unit::Count,
            "Requests that were rejected, by the rejecting limiter."
        );
        describe_counter!(
            "admission_decisions_total",
            Unit::Count,
            "Decisions about requests, by quota and outcome."
        );
        describe_counter!(
            "rate_limit_hits_total",
            Unit::Count,
            "Rejections, by type of limit."
        );
        describe_counter!(
            "admission_requests_exempt_total",
            Unit::Count,
            "Requests that an allow list exempted from rates and limits per key."
        );
        describe_histogram!(
            "admission_decision_seconds",
            Unit::Seconds,
            "Duration of decisions, with the store's round trip and the wait in the queue."
        );
        describe_gauge!(
            "admission_in_flight",
            Unit::Count,
            "Permits that are currently held."
        );
        describe_gauge!(
            "admission_in_flight_limit",
            Unit::Count,
            "The maximum number of permits."
        );
        describe_histogram!(
            "admission_held_seconds",
            Unit::Seconds,
            "The time for which permits were held."
        );
        describe_counter!(
            "admission_reclaimed_total",
            Unit::Count,
            "Permits reclaimed from responses that their clients did not read."
        );
        describe_gauge!(
            "admission_tracked_keys",
            Unit::Count,
            "Tracked keys, counted once for each quota."
        );
        describe_counter!(
            "admission_evictions_total",
            Unit::Count,
            "Keys with used quota that were evicted."
        );
    }

    /// Sets `admission_tracked_keys` and `admission_evictions_total` for a limiter with this name.
    /// Limiters do not report these values, so call it before each scrape, or every few seconds.
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
    /// // Where the metrics are rendered:
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

/// The usual outcomes of a limiter of this type, whose counters exist from the start.
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
        // In this hook, because it is called once per decision.
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
