//! A Prometheus that scrapes the gateways of a test.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::process::soon;

/// Ends when dropped, with its data.
pub(crate) struct Prometheus {
    process: Child,
    folder: PathBuf,
    address: String,
    targets: usize,
    client: Client<HttpConnector, Empty<Bytes>>,
}

/// What a query returns: labels and a number.
pub(crate) type Series = Vec<(BTreeMap<String, String>, f64)>;

impl Prometheus {
    /// Scrapes these addresses twice a second, as job `gateway`, and evaluates the alerts as often.
    pub(crate) async fn start(targets: &[&str], alerts: &str) -> Self {
        let name = format!("tower-admission-prometheus-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let config = folder.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [{alerts}]\n\
             scrape_configs: [{{job_name: gateway, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let address = free.unwrap().to_string();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .spawn()
            .expect("this test needs prometheus: `apt-get install prometheus`, or `brew install prometheus`");
        let prometheus = Self {
            process,
            folder,
            address,
            targets: targets.len(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        };
        let ready = async {
            while prometheus.get("/-/ready").await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(ready).await;
        prometheus
    }

    /// The body of an answer of 200.
    async fn get(&self, path: &str) -> Option<Bytes> {
        let uri = format!("http://{}{path}", self.address).parse().unwrap();
        let response = self.client.get(uri).await.ok()?;
        let is_ok = response.status() == 200;
        let body = response.into_body().collect().await.ok()?;
        is_ok.then(|| body.to_bytes())
    }

    /// The data of an answer of its API.
    async fn api(&self, path: &str) -> Value {
        let body = soon(self.get(path)).await;
        let body = body.unwrap_or_else(|| panic!("{path}: refused"));
        let mut answer: Value = serde_json::from_slice(&body).unwrap();
        answer["data"].take()
    }

    /// What an expression is now.
    pub(crate) async fn query(&self, expression: &str) -> Series {
        let encoded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.api(&format!("/api/v1/query?query={encoded}")).await;
        let number = |value: &Value| value[1].as_str().unwrap().parse().unwrap();
        if data["resultType"] == "scalar" {
            return vec![(BTreeMap::new(), number(&data["result"]))];
        }
        let series = data["result"].as_array().expect(expression);
        let series = series.iter().map(|series| {
            let labels = serde_json::from_value(series["metric"].clone()).unwrap();
            (labels, number(&series["value"]))
        });
        series.collect()
    }

    /// The only number that an expression is.
    pub(crate) async fn number(&self, expression: &str) -> f64 {
        let series = self.query(expression).await;
        let [(_, number)] = &series[..] else {
            panic!("{expression}: not one number: {series:?}");
        };
        *number
    }

    /// Waits until each target was scraped after now.
    pub(crate) async fn sampled(&self) {
        let now = self.number("time()").await;
        let sampled = async {
            let mut is_sampled = false;
            while !is_sampled {
                tokio::time::sleep(Duration::from_millis(50)).await;
                // Of anything but a selector it is the time of the query.
                let scraped = self.query("timestamp(up)").await;
                is_sampled =
                    scraped.len() == self.targets && scraped.iter().all(|(_, at)| *at > now);
            }
        };
        soon(sampled).await;
        assert_eq!(self.number("min(up)").await, 1.0, "a scrape failed");
    }

    /// The rules, after an evaluation of all of them.
    pub(crate) async fn rules(&self) -> Vec<Value> {
        let evaluated = async {
            loop {
                let mut data = self.api("/api/v1/rules").await;
                let rules = data["groups"][0]["rules"].take();
                let rules = rules.as_array().expect("rules").clone();
                if rules.iter().all(|rule| rule["health"] != "unknown") {
                    return rules;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        soon(evaluated).await
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
