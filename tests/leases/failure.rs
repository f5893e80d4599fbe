//! Leases while the store is unavailable.

use tower_admission::store::{FailureMode, LeaseStatus};
use tower_admission::{Leases, Reason};

use crate::away::DelayedLeases;
use crate::tenant;

fn away(mode: FailureMode) -> (Leases, DelayedLeases) {
    let store = DelayedLeases::failing(mode);
    store.answer_at_once();
    store.go_away();
    let leases = Leases::new().per_tenant(4).total(8);
    (leases.store(store.clone()), store)
}

#[tokio::test]
async fn failure_mode_open_admits_leases_without_counting_them() {
    let (leases, _) = away(FailureMode::Open);
    for n in 0..20 {
        let lease = leases.acquire(&tenant("acme"), &n.to_string()).await;
        let lease = lease.expect("admitted");
        assert!(!lease.is_counted());
        lease.detach();
    }
}

#[tokio::test]
async fn failure_mode_closed_rejects_acquires() {
    let (leases, _) = away(FailureMode::Closed);
    let refused = leases.acquire(&tenant("acme"), "1").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Unavailable);
    assert!(refused.retry_after().is_some());
    assert_eq!(
        leases.heartbeat(&tenant("acme"), "1").await,
        LeaseStatus::Unavailable
    );
    assert_eq!(
        leases.release(&tenant("acme"), "1").await,
        LeaseStatus::Unavailable
    );
    assert_eq!(leases.usage(&tenant("acme")).await, None);
}

#[tokio::test]
async fn a_local_share_counts_in_this_process() {
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
    assert_eq!(leases.heartbeat(&acme, "1").await, LeaseStatus::Live);
    assert_eq!(
        leases.release(&acme, "1").await,
        LeaseStatus::Unavailable,
        "the store may also know the lease"
    );
    let again = leases.acquire(&acme, "2").await;
    let again = again.expect("the share has a free slot again");

    // The store does not know these leases and gets no release for them.
    store.come_back();
    drop((held, again));
    assert_eq!(store.taken().await, 0);
    let lease = leases.acquire(&acme, "3").await.unwrap();
    assert_eq!(store.taken().await, 1);
    drop(lease);
    store.until_taken(0).await;
}

/// A retry during an outage takes the work over in the local share.
#[tokio::test]
async fn a_release_ends_the_copies_in_the_store_and_in_the_share() {
    let (leases, store) = away(FailureMode::LocalShare { replicas: 2 });
    let acme = tenant("acme");
    store.come_back();
    leases.acquire(&acme, "1").await.unwrap().detach();
    store.go_away();
    leases.acquire(&acme, "1").await.unwrap().detach();
    store.come_back();
    assert_eq!(leases.release(&acme, "1").await, LeaseStatus::Live);
    assert_eq!(store.taken().await, 0);
    assert_eq!(leases.release(&acme, "1").await, LeaseStatus::Gone);
}

#[tokio::test]
async fn a_release_without_the_store_returns_unavailable() {
    let (leases, store) = away(FailureMode::LocalShare { replicas: 1 });
    let acme = tenant("acme");
    store.come_back();
    leases.acquire(&acme, "1").await.unwrap().detach();
    store.go_away();
    leases.acquire(&acme, "1").await.unwrap().detach();
    assert_eq!(leases.release(&acme, "1").await, LeaseStatus::Unavailable);
    store.come_back();
    assert_eq!(store.taken().await, 1);
    assert_eq!(leases.release(&acme, "1").await, LeaseStatus::Live);
}

/// A lease in a share is live during the outage. Afterwards, the store's answer takes precedence.
#[tokio::test]
async fn a_lease_that_the_returned_store_does_not_know_is_gone() {
    let (leases, store) = away(FailureMode::LocalShare { replicas: 1 });
    let elsewhere = Leases::new().store(store.clone());
    let acme = tenant("acme");
    store.come_back();
    leases.acquire(&acme, "1").await.unwrap().detach();
    store.go_away();
    leases.acquire(&acme, "1").await.unwrap().detach();
    assert_eq!(leases.heartbeat(&acme, "1").await, LeaseStatus::Live);
    store.come_back();
    assert_eq!(elsewhere.release(&acme, "1").await, LeaseStatus::Live);
    assert_eq!(leases.heartbeat(&acme, "1").await, LeaseStatus::Gone);
    store.go_away();
    assert_eq!(
        leases.heartbeat(&acme, "1").await,
        LeaseStatus::Unavailable,
        "it is not live in the share either"
    );

    // A lease that only the share had can still be released.
    leases.acquire(&acme, "2").await.unwrap().detach();
    store.come_back();
    assert_eq!(leases.release(&acme, "2").await, LeaseStatus::Live);
    assert_eq!(leases.release(&acme, "2").await, LeaseStatus::Gone);
}

#[tokio::test]
async fn a_lease_that_the_store_grants_leaves_the_share() {
    let (leases, store) = away(FailureMode::LocalShare { replicas: 1 });
    let leases = leases.per_tenant(1);
    let acme = tenant("acme");
    leases.acquire(&acme, "1").await.unwrap().detach();
    store.come_back();
    let lease = leases.acquire(&acme, "1").await.unwrap();
    assert_eq!(lease.release().await, LeaseStatus::Live);
    store.go_away();
    let another = leases.acquire(&acme, "2").await;
    assert!(another.is_ok(), "no slot is in use");
}

#[tokio::test]
async fn leases_held_in_the_store_count_against_the_share() {
    let (leases, store) = away(FailureMode::LocalShare { replicas: 2 });
    let acme = tenant("acme");
    store.come_back();
    let lease = leases.acquire(&acme, "1").await.unwrap();
    let kept = leases.acquire(&acme, "2").await.unwrap().keep_alive();
    store.go_away();
    let refused = leases.acquire(&acme, "3").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::KeyAtCapacity);
    let occupancy = refused.occupancy().unwrap();
    assert_eq!((occupancy.used, occupancy.allowed), (2, 2));
    let _others = [
        leases.acquire(&tenant("umbrella"), "1").await.unwrap(),
        leases.acquire(&tenant("umbrella"), "2").await.unwrap(),
    ];
    let refused = leases.acquire(&tenant("hooli"), "1").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::AtCapacity);
    let occupancy = refused.occupancy().unwrap();
    assert_eq!((occupancy.used, occupancy.allowed), (4, 4));

    // This process does not learn when a detached lease ends.
    lease.detach();
    drop(kept);
    let held = [
        leases.acquire(&acme, "4").await.unwrap(),
        leases.acquire(&acme, "5").await.unwrap(),
    ];
    assert!(leases.acquire(&acme, "6").await.is_err());
    drop(held);
}

/// Leases derived from others by another name or another store.
#[tokio::test(start_paused = true)]
async fn leases_of_other_names_and_stores_share_no_counts() {
    let (base, store) = away(FailureMode::LocalShare { replicas: 1 });
    let base = base.per_tenant(1);
    let (jobs, streams) = (base.clone().name("jobs"), base.clone().name("streams"));
    let acme = tenant("acme");
    let _job = jobs.acquire(&acme, "1").await.unwrap();
    let _stream = streams.acquire(&acme, "1").await.unwrap();
    assert!(jobs.acquire(&acme, "2").await.is_err());

    // An unavailable store does not block an available one.
    let well = DelayedLeases::default();
    well.answer_at_once();
    let other = base.clone().store(well.clone());
    store.come_back();
    let held = base.acquire(&acme, "1").await.unwrap();
    let lease = other.acquire(&acme, "1").await.unwrap();
    store.go_away();
    drop((held, lease));
    other.flush().await;
    assert_eq!(well.taken().await, 0);
    assert_eq!(store.taken().await, 1);
}
