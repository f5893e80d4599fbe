//! The example that exports by OTLP, as a process, with a collector.
#![cfg(all(feature = "axum", feature = "tracing", unix))]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// Keeps the spans that it gets.
struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            self.0.send(span).unwrap();
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The example, until this is dropped.
struct Example {
    process: Child,
    address: String,
    _stdout: BufReader<ChildStdout>,
}

impl Example {
    fn start(collector: &str) -> Self {
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.extend(["examples", "otlp"]);
        let mut process = Command::new(path)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
            .env("LISTEN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("build the examples first: `cargo build --all-features --examples`");
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ");
        Self {
            address: address.expect("the address it listens on").to_owned(),
            process,
            _stdout: stdout,
        }
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Attributes by name, each of which is there once.
fn attributes(of: &[KeyValue]) -> BTreeMap<&str, String> {
    let mut attributes = BTreeMap::new();
    for attribute in of {
        let value = attribute
            .value
            .as_ref()
            .and_then(|value| value.value.as_ref());
        let value = match value {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        let twice = attributes.insert(attribute.key.as_str(), value);
        assert_eq!(twice, None, "{} is there twice", attribute.key);
    }
    attributes
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it happens at all")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_decisions_as_events_and_rejections_as_attributes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut received) = mpsc::unbounded_channel();
    let collector = TraceServiceServer::new(Collector(sender));
    let serving = Server::builder().add_service(collector);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));

    let mut example = Example::start(&endpoint);
    let client = Client::builder(TokioExecutor::new()).build_http();
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    for expected in [200, 200, 429] {
        let request = http::Request::get(format!("{}/?key=hunter2", example.address))
            .header("authorization", "Bearer hunter2")
            .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = soon(client.request(request)).await.unwrap();
        assert_eq!(response.status(), expected);
    }
    // At its end it sends what it has.
    let id = example.process.id().to_string();
    let interrupted = Command::new("kill").args(["-INT", &id]).status();
    assert!(interrupted.unwrap().success());
    drop(client);
    let mut spans = Vec::new();
    while spans.len() < 3 {
        spans.push(soon(received.recv()).await.unwrap());
    }
    let ended = tokio::task::spawn_blocking(move || example.process.wait().unwrap().success());
    assert!(soon(ended).await.unwrap());

    assert!(!format!("{spans:?}").contains("hunter2"));
    spans.sort_by_key(|span| span.start_time_unix_nano);
    for (span, outcome) in spans.iter().zip(["admitted", "admitted", "rejected"]) {
        let trace: String = span.trace_id.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(trace, TRACE);
        let of_span = attributes(&span.attributes);
        assert_eq!(of_span["http.request.method"], "GET");
        assert_eq!(of_span["url.path"], "/");
        let names: Vec<_> = span.events.iter().map(|event| &*event.name).collect();
        assert_eq!(names, ["request admitted", &format!("request {outcome}")]);
        let in_flight = attributes(&span.events[0].attributes);
        assert_eq!(in_flight["admission.limit_type"], "concurrency");
        let rate = attributes(&span.events[1].attributes);
        assert_eq!(rate["admission.limit_type"], "http");
        assert_eq!(rate["admission.policy"], "burst");
        if outcome == "admitted" {
            assert_eq!(of_span["http.response.status_code"], "200");
            assert!(!of_span.contains_key("error.type"));
            continue;
        }
        assert_eq!(of_span["http.response.status_code"], "429");
        assert_eq!(of_span["error.type"], "quota_exceeded");
        assert_eq!(of_span["admission.limiter"], "example");
        assert!(of_span["admission.key"].starts_with("bearer#"));
        for (name, expected) in [
            ("error.type", "quota_exceeded"),
            ("http.response.status_code", "429"),
            ("client.address", "127.0.0.1"),
            ("trace_id", TRACE),
            ("admission.limit", "2"),
            ("admission.remaining", "0"),
        ] {
            assert_eq!(rate[name], expected, "{name}");
        }
    }
}
