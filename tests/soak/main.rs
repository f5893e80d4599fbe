//! Limits under load and faults: nothing goes above a limit, all that is taken comes back, memory stays bounded.
//!
//! `cargo test` runs it for some seconds, `scripts/soak` for an hour. `SOAK_SECONDS` sets the time of each test.

mod clients;
mod faults;
mod findings;
mod meters;
#[path = "../../crates/tower-admission-redis/tests/redis/server.rs"]
#[allow(dead_code, reason = "the Redis tests use the rest")]
mod server;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tower_admission::extract::RequestHead;
use tower_admission::store::FailureMode;
use tower_admission::{
    ConcurrencyLimitLayer, ConcurrencyLimiter, Key, Leases, MemoryStore, Policy, Quota,
    RateLimitLayer,
};
use tower_admission_redis::RedisStore;

use clients::Clients;
use faults::{Faults, Place};
use findings::{Findings, memory_in_use};
use meters::Meters;
use server::{Server, until};
use work::{Work, jobs};

/// What the limits allow.
#[derive(Clone, Copy)]
struct Numbers {
    in_flight: usize,
    in_flight_per_tenant: usize,
    per_second: u32,
    burst: u32,
    in_window: u32,
}

const NUMBERS: Numbers = Numbers {
    in_flight: 16,
    in_flight_per_tenant: 5,
    per_second: 40,
    burst: 20,
    in_window: 300,
};

const WINDOW: Duration = Duration::from_secs(10);
const LEASE_TTL: Duration = Duration::from_secs(4);
const JOBS: u64 = 8;
const JOBS_PER_TENANT: u64 = 3;
/// Far fewer than the clients make up, so that the table evicts all the time.
const MAX_KEYS: usize = 5_000;

fn run_time() -> Duration {
    let seconds = std::env::var("SOAK_SECONDS").map_or(4, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

fn tenant(head: RequestHead<'_>) -> Option<Key> {
    let tenant = head.headers.get("x-tenant")?.to_str().ok()?;
    Some(Key::id("tenant", tenant))
}

fn policy() -> Policy {
    let burst = Quota::per_second(NUMBERS.per_second).burst(NUMBERS.burst);
    Policy::new("burst", burst).and("window", Quota::new(NUMBERS.in_window, WINDOW).sliding())
}

/// What one process has: its layers around the work, and the limiter that tells what is in flight.
fn replica(
    name: &str,
    store: Option<&RedisStore>,
    meters: &Arc<Meters>,
) -> (work::Service, ConcurrencyLimiter) {
    let mut concurrency = ConcurrencyLimitLayer::new(NUMBERS.in_flight)
        .name(name)
        .per_key(tenant, NUMBERS.in_flight_per_tenant);
    let mut rate = RateLimitLayer::by(tenant, policy());
    match store {
        Some(store) => {
            concurrency = concurrency.store(store.clone());
            rate = rate.store(store.clone());
        }
        None => rate = rate.store(MemoryStore::new().max_keys(MAX_KEYS)),
    }
    let limiter = concurrency.limiter();
    let service = work::service(concurrency, rate, Work::new(meters.clone()));
    (service, limiter)
}

/// Waits for all permits, and reports those that do not come back.
async fn all_permits_are_back(
    findings: &Findings,
    meters: &Meters,
    limiters: &[ConcurrencyLimiter],
) {
    let ended = Instant::now() + Duration::from_secs(20);
    let in_use = || -> usize { limiters.iter().map(ConcurrencyLimiter::in_flight).sum() };
    while in_use() > 0 && Instant::now() < ended {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if in_use() > 0 {
        findings.add("permits", format!("{} were not released", in_use()));
    }
    if meters.in_flight() > 0 {
        findings.add("requests", format!("{} did not end", meters.in_flight()));
    }
}

/// Takes each permit that the store has, as a replica that has none.
async fn the_store_has_all_slots(findings: &Findings, name: &str, store: &RedisStore) {
    let meters = Meters::new(NUMBERS, findings.clone());
    let (_, limiter) = replica(name, Some(store), &meters);
    // Slots of requests whose release was lost expire.
    let ended = Instant::now() + LEASE_TTL + Duration::from_secs(20);
    let mut rejected = String::new();
    while Instant::now() < ended {
        let mut permits = Vec::new();
        for n in 0..NUMBERS.in_flight {
            let key = Key::id("tenant", &format!("probe-{n}"));
            match limiter.acquire_for(&[key]).await {
                Ok(permit) => permits.push(permit),
                Err(rejection) => rejected = rejection.to_string(),
            }
        }
        if permits.len() == NUMBERS.in_flight {
            return;
        }
        drop(permits);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    findings.add("slots", format!("not released in the store: {rejected}"));
}

/// One process that counts in memory, until `ended`.
async fn memory_run(meters: &Arc<Meters>, findings: &Findings, ended: impl Future<Output = ()>) {
    let (service, limiter) = replica("memory", None, meters);
    let clients = Clients::start(&[service], meters, findings);
    ended.await;
    clients.stop(findings).await;
    all_permits_are_back(findings, meters, &[limiter]).await;
    println!("memory: {meters}");
}

/// Waits for `time`, and reports when memory grows after the first third of it.
async fn memory_stays_bounded(time: Duration, findings: &Findings) {
    tokio::time::sleep(time / 3).await;
    let before = memory_in_use();
    tokio::time::sleep(time - time / 3).await;
    let after = memory_in_use();
    println!("memory: {before} MiB after a third of the time, {after} MiB at the end");
    if after > before + before / 4 + 32 {
        findings.add("memory", format!("grew from {before} MiB to {after} MiB"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_in_memory_hold_under_load() {
    let findings = Findings::new("memory");
    let ended = memory_stays_bounded(run_time(), &findings);
    let meters = Meters::new(NUMBERS, findings.clone());
    memory_run(&meters, &findings, ended).await;
    meters.warn_if_not_reached();
    findings.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_meters_notice_limits_that_are_too_high() {
    let findings = Findings::new("too high");
    // For the meters, the limits of the layers are too high.
    let lower = Numbers {
        in_flight: 4,
        in_flight_per_tenant: 2,
        per_second: 4,
        burst: 2,
        in_window: 10,
    };
    let found = until("the meters notice it", async || {
        ["requests", "requests of a tenant", "rate", "window"]
            .iter()
            .all(|kind| findings.has(kind))
    });
    memory_run(&Meters::new(lower, findings.clone()), &findings, found).await;
}

/// Two replicas on one place, with faults until the time is up.
async fn redis_run(name: &'static str, place: Place, mode: FailureMode) {
    let findings = Findings::new(name);
    let meters = Meters::new(NUMBERS, findings.clone());
    let url = place.url();
    let store = || {
        server::store(&url)
            .deadline(Duration::from_secs(1))
            .lease_ttl(LEASE_TTL)
            .on_failure(mode)
            .observe(meters.outages())
    };
    let stores = [store(), store()];
    let (services, limiters): (Vec<_>, Vec<_>) = stores
        .iter()
        .map(|store| replica(name, Some(store), &meters))
        .unzip();
    let leases = stores.each_ref().map(|store| {
        let leases = Leases::new().name(name).ttl(LEASE_TTL).store(store.clone());
        leases.total(JOBS).per_tenant(JOBS_PER_TENANT)
    });
    let stopped = Arc::new(AtomicBool::new(false));
    let clients = Clients::start(&services, &meters, &findings);
    let workers = jobs(&leases, &meters, &stopped);
    let mut faults = Faults::new(name, place, meters.clone());
    let (faults, ()) = tokio::join!(
        async {
            faults.until(Instant::now() + run_time()).await;
            faults
        },
        memory_stays_bounded(run_time(), &findings),
    );
    stopped.store(true, Ordering::Relaxed);
    clients.stop(&findings).await;
    for worker in workers {
        worker.await.unwrap();
    }
    all_permits_are_back(&findings, &meters, &limiters).await;
    the_store_has_all_slots(&findings, name, &store()).await;
    until("leases that were forgotten expire", async || {
        let usage = leases[0].usage(&Key::id("tenant", "0")).await;
        usage.is_some_and(|usage| usage.total == 0)
    })
    .await;
    println!("{name}: {} faults; {meters}", faults.count());
    meters.warn_if_not_reached();
    findings.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_in_redis_hold_while_the_server_fails() {
    let server = Server::start().await;
    redis_run("single", Place::single(server), FailureMode::Closed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_in_redis_hold_through_failovers() {
    let place = Place::watched().await;
    let mode = FailureMode::LocalShare { replicas: 2 };
    redis_run("watched", place, mode).await;
}
