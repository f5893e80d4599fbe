//! Networks and servers that work in part: counts and reports.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use tower_admission::Quota;
use tower_admission::store::FailureKind;
use tower_admission::store::{AcquireOutcome, FailureMode, LeaseLimits, LeaseStore, RateStore};

use crate::cluster_faults::node_that_answers;
use crate::events::{Log, Seen};
use crate::faults::stand_in;
use crate::server::{Server, store, until};
use crate::user;

const DEADLINE: Duration = Duration::from_millis(250);

const HELLO: &str = "*2\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n";

/// As `take.lua` answers.
const COUNTED: &str = "*3\r\n:1\r\n:8\r\n:1\r\n";

/// Nothing fails but connections that have just begun.
#[tokio::test]
async fn a_server_that_closes_new_connections_is_logged() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 1024]).await;
            let _ = connection
                .write_all(format!("{HELLO}+OK\r\n").as_bytes())
                .await;
        }
    });
    let (log, seen) = (Log::default(), Seen::default());
    let _collecting = log.collect();
    let buckets = store(&url)
        .on_failure(FailureMode::Closed)
        .observe(seen.clone())
        .open(&[Quota::per_hour(9).into()]);
    let line = "kind=\"disconnected\" cause=\"the connection was closed\"";
    until("a line says so", async || {
        // Other tests have no log, and may be the first to write a line.
        tracing::callsite::rebuild_interest_cache();
        assert!(buckets.take(&user("alice"), 1).await.is_unavailable());
        log.take().iter().any(|said| said.contains(line))
    })
    .await;
}

/// Only a request that waits for a decision counts it.
#[tokio::test]
async fn a_permit_without_a_waiting_request_is_no_decision() {
    let server = Server::start().await;
    let seen = Seen::default();
    let store = server
        .store()
        .deadline(DEADLINE)
        .on_failure(FailureMode::Closed)
        .observe(seen.clone());
    let leases = store.open_leases("jobs");
    let acquire = || {
        Box::pin(
            leases
                .acquire(LeaseLimits::new(Some(10), None))
                .into_future(),
        )
    };
    assert!(matches!(acquire().await, AcquireOutcome::Granted(_)));
    server.signal("STOP");
    let (mut first, mut second) = (acquire(), acquire());
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    // The second has a call of its own now.
    drop(first);
    tokio::task::yield_now().await;
    drop(second);
    // That call, and what gives the slots back, which pauses after a failure.
    until("all have failed", async || seen.failed().len() >= 3).await;
    assert_eq!(seen.decided(FailureMode::Closed), 0);
}

/// A call that waits for a connection starts a new supervisor when the runtime of the old one ends.
async fn outlives_another_runtime(scheme: &str) {
    let asked = Arc::new(AtomicU32::new(0));
    let port = Arc::<OnceLock<u16>>::default();
    let (count, known) = (asked.clone(), port.clone());
    let url = stand_in(move |command| match command {
        // Of the first connection there will be no more.
        "HELLO" if count.fetch_add(1, Ordering::SeqCst) == 0 => None,
        "HELLO" => Some(HELLO.to_owned()),
        "CLUSTER" => {
            let port = known.wait();
            Some(format!(
                "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:{port}\r\n"
            ))
        }
        "EVALSHA" => Some(COUNTED.to_owned()),
        _ => Some("+OK\r\n".to_owned()),
    })
    .await;
    port.set(url.rsplit_once(':').unwrap().1.parse().unwrap())
        .unwrap();
    let store = store(&url.replace("redis:", scheme))
        .deadline(Duration::from_secs(20))
        .on_failure(FailureMode::Closed);
    let buckets = store.open(&[Quota::per_hour(9).into()]);
    let (end, ends) = tokio::sync::oneshot::channel::<()>();
    let other = buckets.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            tokio::spawn(async move { other.take(&user("alice"), 1).await });
            let _ = ends.await;
        });
    });
    until("it connects", async || asked.load(Ordering::SeqCst) > 0).await;
    let mut waits = Box::pin(buckets.take(&user("bob"), 1).into_future());
    assert!(poll!(&mut waits).is_pending());
    end.send(()).unwrap();
    thread.join().unwrap();
    assert!(waits.await.is_admitted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_for_a_connection_outlives_the_runtime_that_makes_it() {
    for scheme in ["redis:", "redis+cluster:"] {
        outlives_another_runtime(scheme).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_answers_leave_decisions_to_the_failure_mode() {
    use FailureKind::{Disconnected, Other, Timeout, WrongData};
    let nested = "*1\r\n".repeat(100_000);
    for (answer, kind) in [
        // What never comes is not made room for.
        ("*9223372036854775807\r\n", Timeout),
        ("$9223372036854775807\r\n", Timeout),
        ("*3\r\n:1\r\n", Timeout),
        (&nested, Disconnected),
        (":99999999999999999999\r\n", Disconnected),
        ("\0\0\0\0\r\n", Disconnected),
        ("$3\r\nab\r\n", Disconnected),
        ("*-7\r\n", WrongData),
        ("$-1\r\n", WrongData),
        (":1\r\n", WrongData),
        ("*1\r\n*1\r\n*0\r\n", WrongData),
        ("-\r\n", Other),
    ] {
        for protocol in ["resp2", "resp3"] {
            let said = answer.to_owned();
            let url = stand_in(move |command| {
                Some(match command {
                    "HELLO" => HELLO.to_owned(),
                    "EVALSHA" | "EVAL" => said.clone(),
                    _ => "+OK\r\n".to_owned(),
                })
            })
            .await;
            let seen = Seen::default();
            let store = store(&format!("{url}?protocol={protocol}"))
                .deadline(DEADLINE)
                .on_failure(FailureMode::Closed)
                .observe(seen.clone());
            let buckets = store.open(&[Quota::per_hour(9).into()]);
            assert!(buckets.take(&user("alice"), 1).await.is_unavailable());
            assert_eq!(seen.failed().last(), Some(&kind), "{answer:.30}");
            let error = store.ping().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{answer:.30}");
        }
    }
}

async fn connections(server: &Server) -> usize {
    let list = server.word(&["CLIENT", "LIST"]).await;
    list.lines()
        .filter(|line| line.contains("name=tower-admission"))
        .count()
}

/// Requests that are dropped at any point, while connections are closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_requests_leaves_one_connection_for_each_store() {
    let server = Server::start().await;
    let store = server.store().deadline(Duration::from_millis(1));
    let modes = [
        FailureMode::Open,
        FailureMode::Closed,
        FailureMode::LocalShare { replicas: 2 },
    ];
    let stores = modes.map(|mode| store.clone().on_failure(mode));
    let buckets = stores.map(|store| store.open(&[Quota::per_hour(9).into()]));
    let mut tasks = JoinSet::new();
    for task in 0..64 {
        let buckets = buckets.clone();
        tasks.spawn(async move {
            for n in 0..200 {
                let name = ((task + n) % 7).to_string();
                let take = buckets[n % 3].take(&user(&name), 1).into_future();
                let micros = Duration::from_micros(fastrand::u64(0..1500));
                let _ = timeout(micros, take).await;
            }
        });
    }
    while !tasks.is_empty() {
        let kill = server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        let ended = timeout(Duration::from_millis(30), tasks.join_next());
        let (_, ended) = tokio::join!(kill, ended);
        if let Ok(Some(ended)) = ended {
            ended.unwrap();
        }
    }
    until("one is left for each", async || {
        connections(&server).await <= 3
    })
    .await;
    drop((buckets, store));
    until("all are closed", async || connections(&server).await == 0).await;
}

/// The map differs, and is requested at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirection_to_an_unreachable_server_is_a_short_outage_of_its_slot() {
    // Takes connections, and nothing more.
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hangs = hangs.local_addr().unwrap().to_string();
    for (redirection, to) in [
        ("MOVED", "127.0.0.1:1"),
        ("ASK", "127.0.0.1:1"),
        ("MOVED", "::1:1"),
        ("MOVED", "?:7000"),
        ("MOVED", ""),
        ("MOVED", "host:port"),
        ("MOVED", &hangs),
        ("ASK", &hangs),
    ] {
        let to = to.to_owned();
        let (url, _) = node_that_answers(move |_, calls| match calls {
            1 => format!("-{redirection} 7 {to}\r\n"),
            _ => COUNTED.to_owned(),
        })
        .await;
        let seen = Seen::default();
        let store = store(&url).deadline(DEADLINE).observe(seen.clone());
        let buckets = store.open(&[Quota::per_hour(9).into()]);
        let counts = async || buckets.take(&user("alice"), 1).await.remaining().is_some();
        until("it is connected", counts).await;
        let _ = counts().await;
        until("the map is back", counts).await;
        until("it is no outage any more", async || {
            seen.reachable().last() == Some(&true)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_maps_leave_decisions_to_the_failure_mode() {
    let of = |first: u32, last: u32, host: &str, port: u32| {
        let length = host.len();
        format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n${length}\r\n{host}\r\n:{port}\r\n")
    };
    let disabled = "-ERR This instance has cluster support disabled\r\n";
    let (busy, empty) = (FailureKind::Busy, "knows the slots");
    for (map, kind, cause) in [
        ("*0\r\n".to_owned(), busy, empty),
        ("+OK\r\n".to_owned(), busy, empty),
        (format!("*1\r\n{}", of(0, 16_384, "h", 1)), busy, empty),
        (format!("*1\r\n{}", of(0, 16_383, "", 0)), busy, empty),
        (
            format!("*1\r\n{}", of(0, 16_383, "", 1)),
            FailureKind::Disconnected,
            "refused",
        ),
        (
            format!("*1000\r\n{}", of(7, 9, "", 1).repeat(1_000)),
            busy,
            "16381 slots",
        ),
        (
            disabled.to_owned(),
            FailureKind::Configuration,
            "support disabled",
        ),
    ] {
        let said = map.clone();
        let url = stand_in(move |command| {
            Some(match command {
                "HELLO" => HELLO.to_owned(),
                "CLUSTER" => said.clone(),
                _ => "+OK\r\n".to_owned(),
            })
        })
        .await;
        let seen = Seen::default();
        let store = store(&url.replace("redis:", "redis+cluster:"))
            .on_failure(FailureMode::Closed)
            .observe(seen.clone());
        let buckets = store.open(&[Quota::per_hour(9).into()]);
        assert!(buckets.take(&user("alice"), 1).await.is_unavailable());
        assert!(!seen.failed().is_empty());
        let error = store.ping().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{map:.60}: {error}");
        assert!(error.to_string().contains(cause), "{map:.60}: {error}");
    }
}
