//! Leases by name: work that outlives its request and its process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tower_admission::store::{FailureMode, LeaseStatus};
use tower_admission::{Key, Leases, Reason};

use crate::server::{Server, free_port, store, until};

fn acme() -> Key {
    Key::id("organisation", "acme")
}

fn leases(server: &Server) -> Leases {
    let leases = Leases::new().name("jobs").per_tenant(10).total(100);
    leases.store(server.store())
}

async fn used(leases: &Leases) -> u64 {
    let usage = leases.usage(&acme()).await;
    usage.expect("a store that answers").total
}

async fn until_used(leases: &Leases, expected: u64) {
    until(&format!("{expected} slots are taken"), async || {
        used(leases).await == expected
    })
    .await;
}

#[tokio::test]
async fn one_replica_acquires_and_another_releases() {
    let server = Server::start().await;
    let (one, two) = (leases(&server), leases(&server));
    one.acquire(&acme(), "42").await.unwrap().detach();
    assert_eq!(two.heartbeat(&acme(), "42").await, LeaseStatus::Live);
    assert_eq!(two.release(&acme(), "42").await, LeaseStatus::Live);
    assert_eq!(one.release(&acme(), "42").await, LeaseStatus::Gone);
    assert_eq!(used(&one).await, 0);
    assert_eq!(server.keys().await.len(), 1, "the epoch alone");
}

/// 64 tasks on four replicas start 1,000 pieces of work over 10 of a tenant's and 100 in all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn races_use_exactly_both_limits() {
    let server = Server::start().await;
    let replicas: Vec<_> = (0..4).map(|_| leases(&server)).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let (leases, next) = (replicas[task % 4].clone(), next.clone());
            tokio::spawn(async move {
                let mut held = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= 1000 {
                        return held;
                    }
                    let tenant = Key::id("organisation", &(n % 16).to_string());
                    if let Ok(lease) = leases.acquire(&tenant, &n.to_string()).await {
                        assert!(lease.is_counted());
                        held.push(lease);
                    }
                }
            })
        })
        .collect();
    let mut held = Vec::new();
    for task in tasks {
        held.extend(task.await.unwrap());
    }
    assert_eq!(held.len(), 100);
    assert_eq!(used(&replicas[0]).await, 100);
    for n in 0..16 {
        let tenant = Key::id("organisation", &n.to_string());
        let usage = replicas[0].usage(&tenant).await.unwrap();
        assert!(usage.key <= Some(10));
    }
    drop(held);
    for replica in &replicas {
        replica.flush().await;
    }
    assert_eq!(used(&replicas[0]).await, 0);
}

/// Aborted at whatever await they are at, acquires take nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_cancelled_acquires_takes_nothing() {
    let server = Server::start().await;
    let leases = Leases::new().name("jobs").store(server.store());
    let tasks: Vec<_> = (0..500u64)
        .map(|n| {
            let leases = leases.clone();
            tokio::spawn(async move {
                let acme = acme();
                let acquiring = leases.acquire_new(&acme);
                let soon = Duration::from_micros(3 * n);
                if let Ok(lease) = tokio::time::timeout(soon, acquiring).await {
                    drop(lease.unwrap());
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    leases.flush().await;
    assert_eq!(used(&leases).await, 0);
}

#[tokio::test]
async fn a_loss_of_data_ends_a_lease_and_its_holder_notices() {
    let server = Server::start().await;
    let leases = leases(&server).ttl(Duration::from_secs(1));
    let kept = leases.acquire(&acme(), "42").await.unwrap().keep_alive();
    server.command(&["FLUSHALL"]).await.unwrap();
    kept.lost().await;
    assert_eq!(leases.heartbeat(&acme(), "42").await, LeaseStatus::Gone);
    assert_eq!(used(&leases).await, 0, "a heartbeat takes nothing");
}

#[tokio::test]
async fn a_server_without_memory_accepts_heartbeats_and_releases() {
    let server = Server::start().await;
    let leases = leases(&server);
    let lease = leases.acquire(&acme(), "42").await.unwrap();
    server
        .command(&["CONFIG", "SET", "maxmemory", "1"])
        .await
        .unwrap();
    assert_eq!(leases.heartbeat(&acme(), "42").await, LeaseStatus::Live);
    let rejected = Leases::new()
        .name("jobs")
        .store(server.store().on_failure(FailureMode::Closed));
    let rejected = rejected.acquire(&acme(), "43").await.unwrap_err();
    assert_eq!(rejected.reason(), Reason::Unavailable);
    assert_eq!(lease.release().await, LeaseStatus::Live);
    assert_eq!(used(&leases).await, 0);
}

#[tokio::test]
async fn other_data_under_a_lease_is_not_overwritten() {
    let server = Server::start().await;
    let closed = server.store().on_failure(FailureMode::Closed);
    let leases = Leases::new().name("jobs").store(closed);
    leases.acquire(&acme(), "42").await.unwrap().detach();
    let keys = server.keys().await;
    assert_eq!(
        keys.len(),
        3,
        "those of all, the tenant's, the holder: {keys:?}"
    );
    for key in &keys {
        let before = leases.acquire(&acme(), "42").await.unwrap();
        server.command(&["DEL", key]).await.unwrap();
        server.command(&["RPUSH", key, "precious"]).await.unwrap();
        let rejected = leases.acquire(&acme(), "42").await.unwrap_err();
        assert_eq!(rejected.reason(), Reason::Unavailable, "{key}");
        let failed = [leases.release(&acme(), "42").await, before.release().await];
        assert!(failed.contains(&LeaseStatus::Failed), "{key}");
        let left = server.command(&["LRANGE", key, "0", "-1"]).await.unwrap();
        assert_eq!(
            redis::from_redis_value::<Vec<String>>(left).unwrap(),
            ["precious"]
        );
        server.command(&["DEL", key]).await.unwrap();
        leases.release(&acme(), "42").await;
        leases.acquire(&acme(), "42").await.unwrap().detach();
    }
}

#[tokio::test]
async fn the_failure_mode_decides_leases_while_redis_is_unavailable() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    for (mode, admits) in [
        (FailureMode::Open, 9),
        (FailureMode::Closed, 0),
        (FailureMode::LocalShare { replicas: 2 }, 2),
    ] {
        let leases = Leases::new()
            .per_tenant(4)
            .store(store(&url).on_failure(mode));
        let mut held = Vec::new();
        for n in 0..9 {
            held.extend(leases.acquire(&acme(), &n.to_string()).await);
        }
        assert_eq!(held.len(), admits, "{mode:?}");
    }
}

#[tokio::test]
async fn an_acquire_that_was_not_sent_needs_no_release() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let leases = Leases::new().store(store(&url).on_failure(FailureMode::Closed));
    for n in 0..9 {
        assert!(leases.acquire(&acme(), &n.to_string()).await.is_err());
    }
    let flushed = tokio::time::timeout(Duration::from_secs(5), leases.flush()).await;
    assert!(flushed.is_ok(), "the flush does not wait");
}

/// A lease is released after its server returns, if the server still has it.
#[tokio::test]
async fn a_lease_that_is_dropped_while_redis_is_paused_is_released() {
    let server = Server::start().await;
    let leases = Leases::new()
        .name("jobs")
        .store(server.store().deadline(Duration::from_millis(50)));
    let lease = leases.acquire(&acme(), "42").await.unwrap();
    server.signal("STOP");
    drop(lease);
    assert_eq!(leases.usage(&acme()).await, None);
    server.signal("CONT");
    leases.flush().await;
    until_used(&leases, 0).await;
}

// Two processes

struct Jobs<'a>(&'a Server);

impl Jobs<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.extend(["examples", "jobs"]);
        path.set_extension(std::env::consts::EXE_EXTENSION);
        let mut command = Command::new(path);
        command
            .arg(self.0.url())
            .args(arguments)
            .env("JOBS_TTL", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }

    /// A process that has acquired and not yet dispatched.
    fn start(&self, execution: &str) -> Child {
        let mut process = self
            .command(&["start", "acme", execution])
            .spawn()
            .expect("build the examples first: `cargo build --all-features --examples`");
        let mut line = String::new();
        let stdout = process.stdout.as_mut().unwrap();
        // One line, and no byte of what comes after it.
        BufReader::with_capacity(1, stdout)
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "acquired\n");
        process
    }

    fn run(&self, arguments: &[&str]) -> String {
        let Output { stdout, status, .. } = self.command(arguments).output().unwrap();
        assert!(status.success());
        String::from_utf8(stdout).unwrap().trim_end().to_owned()
    }

    async fn until_usage(&self, expected: &str) {
        until(expected, async || self.run(&["usage", "acme"]) == expected).await;
    }
}

#[tokio::test]
async fn a_job_is_started_in_one_process_and_finished_in_another() {
    let server = Server::start().await;
    let jobs = Jobs(&server);
    let mut process = jobs.start("42");
    assert_eq!(jobs.run(&["usage", "acme"]), "1 of 5");
    process.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(process.wait().unwrap().success());
    assert_eq!(jobs.run(&["usage", "acme"]), "1 of 5", "the job runs");
    assert_eq!(jobs.run(&["finish", "acme", "42"]), "Live");
    assert_eq!(jobs.run(&["usage", "acme"]), "0 of 5");
    assert_eq!(jobs.run(&["finish", "acme", "42"]), "Gone");
}

#[tokio::test]
async fn a_failed_dispatch_and_a_killed_process_leave_no_lease() {
    let server = Server::start().await;
    let jobs = Jobs(&server);
    // Its input ends, so that its dispatch fails.
    let mut failing = jobs.start("1");
    drop(failing.stdin.take());
    assert!(!failing.wait().unwrap().success());
    assert_eq!(jobs.run(&["usage", "acme"]), "0 of 5", "at once");

    let mut killed = jobs.start("2");
    assert_eq!(jobs.run(&["usage", "acme"]), "1 of 5");
    killed.kill().unwrap();
    killed.wait().unwrap();
    jobs.until_usage("0 of 5").await;
}
