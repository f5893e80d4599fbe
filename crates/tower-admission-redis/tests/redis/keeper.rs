//! Heartbeats and releases of permits, under load and faults.

use std::time::Duration;

use tokio::task::JoinSet;
use tower_admission::store::{
    AcquireOutcome, FailureMode, LeaseLimits, LeaseStore, LeaseUsage, RateStore,
};
use tower_admission::{Key, Quota};

use crate::leases::{alice, from_address, limits, of_both, until_used, used};
use crate::proxy::Proxy;
use crate::server::{Server, store, until};
use crate::user;

/// As when Redis evicts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_that_are_lost_without_the_epoch_are_written_again() {
    let server = Server::start().await;
    // No heartbeat is due for minutes.
    let store = server.store().lease_ttl(Duration::from_secs(600));
    let leases = store.open_leases("jobs");
    let held = [
        leases.acquire(limits(3, 3)).await,
        leases.acquire(limits(3, 3)).await,
    ];
    let total = key_with(&server, "total").await;
    server.command(&["DEL", &total]).await.unwrap();
    let third = leases.acquire(limits(3, 3)).await;
    assert!(matches!(third, AcquireOutcome::Granted(_)), "{third:?}");
    until_used(&*leases, 3).await;
    drop((held, third));
    until_used(&*leases, 0).await;
}

/// When data is lost, and when the leases of one key are evicted alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_of_several_keys_is_written_again_for_each_key() {
    let server = Server::start().await;
    // No heartbeat is due for minutes.
    let store = server.store().lease_ttl(Duration::from_secs(600));
    let leases = store.open_leases("jobs");
    let held = [
        leases.acquire(from_address(3, 3)).await,
        leases.acquire(from_address(3, 3)).await,
    ];
    server.command(&["FLUSHALL"]).await.unwrap();
    let third = leases.acquire(from_address(3, 3)).await;
    assert!(matches!(third, AcquireOutcome::Granted(_)), "{third:?}");
    until("each key has its slots", async || {
        of_both(&*leases).await == [3, 3]
    })
    .await;
    let fourth = leases.acquire(from_address(4, 3)).await;
    assert!(
        matches!(fourth, AcquireOutcome::KeyFull { place: 1 }),
        "{fourth:?}"
    );
    drop((held, third));
    until_used(&*leases, 0).await;
    assert_eq!(of_both(&*leases).await, [0, 0]);

    let store = server.store().lease_ttl(Duration::from_secs(1));
    let leases = store.open_leases("others");
    let held = leases.acquire(from_address(3, 3)).await;
    let of_address = key_with(&server, "others}:of2:").await;
    server.command(&["DEL", &of_address]).await.unwrap();
    until("a heartbeat has told it", async || {
        of_both(&*leases).await == [1, 1]
    })
    .await;
    drop(held);
}

async fn key_with(server: &Server, part: &str) -> String {
    let keys = server.keys().await;
    let key = keys.into_iter().find(|key| key.contains(part));
    key.expect("such a key")
}

/// The runtime ends right after, with all background tasks.
#[tokio::test]
async fn a_flush_at_the_end_releases_all_permits() {
    let server = Server::start().await;
    let store = server.store();
    let ending = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let closed = store.clone().on_failure(FailureMode::Closed);
            let leases = [store.open_leases("jobs"), closed.open_leases("jobs")];
            let mut held = Vec::new();
            for n in 0..600 {
                held.push(leases[n % 2].acquire(limits(1000, 1000)).await);
            }
            assert!(
                held.iter()
                    .all(|leased| matches!(leased, AcquireOutcome::Granted(_)))
            );
            drop(held);
            store.flush().await.unwrap();
        });
    });
    tokio::task::spawn_blocking(|| ending.join().unwrap())
        .await
        .unwrap();
    let leases = server.store().open_leases("jobs");
    assert_eq!(used(&*leases).await, 0);
}

#[tokio::test]
async fn a_flush_fails_while_redis_is_unavailable() {
    let mut server = Server::start().await;
    let store = server.store().deadline(Duration::from_millis(200));
    let leases = store.open_leases("jobs");
    store.flush().await.unwrap();
    let held = leases.acquire(limits(9, 9)).await;
    server.kill();
    drop(held);
    assert!(store.flush().await.is_err());
    server.restart().await;
    until("Redis has the releases", async || {
        store.flush().await.is_ok()
    })
    .await;
}

/// A long queue of releases does not delay heartbeats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_do_not_delay_heartbeats() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    proxy.delay(Duration::from_millis(5));
    let store = store(&proxy.url()).lease_ttl(Duration::from_secs(1));
    let leases = store.open_leases("jobs");
    let held = leases.acquire(limits(1000, 1)).await;
    assert!(matches!(held, AcquireOutcome::Granted(_)), "{held:?}");
    let mut others = crowd(48, move || {
        let leases = leases.clone();
        async move { drop(leases.acquire(LeaseLimits::new(Some(1000), None)).await) }
    });
    stays_held(&server).await;
    others.abort_all();
    drop(held);
}

/// Requests may use all the room for calls there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_do_not_delay_heartbeats() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    proxy.delay(Duration::from_millis(5));
    let store = store(&proxy.url())
        .lease_ttl(Duration::from_secs(1))
        .max_in_flight(4);
    let leases = store.open_leases("jobs");
    let held = leases.acquire(limits(1000, 1)).await;
    assert!(matches!(held, AcquireOutcome::Granted(_)), "{held:?}");
    let buckets = store.open(&[Quota::per_second(1_000_000).into()]);
    let mut others = crowd(32, move || {
        let buckets = buckets.clone();
        async move {
            let _ = buckets.take(&user("alice"), 1).await;
            tokio::task::yield_now().await;
        }
    });
    stays_held(&server).await;
    others.abort_all();
    drop(held);
}

/// Tasks that do the same over and over.
fn crowd<F>(tasks: usize, what: impl Fn() -> F + Clone + Send + 'static) -> JoinSet<()>
where
    F: Future<Output = ()> + Send,
{
    let mut crowd = JoinSet::new();
    for _ in 0..tasks {
        let what = what.clone();
        crowd.spawn(async move {
            loop {
                what().await;
            }
        });
    }
    crowd
}

/// Looks for several times to live whether alice's slot is taken.
async fn stays_held(server: &Server) {
    let leases = server.store().open_leases("jobs");
    for _ in 0..30 {
        let usage = leases.usage(Some(&alice())).await;
        assert_eq!(usage.expect("a store that answers").key, Some(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_data_under_one_key_does_not_affect_other_permits() {
    let server = Server::start().await;
    let store = server.store().lease_ttl(Duration::from_secs(1));
    let leases = store.open_leases("jobs");
    let of = |who: &str| LeaseLimits::new(Some(9), Some((Key::id("user", who), 9)));
    let alices = leases.acquire(of("alice")).await;
    let key = key_with(&server, "of:").await;
    let others = [
        leases.acquire(of("bob")).await,
        leases.acquire(LeaseLimits::new(Some(9), None)).await,
    ];
    server.command(&["SET", &key, "nonsense"]).await.unwrap();
    let again = leases.acquire(of("alice")).await;
    assert!(matches!(again, AcquireOutcome::Unavailable(_)), "{again:?}");
    // Several times to live: heartbeats pass.
    for _ in 0..30 {
        assert_eq!(used(&*leases).await, 3);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let nonsense = server.command(&["GET", &key]).await.unwrap();
    assert_eq!(nonsense, redis::Value::BulkString(b"nonsense".to_vec()));

    // Releases pass as well, and at once: no heartbeat is due for minutes.
    let store = server.store().lease_ttl(Duration::from_secs(600));
    let leases = store.open_leases("others");
    let alices_too = leases.acquire(of("alice")).await;
    let key = key_with(&server, "others}:of:").await;
    let bobs = leases.acquire(of("bob")).await;
    server.command(&["SET", &key, "nonsense"]).await.unwrap();
    drop((alices_too, bobs));
    until_used(&*leases, 0).await;
    drop((alices, others));
}

/// A machine that was suspended has lost some time.
#[tokio::test]
async fn drifting_clocks_reject_no_request() {
    let server = Server::start().await;
    let store = server.store().deadline(Duration::from_millis(500));
    let leases = store.open_leases("jobs");
    until("a slot is granted", async || {
        matches!(
            leases.acquire(limits(9, 9)).await,
            AcquireOutcome::Granted(_)
        )
    })
    .await;
    // tokio's clock stands still, and the server's does not.
    tokio::time::pause();
    std::thread::sleep(Duration::from_millis(1500));
    tokio::time::resume();
    let leased = leases.acquire(limits(9, 9)).await;
    assert!(matches!(leased, AcquireOutcome::Granted(_)), "{leased:?}");
}

/// A heartbeat of many leases is several calls, and data may be lost between two of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_lost_during_a_heartbeat_is_written_again() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    // No heartbeat is due for minutes.
    let store = store(&proxy.url()).lease_ttl(Duration::from_secs(600));
    let leases = store.open_leases("jobs");
    let many = LeaseLimits::new(Some(1000), Some((alice(), 1000)));
    let mut held = Vec::new();
    for _ in 0..700 {
        held.push(leases.acquire(many.clone()).await);
    }
    let control = server.store().open_leases("jobs");
    until_used(&*control, 700).await;
    proxy.delay(Duration::from_millis(50));
    // Again, should the machine be too busy for this to be noticed in time.
    loop {
        server.command(&["FLUSHALL"]).await.unwrap();
        // Gives the loss away.
        held.push(leases.acquire(many.clone()).await);
        until("the heartbeat has begun", async || {
            used(&*control).await > 1
        })
        .await;
        server.command(&["FLUSHALL"]).await.unwrap();
        let goes_on = async { until("it goes on", async || used(&*control).await > 0).await };
        if tokio::time::timeout(Duration::from_secs(5), goes_on)
            .await
            .is_ok()
        {
            break;
        }
    }
    let all = held.len() as u64;
    until("all are there again", async || {
        let usage = control.usage(Some(&alice())).await;
        usage == Some(LeaseUsage::new(all, Some(all)))
    })
    .await;
}

#[tokio::test]
async fn a_request_that_was_never_sent_needs_no_release() {
    let server = Server::start().await;
    let store = server
        .store()
        .deadline(Duration::from_millis(10))
        .max_in_flight(0);
    let leases = store.open_leases("jobs");
    for _ in 0..50 {
        let leased = leases.acquire(limits(9, 9)).await;
        assert!(
            matches!(leased, AcquireOutcome::Unavailable(_)),
            "{leased:?}"
        );
    }
    store.flush().await.unwrap();
    let mut connection = server.connection().await.unwrap();
    let mut command = redis::cmd("INFO");
    command.arg("commandstats");
    let stats: String = command.query_async(&mut connection).await.unwrap();
    assert!(!stats.contains("cmdstat_zrem:"), "{stats}");
}
