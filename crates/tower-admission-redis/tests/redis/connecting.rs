//! Ways to connect: protocols, sockets, names, users with few permissions.

use std::collections::BTreeSet;
use std::path::Path;
use std::slice;
use std::time::Duration;

use redis::{IntoConnectionInfo, ProtocolVersion};
use tower_admission::store::FailureKind;
use tower_admission::store::{
    AcquireOutcome, FailureMode, LeaseLimits, LeaseStatus, LeaseStore, RateStore,
};
use tower_admission::{Key, Leases, Limits, Policy, Quota, RateLimiter, SharedLimiters};
use tower_admission_redis::RedisStore;

use super::cluster::Cluster;
use super::limits::acme;
use super::server::{Server, store, until};
use super::user;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_store_over_resp3_passes_the_suites() {
    let server = Server::start().await;
    let store = store(&format!("{}/?protocol=resp3", server.url()));
    store.ping().await.unwrap();
    tower_admission_testkit::rate_store(&store, tokio::time::sleep).await;
    tower_admission_testkit::lease_store(&store, tokio::time::sleep).await;
    overrides(&store).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_has_databases() {
    let folder = std::env::temp_dir().join(format!("tower-admission-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("socket");
    let server = Server::start_with(&["--unixsocket", socket.to_str().unwrap()]).await;
    let databases = [0, 3].map(|n| store(&format!("unix:{}?db={n}", socket.display())));
    for store in &databases {
        rates(store).await;
    }
    // One user of `rates` in each.
    let keyspace = server.word(&["INFO", "keyspace"]).await;
    for database in ["db0:keys=1,", "db3:keys=1,"] {
        assert!(keyspace.contains(database), "{keyspace}");
    }
    drop(server);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_client_is_taken_over_with_its_protocol_and_database() {
    let server = Server::start().await;
    let info = server.url().into_connection_info().unwrap();
    let settings = info.redis_settings().clone();
    let settings = settings.set_protocol(ProtocolVersion::RESP3).set_db(3);
    let client = redis::Client::open(info.set_redis_settings(settings)).unwrap();
    let store = RedisStore::from_client(&client).unwrap();
    store.ping().await.unwrap();
    rates(&store).await;
    let keyspace = server.word(&["INFO", "keyspace"]).await;
    assert!(
        keyspace.contains("db3:keys=") && !keyspace.contains("db0"),
        "{keyspace}"
    );
    let clients = server.word(&["CLIENT", "LIST"]).await;
    let ours = clients
        .lines()
        .find(|line| line.contains(" name=tower-admission "));
    let ours = ours.expect("a connection of the store");
    assert!(ours.contains(" db=3 "), "{ours}");
    // Redis 6.2 does not list the protocol.
    assert!(
        ours.contains(" resp=3") || !ours.contains(" resp="),
        "{ours}"
    );
}

#[tokio::test]
async fn a_connection_has_a_client_name() {
    let server = Server::start().await;
    let stores = [
        (server.store(), "tower-admission"),
        (server.store().client_name("my gateway"), "my_gateway"),
        (store(&format!("{}/?client_name=api", server.url())), "api"),
    ];
    for (store, name) in &stores {
        rates(store).await;
        let clients = server.word(&["CLIENT", "LIST"]).await;
        assert!(clients.contains(&format!(" name={name} ")), "{clients}");
        server.clear().await;
    }
}

/// Admits one request of a user, and no second one.
async fn rates(store: &RedisStore) {
    let buckets = store.open(&[Policy::new("calls", Quota::per_hour(1))]);
    let alice = user("alice");
    let first = buckets.take(&alice, 1).await;
    assert!(first.is_admitted() && !first.is_unavailable(), "{first:?}");
    let second = buckets.take(&alice, 1).await;
    assert!(
        !second.is_admitted() && !second.is_unavailable(),
        "{second:?}"
    );
}

/// Sets, uses, shows and deletes the limit of a key.
async fn overrides(store: &RedisStore) {
    let limits = Limits::in_store(store);
    let policy = Policy::new("requests", Quota::per_hour(1));
    let limiter = RateLimiter::with_limits(policy, store, &limits);
    let key = "org:acme".parse().unwrap();
    limits.refresh().await.unwrap();
    let set = limits.set(&key, "requests=3/h".parse().unwrap()).await;
    set.unwrap();
    for n in 0..4 {
        assert_eq!(limiter.decide(&acme(), 1).await.is_admitted(), n < 3, "{n}");
    }
    until("the limiter is written down", async || {
        let seen = SharedLimiters::read(&limits, store).await.unwrap();
        let usage = seen.usage(&key).await.unwrap();
        usage.iter().any(|usage| usage.used == 3)
    })
    .await;
    limits.clear_caches().await.unwrap();
    assert!(limits.delete(&key).await.unwrap().is_some());
}

/// Acquires slots without names and leases with them, keeps them alive and releases them.
async fn slots(store: &RedisStore, servers: &[Server]) {
    let store = store.clone().lease_ttl(Duration::from_secs(1));
    let slots = store.open_leases("jobs");
    let limits = || LeaseLimits::new(Some(1), Some((Key::id("user", "alice"), 1)));
    let held = slots.acquire(limits()).await;
    assert!(matches!(held, AcquireOutcome::Granted(_)), "{held:?}");
    let leases = Leases::new()
        .name("work")
        .per_tenant(1)
        .store(store.clone());
    let [tenant] = acme();
    leases.acquire(&tenant, "1").await.unwrap().detach();
    assert_eq!(leases.heartbeat(&tenant, "1").await, LeaseStatus::Live);
    assert_eq!(leases.release(&tenant, "1").await, LeaseStatus::Live);
    // No other call is in progress.
    let before = scripts_run(servers).await;
    until("a heartbeat", async || scripts_run(servers).await > before).await;
    let full = slots.acquire(limits()).await;
    assert!(
        !matches!(
            full,
            AcquireOutcome::Granted(_) | AcquireOutcome::Unavailable(_)
        ),
        "{full:?}"
    );
    drop(held);
    store.flush().await.unwrap();
    assert_eq!(slots.usage(None).await.unwrap().total, 0);
}

async fn scripts_run(servers: &[Server]) -> u64 {
    let mut run = 0;
    for server in servers {
        let stats = server.word(&["INFO", "commandstats"]).await;
        let calls = stats.split("cmdstat_evalsha:calls=").nth(1);
        run += calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap());
    }
    run
}

/// The lines of the recipe in the documentation, as the words of commands.
fn recipe() -> Vec<Vec<&'static str>> {
    let lines = include_str!("../../../../docs/guide/replicas.md").lines();
    let lines = lines.filter(|line| line.starts_with("ACL SETUSER gateway "));
    let lines: Vec<_> = lines.map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines.len(), 6);
    lines
}

async fn permit(server: &Server, lines: &[Vec<&str>]) {
    for line in lines {
        server.command(line).await.unwrap();
    }
}

/// As the user of the recipe.
fn as_user(url: &str) -> RedisStore {
    let url = url.replace("://", "://gateway:PASSWORD@");
    store(&url)
        .prefix("gateway")
        .on_failure(FailureMode::Closed)
}

/// What was denied to a user, also within scripts.
async fn denied(server: &Server) -> String {
    format!("{:?}", server.command(&["ACL", "LOG"]).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_documented_permissions_can_use_every_feature() {
    let server = Server::start().await;
    let recipe = recipe();
    permit(&server, &recipe[..3]).await;
    for protocol in ["", "/?protocol=resp3"] {
        let store = as_user(&format!("{}{protocol}", server.url()));
        store.ping().await.unwrap();
        rates(&store).await;
        server.clear().await;
    }
    let store = as_user(&server.url());
    permit(&server, &recipe[3..4]).await;
    slots(&store, slice::from_ref(&server)).await;
    permit(&server, &recipe[4..5]).await;
    overrides(&store).await;
    let denied = denied(&server).await;
    assert_eq!(denied, "array([])");
    // Another database is one permission more.
    let elsewhere = as_user(&format!("{}/3", server.url()));
    let error = elsewhere.ping().await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied, "{error}");
    let select = ["ACL", "SETUSER", "gateway", "+select"];
    server.command(&select).await.unwrap();
    elsewhere.ping().await.unwrap();
    // A name is not worth an outage.
    let unnamed = ["ACL", "SETUSER", "gateway", "-client"];
    server.command(&unnamed).await.unwrap();
    server.clear().await;
    rates(&as_user(&server.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_documented_permissions_can_use_a_cluster() {
    let cluster = Cluster::start().await;
    for node in &cluster.nodes {
        permit(node, &recipe()).await;
    }
    let store = as_user(&cluster.url());
    store.ping().await.unwrap();
    let buckets = store.open(&[Policy::new("calls", Quota::per_hour(9))]);
    for n in 0..20 {
        let taken = buckets.take(&user(&n.to_string()), 1).await;
        assert!(taken.is_admitted(), "{n}");
    }
    slots(&store, &cluster.nodes).await;
    overrides(&store).await;
    // A key that is on its way: the first server sends calls on to the second with ASK.
    let from = &cluster.nodes[0];
    let keys = from.keys().await;
    let key = keys
        .iter()
        .find(|key| key.contains(":rate:calls:"))
        .unwrap();
    let slot = from.word(&["CLUSTER", "KEYSLOT", key]).await;
    let (from_id, to_id) = (
        from.word(&["CLUSTER", "MYID"]).await,
        cluster.nodes[1].word(&["CLUSTER", "MYID"]).await,
    );
    let importing = ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id];
    cluster.nodes[1].word(&importing).await;
    from.word(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])
        .await;
    from.command(&["DEL", key]).await.unwrap();
    for n in 0..20 {
        let taken = buckets.take(&user(&n.to_string()), 1).await;
        assert!(taken.is_admitted(), "{n}");
    }
    assert!(cluster.nodes[1].keys().await.contains(key));
    for node in &cluster.nodes {
        assert_eq!(denied(node).await, "array([])");
    }
}

/// Nothing more than the scripts and the connections use.
#[test]
fn the_documented_permissions_are_exactly_the_used_commands() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scripts");
    let mut used: BTreeSet<String> = [
        "asking",
        "client|setname",
        "cluster|slots",
        "eval",
        "evalsha",
    ]
    .map(str::to_owned)
    .into();
    for file in std::fs::read_dir(scripts).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "lua") {
            let script = std::fs::read_to_string(path).unwrap();
            for call in script.split("call('").skip(1) {
                used.insert(call.split('\'').next().unwrap().to_lowercase());
            }
        }
    }
    let recipe = recipe();
    let permitted = recipe.iter().flatten();
    let permitted = permitted.filter_map(|rule| rule.strip_prefix('+'));
    let permitted: BTreeSet<String> = permitted.map(str::to_owned).collect();
    assert_eq!(permitted, used);
}
