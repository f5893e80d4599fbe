//! Concurrency limits that replicas share.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use tower::{Layer, ServiceExt, service_fn};
use tower_admission::extract::ByToken;
use tower_admission::store::{
    AcquireOutcome, FailureMode, LeaseLimits, LeaseSlots, LeaseStore, LeaseUsage,
};
use tower_admission::{ConcurrencyLimitLayer, Key, PermitBody, Reason};
use tower_admission_redis::RedisStore;

use crate::server::{Server, free_port, store, until};

pub(crate) fn limits(total: u64, of_key: u64) -> LeaseLimits {
    LeaseLimits::new(Some(total), Some((alice(), of_key)))
}

pub(crate) fn alice() -> Key {
    Key::id("user", "alice")
}

pub(crate) async fn used(leases: &dyn LeaseSlots) -> u64 {
    leases
        .usage(None)
        .await
        .expect("a store that answers")
        .total
}

pub(crate) async fn until_used(leases: &dyn LeaseSlots, expected: u64) {
    until(&format!("{expected} slots are taken"), async || {
        used(leases).await == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_server_passes_the_suite_for_leases() {
    let server = Server::start().await;
    tower_admission_testkit::lease_store(&server.store(), tokio::time::sleep).await;
}

#[tokio::test]
async fn replicas_share_both_limits() {
    let server = Server::start().await;
    let replicas = [0, 1].map(|_| server.store().open_leases("jobs"));
    let mut held = Vec::new();
    for replica in &replicas {
        let leased = replica.acquire(limits(3, 2)).await;
        assert!(matches!(leased, AcquireOutcome::Granted(_)), "{leased:?}");
        held.push(leased);
    }
    let leased = replicas[0].acquire(limits(3, 2)).await;
    assert!(
        matches!(leased, AcquireOutcome::KeyFull { place: 0 }),
        "{leased:?}"
    );
    let bob = |of_key| LeaseLimits::new(Some(3), Some((Key::id("user", "bob"), of_key)));
    held.push(replicas[0].acquire(bob(2)).await);
    let leased = replicas[1].acquire(bob(2)).await;
    assert!(matches!(leased, AcquireOutcome::Full), "{leased:?}");
    let usage = replicas[1].usage(Some(&alice())).await;
    assert_eq!(usage, Some(LeaseUsage::new(3, Some(2))));
    drop(held);
    until_used(&*replicas[1], 0).await;
    let [total] = &*server.keys().await else {
        panic!("nothing is left of keys that hold no slot");
    };
    let left = server.command(&["PTTL", total]).await.unwrap();
    assert!(matches!(left, redis::Value::Int(1..)), "{left:?}");
}

/// A slot of alice's, from an address.
pub(crate) fn from_address(of_alice: u64, of_address: u64) -> LeaseLimits {
    LeaseLimits::new(Some(9), [(alice(), of_alice), (address(), of_address)])
}

pub(crate) fn address() -> Key {
    Key::ip([192, 0, 2, 1].into())
}

/// How many slots alice has, and how many the address.
pub(crate) async fn of_both(leases: &dyn LeaseSlots) -> [u64; 2] {
    let used = async |key: Key, place| {
        let usage = leases.usage_at(Some(&key), place).await;
        usage.expect("a store that answers").key.unwrap()
    };
    [used(alice(), 0).await, used(address(), 1).await]
}

#[tokio::test]
async fn replicas_share_the_limits_of_several_keys() {
    let server = Server::start().await;
    let replicas = [0, 1].map(|_| server.store().open_leases("jobs"));
    let mut held = Vec::new();
    for replica in &replicas {
        let leased = replica.acquire(from_address(3, 2)).await;
        assert!(matches!(leased, AcquireOutcome::Granted(_)), "{leased:?}");
        held.push(leased);
    }
    let leased = replicas[0].acquire(from_address(3, 2)).await;
    assert!(
        matches!(leased, AcquireOutcome::KeyFull { place: 1 }),
        "{leased:?}"
    );
    let leased = replicas[1].acquire(from_address(2, 2)).await;
    assert!(
        matches!(leased, AcquireOutcome::KeyFull { place: 0 }),
        "{leased:?}"
    );
    assert_eq!(of_both(&*replicas[0]).await, [2, 2], "they take nothing");

    let mut keys = server.keys().await;
    keys.sort();
    let [of_address, of_alice, total] = &keys[..] else {
        panic!("{keys:?}");
    };
    assert_eq!(of_address, "{admission:lease:jobs}:of2:ip:192.0.2.1");
    assert!(
        of_alice.starts_with("{admission:lease:jobs}:of:user:"),
        "{of_alice}"
    );
    assert_eq!(total, "{admission:lease:jobs}:total");
    drop(held);
    until_used(&*replicas[1], 0).await;
    assert_eq!(
        server.keys().await.len(),
        1,
        "no key of a released slot is left"
    );
}

#[tokio::test]
async fn a_key_with_other_data_does_not_change_the_other_key() {
    let server = Server::start().await;
    let leases = server.store().open_leases("jobs");
    let held = leases.acquire(from_address(9, 9)).await;
    assert!(matches!(held, AcquireOutcome::Granted(_)), "{held:?}");
    let of_address = "{admission:lease:jobs}:of2:ip:192.0.2.1";
    server
        .command(&["SET", of_address, "nonsense"])
        .await
        .unwrap();
    for limits in [from_address(9, 9), from_address(1, 9)] {
        let leased = leases.acquire(limits).await;
        assert!(
            matches!(leased, AcquireOutcome::Unavailable(_)),
            "{leased:?}"
        );
    }
    assert_eq!(used(&*leases).await, 1);
    let of_alice = leases.usage(Some(&alice())).await.unwrap();
    assert_eq!(of_alice.key, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn races_use_exactly_the_limit() {
    let server = Server::start().await;
    let replicas: Vec<_> = (0..4).map(|_| server.store().open_leases("jobs")).collect();
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let leases = replicas[task % 4].clone();
            let key = Key::id("user", &(task % 13).to_string());
            tokio::spawn(async move {
                let mut held = Vec::new();
                for _ in 0..16 {
                    let limits = LeaseLimits::new(Some(100), Some((key, 10)));
                    if let AcquireOutcome::Granted(lease) = leases.acquire(limits).await {
                        held.push(lease);
                    }
                }
                held
            })
        })
        .collect();
    let mut held = Vec::new();
    for task in tasks {
        held.extend(task.await.unwrap());
    }
    assert_eq!(held.len(), 100);
    for n in 0..13 {
        let usage = replicas[0]
            .usage(Some(&Key::id("user", &n.to_string())))
            .await;
        assert!(usage.unwrap().key.unwrap() <= 10);
    }
    drop(held);
    until_used(&*replicas[0], 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_in_use_outlives_its_time_to_live_and_an_abandoned_one_expires() {
    let server = Server::start().await;
    let store = || server.store().lease_ttl(Duration::from_millis(600));
    let leases = store().open_leases("jobs");
    let held = leases.acquire(from_address(5, 5)).await;
    // A replica that dies: its runtime ends, and with it everything that could release.
    let abandoned = store();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let leased = runtime.block_on(async {
            let leases = abandoned.open_leases("jobs");
            leases.acquire(from_address(5, 5)).await
        });
        assert!(matches!(leased, AcquireOutcome::Granted(_)));
        runtime.shutdown_background();
        std::mem::forget(leased);
    })
    .join()
    .unwrap();
    assert_eq!(used(&*leases).await, 2);
    until_used(&*leases, 1).await;
    // Several times to live.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(used(&*leases).await, 1);
    }
    assert_eq!(of_both(&*leases).await, [1, 1]);
    drop(held);
    until_used(&*leases, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_are_written_again_at_once_after_a_loss_of_data() {
    let mut server = Server::start().await;
    // No heartbeat is due for minutes.
    let store = server.store().lease_ttl(Duration::from_secs(600));
    let leases = store.open_leases("jobs");
    let held = [
        leases.acquire(limits(3, 3)).await,
        leases.acquire(limits(3, 3)).await,
    ];
    server.restart().await;
    // The next that is granted comes with another epoch, which gives the loss away.
    until("a slot is granted", async || {
        matches!(
            leases.acquire(limits(9, 9)).await,
            AcquireOutcome::Granted(_)
        )
    })
    .await;
    until("those that are held are back, and no other", async || {
        let usage = leases.usage(Some(&alice())).await;
        usage == Some(LeaseUsage::new(2, Some(2)))
    })
    .await;
    let third = leases.acquire(limits(3, 3)).await;
    assert!(matches!(third, AcquireOutcome::Granted(_)), "{third:?}");
    let fourth = leases.acquire(limits(3, 3)).await;
    assert!(
        matches!(fourth, AcquireOutcome::KeyFull { place: 0 }),
        "{fourth:?}"
    );
    drop((held, third));
    until_used(&*leases, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquire_that_arrives_too_late_takes_nothing() {
    let server = Server::start().await;
    let store = server.store().deadline(Duration::from_millis(100));
    let leases = store.open_leases("jobs");
    // Learns the server's clock.
    drop(leases.acquire(limits(9, 9)).await);
    until_used(&*leases, 0).await;
    server.signal("STOP");
    for _ in 0..3 {
        let leased = leases.acquire(limits(9, 9)).await;
        assert!(
            matches!(leased, AcquireOutcome::Unavailable(_)),
            "{leased:?}"
        );
    }
    // Well after they were given up.
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.signal("CONT");
    until("the server answers", async || {
        leases.usage(None).await.is_some()
    })
    .await;
    until_used(&*leases, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_extends_and_releases_permits_and_grants_none() {
    let server = Server::start().await;
    let store = server.store().lease_ttl(Duration::from_millis(600));
    let leases = store.on_failure(FailureMode::Closed).open_leases("jobs");
    let held = [
        leases.acquire(limits(9, 9)).await,
        leases.acquire(limits(9, 9)).await,
    ];
    server
        .command(&["CONFIG", "SET", "maxmemory", "1"])
        .await
        .unwrap();
    let leased = leases.acquire(limits(9, 9)).await;
    assert!(
        matches!(leased, AcquireOutcome::Unavailable(FailureMode::Closed)),
        "{leased:?}"
    );
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(used(&*leases).await, 2, "heartbeats pass");
    }
    drop(held);
    until_used(&*leases, 0).await;
}

/// A lost release is made up for by the time to live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_are_released_after_an_outage_during_their_release() {
    let mut server = Server::start().await;
    let leases = server
        .store()
        .deadline(Duration::from_millis(200))
        .open_leases("jobs");
    let held = leases.acquire(limits(9, 9)).await;
    server.signal("STOP");
    drop(held);
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.signal("CONT");
    until("the server answers", async || {
        leases.usage(None).await.is_some()
    })
    .await;
    until_used(&*leases, 0).await;
    server.kill();
}

// Layers.

type Body = PermitBody<Full<Bytes>>;

async fn ask(layer: &ConcurrencyLimitLayer, token: &str) -> Response<Body> {
    let service = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
    }));
    let request = Request::builder().header("authorization", format!("Bearer {token}"));
    service.oneshot(request.body(()).unwrap()).await.unwrap()
}

fn layer(store: RedisStore, limit: usize) -> ConcurrencyLimitLayer {
    ConcurrencyLimitLayer::new(limit)
        .name("Gateway")
        .per_key(ByToken::default(), 2)
        .store(store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_limits_of_a_layer() {
    let server = Server::start().await;
    let replicas = [0, 1].map(|_| layer(server.store(), 3));
    let mut held = Vec::new();
    for replica in &replicas {
        let response = ask(replica, "alice").await;
        assert_eq!(response.status(), StatusCode::OK);
        held.push(response);
    }
    let refused = ask(&replicas[0], "alice").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    held.push(ask(&replicas[0], "bob").await);
    let refused = ask(&replicas[1], "carol").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    // The unread body holds it; gone, it is free for the other replica.
    held.clear();
    until("carol comes in", async || {
        ask(&replicas[1], "carol").await.status() == StatusCode::OK
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_failure_mode_decides() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    for (mode, admitted, reason) in [
        (FailureMode::Open, 4, Reason::AtCapacity),
        (FailureMode::Closed, 0, Reason::Unavailable),
        (
            FailureMode::LocalShare { replicas: 2 },
            2,
            Reason::AtCapacity,
        ),
        (
            FailureMode::LocalShare { replicas: 9 },
            1,
            Reason::AtCapacity,
        ),
    ] {
        let layer = ConcurrencyLimitLayer::new(4).store(store(&url).on_failure(mode));
        let limiter = layer.limiter();
        let mut held = Vec::new();
        let refused = loop {
            match limiter.acquire_for(&[]).await {
                Ok(permit) => held.push(permit),
                Err(rejection) => break rejection,
            }
        };
        assert_eq!(
            (held.len(), refused.reason()),
            (admitted, reason),
            "{mode:?}"
        );
    }
}

#[tokio::test]
#[should_panic(expected = "await")]
async fn a_limiter_with_a_store_does_not_answer_at_once() {
    let layer = ConcurrencyLimitLayer::new(4).store(store("redis://127.0.0.1:1"));
    let _ = layer.limiter().try_acquire();
}

#[test]
fn a_concurrency_layer_for_credentials_needs_a_secret() {
    let no_secret = || RedisStore::connect("redis://127.0.0.1:1").unwrap();
    assert!(ConcurrencyLimitLayer::new(4).try_store(no_secret()).is_ok());
    let per_key = ConcurrencyLimitLayer::new(4).per_key(ByToken::default(), 1);
    assert!(per_key.try_store(no_secret()).is_err());
}

#[test]
#[should_panic(expected = "secret")]
fn credentials_need_a_secret_in_either_order() {
    let no_secret = RedisStore::connect("redis://127.0.0.1:1").unwrap();
    let stored = ConcurrencyLimitLayer::new(4).store(no_secret);
    let _ = stored.per_key(ByToken::default(), 1);
}

/// Those who wait in line for this replica's room ask the store as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_from_the_wait_queue_is_counted() {
    let server = Server::start().await;
    let layer = ConcurrencyLimitLayer::new(1)
        .wait(1, Duration::from_secs(20))
        .store(server.store());
    let first = ask(&layer, "alice").await;
    let leases = server.store().open_leases("");
    until_used(&*leases, 1).await;
    let second = tokio::spawn({
        let layer = layer.clone();
        async move { ask(&layer, "bob").await }
    });
    drop(first);
    // The first one's slot may still be on its way back to the store.
    let status = second.await.unwrap().status();
    assert!([StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE].contains(&status));
    until_used(&*leases, 0).await;
    let third = Arc::new(ask(&layer, "carol").await);
    assert_eq!(third.status(), StatusCode::OK);
}
