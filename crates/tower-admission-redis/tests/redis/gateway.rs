//! Two processes of the gateway example on one Redis.
#![cfg(all(
    feature = "admin",
    feature = "config",
    feature = "metrics",
    feature = "tonic",
    feature = "tracing"
))]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::server::{Server, until};

struct Replica {
    process: Child,
    address: String,
    client: Client<HttpConnector, Empty<Bytes>>,
    // The gateway would be told if nobody read it any more.
    _stdout: BufReader<ChildStdout>,
}

impl Replica {
    fn start(server: &Server, flags: &[&str]) -> Self {
        let url = server.url();
        let secret = "00112233445566778899aabbccddeeff";
        let store = ["--store", &url, "--secret", secret];
        Self::spawn(&[&store, flags].concat())
    }

    fn spawn(flags: &[&str]) -> Self {
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.extend(["examples", "gateway"]);
        path.set_extension(std::env::consts::EXE_EXTENSION);
        let mut process = Command::new(path)
            .args(["--listen", "127.0.0.1:0"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("build the examples first: `cargo build --all-features --examples`");
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("Listening on ");
        Self {
            address: address.expect("the address it listens on").to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            process,
            _stdout: stdout,
        }
    }

    async fn get(&self, path: &str, token: &str) -> Response<Incoming> {
        let request = Request::builder()
            .uri(format!("{}{path}", self.address))
            .header("authorization", format!("Bearer {token}"))
            .body(Empty::new());
        self.client.request(request.unwrap()).await.unwrap()
    }

    async fn status(&self, path: &str, token: &str) -> u16 {
        self.get(path, token).await.status().as_u16()
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A file for gateways, with a deadline that a busy machine keeps. Is removed when dropped.
struct Config(PathBuf);

impl Config {
    fn write(server: &Server, limits: &str) -> Self {
        let file = std::env::temp_dir().join(format!("gateway-{}.toml", server.port));
        let text = format!(
            "[store]\nurl = '{}'\nsecret = '00112233445566778899aabbccddeeff'\nprefix = 'gateway'\n\
             deadline = '2s'\n[groups.api]\npath = '/api'\n{limits}",
            server.url()
        );
        std::fs::write(&file, text).unwrap();
        Self(file)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Goes on for longer than any test.
const LONG_STREAM: &str = "/api/stream?chunks=1000&ms=1000";

async fn begin(replica: &Replica, token: &str) -> Incoming {
    let response = replica.get(LONG_STREAM, token).await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_admit_together_what_one_would() {
    let server = Server::start().await;
    let file = Config::write(&server, "rate = '100/h burst 20'");
    let replicas = [0, 1].map(|_| Replica::spawn(&["--config", file.path()]));
    let mut requests = Vec::new();
    for n in 0..60 {
        let replica = &replicas[n % 2];
        requests.push(replica.status("/api/slow?ms=0", "alice"));
    }
    let statuses = futures_util::future::join_all(requests).await;
    let admitted = statuses.iter().filter(|status| **status == 200).count();
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!((admitted, refused), (20, 40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_what_a_killed_replica_held_comes_back() {
    let server = Server::start().await;
    let flags = ["--rate", "0", "--max-concurrency", "4"];
    let [mut one, two] = [0, 1].map(|_| Replica::start(&server, &flags));
    let mut of_one = Vec::new();
    for n in 0..3 {
        of_one.push(begin(&one, &format!("user-{n}")).await);
    }
    let of_two = begin(&two, "alice").await;
    for replica in [&one, &two] {
        assert_eq!(replica.status("/api/slow?ms=0", "bob").await, 503);
    }
    // A client that goes away frees its slot for both.
    drop(of_two);
    until("the slot is free", async || {
        two.status("/api/slow?ms=0", "bob").await == 200
    })
    .await;
    let _of_two = begin(&two, "alice").await;
    assert_eq!(two.status("/api/slow?ms=0", "bob").await, 503);
    one.kill();
    // Within the time to live of a lease.
    until("the killed one's slots are free", async || {
        two.status("/api/slow?ms=0", "bob").await == 200
    })
    .await;
}

/// The program `tower-admission`, at the same Redis.
#[cfg(feature = "cli")]
async fn program(server: &Server, arguments: &[&str]) -> String {
    let output = run_program(server, arguments).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[cfg(feature = "cli")]
async fn run_program(server: &Server, arguments: &[&str]) -> std::process::Output {
    let url = server.url();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tower-admission"));
    command
        .args(["--redis", &url, "--prefix", "gateway"])
        .args(["--secret", "00112233445566778899aabbccddeeff"])
        .args(arguments);
    command.output().await.unwrap()
}

/// A network that is banned at the command line is banned by both replicas, whatever token a client makes up.
#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_at_the_command_line_counts_in_both() {
    let server = Server::start().await;
    let file = Config::write(&server, "rate = '100/h'");
    let replicas = [0, 1].map(|_| Replica::spawn(&["--config", file.path()]));
    assert_eq!(replicas[0].status("/api/slow?ms=0", "made-up").await, 200);
    // A service publishes soon after its start that it has lists.
    until("the ban is accepted", async || {
        let ban = ["limits", "set", "ip:127.0.0.0/8", "deny all"];
        run_program(&server, &ban).await.status.success()
    })
    .await;
    for (n, replica) in replicas.iter().enumerate() {
        until("it bans", async || {
            replica
                .status("/api/slow?ms=0", &format!("made-up-{n}"))
                .await
                == 403
        })
        .await;
    }
    program(&server, &["limits", "set", "bearer:probe", "unlimited"]).await;
    for replica in &replicas {
        until("it exempts", async || {
            replica.status("/api/slow?ms=0", "probe").await == 200
        })
        .await;
    }
    program(&server, &["limits", "delete", "ip:127.0.0.0/8", "--force"]).await;
    for replica in &replicas {
        until("it admits", async || {
            replica.status("/api/slow?ms=0", "made-up").await == 200
        })
        .await;
    }
}

/// Two replicas with one configuration, and limits that are changed at the command line.
#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_set_at_the_command_line_counts_in_both() {
    let server = Server::start().await;
    let file = Config::write(&server, "rate = '2/h'");
    let replicas = [0, 1].map(|_| Replica::spawn(&["--config", file.path()]));
    for (n, expected) in [200, 200, 429, 429].into_iter().enumerate() {
        let status = replicas[n % 2].status("/api/slow?ms=0", "alice").await;
        assert_eq!(status, expected);
    }
    let told = program(&server, &["limits", "set", "bearer:alice", "api=5/h"]).await;
    assert!(told.contains("api=5/h"), "{told}");
    assert!(!told.contains("alice"), "{told}");
    for replica in &replicas {
        until("it knows", async || {
            let answer = replica.get("/api/slow?ms=0", "alice").await;
            let policy = answer.headers()["ratelimit-policy"].to_str().unwrap();
            policy.contains("q=5;")
        })
        .await;
    }
    // Five in all: the two that were spent stay spent.
    for replica in &replicas {
        while replica.status("/api/slow?ms=0", "alice").await == 200 {}
    }
    let usage = program(&server, &["--json", "usage", "bearer:alice"]).await;
    let usage: serde_json::Value = serde_json::from_str(&usage).unwrap();
    let of_rate = usage["usage"].as_array().unwrap();
    let of_rate = of_rate.iter().find(|usage| usage["sort"] == "rate");
    assert_eq!(of_rate.unwrap()["used"], 5, "{usage}");
    program(&server, &["limits", "delete", "bearer:alice", "--force"]).await;
    for replica in &replicas {
        until("it is one of all again", async || {
            let answer = replica.get("/api/slow?ms=0", "alice").await;
            let policy = answer.headers()["ratelimit-policy"].to_str().unwrap();
            policy.contains("q=2;")
        })
        .await;
    }
}
