//! Background heartbeats, and lost leases.

use std::pin::pin;

use tower_admission::Leases;
use tower_admission::store::{FailureMode, LeaseStatus};

use crate::away::DelayedLeases;
use crate::{SECOND, poll_once, tenant};

fn leases() -> (Leases, DelayedLeases) {
    let store = DelayedLeases::failing(FailureMode::Closed);
    store.answer_at_once();
    let leases = Leases::new().ttl(60 * SECOND).store(store.clone());
    (leases, store)
}

#[tokio::test(start_paused = true)]
async fn heartbeats_extend_a_lease_while_it_is_held() {
    let (leases, store) = leases();
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    let kept = lease.keep_alive();
    for _ in 0..60 {
        // The clocks of the store and of the runtime.
        store.clock.advance(10 * SECOND);
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(store.taken().await, 1);
    }
    assert!(!kept.is_lost());
    assert!(poll_once(pin!(kept.lost())).is_pending());
    drop(kept);
    store.until_taken(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_release_by_another_caller_loses_the_lease() {
    let (leases, _store) = leases();
    let acme = tenant("acme");
    let kept = leases.acquire(&acme, "1").await.unwrap().keep_alive();
    assert_eq!(leases.release(&acme, "1").await, LeaseStatus::Live);
    kept.lost().await;
    assert!(kept.is_lost());
    kept.lost().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_may_have_expired_is_lost() {
    let (leases, store) = leases();
    let kept = leases
        .acquire(&tenant("acme"), "1")
        .await
        .unwrap()
        .keep_alive();
    let started = tokio::time::Instant::now();
    store.go_away();
    kept.lost().await;
    let after = started.elapsed();
    assert!(
        54 * SECOND <= after && after < 60 * SECOND,
        "before another caller can get its slot: {after:?}"
    );
}

/// The store counts from the acquire, so this process must too.
#[tokio::test(start_paused = true)]
async fn the_time_to_live_counts_from_the_acquire() {
    let (leases, store) = leases();
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    store.pass(45).await;
    let kept = lease.keep_alive();
    store.pass(40).await;
    assert!(!kept.is_lost());
    assert_eq!(store.taken().await, 1);
    drop(kept);
    store.until_taken(0).await;

    let started = tokio::time::Instant::now();
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    store.pass(30).await;
    let kept = lease.keep_alive();
    store.go_away();
    kept.lost().await;
    let after = started.elapsed();
    assert!(after < 60 * SECOND, "{after:?}");
}

/// A late first heartbeat is still sent, because another caller may have extended the lease by its
/// id.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_extended_by_id_is_not_lost() {
    let (leases, store) = leases();
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    for _ in 0..4 {
        store.pass(30).await;
        let standing = leases.heartbeat(&tenant("acme"), "1").await;
        assert_eq!(standing, LeaseStatus::Live);
    }
    let kept = lease.keep_alive();
    store.pass(200).await;
    assert!(!kept.is_lost());
    assert_eq!(store.taken().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_without_answers_loses_the_lease_before_it_expires() {
    let (leases, store) = leases();
    let started = tokio::time::Instant::now();
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    let kept = lease.keep_alive();
    store.hang();
    kept.lost().await;
    let after = started.elapsed();
    assert!(after < 60 * SECOND, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn an_acquire_of_the_same_id_loses_the_lease() {
    let (leases, store) = leases();
    let acme = tenant("acme");
    let kept = leases.acquire(&acme, "1").await.unwrap().keep_alive();
    assert_eq!(leases.release(&acme, "1").await, LeaseStatus::Live);
    leases.acquire(&acme, "1").await.unwrap().detach();
    store.pass(61).await;
    assert!(kept.is_lost());
    assert_eq!(store.taken().await, 0, "it does not extend the other lease");
}

/// A worker stalls for its time to live, and its work goes to another worker.
#[tokio::test(start_paused = true)]
async fn the_later_of_two_holders_keeps_the_lease() {
    let (leases, store) = leases();
    let acme = tenant("acme");
    let first = leases.acquire(&acme, "1").await.unwrap().keep_alive();
    store.clock.advance(61 * SECOND);
    let second = leases.acquire(&acme, "1").await.unwrap().keep_alive();
    store.pass(300).await;
    assert!(first.is_lost());
    assert!(!second.is_lost());
    drop(first);
    store.pass(60).await;
    assert_eq!(store.taken().await, 1);
    drop(second);
    store.until_taken(0).await;
}

/// No task would report the loss.
#[test]
fn a_lease_whose_heartbeat_task_ended_is_lost() {
    let runtime = |time: bool| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        if time {
            builder.enable_time();
        }
        builder.build().unwrap()
    };
    let leases = Leases::new();
    // Heartbeats need a timer.
    for time in [true, false] {
        let first = runtime(time);
        let kept = first.block_on(async {
            let kept = leases.acquire(&tenant("acme"), "1").await.unwrap();
            let kept = kept.keep_alive();
            tokio::task::yield_now().await;
            kept
        });
        drop(first);
        assert!(kept.is_lost());
        runtime(true).block_on(kept.lost());
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_of_the_store_loses_no_lease() {
    let (leases, store) = leases();
    let kept = leases
        .acquire(&tenant("acme"), "1")
        .await
        .unwrap()
        .keep_alive();
    store.go_away();
    tokio::time::sleep(40 * SECOND).await;
    store.come_back();
    tokio::time::sleep(300 * SECOND).await;
    assert!(!kept.is_lost());
    kept.detach();
    tokio::time::sleep(SECOND).await;
    assert_eq!(store.taken().await, 1, "a detached lease stays");
}

#[tokio::test(start_paused = true)]
async fn an_uncounted_lease_is_never_lost() {
    let store = DelayedLeases::failing(FailureMode::Open);
    store.answer_at_once();
    store.go_away();
    let leases = Leases::new().store(store);
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    let kept = lease.keep_alive();
    let waited = tokio::time::timeout(3600 * SECOND, kept.lost()).await;
    assert!(waited.is_err());
    assert!(!kept.is_lost());
}
