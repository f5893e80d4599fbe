//! The fault matrix: Redis is unavailable, slow, full, or holds other data.
//!
//! In every row no call takes longer than twice its deadline, nothing panics or hangs, and counting continues within
//! two seconds after the fault ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;

use tower_admission::store::FailureKind;
use tower_admission::store::{
    AcquireOutcome, FailureMode, LeaseLimits, LeaseStore, RateBuckets, RateStore, Reply,
};
use tower_admission::{Policy, Quota};
use tower_admission_redis::RedisStore;
use tower_admission_redis::StoreObserver;

use crate::proxy::Proxy;
use crate::server::{Server, free_port, store, until};
use crate::user;

/// Long next to what a busy machine holds a task up, short next to a test.
const DEADLINE: Duration = Duration::from_millis(400);

/// As long as a connection has to hold to be replaced at once, and longer.
const HELD: Duration = Duration::from_millis(30);

/// Counts failures by kind.
#[derive(Clone, Default)]
struct Failures(Arc<Mutex<HashMap<FailureKind, u32>>>);

impl StoreObserver for Failures {
    fn failed(&self, kind: FailureKind) {
        *self.0.lock().unwrap().entry(kind).or_default() += 1;
    }
}

impl Failures {
    fn of(&self, kind: FailureKind) -> u32 {
        self.0.lock().unwrap().get(&kind).copied().unwrap_or(0)
    }
}

struct Case {
    server: Server,
    buckets: Arc<dyn RateBuckets>,
    failures: Failures,
}

impl Case {
    async fn new(mode: FailureMode) -> Self {
        Self::with(Server::start().await, |store| store.on_failure(mode)).await
    }

    async fn with(server: Server, configure: impl FnOnce(RedisStore) -> RedisStore) -> Self {
        let failures = Failures::default();
        let store = server.store().deadline(DEADLINE).observe(failures.clone());
        let policy = Policy::new("calls", Quota::per_hour(1000));
        let buckets = configure(store).open(&[policy]);
        let case = Self {
            server,
            buckets,
            failures,
        };
        case.counts_again().await;
        case
    }

    /// Whether a request was admitted, and what Redis says is left if it was Redis who decided.
    async fn take(&self) -> (bool, Option<u32>) {
        let started = Instant::now();
        let decision = self.buckets.take(&user("alice"), 1).await;
        let took = started.elapsed();
        assert!(took < 2 * DEADLINE, "a call took {took:?}");
        (decision.is_admitted(), decision.remaining())
    }

    async fn is_counted(&self) -> bool {
        self.take().await.1.is_some()
    }

    async fn counts_again(&self) {
        let started = Instant::now();
        until("Redis decides", async || self.is_counted().await).await;
        let took = started.elapsed();
        assert!(
            took < Duration::from_secs(2),
            "counting went on after {took:?}"
        );
    }

    /// The breaker is open: decisions are there at once, without a future.
    async fn decides_at_once(&self) {
        until("calls are no longer made", async || {
            let reply = self.buckets.take(&user("alice"), 1);
            let at_once = matches!(reply, Reply::Ready(_));
            let _ = reply.await;
            at_once
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_leaves_decisions_to_the_failure_mode() {
    let mut case = Case::new(FailureMode::Closed).await;
    case.server.kill();
    assert_eq!(case.take().await, (false, None));
    case.decides_at_once().await;
    assert_eq!(case.take().await, (false, None));
    case.server.restart().await;
    case.counts_again().await;
    assert!(case.failures.of(FailureKind::Disconnected) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_server_leaves_decisions_to_the_failure_mode() {
    let case = Case::new(FailureMode::Open).await;
    case.server.signal("STOP");
    assert_eq!(case.take().await, (true, None));
    case.decides_at_once().await;
    case.server.signal("CONT");
    case.counts_again().await;
    assert!(case.failures.of(FailureKind::Timeout) >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_of_data_admits_at_most_one_more_burst() {
    let mut case = Case::new(FailureMode::Closed).await;
    let (_, left) = case.take().await;
    assert!(left.unwrap() < 999);
    case.server.restart().await;
    case.counts_again().await;
    let (_, left) = case.take().await;
    assert!(left.unwrap() >= 990, "it starts over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_is_flushed_is_sent_again_and_charges_once() {
    let case = Case::new(FailureMode::Closed).await;
    let (_, left) = case.take().await;
    for n in 1..=20 {
        case.server.command(&["SCRIPT", "FLUSH"]).await.unwrap();
        assert_eq!(case.take().await, (true, Some(left.unwrap() - n)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_leaves_decisions_to_the_failure_mode() {
    let case = Case::new(FailureMode::Closed).await;
    case.server
        .command(&["CLIENT", "PAUSE", "3000", "ALL"])
        .await
        .unwrap();
    assert_eq!(case.take().await, (false, None));
    case.decides_at_once().await;
    until("it decides again", async || case.is_counted().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_leaves_decisions_to_the_failure_mode() {
    let server = Server::start_with(&["--lua-time-limit", "100"]).await;
    let case = Case::with(server, |store| store.on_failure(FailureMode::Closed)).await;
    let mut connection = case.server.connection().await.unwrap();
    let endless = tokio::spawn(async move {
        let mut command = redis::cmd("EVAL");
        command.arg("while true do end").arg(0);
        let _ = command.query_async::<()>(&mut connection).await;
    });
    until("the server says that it is busy", async || {
        case.take().await;
        case.failures.of(FailureKind::Busy) + case.failures.of(FailureKind::Timeout) > 0
    })
    .await;
    assert_eq!(case.take().await, (false, None));
    until("the script is killed", async || {
        case.server.command(&["SCRIPT", "KILL"]).await.is_ok()
    })
    .await;
    case.counts_again().await;
    endless.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_leaves_decisions_to_the_failure_mode() {
    let case = Case::new(FailureMode::Closed).await;
    case.server
        .command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await
        .unwrap();
    case.server
        .command(&["CONFIG", "SET", "maxmemory", "1"])
        .await
        .unwrap();
    assert_eq!(case.take().await, (false, None));
    assert_eq!(case.failures.of(FailureKind::OutOfMemory), 1);
    case.server
        .command(&["CONFIG", "SET", "maxmemory", "0"])
        .await
        .unwrap();
    assert!(
        case.is_counted().await,
        "the connection was well all the time"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_primary_is_replaced() {
    let case = Case::new(FailureMode::Closed).await;
    // Of nobody who is there, and still read-only.
    let nobody = free_port().to_string();
    case.server
        .command(&["REPLICAOF", "127.0.0.1", &nobody])
        .await
        .unwrap();
    assert_eq!(case.take().await, (false, None));
    let kinds = [FailureKind::ReadOnly, FailureKind::Busy];
    assert!(kinds.iter().any(|kind| case.failures.of(*kind) > 0));
    case.server
        .command(&["REPLICAOF", "NO", "ONE"])
        .await
        .unwrap();
    case.counts_again().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_data_under_a_key_is_not_overwritten() {
    let case = Case::new(FailureMode::Closed).await;
    let [key] = &*case.server.keys().await else {
        panic!("one key for one caller");
    };
    for write in [
        &["SET", key, "abc"][..],
        &["SET", key, "b 1 1"],
        &["SET", key, ""],
        &["SET", key, "b 1 1 1;"],
        &["SET", key, "b 1 1 1;precious"],
        &["SET", key, "s 1 1 1"],
        &["DEL", key],
    ] {
        case.server.command(write).await.unwrap();
        if write[0] == "DEL" {
            case.server.command(&["SADD", key, "member"]).await.unwrap();
        }
        let before = case.server.command(&["DUMP", key]).await.unwrap();
        assert_eq!(case.take().await, (false, None), "{write:?}");
        let after = case.server.command(&["DUMP", key]).await.unwrap();
        assert_eq!(before, after, "what was stored is lost");
    }
    assert_eq!(case.failures.of(FailureKind::WrongData), 7);
    case.server.command(&["DEL", key]).await.unwrap();
    assert!(case.is_counted().await);
}

/// Parts are of as many quotas as the limiter has, and of their kinds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_data_among_several_parts_is_not_overwritten() {
    let server = Server::start().await;
    let policy = Policy::new("a", Quota::per_hour(9)).and("b", Quota::per_hour(9).sliding());
    let store = server.store().on_failure(FailureMode::Closed);
    let buckets = store.open(&[policy]);
    let alice = user("alice");
    assert!(buckets.take(&alice, 1).await.is_admitted());
    let [key] = &*server.keys().await else {
        panic!("one key for one caller");
    };
    let mut connection = server.connection().await.unwrap();
    for value in [
        "b 1 1 1",
        "b 1 1 1;",
        "b 1 1 1;s 1 1 1;",
        "b 1 1 1;;s 1 1 1",
        ";b 1 1 1;s 1 1 1",
        "b 1 1 1;s 1 1 1;precious",
        "b 1 1 1;precious",
        "s 1 1 1;b 1 1 1",
    ] {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(value);
        let _: () = set.query_async(&mut connection).await.unwrap();
        assert!(buckets.take(&alice, 1).await.is_unavailable(), "{value:?}");
        let mut get = redis::cmd("GET");
        let after: String = get.arg(key).query_async(&mut connection).await.unwrap();
        assert_eq!(after, value);
    }
    let mut set = redis::cmd("SET");
    set.arg(key).arg("b 1 1 1;s 1 1 1");
    let _: () = set.query_async(&mut connection).await.unwrap();
    assert!(buckets.take(&alice, 1).await.is_admitted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_loses_its_permissions_is_noticed() {
    let case = Case::new(FailureMode::Closed).await;
    case.server
        .command(&["ACL", "SETUSER", "default", "-evalsha", "-eval"])
        .await
        .unwrap();
    assert_eq!(case.take().await, (false, None));
    assert_eq!(case.failures.of(FailureKind::Denied), 1);
    case.server
        .command(&["ACL", "SETUSER", "default", "+@all"])
        .await
        .unwrap();
    assert!(case.is_counted().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_reported_at_start() {
    let server = Server::start_with(&["--requirepass", "right"]).await;
    for (password, kind) in [("", FailureKind::Denied), (":wrong@", FailureKind::Denied)] {
        let url = format!("redis://{password}127.0.0.1:{}", server.port);
        let store = store(&url).on_failure(FailureMode::Closed);
        let error = store.ping().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{password:?}: {error:?}");
        assert!(!format!("{error:?} {error}").contains("wrong@"));
        let buckets = store.open(&[Quota::per_hour(1).into()]);
        assert!(buckets.take(&user("alice"), 1).await.is_unavailable());
    }
    let url = format!("redis://:right@127.0.0.1:{}", server.port);
    store(&url).ping().await.unwrap();
}

/// As one whose processor time is used up: its timers fire late, and together with what arrived in time.
#[tokio::test]
async fn a_process_that_was_paused_uses_the_answers_that_arrived() {
    let server = Server::start().await;
    let store = server.store().deadline(Duration::from_millis(100));
    let buckets = store.open(&[Quota::per_hour(1_000).into()]);
    let alice = user("alice");
    until("there is a connection", async || {
        buckets.peek(&alice, 0).await.remaining().is_some()
    })
    .await;
    for _ in 0..20 {
        let mut asked = tokio_test::task::spawn(buckets.take(&alice, 1).into_future());
        assert!(asked.poll().is_pending());
        // The command is written.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        std::thread::sleep(Duration::from_millis(300));
        assert!(asked.await.remaining().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_have_a_maximum() {
    let case = Case::with(Server::start().await, |store| store.max_in_flight(4)).await;
    case.server.signal("STOP");
    // Of different users, as those of one share calls.
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let asked = case.buckets.take(&user(&n.to_string()), 1);
            tokio::spawn(asked.into_future())
        })
        .collect();
    for call in calls {
        assert!(
            call.await.unwrap().is_admitted(),
            "the failure mode is to admit"
        );
    }
    // A call that had room, and those that waited for it until the end of their time.
    let [timeouts, overloaded] =
        [FailureKind::Timeout, FailureKind::Overloaded].map(|kind| case.failures.of(kind));
    assert!(timeouts >= 4 && overloaded > 0, "{timeouts}, {overloaded}");
    assert_eq!(timeouts + overloaded, 64);
    case.server.signal("CONT");
    case.counts_again().await;
}

/// The share is charged for what Redis admits, so going away is no fresh burst.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_share_survives_flapping() {
    let mode = FailureMode::LocalShare { replicas: 2 };
    let mut server = Server::start().await;
    let failures = Failures::default();
    let store = server
        .store()
        .deadline(DEADLINE)
        .on_failure(mode)
        .observe(failures.clone());
    let buckets = store.open(&[Policy::new("calls", Quota::per_hour(20))]);
    let alice = user("alice");
    let mut admitted = 0;
    for _ in 0..6 {
        admitted += u32::from(buckets.take(&alice, 1).await.is_admitted());
    }
    assert_eq!(admitted, 6);
    for flap in 0..3 {
        server.kill();
        until("the share decides", async || {
            buckets.peek(&alice, 0).await.remaining() <= Some(10)
        })
        .await;
        let mut more = 0;
        for _ in 0..20 {
            more += u32::from(buckets.take(&alice, 1).await.is_admitted());
        }
        // Six of the ten were spent over Redis.
        assert_eq!(more, if flap == 0 { 4 } else { 0 }, "flap {flap}");
        server.restart().await;
        until("Redis decides", async || {
            buckets.peek(&alice, 0).await.remaining() == Some(20)
        })
        .await;
    }
}

/// Only another connection helps, and nothing says so but the silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_drops_packets_costs_no_more_than_the_deadline() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    let store = store(&proxy.url()).deadline(DEADLINE);
    let leases = store.open_leases("jobs");
    let buckets = store.open(&[Policy::new("calls", Quota::per_hour(1000))]);
    let alice = user("alice");
    until("Redis decides", async || {
        buckets.take(&alice, 1).await.remaining().is_some()
    })
    .await;
    proxy.swallow();
    assert_eq!(buckets.take(&alice, 1).await.remaining(), None);
    until("Redis decides", async || {
        buckets.take(&alice, 1).await.remaining().is_some()
    })
    .await;
    let limits = LeaseLimits::new(Some(1), None);
    assert!(matches!(
        leases.acquire(limits).await,
        AcquireOutcome::Granted(_)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_within_a_reply_is_a_lost_connection() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    let store = store(&proxy.url())
        .deadline(DEADLINE)
        .on_failure(FailureMode::Closed);
    let buckets = store.open(&[Policy::new("calls", Quota::per_hour(1000))]);
    let leases = store.open_leases("jobs");
    let alice = user("alice");
    let left = async || buckets.peek(&alice, 0).await.remaining();
    until("Redis decides", async || left().await == Some(1000)).await;

    tokio::time::sleep(HELD).await;
    proxy.reset_next();
    let decision = buckets.take(&alice, 1).await;
    assert_eq!(proxy.resets(), 1);
    // The call was made again on the next connection, and charged twice.
    assert_eq!(decision.remaining(), Some(998));

    // What was given back, though the answer is lost, is not given back twice.
    proxy.reset_next();
    buckets.refund(&alice, 1).await;
    assert_eq!(proxy.resets(), 2);
    until("Redis decides", async || left().await.is_some()).await;
    assert_eq!(left().await, Some(999));

    let limits = LeaseLimits::new(Some(1), None);
    tokio::time::sleep(HELD).await;
    proxy.reset_next();
    let leased = leases.acquire(limits).await;
    assert_eq!(proxy.resets(), 3);
    // The second call found the slot that the first one took.
    assert!(matches!(leased, AcquireOutcome::Granted(_)), "{leased:?}");
    drop(leased);
    until("no slot is taken", async || {
        leases
            .usage(None)
            .await
            .is_some_and(|usage| usage.total == 0)
    })
    .await;
}

/// As with a name or a balancer that follows the primary: its open connections stay with the old
/// one, which goes on answering that it is read-only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_the_replica_restores_counting() {
    let one = Server::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let two = Server::start().await;
    let proxy = Proxy::start(one.port).await;
    let store = store(&proxy.url())
        .deadline(DEADLINE)
        .on_failure(FailureMode::Closed);
    let buckets = store.open(&[Policy::new("calls", Quota::per_day(1000))]);
    let alice = user("alice");
    let port = one.port.to_string();
    two.command(&["REPLICAOF", "127.0.0.1", &port])
        .await
        .unwrap();
    until("Redis decides", async || {
        buckets.take(&alice, 1).await.remaining().is_some()
    })
    .await;
    until("the replica has it", async || !two.keys().await.is_empty()).await;

    let port = two.port.to_string();
    two.command(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    one.command(&["REPLICAOF", "127.0.0.1", &port])
        .await
        .unwrap();
    proxy.point_to(two.port);
    assert!(buckets.take(&alice, 1).await.is_unavailable());
    until("the new primary decides", async || {
        buckets.take(&alice, 1).await.is_admitted()
    })
    .await;
    let left = buckets.peek(&alice, 0).await.remaining();
    assert!(
        left.is_some_and(|left| left <= 998),
        "it goes on where it was: {left:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_server_is_reported_as_too_old() {
    let url = stand_in(|command| {
        Some(match command {
            "INFO" => "$22\r\nredis_version:4.0.14\r\n\r\n",
            _ => "-ERR unknown command\r\n",
        })
    })
    .await;
    let failures = Failures::default();
    let store = store(&url)
        .observe(failures.clone())
        .on_failure(FailureMode::Closed);
    assert_eq!(store.ping().await.unwrap_err().kind(), FailureKind::TooOld);
    let buckets = store.open(&[Quota::per_hour(1).into()]);
    let alice = user("alice");
    assert!(buckets.take(&alice, 1).await.is_unavailable());
    assert!(failures.of(FailureKind::TooOld) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_of_a_silent_server_ends() {
    let url = stand_in(|command| match command {
        "INFO" => Some("$21\r\nredis_version:7.0.0\r\n\r\n"),
        "EVALSHA" => None,
        _ => Some("+OK\r\n"),
    })
    .await;
    let ping = tokio::time::timeout(Duration::from_secs(30), async {
        store(&url).ping().await.unwrap_err().kind()
    });
    assert_eq!(ping.await.expect("an end"), FailureKind::Timeout);
}

/// Something that answers commands, or does not, as the test has it. Returns where it is.
pub(crate) async fn stand_in<A: AsRef<str> + Send + 'static>(
    answer: impl Fn(&str) -> Option<A> + Clone + Send + Sync + 'static,
) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(answer_commands(connection, answer.clone()));
        }
    });
    url
}

async fn answer_commands<A: AsRef<str> + Send>(
    connection: TcpStream,
    answer: impl Fn(&str) -> Option<A>,
) {
    let (read, mut write) = connection.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // A command is an array of words, each with its length on a line before it.
        let Some(words) = line.strip_prefix('*') else {
            continue;
        };
        let mut command = Vec::new();
        for _ in 0..words.parse().unwrap_or(0) {
            let _length = lines.next_line().await;
            command.extend(lines.next_line().await.ok().flatten());
        }
        let answer = answer(command.first().map_or("", String::as_str));
        if let Some(answer) = answer
            && write.write_all(answer.as_ref().as_bytes()).await.is_err()
        {
            return;
        }
    }
}
