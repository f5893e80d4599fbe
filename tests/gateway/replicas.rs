//! Two processes of the gateway example on one Redis.

use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::replica::{Config, Replica};
use crate::server::{Server, until};

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
async fn two_replicas_admit_as_many_requests_as_one() {
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
    let rejected = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!((admitted, rejected), (20, 40));
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
