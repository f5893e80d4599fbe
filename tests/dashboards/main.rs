//! The dashboard and the alerts use what is exported, and all of it.

mod promql;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};

use metrics_util::MetricKind;
use metrics_util::debugging::DebuggingRecorder;
use serde_json::Value;
use tower::{Layer, ServiceExt, service_fn};
use tower_admission::observe::MetricsObserver;
use tower_admission::store::FailureMode;
use tower_admission::store::redis::{FailureKind, StoreObserver};
use tower_admission::{
    AccessLayer, ConcurrencyLimitLayer, Key, Limit, Limits, MemoryStore, Observer, Override,
    Policy, Quota, RateLimitLayer, RequestHead,
};

use self::promql::Expression;

const DASHBOARD: &str = include_str!("../../dashboards/grafana.json");
const ALERTS: &str = include_str!("../../dashboards/alerts.yaml");
const OBSERVER: &str = include_str!("../../src/observe/metrics.rs");

/// Labels that Prometheus gives to what it scrapes.
const TARGET: &[&str] = &["instance", "job"];

/// A metric as it is exported: with labels and the values that they had.
struct Metric {
    kind: MetricKind,
    labels: BTreeMap<String, BTreeSet<String>>,
}

type Exported = BTreeMap<String, Metric>;

/// What limiters that do all sorts of things export.
fn exported() -> Exported {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.build().unwrap().block_on(exercise());
    });
    let mut exported = Exported::new();
    for (key, _, _, _) in snapshotter.snapshot().into_vec() {
        let name = key.key().name().to_owned();
        let metric = exported.entry(name).or_insert_with(|| Metric {
            kind: key.kind(),
            labels: BTreeMap::new(),
        });
        for label in key.key().labels() {
            let values = metric.labels.entry(label.key().to_owned()).or_default();
            values.insert(label.value().to_owned());
        }
    }
    exported
}

async fn exercise() {
    let metrics = MetricsObserver::new();
    let handler = service_fn(async |_: http::Request<()>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
    });
    let by_path = |head: RequestHead<'_>| Some(Key::id("path", head.uri.path()));
    let rate = RateLimitLayer::by(by_path, Policy::new("burst", Quota::per_hour(1)))
        .store(MemoryStore::new().max_keys(1))
        .name("api")
        .observe(metrics);
    let in_flight = ConcurrencyLimitLayer::new(1).name("ai").observe(metrics);
    let _permit = in_flight.limiter().try_acquire().unwrap();
    let request = |path: &str| http::Request::get(path).body(()).unwrap();
    for path in ["/a", "/b", "/b"] {
        let service = rate.clone().layer(handler);
        let _ = service.oneshot(request(path)).await;
    }
    let dry = rate.clone().dry_run(true).layer(handler);
    let _ = dry.oneshot(request("/b")).await;
    let _ = in_flight.layer(handler).oneshot(request("/")).await;
    let limits = Limits::new();
    let by_user = |_: RequestHead<'_>| Some(Key::id("user", "eve"));
    for list in [Limit::deny_all(), Limit::unlimited()] {
        let eve = ("user:eve".parse().unwrap(), Override::new(list));
        limits.set_base([eve]).unwrap();
        let lists = AccessLayer::new(&limits).key(by_user).name("lists");
        let _ = lists
            .observe(metrics)
            .layer(handler)
            .oneshot(request("/"))
            .await;
    }
    metrics.publish("api", rate.limiter().stats().unwrap());
    metrics.reclaimed("ai", None, std::time::Duration::from_secs(61));
    metrics.reachable(true);
    metrics.failed(FailureKind::Timeout);
    metrics.denied_from_cache();
    metrics.decided_without(FailureMode::Open);
}

impl Metric {
    /// Whether a series has the label: Prometheus adds `le` to buckets.
    fn has(&self, label: &str, is_bucket: bool) -> bool {
        self.labels.contains_key(label) || TARGET.contains(&label) || (label == "le" && is_bucket)
    }
}

/// The metric that a name in an expression stands for, and whether it is that of buckets.
fn find<'a>(exported: &'a Exported, name: &str) -> Option<(&'a str, &'a Metric, bool)> {
    let is_bucket = name.ends_with("_bucket");
    let suffixes = ["_bucket", "_sum", "_count"];
    let of_histogram = suffixes.iter().find_map(|end| name.strip_suffix(end));
    let (name, metric) = exported.get_key_value(of_histogram.unwrap_or(name))?;
    let is_histogram = metric.kind == MetricKind::Histogram;
    (is_histogram == of_histogram.is_some()).then_some((name, metric, is_bucket))
}

/// Checks an expression, and the labels that what it gives is named by. Returns its metrics.
fn check<'a>(exported: &'a Exported, expression: &str, named_by: &[&str]) -> Vec<&'a str> {
    let parsed = promql::parse(expression);
    assert!(!parsed.selectors.is_empty(), "{expression}: no metric");
    let Expression {
        selectors,
        by,
        is_aggregated,
    } = &parsed;
    let mut used = Vec::new();
    for selector in selectors {
        let Some((name, metric, is_bucket)) = find(exported, &selector.metric) else {
            panic!("{expression}: {} is not exported", selector.metric);
        };
        used.push(name);
        for (label, values) in &selector.labels {
            let had = metric.labels.get(label);
            let had = had.unwrap_or_else(|| panic!("{expression}: {name} has no {label}"));
            for value in values.iter().filter(|value| !value.starts_with('$')) {
                assert!(had.contains(value), "{expression}: no {label} is {value}");
            }
        }
        let all = by
            .iter()
            .map(String::as_str)
            .chain(named_by.iter().copied());
        for label in all {
            let has = metric.has(label, is_bucket);
            assert!(has, "{expression}: {name} has no {label}");
        }
    }
    for label in named_by {
        let is_left = !is_aggregated || by.iter().any(|by| by == label);
        assert!(is_left, "{expression}: leaves no {label}");
    }
    used
}

/// What stands between each `open` and `close`.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    let parts = text.split(open).skip(1);
    parts
        .map(|part| part.split_once(close).expect("it is closed").0.trim())
        .collect()
}

fn panels() -> (Value, Vec<Value>) {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("panels").clone();
    (dashboard, panels)
}

#[test]
fn the_dashboard_shows_what_is_exported_and_all_of_it() {
    let exported = exported();
    let (_, panels) = panels();
    let mut shown = BTreeSet::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let expression = target["expr"].as_str().expect("an expression");
            let legend = target["legendFormat"].as_str().expect("a legend");
            let named_by = between(legend, "{{", "}}");
            shown.extend(check(&exported, expression, &named_by));
        }
    }
    let all: BTreeSet<_> = exported.keys().map(String::as_str).collect();
    assert_eq!(shown, all);
}

#[test]
fn the_dashboard_goes_by_its_variables() {
    let exported = exported();
    let (dashboard, panels) = panels();
    let variables = dashboard["templating"]["list"].as_array().expect("a list");
    let named = |name: &str| {
        let variable = variables.iter().find(|variable| variable["name"] == name);
        variable.unwrap_or_else(|| panic!("no variable {name}"))
    };
    assert_eq!(named("datasource")["type"], "datasource");
    let query = named("limiter")["query"]["query"].as_str().unwrap();
    check(&exported, query, &["limiter"]);
    // No data source but the one that was chosen.
    for uid in between(DASHBOARD, "\"uid\":", "\n") {
        assert_eq!(uid.trim_end_matches(','), "\"${datasource}\"");
    }
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are there once");
}

#[test]
fn alerts_are_about_what_is_exported() {
    let exported = exported();
    let alerts = yaml::parse(ALERTS);
    let mut names = BTreeSet::new();
    for group in alerts.at("groups").list() {
        assert!(!group.at("name").text().is_empty());
        for rule in group.at("rules").list() {
            let name = rule.at("alert").text();
            assert!(names.insert(name.to_owned()), "{name} is there twice");
            let minutes = rule.at("for").text().strip_suffix('m');
            assert!(minutes.is_some_and(|minutes| minutes.parse::<u8>().is_ok()));
            let severity = rule.at("labels").at("severity").text();
            assert!(["critical", "warning"].contains(&severity), "{severity}");
            let annotations = rule.at("annotations");
            let mut named_by = Vec::new();
            for annotation in ["summary", "description"] {
                for value in between(annotations.at(annotation).text(), "{{", "}}") {
                    let label = value.strip_prefix("$labels.");
                    assert!(label.is_some() || value.starts_with("$value"), "{value}");
                    named_by.extend(label);
                }
            }
            check(&exported, rule.at("expr").text(), &named_by);
        }
    }
    assert!(names.len() >= 5, "{names:?}");
}

#[test]
fn the_exercise_exports_everything_that_the_observer_can() {
    let exported = exported();
    let prefixes = ["\"admission_", "\"rate_limit_"];
    let named = prefixes.iter().flat_map(|prefix| {
        let names = between(OBSERVER, prefix, "\"").into_iter();
        names.map(|name| format!("{}{name}", &prefix[1..]))
    });
    let named: BTreeSet<_> = named.collect();
    assert!(named.len() > 5, "does this test still read the code?");
    for name in &named {
        assert!(exported.contains_key(name), "{name}");
    }
    assert_eq!(named.len(), exported.len());
}
