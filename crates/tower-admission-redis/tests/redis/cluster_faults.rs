//! A cluster whose master hangs or dies, or whose slots migrate: only the calls that need it wait.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use tower_admission::store::{RateBuckets, RateStore, Reply};
use tower_admission::{Policy, Quota};

use crate::cluster::{Cluster, MASTERS};
use crate::faults::stand_in;
use crate::server::{Server, store, until};
use crate::user;

/// One that a busy machine keeps.
const DEADLINE: Duration = Duration::from_millis(250);

const KEYS: usize = 60;

/// How requests come.
#[derive(Clone, Copy)]
enum Load {
    /// One key after another, 200 a second.
    InRotation,
    /// Random keys, 40 a second.
    Random,
}

impl Load {
    fn pause(self) -> Duration {
        match self {
            Self::InRotation => Duration::from_millis(5),
            Self::Random => Duration::from_millis(25),
        }
    }

    fn key(self, n: usize) -> usize {
        match self {
            Self::InRotation => n % KEYS,
            Self::Random => fastrand::usize(..KEYS),
        }
    }
}

/// A request and what became of it.
#[derive(Clone, Copy)]
struct Made {
    key: usize,
    began: Instant,
    is_counted: bool,
}

/// Requests that are made until they are ended.
struct Requests {
    made: Arc<Mutex<Vec<Made>>>,
    ended: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Requests {
    fn start(buckets: Arc<dyn RateBuckets>, load: Load) -> Self {
        let made = Arc::<Mutex<Vec<Made>>>::default();
        let ended = Arc::<AtomicBool>::default();
        let (all, end) = (made.clone(), ended.clone());
        let task = tokio::spawn(async move {
            let mut ticks = interval(load.pause());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut requests = JoinSet::new();
            for n in 0.. {
                ticks.tick().await;
                let (key, buckets, all) = (load.key(n), buckets.clone(), all.clone());
                // None waits for one that hangs.
                requests.spawn(async move {
                    let began = Instant::now();
                    let is_counted = take(&*buckets, key).await;
                    all.lock().unwrap().push(Made {
                        key,
                        began,
                        is_counted,
                    });
                });
                while requests.try_join_next().is_some() {}
                if end.load(Ordering::Relaxed) {
                    break;
                }
            }
            requests.join_all().await;
        });
        Self { made, ended, task }
    }

    /// Waits for those that have begun, and returns all.
    async fn end(self) -> Vec<Made> {
        self.ended.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let made = self.made.lock().unwrap();
        made.clone()
    }

    fn made(&self) -> Vec<Made> {
        self.made.lock().unwrap().clone()
    }
}

async fn take(buckets: &dyn RateBuckets, key: usize) -> bool {
    let decision = buckets.take(&user(&key.to_string()), 1).await;
    decision.remaining().is_some()
}

fn open(cluster: &Cluster) -> Arc<dyn RateBuckets> {
    let policy = Policy::new("calls", Quota::per_day(100_000));
    store(&cluster.url()).deadline(DEADLINE).open(&[policy])
}

/// Which master has each key, and what it is called there.
async fn owners(cluster: &Cluster, buckets: &dyn RateBuckets) -> Vec<(usize, String)> {
    let mut owners = Vec::new();
    let mut known = HashSet::new();
    for key in 0..KEYS {
        assert!(take(buckets, key).await);
        for (n, node) in cluster.nodes[..MASTERS].iter().enumerate() {
            let names = node.keys().await.into_iter();
            owners.extend(
                names
                    .filter(|name| known.insert(name.clone()))
                    .map(|name| (n, name)),
            );
        }
        assert_eq!(owners.len(), key + 1);
    }
    for n in 0..MASTERS {
        let held = owners.iter().filter(|(owner, _)| *owner == n).count();
        assert!(held >= 5, "keys on master {n}: {held}");
    }
    owners
}

async fn is_master(node: &Server) -> bool {
    let info = node.word(&["INFO", "replication"]).await;
    info.contains("role:master")
}

/// A master goes silent or away, its replica takes over, and it comes back as a replica.
async fn master_lost(load: Load, lose: fn(&mut Server), return_again: impl AsyncFn(&mut Server)) {
    let mut cluster = Cluster::start_with_replicas().await;
    let buckets = open(&cluster);
    let owners = owners(&cluster, &*buckets).await;
    let is_of_lost = |made: &Made| owners[made.key].0 == 0;
    let requests = Requests::start(buckets.clone(), load);
    sleep(Duration::from_millis(500)).await;

    let lost = Instant::now();
    lose(&mut cluster.nodes[0]);
    sleep(Duration::from_millis(300)).await;
    let young = open(&cluster);
    let of_young = Requests::start(young.clone(), load);
    let replica = &cluster.nodes[MASTERS];
    until("the replica is master", async || is_master(replica).await).await;
    let failover = Instant::now();
    let of_old = Requests::start(open(&cluster), load);
    sleep(Duration::from_millis(2500)).await;

    let returned = Instant::now();
    return_again(&mut cluster.nodes[0]).await;
    let node = &cluster.nodes[0];
    until("it is a replica", async || !is_master(node).await).await;
    sleep(Duration::from_millis(1500)).await;

    let made = requests.end().await;
    let uncounted = |made: &[Made], of_lost: bool, since: Instant| {
        let of_kind = made
            .iter()
            .filter(|made| is_of_lost(made) == of_lost && made.began >= since);
        let all: Vec<_> = of_kind.collect();
        (
            all.iter().filter(|made| !made.is_counted).count(),
            all.len(),
        )
    };
    let soon = lost + Duration::from_millis(100);
    let healthy = uncounted(&made, false, soon);
    let of_lost = uncounted(&made, true, failover + Duration::from_secs(1));
    let after_return = uncounted(&made, true, returned);
    let last = made
        .iter()
        .filter(|made| is_of_lost(made) && !made.is_counted);
    let last = last.map(|made| made.began).max();
    let young = of_young.end().await;
    let young_healthy = uncounted(&young, false, lost);
    let young_lost = uncounted(&young, true, failover + Duration::from_secs(1));
    let old = of_old.end().await;
    let old_healthy = uncounted(&old, false, lost);
    let old_lost = uncounted(&old, true, failover + Duration::from_secs(1));
    println!("failover {:?} after the loss", failover - lost);
    println!("healthy keys uncounted: {healthy:?}");
    println!("lost keys uncounted later than 1 s after the failover: {of_lost:?}");
    println!(
        "last of them: {:?}",
        last.map(|last| last.saturating_duration_since(failover))
    );
    println!("lost keys uncounted after the return: {after_return:?}");
    println!("opened 0.3 s after: {young_healthy:?} {young_lost:?}");
    println!("opened after the failover: {old_healthy:?} {old_lost:?}");
    for (uncounted, all) in [
        healthy,
        of_lost,
        after_return,
        young_healthy,
        young_lost,
        old_healthy,
        old_lost,
    ] {
        assert_eq!(uncounted, 0, "of {all}");
        assert!(all > 0);
    }
}

async fn hang(load: Load) {
    master_lost(
        load,
        |node| node.signal("STOP"),
        async |node| {
            node.signal("CONT");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_master_that_hangs_takes_only_its_own_keys_and_until_the_failover() {
    hang(Load::InRotation).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_master_that_hangs_is_noticed_with_few_requests_on_random_keys() {
    hang(Load::Random).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_master_that_dies_takes_only_its_own_keys_and_until_the_failover() {
    master_lost(Load::InRotation, Server::kill, async |node| {
        node.restart().await;
    })
    .await;
}

/// With ASK while a slot is on its way, and MOVED when it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_under_load_lose_no_request_and_count_none_twice() {
    const MOVED: usize = 10;
    let cluster = Cluster::start().await;
    let policy = Policy::new("calls", Quota::per_day(1000));
    let buckets = store(&cluster.url()).deadline(DEADLINE).open(&[policy]);
    let owners = owners(&cluster, &*buckets).await;
    let requests = Requests::start(buckets.clone(), Load::InRotation);
    for (from, name) in owners.iter().take(MOVED) {
        let (from, to) = (&cluster.nodes[*from], &cluster.nodes[(from + 1) % MASTERS]);
        let slot = from.word(&["CLUSTER", "KEYSLOT", name]).await;
        let from_id = from.word(&["CLUSTER", "MYID"]).await;
        let to_id = to.word(&["CLUSTER", "MYID"]).await;
        let port = to.port.to_string();
        let made = requests.made().len();
        to.word(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])
            .await;
        from.word(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])
            .await;
        // All that the slot holds: other keys of the test may share it.
        let found = from
            .command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"])
            .await;
        let found: Vec<String> = redis::from_redis_value(found.unwrap()).unwrap();
        for name in found {
            from.word(&["MIGRATE", "127.0.0.1", &port, &name, "0", "5000"])
                .await;
        }
        until("requests came meanwhile", async || {
            requests.made().len() >= made + KEYS
        })
        .await;
        for node in [to, from] {
            node.word(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id])
                .await;
        }
    }
    let made = requests.made().len();
    until("requests came afterwards", async || {
        requests.made().len() >= made + 2 * KEYS
    })
    .await;
    let begun = requests.end().await;
    let uncounted = begun.iter().filter(|made| !made.is_counted).count();
    println!("{uncounted} of {} requests uncounted", begun.len());
    assert_eq!(uncounted, 0);
    for redirection in ["errorstat_ASK:", "errorstat_MOVED:"] {
        let mut seen = 0;
        for node in &cluster.nodes {
            let errors = node.word(&["INFO", "errorstats"]).await;
            seen += u32::from(errors.contains(redirection));
        }
        assert!(seen > 0, "{redirection}");
    }
    for key in 0..KEYS {
        let of_key = begun.iter().filter(|made| made.key == key).count() as u32;
        let left = buckets.peek(&user(&key.to_string()), 0).await.remaining();
        // One more was made to find its owner.
        assert_eq!(left, Some(1000 - 1 - of_key), "{key}");
    }
}

/// A node of a cluster that has all slots, and answers calls as the test has it. Returns where it
/// is, and how many calls it got.
pub(crate) async fn node_that_answers(
    answer: impl Fn(u16, u32) -> String + Clone + Send + Sync + 'static,
) -> (String, Arc<AtomicU32>) {
    let (port, calls) = (Arc::<OnceLock<u16>>::default(), Arc::<AtomicU32>::default());
    let (known, counted) = (port.clone(), calls.clone());
    let url = stand_in(move |command| {
        let port = *known.wait();
        Some(match command {
            "HELLO" => "*2\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n".to_owned(),
            // Its host is where it was asked.
            "CLUSTER" => format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:{port}\r\n"),
            "EVALSHA" | "EVAL" => answer(port, counted.fetch_add(1, Ordering::Relaxed)),
            _ => "+OK\r\n".to_owned(),
        })
    })
    .await;
    port.set(url.rsplit_once(':').unwrap().1.parse().unwrap())
        .unwrap();
    (url.replace("redis:", "redis+cluster:"), calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_redirected_in_circles_fails() {
    for redirection in ["MOVED", "ASK"] {
        let (url, calls) =
            node_that_answers(move |port, _| format!("-{redirection} 7 :{port}\r\n")).await;
        let buckets = store(&url).open(&[Quota::per_hour(9).into()]);
        assert!(!take(&*buckets, 0).await);
        // The first, and three that followed.
        assert_eq!(calls.load(Ordering::Relaxed), 4, "{redirection}");
    }
}

/// While a replica takes over, or the keys of a slot are in two places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_repeated_within_its_deadline_while_a_cluster_is_not_ready() {
    // As `take.lua` answers.
    let counted = "*3\r\n:1\r\n:8\r\n:1\r\n";
    for refusal in [
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request",
    ] {
        let (url, calls) = node_that_answers(move |_, calls| match calls {
            0..5 => format!("-{refusal}\r\n"),
            _ => counted.to_owned(),
        })
        .await;
        let buckets = store(&url).open(&[Quota::per_hour(9).into()]);
        assert!(take(&*buckets, 0).await);
        assert_eq!(calls.load(Ordering::Relaxed), 6, "{refusal}");

        let refuses = Arc::<AtomicBool>::default();
        let does_refuse = refuses.clone();
        let (url, calls) =
            node_that_answers(move |_, _| match does_refuse.load(Ordering::Relaxed) {
                false => counted.to_owned(),
                true => format!("-{refusal}\r\n"),
            })
            .await;
        let store = store(&url).deadline(Duration::from_millis(50));
        let buckets = store.open(&[Quota::per_hour(9).into()]);
        until("it is connected", async || take(&*buckets, 0).await).await;
        refuses.store(true, Ordering::Relaxed);
        let before = calls.load(Ordering::Relaxed);
        assert!(!take(&*buckets, 0).await);
        // With a growing pause: after 2, 4, 8 and 16 milliseconds.
        let more = calls.load(Ordering::Relaxed) - before;
        assert!((1..=5).contains(&more), "{more} {refusal}");
    }
}

/// What one server has no room for is nothing to the others, and calls to it fail at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_hangs_uses_no_room_of_others() {
    let cluster = Cluster::start().await;
    let policy = Policy::new("calls", Quota::per_day(1000));
    let store = store(&cluster.url()).deadline(DEADLINE).max_in_flight(2);
    let buckets = store.open(&[policy]);
    let owners = owners(&cluster, &*buckets).await;
    cluster.nodes[0].signal("STOP");
    let requests: Vec<_> = (0..KEYS)
        .map(|key| {
            let buckets = buckets.clone();
            tokio::spawn(async move { take(&*buckets, key).await })
        })
        .collect();
    for (key, request) in requests.into_iter().enumerate() {
        assert_eq!(request.await.unwrap(), owners[key].0 != 0, "{key}");
    }
    until("the breaker of one is open", async || {
        let keys = 0..KEYS;
        let decided = keys.map(|key| {
            let reply = buckets.peek(&user(&key.to_string()), 0);
            matches!(reply, Reply::Ready(_))
        });
        let decided: Vec<_> = decided.collect();
        let opened = owners.iter().map(|(owner, _)| *owner == 0);
        take(
            &*buckets,
            owners.iter().position(|(owner, _)| *owner == 0).unwrap(),
        )
        .await;
        decided.into_iter().eq(opened)
    })
    .await;
}
