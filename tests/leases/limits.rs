//! Limits, times to live and ids of leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tower_admission::store::LeaseStatus;
use tower_admission::{Capacity, Leases, Reason};

use crate::{SECOND, on_clock, tenant, total, used};

#[tokio::test]
async fn a_rejection_reports_the_limit_and_its_usage() {
    let leases = Leases::new().name("jobs").per_tenant(2).total(3);
    let (acme, umbrella) = (tenant("acme"), tenant("umbrella"));
    let _held = [
        leases.acquire(&acme, "1").await.unwrap(),
        leases.acquire(&acme, "2").await.unwrap(),
        leases.acquire(&umbrella, "1").await.unwrap(),
    ];

    let refused = leases.acquire(&acme, "3").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::KeyAtCapacity);
    let occupancy = refused.occupancy().unwrap();
    assert_eq!((occupancy.used, occupancy.allowed), (2, 2));
    assert_eq!(refused.limiter(), "jobs");
    assert_eq!(
        refused.retry_after(),
        None,
        "the time at which a slot becomes free is unknown"
    );
    assert_eq!(
        refused.to_string(),
        "2 of 2 are in use. Please wait for one to end."
    );

    let refused = leases.acquire(&umbrella, "2").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::AtCapacity);
    let occupancy = refused.occupancy().unwrap();
    assert_eq!((occupancy.used, occupancy.allowed), (3, 3));
}

#[tokio::test]
async fn a_limit_of_zero_is_unlimited() {
    let leases = Leases::new().per_tenant(0).total(0);
    for n in 0..100 {
        leases
            .acquire(&tenant("acme"), &n.to_string())
            .await
            .unwrap()
            .detach();
    }
    assert_eq!(used(&leases, "acme").await, 100);
}

#[tokio::test]
async fn a_lease_expires_without_heartbeats_and_lives_with_them() {
    let (leases, clock) = on_clock(Leases::new().per_tenant(2).ttl(60 * SECOND));
    let acme = tenant("acme");
    leases
        .acquire(&acme, "with heartbeats")
        .await
        .unwrap()
        .detach();
    leases
        .acquire(&acme, "without heartbeats")
        .await
        .unwrap()
        .detach();
    for _ in 0..3 {
        clock.advance(40 * SECOND);
        assert_eq!(
            leases.heartbeat(&acme, "with heartbeats").await,
            LeaseStatus::Live
        );
    }
    assert_eq!(used(&leases, "acme").await, 1);
    assert_eq!(
        leases.heartbeat(&acme, "without heartbeats").await,
        LeaseStatus::Gone,
        "a heartbeat revives no expired lease"
    );
    assert_eq!(used(&leases, "acme").await, 1);

    clock.advance(60 * SECOND);
    assert_eq!(
        used(&leases, "acme").await,
        0,
        "it ends with its time to live"
    );
    assert_eq!(
        leases.heartbeat(&acme, "with heartbeats").await,
        LeaseStatus::Gone
    );
    assert_eq!(
        leases.release(&acme, "with heartbeats").await,
        LeaseStatus::Gone
    );
}

#[tokio::test]
async fn a_heartbeat_creates_no_lease_and_a_second_release_finds_none() {
    let leases = Leases::new();
    let acme = tenant("acme");
    assert_eq!(leases.heartbeat(&acme, "1").await, LeaseStatus::Gone);
    assert_eq!(used(&leases, "acme").await, 0);
    leases.acquire(&acme, "1").await.unwrap().detach();
    assert_eq!(leases.release(&acme, "1").await, LeaseStatus::Live);
    assert_eq!(leases.release(&acme, "1").await, LeaseStatus::Gone);
    assert_eq!(used(&leases, "acme").await, 0);
}

#[tokio::test]
async fn equal_ids_of_different_tenants_are_different_leases() {
    let leases = Leases::new();
    let (acme, umbrella) = (tenant("acme"), tenant("umbrella"));
    leases.acquire(&acme, "42").await.unwrap().detach();
    assert_eq!(leases.heartbeat(&umbrella, "42").await, LeaseStatus::Gone);
    assert_eq!(leases.release(&umbrella, "42").await, LeaseStatus::Gone);
    leases.acquire(&umbrella, "42").await.unwrap().detach();
    assert_eq!(leases.release(&umbrella, "42").await, LeaseStatus::Live);
    assert_eq!(used(&leases, "acme").await, 1);
}

#[tokio::test]
async fn an_acquire_of_a_live_id_takes_it_over() {
    let (leases, clock) = on_clock(Leases::new().per_tenant(1).ttl(60 * SECOND));
    let acme = tenant("acme");
    let first = leases.acquire(&acme, "42").await.unwrap();
    clock.advance(40 * SECOND);
    let again = leases.acquire(&acme, "42").await;
    let second = again.expect("the same id counts once, so it fits");
    assert_eq!(used(&leases, "acme").await, 1);
    drop(first);
    assert_eq!(
        used(&leases, "acme").await,
        1,
        "the earlier guard releases nothing of the later one"
    );
    clock.advance(40 * SECOND);
    assert_eq!(used(&leases, "acme").await, 1, "its time to live restarted");
    drop(second);
    assert_eq!(used(&leases, "acme").await, 0);
}

#[tokio::test]
async fn clones_and_leases_with_one_store_and_name_share_a_limit() {
    let store = tower_admission::MemoryStore::new();
    let named = |name| Leases::new().name(name).total(1).store(store.clone());
    let (one, same, other) = (named("jobs"), named("jobs"), named("streams"));
    let _lease = one.clone().acquire(&tenant("acme"), "1").await.unwrap();
    assert!(same.acquire(&tenant("acme"), "2").await.is_err());
    assert!(other.acquire(&tenant("acme"), "2").await.is_ok());
}

/// An application may build `Leases` for a single request.
#[tokio::test]
async fn detached_work_outlives_the_limiter_that_acquired_it() {
    let (_, clock) = on_clock(Leases::new());
    let store = tower_admission::MemoryStore::new().clock(clock.clone());
    let jobs = || {
        let jobs = Leases::new().name("jobs").per_tenant(1).ttl(60 * SECOND);
        jobs.store(store.clone())
    };
    let acme = tenant("acme");
    jobs().acquire(&acme, "1").await.unwrap().detach();
    assert_eq!(used(&jobs(), "acme").await, 1);
    assert!(jobs().acquire(&acme, "2").await.is_err());
    clock.advance(61 * SECOND);
    assert!(jobs().acquire(&acme, "2").await.is_ok());
}

#[tokio::test]
async fn random_ids_are_unique() {
    let leases = Leases::new();
    let (one, two) = (
        leases.acquire_new(&tenant("acme")).await.unwrap(),
        leases.acquire_new(&tenant("acme")).await.unwrap(),
    );
    assert_ne!(one.id(), two.id());
    assert_eq!(one.id().len(), 32, "128 bits");
    assert_eq!(used(&leases, "acme").await, 2);
}

/// 64 tasks start 1,000 pieces of work against limits of 10 per tenant and 100 in total.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_acquires_use_exactly_the_limits() {
    let leases = Leases::new().per_tenant(10).total(100);
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (leases, next) = (leases.clone(), next.clone());
            tokio::spawn(async move {
                let mut held = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= 1000 {
                        return held;
                    }
                    // 16 tenants need more slots than the total limit has.
                    let tenant = tenant(&(n % 16).to_string());
                    if let Ok(lease) = leases.acquire(&tenant, &n.to_string()).await {
                        held.push(lease);
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut held = Vec::new();
    for task in tasks {
        held.extend(task.await.unwrap());
    }
    assert_eq!(held.len(), 100);
    assert_eq!(total(&leases).await, 100);
    for n in 0..16 {
        assert!(used(&leases, &n.to_string()).await <= 10);
    }
    drop(held);
    assert_eq!(total(&leases).await, 0);
}

#[tokio::test]
async fn new_limits_apply_to_all_clones_immediately() {
    let (leases, clock) = on_clock(Leases::new().per_tenant(2).total(3));
    let clone = leases.clone();
    let acme = tenant("acme");
    let taken = async |id| {
        leases
            .acquire(&acme, id)
            .await
            .map(tower_admission::Lease::detach)
    };
    taken("1").await.unwrap();
    taken("2").await.unwrap();
    let rejected = taken("3").await.unwrap_err();
    assert_eq!(rejected.occupancy().unwrap().allowed, 2);
    clone.set_per_tenant(4);
    taken("3").await.unwrap();
    let rejected = taken("4").await.unwrap_err();
    assert_eq!(rejected.reason(), Reason::AtCapacity);
    clone.set_total(Capacity::Unlimited);
    taken("4").await.unwrap();
    // The limit drops below the slots in use: they stay.
    clone.set_per_tenant(1);
    let rejected = taken("5").await.unwrap_err();
    let occupancy = rejected.occupancy().unwrap();
    assert_eq!((occupancy.used, occupancy.allowed), (4, 1));
    clone.set_per_tenant(0);
    assert_eq!(taken("5").await.unwrap_err().reason(), Reason::Denied);

    // A setter returns leases with their own settings.
    let other = leases.clone().per_tenant(9);
    other.set_total(7);
    clone.set_per_tenant(Capacity::Unlimited);
    taken("5").await.unwrap();

    clone.set_ttl(120 * SECOND);
    assert_eq!(leases.time_to_live(), 120 * SECOND);
    assert_eq!(leases.heartbeat(&acme, "1").await, LeaseStatus::Live);
    clock.advance(61 * SECOND);
    assert_eq!(used(&leases, "acme").await, 1);
    clock.advance(60 * SECOND);
    assert_eq!(used(&leases, "acme").await, 0);
}
