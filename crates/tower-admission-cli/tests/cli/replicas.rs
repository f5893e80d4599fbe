//! The program next to two processes of the gateway example on one Redis.

use crate::replica::{Config, Replica};
use crate::server::{Server, until};

/// The program `tower-admission`, at the same Redis.
async fn program(server: &Server, arguments: &[&str]) -> String {
    let output = run_program(server, arguments).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

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
