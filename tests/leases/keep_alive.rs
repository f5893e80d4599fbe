//! Heartbeats in the background, and losing what they are for.

use std::pin::pin;

use tower_admission::Leases;
use tower_admission::store::{FailureMode, Standing};

use crate::away::Later;
use crate::{SECOND, poll_once, tenant};

fn leases() -> (Leases, Later) {
    let store = Later::failing(FailureMode::Closed);
    store.answer_at_once();
    let leases = Leases::new().ttl(60 * SECOND).store(store.clone());
    (leases, store)
}

#[tokio::test(start_paused = true)]
async fn it_lives_for_as_long_as_it_is_held() {
    let (leases, store) = leases();
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    let kept = lease.keep_alive();
    for _ in 0..60 {
        // The store's clock and the runtime's.
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
async fn its_holder_is_told_when_somebody_else_releases_it() {
    let (leases, _store) = leases();
    let acme = tenant("acme");
    let kept = leases.acquire(&acme, "1").await.unwrap().keep_alive();
    assert_eq!(leases.release(&acme, "1").await, Standing::Live);
    kept.lost().await;
    assert!(kept.is_lost());
    kept.lost().await;
}

#[tokio::test(start_paused = true)]
async fn its_holder_is_told_when_it_may_have_expired() {
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
        "before others may have its slot: {after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_a_while_loses_nothing() {
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
    assert_eq!(store.taken().await, 1, "left to whoever knows its id");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_counted_is_never_lost() {
    let store = Later::failing(FailureMode::Open);
    store.answer_at_once();
    store.go_away();
    let leases = Leases::new().store(store);
    let lease = leases.acquire(&tenant("acme"), "1").await.unwrap();
    let kept = lease.keep_alive();
    let waited = tokio::time::timeout(3600 * SECOND, kept.lost()).await;
    assert!(waited.is_err());
}
