//! The gateway example, as a process of its own, with real clients.
#![cfg(all(
    feature = "admin",
    feature = "config",
    feature = "metrics",
    feature = "redis",
    feature = "tonic",
    feature = "tracing"
))]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

/// A stream that goes on for as long as any test.
const LONG_STREAM: &str = "/api/stream?chunks=1000&ms=1000";

#[tokio::test]
async fn health_is_never_limited() {
    let gateway = Gateway::start(&["--rate", "1/h", "--burst", "1", "--max-concurrency", "1"]);
    let _stream = gateway.begin(LONG_STREAM, "alice").await;
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 503);
    for _ in 0..5 {
        let health = gateway.send(Method::GET, "/health", "alice", "").await;
        assert_eq!(health.status(), 200);
        assert!(!health.headers().contains_key("ratelimit"));
    }
}

#[tokio::test]
async fn each_token_has_its_own_budget() {
    let gateway = Gateway::start(&["--rate", "1/h", "--burst", "3"]);
    for left in ["r=2", "r=1", "r=0"] {
        let echo = gateway
            .send(Method::POST, "/api/echo", "alice", "hello")
            .await;
        assert_eq!(echo.status(), 200);
        assert!(header(&echo, "ratelimit").contains(left), "{echo:?}");
        assert_eq!(text(echo).await, "hello");
    }

    let refused = gateway
        .send(Method::POST, "/api/echo", "alice", "hello")
        .await;
    assert_eq!(refused.status(), 429);
    let seconds: u64 = header(&refused, RETRY_AFTER.as_str()).parse().unwrap();
    assert!((1..=3600).contains(&seconds), "{seconds}");
    assert_eq!(
        header(&refused, CONTENT_TYPE.as_str()),
        "application/problem+json"
    );
    let problem: serde_json::Value = serde_json::from_str(&text(refused).await).unwrap();
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["violated-policies"], serde_json::json!(["Gateway"]));

    assert_eq!(gateway.get("/api/slow?ms=0", "bob").await, 200);
}

#[tokio::test]
async fn a_stream_counts_until_it_has_ended() {
    let gateway = Gateway::start(&["--rate", "0", "--max-concurrency", "1"]);
    // With so small a window the gateway cannot end the stream before it is read here.
    let narrow = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .http2_initial_stream_window_size(16)
        .build_http();
    let request = gateway.request(Method::GET, "/api/stream?chunks=10&ms=0", "alice", "");
    let mut stream = soon(narrow.request(request)).await.unwrap();
    soon(stream.frame()).await.unwrap().unwrap();

    let refused = gateway.send(Method::GET, "/api/slow?ms=0", "bob", "").await;
    assert_eq!(refused.status(), 503);
    assert_eq!(header(&refused, RETRY_AFTER.as_str()), "1");
    let problem: serde_json::Value = serde_json::from_str(&text(refused).await).unwrap();
    assert_eq!(
        problem["detail"],
        "Gateway is currently at capacity. Please try again later."
    );
    assert_eq!(
        gateway.check("bob").await.unwrap_err().code(),
        Code::Unavailable
    );

    let rest = text(stream).await;
    assert!(rest.ends_with("chunk 10\n"), "{rest:?}");
    assert_eq!(gateway.get("/api/slow?ms=0", "bob").await, 200);
}

#[cfg(unix)]
#[tokio::test]
async fn a_stream_ends_before_a_gateway_that_is_terminated() {
    let mut gateway = Gateway::start(&[]);
    let path = "/api/stream?chunks=5&ms=100";
    let stream = gateway.begin(path, "alice").await;
    gateway.terminate();
    assert!(text(stream).await.ends_with("chunk 5\n"));
    let ended = tokio::task::spawn_blocking(move || gateway.child.wait().unwrap().success());
    assert!(soon(ended).await.unwrap());
}

#[tokio::test]
async fn a_client_that_goes_away_makes_room() {
    let gateway = Gateway::start(&["--rate", "0", "--max-concurrency", "1"]);
    let stream = gateway.begin(LONG_STREAM, "alice").await;
    assert_eq!(gateway.get("/api/slow?ms=0", "bob").await, 503);
    drop(stream);
    soon(async { while gateway.get("/api/slow?ms=0", "bob").await != 200 {} }).await;
}

#[tokio::test]
async fn http_and_grpc_share_one_budget() {
    let gateway = Gateway::start(&["--rate", "1/h", "--burst", "2"]);
    for expected in [200, 200, 429] {
        assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, expected);
    }
    let refused = gateway.check("alice").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let retry = refused.get_error_details().retry_info().cloned().unwrap();
    let wait = retry.retry_delay.unwrap();
    assert!(
        wait > Duration::ZERO && wait <= Duration::from_secs(3600),
        "{wait:?}"
    );

    // And the other way round.
    assert_eq!(gateway.check("bob").await.unwrap(), ServingStatus::Serving);
    let last = gateway.send(Method::GET, "/api/slow?ms=0", "bob", "").await;
    assert!(header(&last, "ratelimit").contains("r=0"), "{last:?}");
}

#[tokio::test]
async fn batch_has_limits_of_its_own() {
    let gateway = Gateway::start(&["--rate", "1/h", "--burst", "5", "--max-concurrency", "1"]);
    let refused = soon(async {
        loop {
            let response = gateway
                .send(Method::POST, "/batch/echo", "alice", "hello")
                .await;
            if response.status() != 200 {
                return response;
            }
        }
    })
    .await;
    assert_eq!(refused.status(), 429);
    assert_eq!(header(&refused, "ratelimit-policy"), r#""Batch";q=2;w=2"#);

    // None of that was charged to the others' budget, nor the other way round.
    let api = gateway.begin(LONG_STREAM, "alice").await;
    assert!(header(&api, "ratelimit").contains("r=4"), "{api:?}");
    assert_eq!(gateway.get("/api/slow?ms=0", "bob").await, 503);
    let batch = gateway
        .send(Method::POST, "/batch/echo", "bob", "hello")
        .await;
    assert_eq!(text(batch).await, "hello");
}

#[tokio::test]
async fn zero_turns_limits_off() {
    let mut command = command();
    command.env("RATE", "0").env("MAX_CONCURRENCY", "0");
    let gateway = Gateway::spawn(command);
    let mut streams = Vec::new();
    // More than the defaults let through.
    for _ in 0..70 {
        let stream = gateway.begin(LONG_STREAM, "alice").await;
        assert!(!stream.headers().contains_key("ratelimit"));
        streams.push(stream);
    }
}

#[tokio::test]
async fn a_refused_key_is_warned_of_once() {
    let gateway = Gateway::start(&["--rate", "1/h", "--burst", "1", "--max-concurrency", "1"]);
    for expected in [200, 429, 429, 429] {
        assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, expected);
    }
    gateway.check("alice").await.unwrap_err();
    let stream = gateway.begin(LONG_STREAM, "bob").await;
    for _ in 0..2 {
        assert_eq!(gateway.get("/api/slow?ms=0", "carol").await, 503);
    }
    drop(stream);

    let log = gateway.stop();
    let lines = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    // HTTP and gRPC are one limit.
    assert_eq!(lines("quota_exceeded"), 1, "{log}");
    assert_eq!(lines("bearer#"), 1, "{log}");
    assert_eq!(lines("at_capacity"), 1, "{log}");
    assert_eq!(lines("request refused"), 2, "{log}");
    assert_eq!(lines("alice"), 0, "a token is in the log: {log}");
}

#[tokio::test]
async fn absurd_parameters_are_refused_or_cut_down() {
    let gateway = Gateway::start(&["--rate", "0"]);
    for junk in [
        "slow?ms=x",
        "slow?ms=-1",
        "slow?ms=99999999999999999999",
        "stream?chunks=1.5",
    ] {
        assert_eq!(
            gateway.get(&format!("/api/{junk}"), "alice").await,
            400,
            "{junk}"
        );
    }
    let stream = gateway
        .send(
            Method::GET,
            "/api/stream?chunks=4294967295&ms=0",
            "alice",
            "",
        )
        .await;
    assert_eq!(text(stream).await.lines().count(), 1000);
}

#[test]
fn secrets_in_flags_are_not_told() {
    let digits = "000102030405060708090a0b0c0d0e0f";
    for (store, secret, told) in [
        ("redis://:hunter2@127.0.0.1/x", digits, "--store"),
        ("nothing://:hunter2@127.0.0.1", digits, "--store"),
        ("redis://127.0.0.1", "hunter2", "--secret"),
    ] {
        let mut command = command();
        let refused = command.env("STORE", store).env("SECRET", secret).output();
        let refused = refused.unwrap();
        assert_eq!(refused.status.code(), Some(2));
        let words = String::from_utf8(refused.stderr).unwrap();
        assert!(words.contains(told), "{words}");
        assert!(!words.contains("hunter2"), "{words}");
        let help = command.arg("--help").output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(!help.contains("hunter2"), "{help}");
    }
}

#[test]
fn bad_flags_are_told_and_nothing_starts() {
    for (flags, told) in [
        (&["--rate", "ten"][..], "a quota is written like `10/s`"),
        (
            &["--rate", "1/d", "--burst", "4294967295"],
            "within 100 years",
        ),
        (&["--max-concurrency", "many"], "--max-concurrency"),
        (&["--listen", "nowhere"], "--listen"),
    ] {
        let output = command().args(flags).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(told), "{error}");
        assert!(output.stdout.is_empty());
    }
}

/// A file in the folder of this process, gone at the end.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let name = format!("tower-admission-{}-{name}", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The file that the README shows.
#[tokio::test]
async fn limits_come_from_a_file() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gateway/gateway.toml");
    let gateway = Gateway::start(&["--config", file]);
    let echo = gateway
        .send(Method::POST, "/api/echo", "alice", "hello")
        .await;
    assert_eq!(
        header(&echo, "ratelimit-policy"),
        "\"Gateway\";q=20;w=2, \"Gateway.ip\";q=100;w=1"
    );
    // One budget for both.
    assert_eq!(
        gateway.check("alice").await.unwrap(),
        ServingStatus::Serving
    );
    let batch = gateway
        .send(Method::POST, "/batch/echo", "alice", "hello")
        .await;
    assert_eq!(header(&batch, "x-ratelimit-limit"), "2");
    let health = gateway.send(Method::GET, "/health", "alice", "").await;
    assert!(!health.headers().contains_key("ratelimit"));
    let metrics = gateway.send(Method::GET, "/metrics", "alice", "").await;
    let metrics = text(metrics).await;
    for expected in [
        "admission_decisions_total{limiter=\"Gateway\"",
        "admission_in_flight_limit{limiter=\"batch\"} 4",
        "admission_decision_seconds_bucket{limiter=\"Gateway\"",
        "admission_tracked_keys{limiter=\"batch\"} 3",
    ] {
        assert!(metrics.contains(expected), "{expected}:\n{metrics}");
    }
    assert!(!metrics.contains("alice"), "{metrics}");
}

#[tokio::test]
async fn a_changed_file_is_applied_and_a_bad_one_is_not() {
    let file = File::new("changed.toml", "[groups.api]\npath = '/api'\nrate = '2/h'");
    let gateway = Gateway::start(&["--config", file.path()]);
    let statuses = async |n: usize| {
        let mut statuses = Vec::new();
        for _ in 0..n {
            statuses.push(gateway.get("/api/slow?ms=0", "alice").await.as_u16());
        }
        statuses
    };
    assert_eq!(statuses(3).await, [200, 200, 429]);
    file.write("[groups.api]\npath = '/api'\nrate = '2 in an hour'");
    // Until it was looked at: another group shows that.
    file.write(
        "[groups.api]\npath = '/api'\nrate = '3/h'\n[groups.other]\npath = '/health'\nrate = '1/h'",
    );
    let applied = async {
        while gateway.get("/health", "bob").await != 429 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(applied).await;
    assert_eq!(statuses(2).await, [200, 429]);
}

#[tokio::test]
async fn an_emptied_file_takes_no_limits_away_and_metrics_show_it() {
    let text = "[groups.api]\npath = '/api'\nrate = '1/h'\nexclude = '/health'\n";
    let file = File::new("emptied.toml", text);
    let gateway = Gateway::start(&["--config", file.path()]);
    let metrics = async || text_of(&gateway, "/metrics").await;
    let right = "admission_config_last_reload_successful 1\n";
    let wrong = "admission_config_last_reload_successful 0\n";
    assert!(metrics().await.contains(right));
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 200);
    let until = async |expected: &str| {
        while !metrics().await.contains(expected) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    file.write("");
    soon(until(wrong)).await;
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 429);
    file.write(&text.replace("1/h", "2/h"));
    soon(until(right)).await;
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 200);
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 429);
    let at = metrics().await;
    let at = at
        .split("\nadmission_config_last_reload_success_timestamp_seconds ")
        .nth(1);
    let at: f64 = at.unwrap().lines().next().unwrap().parse().unwrap();
    assert!(at > 1.7e9, "{at}");

    let log = gateway.stop();
    let file = file.path();
    for line in [
        format!("{file}:4:11: groups.api.exclude: `/health` is outside of this group's paths"),
        format!("{file}: groups: there are none, and with them would go the limits of: api."),
        "rate from \\\"1/h\\\" to \\\"2/h\\\"".to_owned(),
    ] {
        assert!(log.contains(&line), "{line}\n{log}");
    }
}

async fn text_of(gateway: &Gateway, path: &str) -> String {
    text(gateway.send(Method::GET, path, "alice", "").await).await
}

/// Whoever has the token changes what a key may do, and nobody else does.
#[tokio::test]
async fn limits_are_changed_at_the_admin_endpoints() {
    let text =
        "[admin]\ntoken = 'the token of operators'\n[groups.api]\npath = '/api'\nrate = '1/h'";
    let file = File::new("short.toml", text);
    let output = command().args(["--config", file.path()]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let errors = told
        .lines()
        .filter(|line| line.contains("short.toml: admin.token: a token consists of"));
    assert_eq!(errors.count(), 1, "{told}");
    assert!(!told.contains("operators"), "{told}");

    file.write(&text.replace("the token of operators", "b5b0ea1ed0924ab5"));
    let gateway = Gateway::start(&["--config", file.path()]);
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 200);
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 429);
    let put = |token: &str| {
        let mut request = gateway.request(
            Method::PUT,
            "/admin/limits/bearer%3Aalice",
            token,
            r#"{"limit": "api=3/h"}"#,
        );
        let json = "application/json".parse().unwrap();
        request.headers_mut().insert(CONTENT_TYPE, json);
        soon(gateway.client.request(request))
    };
    assert_eq!(put("alice").await.unwrap().status(), 401);
    assert_eq!(put("b5b0ea1ed0924ab5").await.unwrap().status(), 200);
    for expected in [200, 200, 429] {
        assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, expected);
    }
    assert_eq!(gateway.get("/api/slow?ms=0", "bob").await, 200);
    assert_eq!(gateway.get("/api/slow?ms=0", "bob").await, 429);
}

#[test]
fn a_bad_file_is_told_at_start() {
    let file = File::new("bad.toml", "[groups.api]\nrate = '10/0s'");
    let output = command().args(["--config", file.path()]).output().unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "error: {}:2:8: groups.api.rate: \"10/0s\" is no quota: ",
        file.path()
    );
    assert!(told.starts_with(&expected), "{told}");
}

/// The environment goes before the file.
#[tokio::test]
async fn a_variable_changes_a_field() {
    let file = File::new("variable.toml", "[groups.api]\npath = '/api'\nrate = '9/h'");
    let mut command = command();
    command.args(["--config", file.path()]);
    command.env("ADMISSION_GROUPS__API__RATE", "1/h");
    let gateway = Gateway::spawn(command);
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 200);
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 429);
}

/// A gateway that runs until this is dropped.
struct Gateway {
    child: Child,
    // Open as long as it runs, though all that is read of it is the address.
    _stdout: BufReader<ChildStdout>,
    log: Option<JoinHandle<String>>,
    address: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Gateway {
    fn start(flags: &[&str]) -> Self {
        let mut command = command();
        command.args(flags);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Some(address) = line.trim_end().strip_prefix("Listening on http://") else {
            panic!("{line:?}, and {}", log.join().unwrap());
        };
        Self {
            child,
            _stdout: stdout,
            log: Some(log),
            address: address.to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// Asks it to end, as a service manager does.
    #[cfg(unix)]
    fn terminate(&self) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.unwrap().success());
    }

    /// Ends it, and returns all that it logged.
    fn stop(mut self) -> String {
        self.child.kill().unwrap();
        self.log.take().unwrap().join().unwrap()
    }

    fn request(&self, method: Method, path: &str, token: &str, body: &str) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .body(Bytes::copy_from_slice(body.as_bytes()).into())
            .unwrap()
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: &str,
    ) -> Response<Incoming> {
        let request = self.request(method, path, token, body);
        soon(self.client.request(request)).await.unwrap()
    }

    /// The status of a response that is read to its end.
    async fn get(&self, path: &str, token: &str) -> StatusCode {
        let response = self.send(Method::GET, path, token, "").await;
        let status = response.status();
        text(response).await;
        status
    }

    /// A response of which something was read, and something was not.
    async fn begin(&self, path: &str, token: &str) -> Response<Incoming> {
        let mut response = self.send(Method::GET, path, token, "").await;
        assert_eq!(response.status(), 200);
        soon(response.frame()).await.unwrap().unwrap();
        response
    }

    /// The health check, by gRPC.
    async fn check(&self, token: &str) -> Result<ServingStatus, tonic::Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        let authorization = format!("Bearer {token}").parse().unwrap();
        request
            .metadata_mut()
            .insert("authorization", authorization);
        let mut client = HealthClient::new(endpoint.connect_lazy());
        let response = soon(client.check(request)).await?;
        Ok(response.into_inner().status())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The example that cargo built next to this test, with nothing from the environment.
fn command() -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", "gateway"]);
    path.set_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.exists(),
        "`cargo test --test gateway` builds no examples; \
         run `cargo build --all-features --example gateway` before it"
    );
    let mut command = Command::new(path);
    for flag in [
        "CONFIG",
        "LISTEN",
        "MAX_CONCURRENCY",
        "RATE",
        "BURST",
        "STORE",
        "SECRET",
        "REPLICAS",
    ] {
        command.env_remove(flag);
    }
    command
}

/// Bounds how long a test that fails hangs.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it happens at all")
}

fn header<'a>(response: &'a Response<Incoming>, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.expect(name).to_str().unwrap()
}

/// What is left of the body.
async fn text(response: Response<Incoming>) -> String {
    let body = soon(response.into_body().collect()).await.unwrap();
    String::from_utf8(body.to_bytes().into()).unwrap()
}
