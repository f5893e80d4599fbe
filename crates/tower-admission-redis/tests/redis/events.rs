//! Log lines and observer calls while Redis is unavailable.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tower_admission::store::FailureKind;
use tower_admission::store::{
    AcquireOutcome, FailureMode, LeaseLimits, LeaseName, LeaseStore, NamedAcquireOutcome,
    NamedLease, NamedLimits, RateStore,
};
use tower_admission::{Key, Quota};
use tower_admission_redis::RedisStore;
use tower_admission_redis::StoreObserver;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::faults::stand_in;
use crate::server::{Server, free_port, store, until};
use crate::user;

/// Long next to what a busy machine holds a task up.
const DEADLINE: Duration = Duration::from_secs(2);

const MODES: [FailureMode; 3] = [
    FailureMode::Open,
    FailureMode::Closed,
    FailureMode::LocalShare { replicas: 2 },
];

/// The lines of the log: a level, and fields in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

impl<S: tracing::Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        if event.metadata().target().starts_with("tower_admission") {
            self.0.lock().unwrap().push(fields.0);
        }
    }
}

impl Log {
    /// Of this thread, so the runtime must have no other.
    pub(crate) fn collect(&self) -> tracing::subscriber::DefaultGuard {
        // Of one dispatcher alone, tracing takes no interest in a line that a thread without it comes to first.
        static SECOND: OnceLock<tracing::Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| tracing::Dispatch::new(tracing_subscriber::registry()));
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// What observers see.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Counts>>);

#[derive(Default)]
pub(crate) struct Counts {
    failed: Vec<FailureKind>,
    reachable: Vec<bool>,
    decided: Vec<FailureMode>,
}

impl StoreObserver for Seen {
    fn failed(&self, kind: FailureKind) {
        self.0.lock().unwrap().failed.push(kind);
    }

    fn reachable(&self, reachable: bool) {
        self.0.lock().unwrap().reachable.push(reachable);
    }

    fn decided_without(&self, mode: FailureMode) {
        self.0.lock().unwrap().decided.push(mode);
    }
}

impl Seen {
    pub(crate) fn reachable(&self) -> Vec<bool> {
        self.0.lock().unwrap().reachable.clone()
    }

    pub(crate) fn failed(&self) -> Vec<FailureKind> {
        self.0.lock().unwrap().failed.clone()
    }

    pub(crate) fn decided(&self, mode: FailureMode) -> usize {
        let seen = self.0.lock().unwrap();
        seen.decided.iter().filter(|seen| **seen == mode).count()
    }
}

/// Has a request decided by a store that cannot. Returns the first line of the log.
async fn line_of(store: RedisStore) -> String {
    let log = Log::default();
    let _collecting = log.collect();
    let buckets = store
        .on_failure(FailureMode::Closed)
        .open(&[Quota::per_hour(100).into()]);
    let decision = buckets.take(&user("alice"), 1).await;
    assert!(decision.is_unavailable());
    let lines = log.take();
    let text = lines.join("\n");
    for secret in ["hunter2", "alice", "redis://"] {
        assert!(!text.contains(secret), "{text}");
    }
    let [line, ..] = &lines[..] else {
        panic!("no line");
    };
    line.clone()
}

fn line(kind: &str, cause: &str) -> String {
    format!("{}\" since_last_line=0", start(kind, cause))
}

/// What a line begins with whose cause does.
fn start(kind: &str, cause: &str) -> String {
    let message = "calls to Redis fail; the failure mode decides";
    format!("WARN message={message} kind={kind:?} cause=\"{cause}")
}

/// Each fault, and what the log says.
#[tokio::test]
async fn an_absent_server_is_reported() {
    let url = format!("redis://:hunter2@127.0.0.1:{}", free_port());
    let refused = line_of(store(&url)).await;
    let words = "Connection refused (os error ";
    assert!(
        refused.starts_with(&start("disconnected", words)),
        "{refused}"
    );
    // A name that no server has to be asked about: a label of it is too long.
    let host = "x".repeat(64);
    let named = line_of(store(&format!("redis://:hunter2@{host}"))).await;
    assert!(
        named.contains(r#"kind="disconnected" cause="failed to lookup address information: "#),
        "{named}"
    );
    let path = std::env::temp_dir().join("no-such-socket-of-redis");
    let socket = line_of(store(&format!("unix:{}", path.display()))).await;
    assert_eq!(
        socket,
        line("disconnected", "No such file or directory (os error 2)")
    );
}

#[tokio::test]
async fn a_paused_server_is_reported() {
    let server = Server::start().await;
    server.signal("STOP");
    let silent = line_of(server.store()).await;
    // The client has the same timeout, and words of its own.
    let causes = ["no connection within 500ms", "timed out"];
    let lines = causes.map(|cause| line("timeout", cause));
    assert!(lines.contains(&silent), "{silent}");
    let error = server.store().ping().await.unwrap_err().to_string();
    let errors = causes.map(|cause| format!("the store failed: timeout: {cause}"));
    assert!(errors.contains(&error), "{error}");
}

#[tokio::test]
async fn a_wrong_database_is_reported() {
    let server = Server::start().await;
    let url = format!("{}/99", server.url());
    assert_eq!(
        line_of(store(&url)).await,
        line("configuration", "ERR DB index is out of range")
    );
    let error = store(&url).ping().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the store failed: configuration: 127.0.0.1:{}: ERR DB index is out of range",
            server.port
        )
    );
}

#[tokio::test]
async fn a_missing_or_wrong_password_is_reported() {
    let server = Server::start_with(&["--requirepass", "right"]).await;
    let denied = line_of(server.store()).await;
    assert!(
        denied.contains("kind=\"denied\" cause=\"NOAUTH "),
        "{denied}"
    );
    let url = format!("redis://:hunter2@127.0.0.1:{}", server.port);
    let denied = line_of(store(&url)).await;
    assert_eq!(denied, line("denied", "Password authentication failed"));
    let denied = line_of(store(&format!("{url}?protocol=resp3"))).await;
    assert_eq!(
        denied,
        line(
            "denied",
            "WRONGPASS invalid username-password pair or user is disabled."
        )
    );
}

#[tokio::test]
async fn a_user_without_permissions_is_reported() {
    let server = Server::start().await;
    let rights = |rights: &'static [&'static str]| {
        let server = &server;
        async move {
            let user = ["ACL", "SETUSER", "gateway", "reset", "on", ">hunter2"];
            let words = [&user[..], rights].concat();
            server.command(&words).await.unwrap();
            let url = format!("redis://gateway:hunter2@127.0.0.1:{}", server.port);
            line_of(store(&url)).await
        }
    };
    // Versions have words of their own.
    let denied = rights(&["~*", "+@all", "-eval", "-evalsha"]).await;
    assert!(denied.starts_with(&start("denied", "NOPERM ")), "{denied}");
    assert!(denied.contains("'evalsha'"), "{denied}");
    let denied = rights(&["~other:*", "+@all"]).await;
    assert!(denied.starts_with(&start("denied", "NOPERM ")), "{denied}");
    // Within the script.
    let denied = rights(&["~*", "+@all", "-set"]).await;
    assert!(denied.starts_with(&start("denied", "")), "{denied}");
    assert!(denied.contains("script"), "{denied}");
}

#[tokio::test]
async fn a_server_that_cannot_write_is_reported() {
    let server = Server::start().await;
    let set = async |words: &[&str]| {
        server.command(words).await.unwrap();
    };
    set(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = line_of(server.store()).await;
    let words = "OOM command not allowed when used memory > 'maxmemory'.";
    assert!(full.starts_with(&start("out_of_memory", words)), "{full}");
    set(&["CONFIG", "SET", "maxmemory", "0"]).await;

    assert!(take(&server.store()).await);
    let [key] = &*server.keys().await else {
        panic!("one key for one caller");
    };
    set(&["SET", key, "secret"]).await;
    let junk = line_of(server.store()).await;
    assert!(junk.starts_with(&start("wrong_data", "JUNK ")), "{junk}");
    assert!(!junk.contains("secret"), "{junk}");
    set(&["DEL", key]).await;
    set(&["SADD", key, "secret"]).await;
    let wrong = line_of(server.store()).await;
    let words = "WRONGTYPE Operation against a key holding the wrong kind of value";
    assert!(wrong.starts_with(&start("wrong_data", words)), "{wrong}");
    set(&["DEL", key]).await;

    let nobody = free_port().to_string();
    set(&["CONFIG", "SET", "replica-serve-stale-data", "no"]).await;
    set(&["REPLICAOF", "127.0.0.1", &nobody]).await;
    let lost = line_of(server.store()).await;
    let words = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.";
    assert!(lost.starts_with(&start("busy", words)), "{lost}");
    set(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]).await;
    let replica = line_of(server.store()).await;
    let words = "READONLY You can't write against a read only replica.";
    assert!(replica.starts_with(&start("read_only", words)), "{replica}");
}

#[tokio::test]
async fn a_cluster_node_behind_a_single_url_is_reported() {
    let node = Server::start_with(&["--cluster-enabled", "yes"]).await;
    let down = line_of(node.store()).await;
    assert_eq!(down, line("busy", "CLUSTERDOWN Hash slot not served"));

    let moved = stand_in(|command| {
        Some(match command {
            "INFO" => "$21\r\nredis_version:7.0.0\r\n\r\n",
            _ => "-MOVED 5474 127.0.0.1:7001\r\n",
        })
    });
    let words = "MOVED 5474 127.0.0.1:7001: this server is part of a cluster: use redis+cluster://";
    assert_eq!(
        line_of(store(&moved.await)).await,
        line("configuration", words)
    );

    let sentinel = stand_in(|command| {
        Some(match command {
            "HELLO" => "*2\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n",
            _ => {
                "-ERR unknown command 'EVALSHA', with args beginning with: 'f00d' '1' \
                 'admission:rate:default:user#alice' \r\n"
            }
        })
    });
    let words = "ERR unknown command 'EVALSHA', with args beginning with: …";
    assert_eq!(
        line_of(store(&sentinel.await)).await,
        line("unsupported", words)
    );
}

#[tokio::test]
async fn a_busy_server_is_reported() {
    let loading = stand_in(|command| {
        Some(match command {
            "INFO" => "$21\r\nredis_version:7.0.0\r\n\r\n",
            _ => "-LOADING Redis is loading the dataset in memory\r\n",
        })
    });
    let words = "LOADING Redis is loading the dataset in memory";
    assert_eq!(line_of(store(&loading.await)).await, line("busy", words));

    let server = Server::start_with(&["--lua-time-limit", "50"]).await;
    let store = server.store();
    assert!(take(&store).await);
    let mut connection = server.connection().await.unwrap();
    let endless = tokio::spawn(async move {
        let mut command = redis::cmd("EVAL");
        command.arg("while true do end").arg(0);
        let _ = command.query_async::<()>(&mut connection).await;
    });
    until("the server is busy", async || {
        server.command(&["PING"]).await.is_err()
    })
    .await;
    let log = Log::default();
    let _collecting = log.collect();
    assert!(take(&store).await, "the failure mode is to admit");
    let words = "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN \
                 NOSAVE.";
    assert_eq!(log.take(), [line("busy", words)]);
    until("the script is killed", async || {
        server.command(&["SCRIPT", "KILL"]).await.is_ok()
    })
    .await;
    endless.abort();
}

/// The gauge is there before anything is known, and while nothing can be reached.
#[tokio::test]
async fn an_observer_sees_the_first_attempt_before_it_ends() {
    let seen = Seen::default();
    let absent = store(&format!("redis://127.0.0.1:{}", free_port())).observe(seen.clone());
    assert_eq!(seen.reachable(), [false; 0]);
    let _ = take(&absent).await;
    assert_eq!(seen.reachable(), [false]);

    let server = Server::start().await;
    let seen = Seen::default();
    assert!(take(&server.store().observe(seen.clone())).await);
    assert_eq!(seen.reachable(), [false, true]);
}

/// Rates in three clients with a failure mode each, and slots of both sorts.
#[tokio::test]
async fn the_end_of_an_outage_is_logged() {
    let mut server = Server::start().await;
    let seen = Seen::default();
    let base = server.store().deadline(DEADLINE).observe(seen.clone());
    let stores = MODES.map(|mode| base.clone().on_failure(mode));
    let rates = stores
        .clone()
        .map(|store| store.open(&[Quota::per_hour(1000).into()]));
    let slots = stores.map(|store| store.open_leases("jobs"));
    let limits = || LeaseLimits::new(Some(10), None);
    let alice = user("alice");
    let counts = async || {
        let mut counted = true;
        for buckets in &rates {
            counted &= buckets.take(&alice, 1).await.remaining() > Some(500);
        }
        counted
    };
    until("all stores count", counts).await;

    let log = Log::default();
    let _collecting = log.collect();
    server.kill();
    until("all stores know that Redis is away", async || {
        let mut away = true;
        for slots in &slots {
            let named = NamedLease::new(
                LeaseName::new(Key::id("org", "acme"), Key::id("job", "1")),
                7,
                Duration::from_secs(60),
            );
            let taken = slots.acquire_named(&named, NamedLimits::new(Some(10), None));
            away &= matches!(taken.await, NamedAcquireOutcome::NotAsked(_));
        }
        away
    })
    .await;
    let before = MODES.map(|mode| seen.decided(mode));
    for _ in 0..100 {
        for (buckets, slots) in rates.iter().zip(&slots) {
            let _ = buckets.take(&alice, 1).await;
            let leased = slots.acquire(limits()).await;
            assert!(matches!(leased, AcquireOutcome::Unavailable(_)));
            // Neither decides about a request.
            let _ = buckets.peek(&alice, 0).await;
            buckets.refund(&alice, 0).await;
        }
    }
    let after = MODES.map(|mode| seen.decided(mode));
    assert_eq!(after, before.map(|before| before + 200));

    server.restart().await;
    // A local share would look as if Redis decided.
    until("all stores can reach it", async || {
        seen.reachable().last() == Some(&true)
    })
    .await;
    let (back, fail): (Vec<_>, Vec<_>) = log
        .take()
        .into_iter()
        .partition(|line| line.starts_with("INFO"));
    let [back] = &back[..] else {
        panic!("one line when it is back: {back:?}");
    };
    let field = |name: &str| -> usize {
        let value = back.split_once(&format!(" {name}=")).unwrap().1;
        value.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(back.contains("message=Redis is back"), "{back}");
    assert!(field("away_ms") > 0);
    let modes = ["decided_open", "decided_closed", "decided_local_share"];
    for (name, mode) in modes.into_iter().zip(MODES) {
        // Those that were lost with the connection may have been decided before it was known.
        let decided = seen.decided(mode);
        assert!((200..=decided).contains(&field(name)), "{back}, {decided}");
    }
    let causes = ["Connection refused", "broken pipe", "reset", "closed"];
    for line in &fail {
        let named = causes.iter().any(|cause| line.contains(cause));
        assert!(named, "no cause: {line}");
    }
    assert_eq!(seen.reachable(), [false, true, false, true]);
}

/// New connections are denied; what the breaker rejects is not in the way of the cause.
#[tokio::test]
async fn a_rotated_password_is_reported() {
    let server = Server::start_with(&["--requirepass", "right"]).await;
    let url = format!("redis://:right@127.0.0.1:{}", server.port);
    let store = store(&url);
    assert!(take(&store).await);
    let client = redis::Client::open(url).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let log = Log::default();
    let _collecting = log.collect();
    let mut command = redis::cmd("CONFIG");
    command.arg(&["SET", "requirepass", "hunter2"]);
    command.query_async::<()>(&mut admin).await.unwrap();
    let mut command = redis::cmd("CLIENT");
    command.arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]);
    command.query_async::<()>(&mut admin).await.unwrap();
    let lines = Mutex::new(Vec::new());
    until("the cause is in the log", async || {
        let _ = take(&store).await;
        let mut lines = lines.lock().unwrap();
        lines.extend(log.take());
        let cause = r#"kind="denied" cause="Password authentication failed""#;
        lines.iter().any(|line| line.contains(cause))
    })
    .await;
    let lines = lines.into_inner().unwrap().join("\n");
    assert!(!lines.contains("hunter2") && !lines.contains("right"));
}

/// Whether a request is admitted, by Redis or by the failure mode.
async fn take(store: &RedisStore) -> bool {
    let buckets = store.open(&[Quota::per_hour(100).into()]);
    buckets.take(&user("alice"), 1).await.is_admitted()
}
