//! Leases by id under faults.

use std::time::Duration;

use tower_admission::store::{FailureMode, LeaseStatus};
use tower_admission::{Key, Leases};
use tower_admission_redis::RedisStore;

use crate::proxy::Proxy;
use crate::server::{Server, store, until};

const HOUR: Duration = Duration::from_secs(3600);

fn acme() -> Key {
    Key::id("organisation", "acme")
}

fn leases(store: RedisStore) -> Leases {
    let store = store.on_failure(FailureMode::Closed);
    Leases::new().name("jobs").ttl(HOUR).store(store)
}

async fn used(leases: &Leases) -> u64 {
    let usage = leases.usage(&acme()).await;
    usage.expect("a store that answers").total
}

/// The Redis key that holds who has the one lease that there is.
async fn holder(server: &Server) -> String {
    let mut keys = server.keys().await;
    keys.retain(|key| key.contains(":by:"));
    let [holder] = &*keys else {
        panic!("one lease");
    };
    holder.clone()
}

async fn replace(server: &Server, key: &str) {
    server.command(&["DEL", key]).await.unwrap();
    server.command(&["RPUSH", key, "precious"]).await.unwrap();
}

/// Its connection broke, so it was made again; the first one arrives after the release.
#[tokio::test]
async fn an_acquire_that_arrives_after_its_release_takes_nothing() {
    for clock_is_known in [false, true] {
        let server = Server::start().await;
        let proxy = Proxy::start(server.port).await;
        let direct = leases(server.store());
        // The server knows the scripts then.
        direct.acquire(&acme(), "0").await.unwrap().detach();
        direct.release(&acme(), "0").await;
        let leases = leases(store(&proxy.url()));
        // Connects.
        assert_eq!(leases.heartbeat(&acme(), "1").await, LeaseStatus::Gone);
        if clock_is_known {
            leases.acquire(&acme(), "0").await.unwrap().detach();
            leases.release(&acme(), "0").await;
        }
        // A connection that held for a while is replaced at once.
        tokio::time::sleep(Duration::from_millis(30)).await;
        proxy.hold_next(Duration::from_millis(600));
        drop(leases.acquire(&acme(), "1").await.unwrap());
        leases.flush().await;
        until("it has arrived", async || proxy.late() == 1).await;
        assert_eq!(used(&direct).await, 0, "clock is known: {clock_is_known}");
    }
}

/// Requests use up the bound on calls all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_do_not_delay_heartbeats_and_releases() {
    let server = Server::start().await;
    let leases = leases(server.store().max_in_flight(1));
    let lasting = leases.clone();
    let leases = leases.ttl(Duration::from_secs(1));
    let kept = leases.acquire(&acme(), "kept").await.unwrap().keep_alive();
    let mut held = Vec::new();
    for n in 0..200 {
        held.push(lasting.acquire(&acme(), &n.to_string()).await.unwrap());
    }
    let requests: Vec<_> = (0..16)
        .map(|_| {
            let leases = leases.clone();
            tokio::spawn(async move {
                loop {
                    let _ = leases.usage(&acme()).await;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    drop(held);
    lasting.flush().await;
    let lost = tokio::time::timeout(Duration::from_secs(3), kept.lost()).await;
    for request in requests {
        request.abort();
    }
    assert!(lost.is_err());
    until("all but one are back", async || {
        let usage = leases.usage(&acme()).await;
        usage.is_some_and(|usage| usage.total == 1)
    })
    .await;
}

#[tokio::test]
async fn a_heartbeat_does_not_overwrite_other_data() {
    let server = Server::start().await;
    let leases = leases(server.store());
    leases.acquire(&acme(), "42").await.unwrap().detach();
    let holder = holder(&server).await;
    replace(&server, &holder).await;
    assert_eq!(leases.heartbeat(&acme(), "42").await, LeaseStatus::Failed);
    let expires = server.command(&["PTTL", &holder]).await.unwrap();
    assert_eq!(redis::from_redis_value::<i64>(expires).unwrap(), -1);
}

#[tokio::test]
async fn a_flush_does_not_wait_for_impossible_releases() {
    let server = Server::start().await;
    let leases = leases(server.store());
    let lease = leases.acquire(&acme(), "42").await.unwrap();
    replace(&server, &holder(&server).await).await;
    drop(lease);
    let flushed = tokio::time::timeout(Duration::from_secs(20), leases.flush()).await;
    assert!(flushed.is_ok());
}

/// As by a Redis that evicts keys.
#[tokio::test]
async fn a_lease_whose_holder_was_evicted_can_be_extended_and_released() {
    let server = Server::start().await;
    let leases = leases(server.store());
    let lease = leases.acquire(&acme(), "42").await.unwrap();
    let lost = holder(&server).await;
    server.command(&["DEL", &lost]).await.unwrap();
    assert_eq!(leases.heartbeat(&acme(), "42").await, LeaseStatus::Live);
    assert_eq!(lease.release().await, LeaseStatus::Live);
    assert_eq!(used(&leases).await, 0);

    let leases = leases.ttl(Duration::from_secs(1));
    let kept = leases.acquire(&acme(), "42").await.unwrap().keep_alive();
    server.command(&["DEL", &lost]).await.unwrap();
    until("a heartbeat says whose it is", async || {
        server.keys().await.contains(&lost)
    })
    .await;
    assert!(!kept.is_lost());
}
