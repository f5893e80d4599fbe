//! A cluster of three servers.

use std::time::Duration;

use tower_admission::store::{
    AcquireOutcome, Charge, FailureMode, LeaseLimits, LeaseStore, RateStore,
};
use tower_admission::{
    ClientIp, Key, Limits, Policy, Quota, RateLimitLayer, RateLimiter, RequestHead,
};

use crate::server::{Server, store, until};
use crate::user;

pub(crate) struct Cluster {
    /// Three masters, then their replicas, if they have any.
    pub(crate) nodes: Vec<Server>,
}

pub(crate) const MASTERS: usize = 3;

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..MASTERS {
            nodes.push(start_node().await);
        }
        for (n, node) in nodes.iter().enumerate() {
            let slots = [(0, 5460), (5461, 10922), (10923, 16383)][n];
            // One by one: Redis 6.2 knows no ranges.
            let slots: Vec<_> = (slots.0..=slots.1).map(|slot| slot.to_string()).collect();
            let slots = slots.iter().map(String::as_str);
            let words: Vec<_> = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots).collect();
            node.command(&words).await.unwrap();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()])
                .await
                .unwrap();
        }
        let cluster = Self { nodes };
        cluster.meet().await;
        cluster
    }

    /// With one replica for each master: that of `nodes[n]` is `nodes[MASTERS + n]`.
    pub(crate) async fn start_with_replicas() -> Self {
        let mut cluster = Self::start().await;
        for _ in 0..MASTERS {
            cluster.nodes.push(start_node().await);
        }
        cluster.meet().await;
        let (masters, replicas) = cluster.nodes.split_at(MASTERS);
        for (master, replica) in masters.iter().zip(replicas) {
            let id = master.word(&["CLUSTER", "MYID"]).await;
            replica.word(&["CLUSTER", "REPLICATE", &id]).await;
        }
        until("the replicas follow", async || {
            for replica in replicas {
                let info = replica.word(&["INFO", "replication"]).await;
                if !info.contains("master_link_status:up") {
                    return false;
                }
            }
            // All know of all: a replica takes over only if most masters know it.
            for node in &cluster.nodes {
                let nodes = node.word(&["CLUSTER", "NODES"]).await;
                if nodes.matches(" slave ").count() + nodes.matches(",slave ").count() < MASTERS {
                    return false;
                }
            }
            true
        })
        .await;
        cluster
    }

    async fn meet(&self) {
        let port = self.nodes[0].port.to_string();
        for node in &self.nodes[1..] {
            node.command(&["CLUSTER", "MEET", "127.0.0.1", &port])
                .await
                .unwrap();
        }
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        until("the cluster has come together", async || {
            for node in &self.nodes {
                let info = node.word(&["CLUSTER", "INFO"]).await;
                let state = ["cluster_state:ok", "cluster_slots_assigned:16384", &known];
                if !state.iter().all(|state| info.contains(state)) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// The masters that it began with.
    pub(crate) fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes[..MASTERS]
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        format!("redis+cluster://{}", nodes.join(","))
    }
}

async fn start_node() -> Server {
    let options = "--cluster-enabled yes --cluster-node-timeout 500 \
                   --cluster-require-full-coverage no --repl-diskless-sync-delay 0";
    let options: Vec<_> = options.split_whitespace().collect();
    Server::start_with(&options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_cluster_passes_the_suites() {
    let cluster = Cluster::start().await;
    let store = store(&cluster.url());
    tower_admission_testkit::lease_store(&store, tokio::time::sleep).await;
    tower_admission_testkit::rate_store(&store, tokio::time::sleep).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_masters_count_when_a_master_dies() {
    let mut cluster = Cluster::start().await;
    let store = store(&cluster.url()).deadline(Duration::from_millis(200));
    let buckets = store.open(&[Policy::new("calls", Quota::per_hour(1000))]);
    let keys: Vec<_> = (0..30).map(|n| user(&n.to_string())).collect();
    for key in &keys {
        assert!(buckets.take(key, 1).await.remaining().is_some());
    }
    let mut held = Vec::new();
    for node in &cluster.nodes {
        held.push(node.keys().await.len());
    }
    assert_eq!(held.iter().sum::<usize>(), keys.len());
    assert!(
        held.iter().all(|held| *held > 0),
        "keys in every part: {held:?}"
    );
    cluster.nodes[0].kill();
    for _ in 0..2 {
        let mut counted = 0;
        for key in &keys {
            let decision = buckets.take(key, 1).await;
            assert!(decision.is_admitted());
            counted += usize::from(decision.remaining().is_some());
        }
        // The dead part's keys are decided by the failure mode, which is to admit.
        assert_eq!(counted, keys.len() - held[0]);
    }
}

/// A key that rejects decides the request, whatever the other keys do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_stands_when_the_master_of_another_key_is_unavailable() {
    let mut cluster = Cluster::start().await;
    let store = store(&cluster.url()).deadline(Duration::from_millis(500));
    let policies = [
        Policy::new("token", Quota::per_hour(1000)),
        Policy::new("ip", Quota::per_hour(1)),
    ];
    let buckets = store.open(&policies);
    let address = Charge::new(Key::ip([192, 0, 2, 1].into()), 1);
    let both = |n: u32| [user(&n.to_string())[0].clone(), address.clone()];
    let first = buckets.take(&both(0), 1).await;
    assert!(first.is_admitted());
    let mut with_address = None;
    for (n, node) in cluster.nodes.iter().enumerate() {
        if node.keys().await.iter().any(|key| key.contains(":ip:")) {
            with_address = Some(n);
        }
    }
    let dead = (with_address.expect("a node that has it") + 1) % 3;
    cluster.nodes[dead].kill();
    let mut unknown = 0;
    for n in 1..30 {
        let decision = buckets.take(&both(n), 1).await;
        // The failure mode is to admit.
        assert!(!decision.is_admitted(), "{decision:?}");
        let [of_token, of_address] = decision.usages() else {
            panic!("a usage for each quota: {decision:?}");
        };
        assert!(of_token.fits() && !of_address.fits());
        // Reported as unused while the server is unavailable.
        assert_eq!(of_token.remaining(), 1000);
        let known = buckets.peek(&both(n)[..1], 0).await.remaining().is_some();
        unknown += u32::from(!known);
    }
    assert!(unknown > 0, "some keys are on an unavailable master");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_with_braces_scatters_no_slots() {
    let cluster = Cluster::start().await;
    for prefix in ["}", "{", "{a}", "%"] {
        let leases = store(&cluster.url()).prefix(prefix).open_leases("jobs");
        let keys = ["alice", "bob", "carol"].map(|user| (Key::id("user", user), 2));
        let limits = LeaseLimits::new(Some(5), keys);
        let leased = leases.acquire(limits).await;
        assert!(
            matches!(leased, AcquireOutcome::Granted(_)),
            "{prefix}: {leased:?}"
        );
    }
}

/// Each key's buckets are one value under one key, so a script never meets half of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migrating_slot_loses_no_request() {
    let cluster = Cluster::start().await;
    let policy = Policy::new("a", Quota::per_hour(1000)).and("b", Quota::per_day(5000));
    let buckets = store(&cluster.url()).open(&[policy]);
    let alice = user("alice");
    let left = async || buckets.take(&alice, 1).await.remaining();
    assert_eq!(left().await, Some(999));

    let mut from = 0;
    while cluster.nodes[from].keys().await.is_empty() {
        from += 1;
    }
    let (from, to) = (&cluster.nodes[from], &cluster.nodes[(from + 1) % 3]);
    let key = &from.keys().await[0];
    let slot = from.word(&["CLUSTER", "KEYSLOT", key]).await;
    let from_id = from.word(&["CLUSTER", "MYID"]).await;
    let to_id = to.word(&["CLUSTER", "MYID"]).await;
    let port = to.port.to_string();
    let mut expected = 999;
    let mut goes_on = async || {
        for _ in 0..5 {
            expected -= 1;
            assert_eq!(left().await, Some(expected));
        }
    };
    to.word(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])
        .await;
    from.word(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])
        .await;
    goes_on().await;
    from.word(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"])
        .await;
    goes_on().await;
    for node in [to, from] {
        node.word(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id])
            .await;
    }
    goes_on().await;
    assert!(!to.keys().await.is_empty() && from.keys().await.is_empty());
}

/// The keys of one decision lie in different parts, in each tier.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tier_of_a_cluster_has_its_own_buckets() {
    let mut cluster = Cluster::start().await;
    let store = store(&cluster.url()).deadline(Duration::from_millis(500));
    let limits = Limits::new();
    let by_token = Policy::new("token", Quota::per_hour(3)).tier("pro", "token=10/h");
    let by_address = Policy::new("ip", Quota::per_hour(8)).tier("staff", "unlimited");
    let both = || {
        let layer = RateLimitLayer::by(|_: RequestHead<'_>| None, by_token.clone());
        let layer = layer.and_by(ClientIp::peer(), by_address.clone());
        layer.store(store.clone()).limits(&limits).limiter()
    };
    let limiter = both();
    let [pro, staff] = ["pro", "staff"].map(|tier| limiter.tier(tier).unwrap());
    let keys = |n: u32| {
        let address = [192, 0, 2, n as u8];
        [Key::id("user", &n.to_string()), Key::ip(address.into())]
    };
    let burst = async |limiter: &RateLimiter, n| {
        let mut admitted = 0;
        while limiter.decide(&keys(n), 1).await.is_admitted() {
            admitted += 1;
        }
        admitted
    };
    for n in 0..5 {
        assert_eq!(burst(&limiter, n).await, 3);
        // The address has no quota of its own in that tier: 5 of the 8 are left.
        assert_eq!(burst(&pro, n).await, 5);
        // Nothing was charged of what the address rejected.
        assert_eq!(pro.peek(&keys(n)[0]).await.remaining(), Some(5));
        assert_eq!(
            burst(&staff, n).await,
            0,
            "as the token's quota is the default"
        );
        limiter.refund_all(&keys(n), 2).await;
        assert_eq!(staff.peek_all(&keys(n), 0).await.remaining(), Some(2));
        assert_eq!(pro.decide(&keys(n), 0).await.usages().len(), 2);
        assert_eq!(staff.decide(&keys(n), 0).await.usages().len(), 1);
    }
    // Whatever becomes of the part of a key that is not limited.
    let unlimited = "token=unlimited".parse().unwrap();
    limits
        .set(&"user:9".parse().unwrap(), unlimited)
        .await
        .unwrap();
    assert!(limiter.decide(&keys(9), 1).await.is_admitted());
    let mut with_address = Vec::new();
    for node in &cluster.nodes {
        with_address.push(
            node.keys()
                .await
                .iter()
                .any(|key| key.ends_with(":192.0.2.9")),
        );
    }
    for (n, is_there) in with_address.into_iter().enumerate() {
        if !is_there {
            cluster.nodes[n].kill();
        }
    }
    let decision = limiter.decide(&keys(9), 1).await;
    assert_eq!(decision.remaining(), Some(6), "{decision:?}");
}

/// A part that is down takes only its own keys with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_refunded_when_the_master_of_a_token_is_unavailable() {
    let mut cluster = Cluster::start().await;
    let store = store(&cluster.url())
        .deadline(Duration::from_millis(500))
        .on_failure(FailureMode::Closed);
    let policies = [
        Policy::new("token", Quota::per_hour(1000)),
        Policy::new("ip", Quota::per_hour(5)),
    ];
    let buckets = store.open(&policies);
    let address = Charge::new(Key::ip([192, 0, 2, 1].into()), 1);
    let both = |n: u32| [user(&n.to_string())[0].clone(), address.clone()];
    let left = async || {
        buckets
            .peek(std::slice::from_ref(&address), 0)
            .await
            .remaining()
    };
    assert!(buckets.take(&both(0), 1).await.is_admitted());
    let mut with_address = None;
    for (n, node) in cluster.nodes.iter().enumerate() {
        if node.keys().await.iter().any(|key| key.contains(":ip:")) {
            with_address = Some(n);
        }
    }
    let dead = (with_address.expect("a node that has it") + 1) % 3;
    cluster.nodes[dead].kill();
    let mut unavailable = Vec::new();
    for n in 1..60 {
        if unavailable.len() < 8 && buckets.peek(&both(n)[..1], 0).await.is_unavailable() {
            unavailable.push(n);
            assert!(buckets.take(&both(n), 1).await.is_unavailable());
        }
    }
    assert_eq!(unavailable.len(), 8);
    until("the address is refunded", async || left().await == Some(4)).await;
    // A refund reaches the keys that it can.
    let broken = both(unavailable[0]);
    let live = [address.clone()];
    assert!(buckets.take(&live, 2).await.is_admitted());
    buckets.refund(&broken, 2).await;
    assert_eq!(left().await, Some(4));
}

/// The answer to a refund reports the refunded state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_reports_what_is_left_after_its_refund_in_three_calls() {
    let cluster = Cluster::start().await;
    let store = store(&cluster.url());
    let policies = [
        Policy::new("token", Quota::per_hour(1)),
        Policy::new("ip", Quota::per_hour(5)),
    ];
    let buckets = store.open(&policies);
    let address = Charge::new(Key::ip([192, 0, 2, 1].into()), 1);
    let both = [user("alice")[0].clone(), address];
    assert!(buckets.take(&both, 1).await.is_admitted());
    let calls = async || {
        let mut calls = 0;
        for node in &cluster.nodes {
            calls += crate::rate::calls(node).await;
        }
        calls
    };
    let before = calls().await;
    let rejected = buckets.take(&both, 1).await;
    let [of_token, of_address] = rejected.usages() else {
        panic!("a usage for each quota: {rejected:?}");
    };
    assert!(!of_token.fits() && of_address.fits());
    assert_eq!(of_address.remaining(), 4);
    assert_eq!(calls().await - before, 3);
}
