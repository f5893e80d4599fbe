//! Overrides in Redis.

use std::time::Duration;

use tower_admission::store::{FailureMode, SharedStore};
use tower_admission::test_util::TestClock;
use tower_admission::{Key, KeyName, Limits, LimitsError, Policy, Quota, RateLimiter};
use tower_admission_redis::RedisStore;

use crate::server::{Server, store, until};

mod explain;
mod faults;
mod heard;
mod lost;
mod model;
mod overrides;
mod rolled_back;
mod tools;

const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn acme() -> [Key; 1] {
    [Key::id("org", "acme")]
}

fn calls(quota: &str) -> Policy {
    Policy::new("calls", quota.parse::<Quota>().unwrap())
}

async fn set(limits: &Limits, limit: &str) {
    let key = "org:acme".parse().unwrap();
    limits.set(&key, limit.parse().unwrap()).await.unwrap();
}

pub(crate) async fn burst(limiter: &RateLimiter) -> u32 {
    let mut admitted = 0;
    while limiter.decide(&acme(), 1).await.is_admitted() {
        admitted += 1;
    }
    admitted
}

/// Limits of a replica whose wall clock is this one.
fn with_clock(store: RedisStore, clock: TestClock) -> Limits {
    // Where there is no runtime, so that no task follows them yet.
    let made = std::thread::spawn(move || Limits::in_store(&store).clock(clock));
    made.join().unwrap()
}

#[tokio::test]
async fn an_override_replaces_the_quota_of_its_key() {
    let server = Server::start().await;
    for kind in ["", " sliding"] {
        let limits = Limits::new();
        let all = calls(&format!("10/h{kind}"));
        let limiter = RateLimiter::with_limits(all.clone(), &server.store(), &limits);
        assert_eq!(burst(&limiter).await, 10);
        // The denial that is kept here does not outlive the limit.
        set(&limits, "25/h").await;
        assert_eq!(burst(&limiter).await, 15, "{kind}");
        assert_eq!(limiter.decide(&acme(), 1).await.limit(), Some(25));
        limits.delete(&"org:acme".parse().unwrap()).await.unwrap();
        assert_eq!(burst(&limiter).await, 0);
        limiter.set_policy(calls(&format!("12/h{kind}"))).unwrap();
        // All 25 stay used.
        assert_eq!(burst(&limiter).await, 0);
        let other = [Key::id("org", "other")];
        assert_eq!(limiter.decide(&other, 1).await.limit(), Some(12));
    }
}

/// Of one process, such as a program for operators, that has read nothing yet.
#[tokio::test]
async fn a_process_cannot_exceed_the_maximum_of_rates() {
    const PARTS: usize = 16;
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    let keys = Limits::MAX_RATES / PARTS;
    for n in 0..keys {
        let rates = (0..PARTS).map(|part| format!("q{part}={}/day", n * PARTS + part + 1));
        let limit = rates.collect::<Vec<_>>().join(", ").parse().unwrap();
        let key = format!("org:{n}").parse().unwrap();
        limits.set(&key, limit).await.unwrap();
    }
    let other = Limits::in_store(&server.store());
    let key: KeyName = "org:one-more".parse().unwrap();
    let new = "1000000/day".parse().unwrap();
    let error = other.set(&key, new).await.unwrap_err();
    assert!(matches!(error, LimitsError::TooManyRates), "{error:?}");
    // One that is there already.
    other.set(&key, "5/day".parse().unwrap()).await.unwrap();
}

/// Retry-After is kept when nobody else uses the key, and what is told of as left is.
#[tokio::test]
async fn a_lowered_bucket_refills_at_the_reported_time() {
    let server = Server::start().await;
    for (all, used, own) in [
        ("20/s burst 40", 36, "20/s burst 2"),
        ("20/s burst 40", 36, "100/s burst 2"),
        ("20/s burst 40", 36, "1 per 100ms burst 1"),
        ("20/s burst 40", 36, "10/s burst 4"),
        ("1000/h sliding", 900, "5/s"),
        ("5/s burst 1000 sliding", 900, "5/s"),
    ] {
        let limits = Limits::new();
        let limiter = RateLimiter::with_limits(calls(all), &server.store(), &limits);
        assert!(limiter.decide(&acme(), used).await.is_admitted());
        set(&limits, own).await;
        let denied = limiter.decide(&acme(), 1).await;
        assert!(!denied.is_admitted(), "{own}");
        assert_eq!(denied.remaining(), Some(0), "{own}");
        let wait = denied.retry_after().unwrap();
        assert!(wait <= 2 * SECOND, "{own} after {all}: {wait:?}");
        tokio::time::sleep(wait).await;
        assert!(
            limiter.decide(&acme(), 1).await.is_admitted(),
            "{own} after {all}"
        );
        server.clear().await;
    }
}

/// As for a second after a change, or during a deployment: what one of them refuses, it leaves alone.
#[tokio::test]
async fn replicas_with_different_quotas_admit_no_fresh_burst() {
    let server = Server::start().await;
    for (new, old) in [
        ("1000/day", "10/day"),
        ("1000/day", "1000/day burst 10"),
        ("1000/day", "deny all"),
    ] {
        // Another replica each time, so that what is denied is asked for.
        let replica = |quota| {
            let policy = calls(quota).and("rest", Quota::per_day(100_000));
            RateLimiter::with_store(policy, &server.store())
        };
        let mut admitted = 0;
        for _ in 0..5 {
            admitted += burst(&replica(new)).await;
            admitted += burst(&replica(old)).await;
        }
        assert_eq!(admitted, 1000, "{new} and {old}");
        let [key] = &*server.keys().await else {
            panic!("one key for one caller");
        };
        let get = async || server.command(&["GET", key]).await.unwrap();
        let before = get().await;
        let old = replica(old);
        assert!(!old.decide(&acme(), 1).await.is_admitted());
        assert_eq!(get().await, before);
        // What one of them gives back is as much to the others, unless it denies everything and counts nothing.
        old.refund_all(&acme(), 3).await;
        let given = if old.policies()[0].quotas()[0].quota() == Quota::deny_all() {
            0
        } else {
            3
        };
        assert_eq!(burst(&replica(new)).await, given);
        server.clear().await;
    }
}

#[tokio::test]
async fn a_local_share_applies_the_override_of_a_key() {
    let store = store("redis://127.0.0.1:1").on_failure(FailureMode::LocalShare { replicas: 2 });
    let limits = Limits::new();
    let limiter = RateLimiter::with_limits(calls("10/h"), &store, &limits);
    until("it is known to be away", async || {
        limiter.decide(&acme(), 0).await.remaining() == Some(5)
    })
    .await;
    assert_eq!(burst(&limiter).await, 5);
    set(&limits, "30/h").await;
    assert_eq!(burst(&limiter).await, 10);
    // The client's quota is reported, not this replica's share of it.
    assert_eq!(limiter.decide(&acme(), 0).await.limit(), Some(30));
}

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

async fn shown(limits: &Limits, key: &str) -> Option<String> {
    limits.get(&name(key)).map(|limit| limit.to_string())
}

#[tokio::test]
async fn a_change_reaches_every_replica() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    let limiter = RateLimiter::with_limits(calls("10/h"), &server.store(), &there);
    let set = async |limit: &str| {
        here.set(&name("org:acme"), limit.parse().unwrap())
            .await
            .unwrap()
    };
    assert_eq!(set("25/h").await, None);
    assert_eq!(shown(&here, "org:acme").await.unwrap(), "25/h");
    until("the other replica knows", async || {
        shown(&there, "org:acme").await.as_deref() == Some("25/h")
    })
    .await;
    assert_eq!(burst(&limiter).await, 25);
    assert_eq!(set("30/h").await.unwrap().to_string(), "25/h");
    until("the other replica knows", async || {
        limiter.decide(&acme(), 0).await.limit() == Some(30)
    })
    .await;
    // One that starts later.
    let late = Limits::in_store(&server.store());
    late.refresh().await.unwrap();
    assert_eq!(shown(&late, "org:acme").await.unwrap(), "30/h");
    let before = there.delete(&name("org:acme")).await.unwrap();
    assert_eq!(before.unwrap().to_string(), "30/h");
    until("both are as of everybody", async || {
        here.is_empty() && late.is_empty()
    })
    .await;
    assert_eq!(there.delete(&name("org:acme")).await.unwrap(), None);
}

#[tokio::test]
async fn a_replica_reads_several_pages_and_missed_changes() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    there.refresh().await.unwrap();
    for n in 0..2_500 {
        let key = name(&format!("org:{n}"));
        here.set(&key, "25/h".parse().unwrap()).await.unwrap();
    }
    // By their versions.
    until("all changes are read", async || there.len() == 2_500).await;
    // All at once.
    let late = Limits::in_store(&server.store());
    late.refresh().await.unwrap();
    assert_eq!(late.len(), 2_500);

    // As if the changes since had been forgotten, because they were too many.
    let mut connection = server.connection().await.unwrap();
    let delete = async |connection: &mut redis::aio::MultiplexedConnection, key: &str| {
        let mut delete = redis::cmd("HDEL");
        let delete = delete.arg("{admission:limits}:of").arg(key);
        delete.query_async::<()>(connection).await.unwrap();
    };
    delete(&mut connection, "org:7").await;
    let mut floor = redis::cmd("HSET");
    let floor = floor
        .arg("{admission:limits}:state")
        .arg(&["floor", "2501", "version", "2502"]);
    floor.query_async::<()>(&mut connection).await.unwrap();
    until("all is read anew", async || {
        [&here, &there, &late]
            .iter()
            .all(|limits| limits.len() == 2_499)
    })
    .await;
    assert!(shown(&there, "org:7").await.is_none());
    // A change that nobody noted is found when the caches are cleared.
    delete(&mut connection, "org:8").await;
    late.refresh().await.unwrap();
    assert!(shown(&late, "org:8").await.is_some());
    here.clear_caches().await.unwrap();
    assert!(shown(&here, "org:8").await.is_none());
    until("it is gone everywhere", async || {
        shown(&there, "org:8").await.is_none()
    })
    .await;
}

/// The id of the table is a field of the table, but no override. Another program may write overrides without an id.
#[tokio::test]
async fn the_size_of_the_table_is_the_number_of_overrides() {
    let server = Server::start().await;
    let table = server.store().overrides();
    let of = "{admission:limits}:of";
    server
        .command(&["HSET", of, "org:acme", "5/h", "org:other", "6/h"])
        .await
        .unwrap();
    let confirmed = table.confirm(&["org:acme"]).await.unwrap();
    assert_eq!((confirmed.len, confirmed.table_id.len()), (2, 0));
    let limits = Limits::in_store(&server.store());
    limits
        .set(&name("org:new"), "1/h".parse().unwrap())
        .await
        .unwrap();
    let confirmed = table.confirm(&["org:new", "org:none"]).await.unwrap();
    assert_eq!(confirmed.len, 3);
    assert!(!confirmed.table_id.is_empty());
    let found = confirmed.found.iter().map(|found| found.text.is_some());
    assert_eq!(found.collect::<Vec<_>>(), [true, false]);
}

#[tokio::test]
async fn an_unreadable_name_is_ignored() {
    let server = Server::start().await;
    let mut connection = server.connection().await.unwrap();
    let mut set = redis::cmd("HSET");
    let set = set.arg("{admission:limits}:of").arg(&[
        "org:acme",
        "5/h",
        "nonsense",
        "5/h",
        "org:other",
        "of another version",
    ]);
    set.query_async::<()>(&mut connection).await.unwrap();
    let limits = Limits::in_store(&server.store());
    limits.refresh().await.unwrap();
    assert_eq!(limits.len(), 1);
    assert_eq!(shown(&limits, "org:acme").await.unwrap(), "5/h");

    let mut wrong = redis::cmd("SET");
    let wrong = wrong.arg("{admission:limits}:changes").arg("junk");
    wrong.query_async::<()>(&mut connection).await.unwrap();
    let failed = limits.set(&name("org:new"), "1/h".parse().unwrap()).await;
    assert!(failed.is_err());
    // Nothing was written before it failed.
    let late = Limits::in_store(&server.store());
    let _ = late.refresh().await;
    assert_eq!(late.len(), 1);
}

/// Replicas that change the same keys end with the same limits, which are those of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_converge() {
    let server = Server::start().await;
    let replicas = [(); 4].map(|()| Limits::in_store(&server.store()));
    let mut changing = tokio::task::JoinSet::new();
    for (n, limits) in replicas.iter().enumerate() {
        let limits = limits.clone();
        changing.spawn(async move {
            for step in 0..200 {
                let key = name(&format!("org:{}", (step * 7 + n) % 5));
                if (step + n) % 4 == 0 {
                    limits.delete(&key).await.unwrap();
                } else {
                    let limit = format!("{}/h", 1 + n * 1_000 + step);
                    limits.set(&key, limit.parse().unwrap()).await.unwrap();
                }
            }
        });
    }
    changing.join_all().await;
    let late = Limits::in_store(&server.store());
    late.refresh().await.unwrap();
    for limits in &replicas {
        limits.refresh().await.unwrap();
        assert_eq!(limits.list(), late.list());
    }
}

#[test]
fn another_runtime_continues_to_read_changes() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let (server, limits) = first.block_on(async {
        let server = Server::start().await;
        let limits = Limits::in_store(&server.store());
        limits.refresh().await.unwrap();
        (server, limits)
    });
    drop(first);
    runtime().block_on(async {
        limits
            .set(&name("org:acme"), "5/h".parse().unwrap())
            .await
            .unwrap();
        let other = Limits::in_store(&server.store());
        other
            .set(&name("org:other"), "6/h".parse().unwrap())
            .await
            .unwrap();
        until("it is read", async || limits.len() == 2).await;
    });
}
