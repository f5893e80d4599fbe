//! The dashboard and the alerts on a Prometheus that scrapes gateways under load.

mod load;
#[path = "../gateway/process.rs"]
mod process;
mod prometheus;
// Its own tests use all of it.
#[allow(dead_code)]
#[path = "../../crates/tower-admission-redis/tests/redis/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use self::load::Loaded;
use self::process::{soon, text};
use self::prometheus::Prometheus;
use self::server::Server;

const DASHBOARD: &str = include_str!("../../dashboards/grafana.json");
const ALERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards/alerts.yaml");
const ALERTS_TEST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/dashboards/alerts_test.yaml"
);

const RUNBOOK: &str = include_str!("../../docs/runbook.md");
/// Where chapters of the guide, files of `docs/guide`, are published.
const GUIDE: &str = "https://docs.rs/tower-admission/latest/tower_admission/guide/";

/// In place of `$__rate_interval`: all of the test.
const INTERVAL: &str = "[1m]";

const MEMORY: &str = "
[admin]
token = 'b5b0ea1ed0924ab5'
[lists]
deny = 'bearer:eve'
allow = 'bearer:probe'
[groups.api]
path = '/api/slow'
rate = '3/h'
concurrency = 16
[groups.dry]
path = '/batch'
rate = '1/h'
dry_run = true
[groups.stream]
path = '/api/stream'
concurrency = 1
reclaim_after = '200ms'
";

const REDIS: &str = "
[store]
url = 'URL'
secret = '00112233445566778899aabbccddeeff'
deadline = '2s'
[groups.api]
path = '/api/slow'
rate = '3/h'
concurrency = 16
";

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("the dashboard is JSON");
    dashboard["panels"].as_array().expect("panels").clone()
}

/// The queries of the panel with this title, with all jobs, instances and limiters chosen.
fn queries(title: &str) -> Vec<String> {
    let panels = panels();
    let mut panels = panels
        .iter()
        .filter(|panel| panel["title"] == title && panel["type"] != "row");
    let panel = panels.next().unwrap_or_else(|| panic!("no panel {title}"));
    let targets = panel["targets"].as_array().expect("targets").iter();
    targets
        .map(|target| chosen(target["expr"].as_str().unwrap(), ".*"))
        .collect()
}

fn chosen(expression: &str, instance: &str) -> String {
    expression
        .replace("[$__rate_interval]", INTERVAL)
        .replace("$instance", instance)
        .replace("$job", ".*")
        .replace("$limiter", ".*")
}

/// The same about all that was counted, and not about how much a second.
fn totals(expression: &str) -> String {
    expression.replace("rate(", "(").replace(INTERVAL, "")
}

/// What stands between each `open` and `close`.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    let parts = text.split(open).skip(1);
    parts
        .map(|part| part.split_once(close).expect("it is closed").0.trim())
        .collect()
}

const fn is_admitted(status: u16) -> bool {
    status < 300
}

const fn is_rejected(status: u16) -> bool {
    !is_admitted(status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_and_the_alerts_tell_what_the_load_was() {
    let mut redis = Server::start().await;
    let mut memory = Loaded::start("memory.toml", MEMORY);
    let mut shared = Loaded::start("shared.toml", &REDIS.replace("URL", &redis.url()));
    let instances = [&memory, &shared].map(|loaded| loaded.gateway.address.clone());
    let instances = instances.each_ref().map(String::as_str);
    let prometheus = Prometheus::start(&instances, ALERTS).await;

    // Twice, as a rate is the increase since the first sample.
    for round in ["first", "second"] {
        memory.spend(round).await;
        memory.stall().await;
        for _ in 0..3 {
            let status = memory
                .send("dry", Method::POST, "/batch/echo", "alice")
                .await;
            assert_eq!(status, 200);
        }
        for (token, expected) in [("eve", 403), ("probe", 200)] {
            for _ in 0..5 {
                let status = memory
                    .send("lists", Method::GET, "/api/slow?ms=1", token)
                    .await;
                assert_eq!(status, expected);
            }
        }
        let guess = memory.gateway.get("/admin/limits", "not the token").await;
        assert_eq!(guess, 401);
        memory.set_limit("bearer:alice", "api=3/h").await;
        shared.spend(round).await;
        if round == "second" {
            redis.kill();
            // The failure mode admits meanwhile.
            let down = async {
                while !metrics_of(&shared)
                    .await
                    .contains("\nadmission_store_up 0\n")
                {
                    let status = shared
                        .send("api", Method::GET, "/api/slow?ms=1", "bob")
                        .await;
                    assert_eq!(status, 200);
                }
            };
            soon(down).await;
            for _ in 0..100 {
                let status = shared
                    .send("api", Method::GET, "/api/slow?ms=0", "bob")
                    .await;
                assert_eq!(status, 200);
            }
        }
        prometheus.sampled().await;
    }

    every_query_has_an_answer(&prometheus).await;
    every_metric_is_shown(&[&memory, &shared]).await;
    sums_are_those_of_the_load(&prometheus, &memory, &shared).await;
    variables_have_values(&prometheus, &instances).await;
    alerts_are_evaluated(&prometheus).await;
}

async fn metrics_of(loaded: &Loaded) -> String {
    let response = loaded.gateway.send(Method::GET, "/metrics", "", "").await;
    text(response).await
}

async fn every_query_has_an_answer(prometheus: &Prometheus) {
    let mut queried = 0;
    for panel in panels().iter().filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = chosen(target["expr"].as_str().expect("an expression"), ".*");
            let series = prometheus.query(&expression).await;
            assert!(!series.is_empty(), "{expression}: no data");
            queried += 1;
            let legend = target["legendFormat"].as_str().expect("a legend");
            let numbers = series.iter().all(|(_, value)| !value.is_nan());
            assert!(numbers, "{expression}: {series:?}");
            for label in between(legend, "{{", "}}") {
                // An empty label is none, such as the policy of a concurrency limit.
                let has = series.iter().any(|(labels, _)| labels.contains_key(label));
                assert!(has, "{expression}: no {label}");
            }
        }
    }
    assert!(queried > 20, "{queried}");
}

async fn every_metric_is_shown(all: &[&Loaded]) {
    for loaded in all {
        for line in metrics_of(loaded).await.lines() {
            let Some(metric) = line.strip_prefix("# TYPE ") else {
                continue;
            };
            let (metric, _) = metric.split_once(' ').unwrap();
            let is_shown = ["", "_bucket"]
                .iter()
                .any(|end| DASHBOARD.contains(&format!("{metric}{end}{{")));
            assert!(is_shown, "{metric} is not shown");
        }
    }
}

async fn sums_are_those_of_the_load(prometheus: &Prometheus, memory: &Loaded, shared: &Loaded) {
    let all = |limiter: Option<&str>, status: fn(u16) -> bool| {
        (memory.count(limiter, status) + shared.count(limiter, status)) as f64
    };
    let admitted = all(None, is_admitted);
    let rejected = all(None, is_rejected);
    let [of_admitted, of_rejected] = &queries("Requests")[..] else {
        panic!("two queries");
    };
    assert_eq!(prometheus.number(&totals(of_admitted)).await, admitted);
    assert_eq!(prometheus.number(&totals(of_rejected)).await, rejected);
    assert!(prometheus.number(of_admitted).await > 0.0);
    assert!(prometheus.number(of_rejected).await > 0.0);
    // Of one instance.
    let panels = panels();
    let panel = panels
        .iter()
        .find(|panel| panel["title"] == "Requests" && panel["type"] != "row");
    let query = panel.unwrap()["targets"][0]["expr"].as_str().unwrap();
    let query = totals(&chosen(query, &shared.gateway.address));
    let of_shared = shared.count(None, is_admitted) as f64;
    assert_eq!(prometheus.number(&query).await, of_shared);

    for (title, status) in [
        ("Rejected requests", is_rejected as fn(u16) -> bool),
        ("Decided first", |_| true),
    ] {
        for (labels, value) in prometheus.query(&totals(&queries(title)[0])).await {
            let limiter = labels["limiter"].as_str();
            assert_eq!(value, all(Some(limiter), status), "{title}: {labels:?}");
        }
    }
    for (labels, value) in prometheus
        .query(&totals(&queries("Admitted by each limiter")[0]))
        .await
    {
        let of_load = match (&*labels["limiter"], &*labels["limit_type"]) {
            // The outer one admits what the inner one rejects, and what is exempt from that.
            ("api", "concurrency") => all(Some("api"), |_| true) + all(Some("lists"), is_admitted),
            // Dry runs have an outcome of their own.
            ("dry", "http") => 1.0,
            (limiter, _) => all(Some(limiter), is_admitted),
        };
        assert_eq!(value, of_load, "{labels:?}");
    }
    let hits = totals(&queries("Rejections by type of limit")[0]);
    assert_eq!(prometheus.number(&format!("sum({hits})")).await, rejected);
    let [of_banned, of_exempt] = &queries("Banned and exempt requests")[..] else {
        panic!("two queries");
    };
    for (query, status) in [
        (of_banned, is_rejected as fn(u16) -> bool),
        (of_exempt, is_admitted),
    ] {
        let on_lists = all(Some("lists"), status);
        assert_eq!(on_lists, 10.0);
        assert_eq!(prometheus.number(&totals(query)).await, on_lists);
    }
    let changes = "sum(admission_limit_changes_total{origin='here'})";
    assert_eq!(prometheus.number(changes).await, 2.0);
    let dry_run = all(Some("dry"), is_admitted) - 1.0;
    let decisions = totals(&queries("Rejections by policy and outcome")[0]);
    let decisions = prometheus.number(&format!("sum({decisions})")).await;
    assert_eq!(decisions, rejected + dry_run);
}

async fn variables_have_values(prometheus: &Prometheus, instances: &[&str]) {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let uid = dashboard["uid"].as_str().expect("a uid");
    assert!(!uid.is_empty());
    // No data source but the one that was chosen.
    for found in between(DASHBOARD, "\"uid\": \"", "\"") {
        assert!(found == uid || found == "${datasource}", "{found}");
    }
    let panels = panels();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are there once");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
    }
    // A range would show the last value of processes that are gone.
    for panel in panels.iter().filter(|panel| panel["type"] == "stat") {
        assert_eq!(panel["targets"][0]["instant"], true, "{panel}");
        assert_eq!(panel["fieldConfig"]["defaults"]["noValue"], "no data");
    }
    let variables = dashboard["templating"]["list"].as_array().expect("a list");
    for (name, expected) in [
        ("job", &["gateway"][..]),
        ("instance", instances),
        ("limiter", &["api", "dry", "lists", "stream"]),
    ] {
        let variable = variables.iter().find(|variable| variable["name"] == name);
        let query = variable.expect(name)["query"]["query"].as_str().unwrap();
        let [list] = between(query, "label_values(", ")")[..] else {
            panic!("{query}");
        };
        let (selector, label) = list.rsplit_once(", ").unwrap();
        let query = format!("count by ({label}) ({})", chosen(selector, ".*"));
        let values = prometheus.query(&query).await;
        let values: BTreeSet<_> = values.iter().map(|(labels, _)| &*labels[label]).collect();
        assert_eq!(values, expected.iter().copied().collect(), "{name}");
    }
}

async fn alerts_are_evaluated(prometheus: &Prometheus) {
    for rule in prometheus.rules().await {
        let name = rule["name"].as_str().unwrap();
        assert_eq!(rule["health"], "ok", "{rule}");
        let expression = rule["query"].as_str().unwrap();
        // What is compared is there, whether it alerts or not.
        for part in expression.split(" and ") {
            let (compared, _) = part.rsplit_once([' ']).unwrap();
            let compared = compared.trim_end_matches(['>', '=', ' ']);
            // There as well, without what it is above.
            let compared = compared.replace(">= 10", "> 0");
            let series = prometheus.query(&compared).await;
            assert!(!series.is_empty(), "{name}: {compared}: no data");
        }
    }
    // They fire only after minutes.
    let pending = async {
        let pending = |rule: &Value, name| rule["name"] == name && rule["state"] == "pending";
        for name in [
            "AdmissionRejectsMany",
            "AdmissionStoreDown",
            "AdmissionDecidesWithoutStore",
        ] {
            while !prometheus
                .rules()
                .await
                .iter()
                .any(|rule| pending(rule, name))
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    soon(pending).await;
}

/// The links of the runbook lead to headings that exist.
#[test]
fn links_of_the_runbook_have_a_target() {
    let links = between(RUNBOOK, "](", ")");
    assert!(links.len() > 30, "{links:?}");
    for link in links {
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        let file = match file.strip_prefix(GUIDE) {
            Some(chapter) => format!("guide/{}.md", chapter.trim_end_matches('/')),
            None if file.is_empty() => "runbook.md".to_owned(),
            None => file.to_owned(),
        };
        let path = format!("{}/docs/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{link}: no {path}"));
        let mut headings = text
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(anchor);
        let has_target = heading.is_empty() || headings.any(|anchor| anchor == heading);
        assert!(has_target, "{link}");
    }
}

/// The fragment by which a heading is linked.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Each alert fires on series that it is for, and is silent on others.
#[test]
fn each_alert_fires_and_is_silent() {
    for arguments in [["check", "rules", ALERTS], ["test", "rules", ALERTS_TEST]] {
        let output = Command::new("promtool").args(arguments).output();
        let output = output.expect("this test needs promtool, which is a part of prometheus");
        assert!(output.status.success(), "{output:?}");
    }
    let alerts = std::fs::read_to_string(ALERTS).unwrap();
    let tests = std::fs::read_to_string(ALERTS_TEST).unwrap();
    let alerts: Vec<_> = alerts.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        for tested in ["fires", "is silent"] {
            let has_test = tests.contains(&format!("- name: {name} {tested}\n"));
            assert!(has_test, "{name} {tested}");
        }
        let section = format!("runbook_url: docs/runbook.md#{}\n", name.to_lowercase());
        assert!(alert.contains(&section), "{name}: {section}");
        let heading = format!("\n## {name}\n");
        assert!(RUNBOOK.contains(&heading), "{name} has no section");
        // What its annotations name is among the labels that it fires with.
        let fires = format!("'ALERTS{{alertname=\"{name}\"");
        let [labels] = between(&tests, &fires, "}'")[..] else {
            panic!("{name} fires once");
        };
        for value in between(alert, "{{", "}}") {
            let label = value.strip_prefix("$labels.");
            let has = label.map(|label| labels.contains(&format!("{label}=\"")));
            assert!(
                has.unwrap_or(value.starts_with("$value")),
                "{name}: {value}"
            );
        }
    }
}
