//! Closed connections leave no request uncounted.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, sleep};

use tower_admission::store::FailureKind;
use tower_admission::store::{FailureMode, RateBuckets, RateStore};
use tower_admission::{Policy, Quota};
use tower_admission_redis::StoreObserver;

use crate::proxy::Proxy;
use crate::server::{Server, store, until};
use crate::user;

/// One that a busy machine keeps.
const DEADLINE: Duration = Duration::from_millis(250);

/// Records every event.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<(Vec<bool>, Vec<FailureKind>)>>);

impl StoreObserver for Told {
    fn reachable(&self, reachable: bool) {
        self.0.lock().unwrap().0.push(reachable);
    }

    fn failed(&self, kind: FailureKind) {
        self.0.lock().unwrap().1.push(kind);
    }
}

impl Told {
    fn reachable(&self) -> Vec<bool> {
        self.0.lock().unwrap().0.clone()
    }

    fn failures(&self) -> Vec<FailureKind> {
        self.0.lock().unwrap().1.clone()
    }
}

fn calls() -> [Policy; 1] {
    [Policy::new("calls", Quota::per_day(10_000))]
}

async fn connect(server: &Server, told: &Told) -> Arc<dyn RateBuckets> {
    let store = server.store().deadline(DEADLINE).observe(told.clone());
    let buckets = store.open(&calls());
    until("Redis decides", async || {
        buckets.take(&user("alice"), 1).await.remaining().is_some()
    })
    .await;
    buckets
}

/// Closes all connections but the one that asks for it.
async fn close_connections(server: &Server) {
    let killed = server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    killed.await.unwrap();
}

/// The connections of stores, by their ids.
async fn connections(server: &Server) -> Vec<String> {
    let list = server.command(&["CLIENT", "LIST"]).await.unwrap();
    let list: String = redis::from_redis_value(list).unwrap();
    let of_stores = list
        .lines()
        .filter(|line| line.contains("name=tower-admission"));
    of_stores
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_after_an_idle_close_is_counted() {
    let server = Server::start().await;
    let told = Told::default();
    let buckets = connect(&server, &told).await;
    let mut uncounted = 0;
    for n in 0..100 {
        // A connection is used for a while before it is idle.
        sleep(Duration::from_millis(30)).await;
        close_connections(&server).await;
        if n % 2 == 0 {
            until("the store has connected again", async || {
                !connections(&server).await.is_empty()
            })
            .await;
        }
        let decision = buckets.take(&user("alice"), 1).await;
        uncounted += u32::from(decision.remaining().is_none());
    }
    println!("idle close: {uncounted} of 100 requests uncounted");
    assert_eq!(uncounted, 0);
    // It is no outage either.
    assert_eq!(told.reachable(), [false, true]);
    assert_eq!(told.failures(), []);
}

/// As servers and balancers do it, in both protocols.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_server_that_closes_idle_connections_causes_no_outage() {
    let server = Server::start_with(&["--timeout", "1"]).await;
    for protocol in ["resp2", "resp3"] {
        let told = Told::default();
        let url = format!("{}?protocol={protocol}", server.url());
        let store = store(&url).deadline(DEADLINE).observe(told.clone());
        let buckets = store.open(&calls());
        for _ in 0..3 {
            assert!(buckets.take(&user("alice"), 1).await.remaining().is_some());
            let before = connections(&server).await;
            assert_eq!(before.len(), 1);
            until(
                "the server closes the connection, and has another",
                async || {
                    let now = connections(&server).await;
                    now.len() == 1 && now != before
                },
            )
            .await;
        }
        assert_eq!(told.reachable(), [false, true]);
        assert_eq!(told.failures(), []);
        drop((buckets, store));
        until(
            "the connection of a store that is gone is closed",
            async || connections(&server).await.is_empty(),
        )
        .await;
    }
}

/// Makes about 1,000 requests a second while connections are closed, and returns how many there
/// were and how many of them went uncounted.
async fn requests_during(server: &Server, kills: u32, pause: Duration) -> (u32, u32) {
    let told = Told::default();
    let buckets = connect(server, &told).await;
    let (made, uncounted) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut clients = Vec::new();
    for n in 0..4 {
        let (buckets, made, uncounted) = (buckets.clone(), made.clone(), uncounted.clone());
        clients.push(tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(4));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            loop {
                ticks.tick().await;
                let decision = buckets.take(&user(&n.to_string()), 1).await;
                made.fetch_add(1, Ordering::Relaxed);
                if decision.remaining().is_none() {
                    uncounted.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }
    let mut connection = server.connection().await.unwrap();
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one is at once, on a connection that has just begun.
    ticks.tick().await;
    for _ in 0..kills {
        ticks.tick().await;
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg("normal");
        let killed: u32 = kill.query_async(&mut connection).await.unwrap();
        assert!(killed <= 1, "the store has one connection: {killed}");
    }
    ticks.tick().await;
    for client in &clients {
        client.abort();
    }
    let (made, uncounted) = (
        made.load(Ordering::Relaxed),
        uncounted.load(Ordering::Relaxed),
    );
    println!("{kills} kills, one in {pause:?}: {uncounted} of {made} uncounted");
    println!("observers: {:?}", told.failures());
    (made, uncounted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_under_load_leaves_no_request_uncounted() {
    let server = Server::start().await;
    let (made, uncounted) = requests_during(&server, 20, Duration::from_millis(200)).await;
    assert!(made >= 1_000, "{made}");
    assert!(uncounted <= 1, "{uncounted} of {made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_lost_again_and_again_leave_few_requests_uncounted() {
    let server = Server::start().await;
    let (made, uncounted) = requests_during(&server, 40, Duration::from_millis(100)).await;
    assert!(made >= 1_000, "{made}");
    assert!(uncounted * 20 <= made, "{uncounted} of {made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_reply_ends_the_connection() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    let told = Told::default();
    let store = store(&proxy.url()).deadline(DEADLINE).observe(told.clone());
    let buckets = store.open(&calls());
    let left = async || buckets.take(&user("alice"), 1).await.remaining();
    assert_eq!(left().await, Some(9_999));
    // The connection is in use for a while first.
    sleep(Duration::from_millis(30)).await;
    proxy.garble_next();
    assert_eq!(left().await, Some(9_997));
    assert_eq!(left().await, Some(9_996));
    assert_eq!(told.failures(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_an_answer_in_time_is_not_repeated() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    let store = store(&proxy.url()).deadline(DEADLINE);
    let buckets = store.open(&calls());
    assert!(buckets.take(&user("alice"), 1).await.remaining().is_some());
    proxy.delay(2 * DEADLINE);
    assert_eq!(buckets.take(&user("alice"), 1).await.remaining(), None);
    proxy.delay(Duration::ZERO);
    let direct = server.store().open(&calls());
    let left = async || direct.peek(&user("alice"), 0).await.remaining();
    until("the late call has run", async || {
        left().await == Some(9_998)
    })
    .await;
    assert_eq!(
        buckets.take(&user("alice"), 1).await.remaining(),
        Some(9_997)
    );
}

/// What asks for room waits for it, as long as its deadline allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_above_the_maximum_wait_for_room() {
    let server = Server::start().await;
    let told = Told::default();
    let store = server
        .store()
        .deadline(Duration::from_secs(20))
        .max_in_flight(2)
        .observe(told.clone());
    let buckets = store.open(&[Policy::new("calls", Quota::per_day(100))]);
    let calls: Vec<_> = (0..1_000)
        .map(|_| tokio::spawn(buckets.take(&user("alice"), 1).into_future()))
        .collect();
    let mut admitted = 0;
    for call in calls {
        admitted += u32::from(call.await.unwrap().is_admitted());
    }
    assert_eq!(admitted, 100);
    assert_eq!(told.failures(), []);
}

/// An observer is the application's, and may have an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_an_observer_does_not_end_the_store() {
    struct Panics(AtomicU32);
    impl StoreObserver for Panics {
        fn reachable(&self, reachable: bool) {
            let seen = self.0.fetch_add(u32::from(reachable), Ordering::Relaxed);
            assert!(!reachable || seen > 0, "the first time");
        }
    }
    let server = Server::start().await;
    let store = server.store().observe(Panics(AtomicU32::new(0)));
    let buckets = store.open(&calls());
    for _ in 0..3 {
        until("Redis decides", async || {
            buckets.take(&user("alice"), 1).await.remaining().is_some()
        })
        .await;
        close_connections(&server).await;
    }
}

/// A server that closes every connection gets no storm of connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_every_connection_is_an_outage() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let accepted = Arc::new(AtomicU32::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = connection.read(&mut [0; 1024]).await;
            let answers = b"*2\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n+OK\r\n";
            let _ = connection.write_all(answers).await;
        }
    });
    let told = Told::default();
    let store = store(&url)
        .deadline(DEADLINE)
        .on_failure(FailureMode::Closed)
        .observe(told.clone());
    let buckets = store.open(&calls());
    for _ in 0..100 {
        assert!(buckets.take(&user("alice"), 1).await.is_unavailable());
        sleep(Duration::from_millis(10)).await;
    }
    let accepted = accepted.load(Ordering::Relaxed);
    println!("{accepted} connections in 100 requests");
    assert!((1..=30).contains(&accepted), "{accepted}");
    assert!(told.failures().len() >= 100);
    assert!(!told.reachable().last().unwrap());
}
