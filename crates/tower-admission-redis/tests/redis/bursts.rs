//! Many requests on one key at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_test::task;
use tower_admission::store::{
    AcquireOutcome, Charge, LeaseLimits, LeaseSlots, LeaseStore, RateBuckets, RateStore,
};
use tower_admission::{Key, Policy, Quota};
use tower_admission_redis::RedisStore;

use crate::server::{Server, until};
use crate::user;

/// As many requests at once as overran a limit when each made a call of its own.
const BURST: usize = 10_000;

/// The default failure mode, which would admit what is not counted.
fn patient(server: &Server) -> RedisStore {
    server.store().deadline(Duration::from_secs(5))
}

async fn calls(server: &Server) -> u64 {
    let info = server.command(&["INFO", "commandstats"]).await.unwrap();
    let info: String = redis::from_redis_value(info).unwrap();
    let lines = info
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_eval"));
    lines
        .map(|line| {
            let (_, calls) = line.split_once("calls=").unwrap();
            calls.split(',').next().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

/// Takes with many tasks at once; how many were admitted.
async fn take_at_once(
    buckets: &Arc<dyn RateBuckets>,
    charges: impl Fn(usize) -> Vec<Charge>,
) -> usize {
    let tasks: Vec<_> = (0..BURST)
        .map(|n| {
            let (buckets, charges) = (buckets.clone(), charges(n));
            tokio::spawn(async move { buckets.take(&charges, 1).await })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        let decision = task.await.unwrap();
        assert!(decision.remaining().is_some(), "decided by Redis");
        admitted += usize::from(decision.is_admitted());
    }
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_on_one_key_uses_the_whole_quota_with_few_calls() {
    let server = Server::start().await;
    let buckets = patient(&server).open(&[Policy::new("calls", Quota::per_hour(100))]);
    let admitted = take_at_once(&buckets, |_| user("alice").to_vec()).await;
    assert_eq!(admitted, 100);
    let calls = calls(&server).await;
    assert!(calls < BURST as u64 / 10, "{calls} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_many_keys_admits_no_more_than_their_shared_limit() {
    let server = Server::start().await;
    let policies = [
        Policy::new("own", Quota::per_hour(20)),
        Policy::new("shared", Quota::per_hour(100)),
    ];
    let buckets = patient(&server).open(&policies);
    let both = |n: usize| {
        let own = Charge::new(Key::id("user", &(n % 1000).to_string()), 0);
        vec![own, Charge::new(Key::id("all", "all"), 1)]
    };
    assert_eq!(take_at_once(&buckets, both).await, 100);
    let calls = calls(&server).await;
    assert!(calls < BURST as u64 / 10, "{calls} calls");
    // A rejection by the shared limit charged no key.
    let mut spent = 0;
    for n in 0..1000 {
        let left = buckets.peek(&both(n)[..1], 0).await.remaining().unwrap();
        spent += 20 - left;
    }
    assert_eq!(spent, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_different_costs_are_admitted_whole_or_not_at_all() {
    let server = Server::start().await;
    let buckets = patient(&server).open(&[Policy::new("calls", Quota::per_hour(1_000))]);
    let tasks: Vec<_> = (0..2_000)
        .map(|n| {
            let (buckets, cost) = (buckets.clone(), 1 + n % 3);
            tokio::spawn(async move {
                let decision = buckets.take(&user("alice"), cost).await;
                let remaining = decision.remaining().unwrap();
                (decision.is_admitted(), cost, remaining)
            })
        })
        .collect();
    let mut granted = 0;
    let mut seen = Vec::new();
    for task in tasks {
        let (is_admitted, cost, remaining) = task.await.unwrap();
        granted += if is_admitted { cost } else { 0 };
        seen.extend(is_admitted.then_some(remaining));
    }
    assert_eq!(granted, 1_000);
    // Each of them was told another number.
    let admitted = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), admitted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_replicas_admit_no_more_than_the_quota() {
    const RATE: u32 = 2_000;
    let server = Server::start().await;
    let quota = Quota::per_second(RATE).burst(100);
    let policies = [Policy::new("calls", quota)];
    let replicas: Vec<_> = (0..50).map(|_| patient(&server).open(&policies)).collect();
    let admitted = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let buckets = replicas[n % replicas.len()].clone();
            let admitted = admitted.clone();
            tokio::spawn(async move {
                // Half of them one after the other, half at once.
                for _ in 0..50 {
                    let both = [(); 2].map(|()| buckets.take(&user("alice"), 1));
                    for asked in both {
                        let decision = asked.await;
                        assert!(decision.remaining().is_some(), "decided by Redis");
                        admitted.fetch_add(decision.is_admitted().into(), Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let most = 100.0 + f64::from(RATE) * started.elapsed().as_secs_f64();
    let admitted = admitted.load(Ordering::Relaxed);
    assert!(admitted as f64 <= most, "{admitted} of {most}");
    assert!(admitted >= 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_were_dropped_while_they_waited_take_nothing() {
    let server = Server::start().await;
    let buckets = patient(&server).open(&[Policy::new("calls", Quota::per_hour(1_000))]);
    assert!(buckets.take(&user("alice"), 1).await.is_admitted());
    server.signal("STOP");
    let alice = user("alice");
    let mut first = task::spawn(buckets.take(&alice, 1).into_future());
    assert!(first.poll().is_pending());
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let mut asked = task::spawn(buckets.take(&alice, 1).into_future());
            assert!(asked.poll().is_pending());
            asked
        })
        .collect();
    drop(waiting);
    server.signal("CONT");
    assert_eq!(first.await.remaining(), Some(998));
    let left = buckets.peek(&alice, 0).await.remaining();
    assert_eq!(left, Some(998));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_on_a_concurrency_limit_uses_all_of_it() {
    let server = Server::start().await;
    let slots: Arc<dyn LeaseSlots> = patient(&server).open_leases("jobs");
    let limits = |n: usize| {
        let of_key = (Key::id("user", &(n % 500).to_string()), 3);
        LeaseLimits::new(Some(100), Some(of_key))
    };
    let tasks: Vec<_> = (0..BURST)
        .map(|n| {
            let slots = slots.clone();
            tokio::spawn(async move { slots.acquire(limits(n)).await })
        })
        .collect();
    let mut held = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            AcquireOutcome::Granted(lease) => held.push(lease),
            rejected => assert!(
                matches!(
                    rejected,
                    AcquireOutcome::Full | AcquireOutcome::KeyFull { .. }
                ),
                "{rejected:?}"
            ),
        }
    }
    assert_eq!(held.len(), 100);
    assert_eq!(slots.usage(None).await.unwrap().total, 100);
    let calls = calls(&server).await;
    assert!(calls < BURST as u64 / 10, "{calls} calls");
    drop(held);
    until("all slots are free", async || {
        slots.usage(None).await.unwrap().total == 0
    })
    .await;
}
