//! The gateway example, as a process of its own, with real clients.
#![cfg(all(feature = "metrics", feature = "tonic", feature = "tracing"))]

mod example_file;
mod guide;
mod process;
mod replica;
mod replicas;
// Its own tests use all of it.
#[allow(dead_code)]
#[path = "../../crates/tower-admission-redis/tests/redis/server.rs"]
mod server;
#[cfg(unix)]
mod shutdown;

use std::time::Duration;

use http::Method;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use self::process::{File, Gateway, LONG_STREAM, command, header, soon, text};

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
    assert_eq!(lines("request rejected"), 2, "{log}");
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
        (
            &["--rate", "ten"][..],
            "expected a count per s, min, h, day or week",
        ),
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
    let text = "[groups.api]\npath = '/api'\nrate = '1/h'\n";
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
        format!(
            "{file}: groups: the file has no groups, so these groups would lose their limits: api."
        ),
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
        .filter(|line| line.contains("admin.token: a token consists of"));
    assert_eq!(errors.count(), 1, "{told}");
    assert!(!told.contains("operators"), "{told}");

    file.write(&text.replace("the token of operators", "b5b0ea1ed0924ab5"));
    let gateway = Gateway::start(&["--config", file.path()]);
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 200);
    assert_eq!(gateway.get("/api/slow?ms=0", "alice").await, 429);
    let path = gateway.limit_path("bearer:alice", "b5b0ea1ed0924ab5").await;
    let put = |token: &str| {
        let body = r#"{"limit": "api=3/h"}"#;
        let mut request = gateway.request(Method::PUT, &path, token, body);
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
        "error: {}:2:8: groups.api.rate: \"10/0s\" is not a valid quota: ",
        file.path()
    );
    assert!(told.starts_with(&expected), "{told}");
    // Files that were cut.
    for (text, expected) in [
        ("", "there are no groups"),
        (
            "[groups.api]\npath = '/api'\n",
            "groups.api: this group has no limit",
        ),
        (
            "[groups.api]\nrate = '1/h'\n",
            "groups.api: this group selects no requests",
        ),
    ] {
        file.write(text);
        let output = command().args(["--config", file.path()]).output().unwrap();
        assert!(!output.status.success());
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(expected), "{told}");
    }
}

/// A value of 32 characters that is no number.
#[test]
fn a_secret_has_no_sign() {
    let secret = "+00102030405060708090a0b0c0d0e0f";
    let mut command = command();
    command
        .env("STORE", "redis://127.0.0.1")
        .env("SECRET", secret);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("--secret: it is 32 hexadecimal digits"),
        "{told}"
    );
}

/// The file has its own secret and number of replicas.
#[test]
fn a_setting_that_is_not_read_next_to_a_file_is_rejected() {
    let file = File::new("both.toml", "[groups.api]\npath = '/api'\nrate = '9/h'");
    for (variable, value, flag) in [
        ("SECRET", "000102030405060708090a0b0c0d0e0f", "--secret"),
        ("REPLICAS", "2", "--replicas"),
    ] {
        let mut command = command();
        command.env("CONFIG", file.path()).env(variable, value);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(flag), "{told}");
    }
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
