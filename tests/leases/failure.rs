//! What becomes of work while the store is away.

use tower_admission::store::{FailureMode, Standing};
use tower_admission::{Leases, Reason};

use crate::away::Later;
use crate::tenant;

fn away(mode: FailureMode) -> (Leases, Later) {
    let store = Later::failing(mode);
    store.answer_at_once();
    store.go_away();
    let leases = Leases::new().per_tenant(4).total(8);
    (leases.store(store.clone()), store)
}

#[tokio::test]
async fn open_admits_uncounted() {
    let (leases, _) = away(FailureMode::Open);
    for n in 0..20 {
        let lease = leases.acquire(&tenant("acme"), &n.to_string()).await;
        let lease = lease.expect("admitted");
        assert!(!lease.is_counted());
        lease.detach();
    }
}

#[tokio::test]
async fn closed_refuses() {
    let (leases, _) = away(FailureMode::Closed);
    let refused = leases.acquire(&tenant("acme"), "1").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Unavailable);
    assert!(refused.wait().is_some());
    assert_eq!(
        leases.heartbeat(&tenant("acme"), "1").await,
        Standing::Unavailable
    );
    assert_eq!(
        leases.release(&tenant("acme"), "1").await,
        Standing::Unavailable
    );
    assert_eq!(leases.usage(&tenant("acme")).await, None);
}

#[tokio::test]
async fn a_local_share_is_counted_here() {
    let (leases, store) = away(FailureMode::LocalShare { replicas: 2 });
    let acme = tenant("acme");
    let mut held = Vec::new();
    for n in 0..2 {
        held.push(leases.acquire(&acme, &n.to_string()).await.unwrap());
    }
    let refused = leases.acquire(&acme, "2").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::KeyAtCapacity);
    let occupancy = refused.occupancy().unwrap();
    assert_eq!((occupancy.used, occupancy.allowed), (2, 2));

    held.pop().unwrap().detach();
    assert_eq!(leases.heartbeat(&acme, "1").await, Standing::Live);
    assert_eq!(leases.release(&acme, "1").await, Standing::Live);
    let again = leases.acquire(&acme, "2").await;
    let again = again.expect("a slot of the share is free again");

    // The store knows nothing of these, and is not asked to give them back.
    store.come_back();
    drop((held, again));
    assert_eq!(store.taken().await, 0);
    let lease = leases.acquire(&acme, "3").await.unwrap();
    assert_eq!(store.taken().await, 1);
    drop(lease);
    store.until_taken(0).await;
}

/// A retry that comes while the store is away takes its work over here, and a release ends both.
#[tokio::test]
async fn work_that_is_in_the_store_and_in_a_share_is_released_from_both() {
    let (leases, store) = away(FailureMode::LocalShare { replicas: 2 });
    let acme = tenant("acme");
    store.come_back();
    leases.acquire(&acme, "1").await.unwrap().detach();
    store.go_away();
    leases.acquire(&acme, "1").await.unwrap().detach();
    store.come_back();
    assert_eq!(leases.release(&acme, "1").await, Standing::Live);
    assert_eq!(store.taken().await, 0);
    assert_eq!(leases.release(&acme, "1").await, Standing::Gone);
}
