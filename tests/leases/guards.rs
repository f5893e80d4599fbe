//! Until it is detached, a lease is released on every path.

use std::pin::pin;

use tower_admission::store::LeaseStatus;
use tower_admission::{Lease, Leases, Reason};

use crate::away::DelayedLeases;
use crate::{poll_once, tenant, total, used};

/// Starts work whose dispatch may fail.
async fn start(leases: &Leases, hand_over: impl AsyncFnOnce(&Lease) -> Result<(), String>) {
    let started: Result<(), String> = async {
        let lease = leases
            .acquire(&tenant("acme"), "1")
            .await
            .map_err(|rejection| rejection.to_string())?;
        hand_over(&lease).await?;
        lease.detach();
        Ok(())
    }
    .await;
    drop(started);
}

#[tokio::test]
async fn an_early_return_releases_the_lease() {
    let leases = Leases::new();
    start(&leases, async |_| Err("no room in the queue".to_owned())).await;
    assert_eq!(used(&leases, "acme").await, 0);
    start(&leases, async |_| Ok(())).await;
    assert_eq!(used(&leases, "acme").await, 1, "a detached lease stays");
}

#[tokio::test]
async fn a_panic_releases_the_lease() {
    let leases = Leases::new();
    let panicking = {
        let leases = leases.clone();
        tokio::spawn(async move {
            start(&leases, async |_| panic!("the dispatcher has a bug")).await;
        })
    };
    assert!(panicking.await.unwrap_err().is_panic());
    assert_eq!(used(&leases, "acme").await, 0);
}

#[tokio::test]
async fn a_cancelled_dispatch_releases_the_lease() {
    let leases = Leases::new();
    {
        let mut starting = pin!(start(&leases, async |_| std::future::pending().await));
        assert!(poll_once(starting.as_mut()).is_pending());
        assert_eq!(used(&leases, "acme").await, 1);
    }
    assert_eq!(used(&leases, "acme").await, 0);
}

/// A network store takes the slot and answers at any later time.
#[tokio::test]
async fn an_acquire_that_is_cancelled_at_any_await_takes_no_slot() {
    for answered in [false, true] {
        let store = DelayedLeases::default();
        let leases = Leases::new().store(store.clone());
        let acme = tenant("acme");
        {
            let mut acquiring = pin!(leases.acquire(&acme, "1"));
            assert!(poll_once(acquiring.as_mut()).is_pending());
            store.take_in();
            if answered {
                store.answer();
            }
        }
        store.give_all_answers().await;
        assert_eq!(store.taken().await, 0, "answered: {answered}");
    }
}

#[tokio::test]
async fn a_dropped_lease_is_released_in_the_background() {
    let store = DelayedLeases::default();
    store.answer_at_once();
    let leases = Leases::new().store(store.clone());
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    assert_eq!(store.taken().await, 1);
    drop(lease);
    store.until_taken(0).await;
}

#[tokio::test]
async fn a_release_is_retried_until_the_store_answers() {
    tokio::time::pause();
    let store = DelayedLeases::default();
    store.answer_at_once();
    let leases = Leases::new().store(store.clone());
    let many: Vec<_> = {
        let mut many = Vec::new();
        for n in 0..10 {
            many.push(
                leases
                    .acquire(&tenant("acme"), &n.to_string())
                    .await
                    .unwrap(),
            );
        }
        many
    };
    store.go_away();
    drop(many);
    tokio::time::sleep(crate::SECOND).await;
    assert_eq!(store.taken().await, 10);
    store.come_back();
    store.until_taken(0).await;
}

#[tokio::test]
async fn release_waits_for_the_store() {
    let store = DelayedLeases::default();
    store.answer_at_once();
    let leases = Leases::new().store(store.clone());
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    assert_eq!(lease.release().await, LeaseStatus::Live);
    assert_eq!(store.taken().await, 0);

    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    leases.release(&tenant("acme"), "1").await;
    assert_eq!(lease.release().await, LeaseStatus::Gone);
}

#[tokio::test]
async fn a_lease_that_is_dropped_outside_of_a_runtime_is_released_by_the_next_flush() {
    let store = DelayedLeases::default();
    store.answer_at_once();
    let leases = Leases::new().store(store.clone());
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    std::thread::spawn(move || drop(lease)).join().unwrap();
    assert_eq!(store.taken().await, 1);
    leases.flush().await;
    assert_eq!(store.taken().await, 0);
}

#[tokio::test]
async fn a_rejected_acquire_releases_nothing() {
    let leases = Leases::new().total(1);
    let acme = tenant("acme");
    let held = leases.acquire(&acme, "1").await.unwrap();
    let refused = leases.acquire(&acme, "2").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::AtCapacity);
    assert_eq!(total(&leases).await, 1);
    drop(held);
    assert_eq!(total(&leases).await, 0);
}
