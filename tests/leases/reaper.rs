//! Dropped leases are released, whatever happens to runtimes and stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tower_admission::store::{
    AcquireOutcome, LeaseLimits, LeaseName, LeaseSlots, LeaseStatus, LeaseStore, LeaseUsage,
    MemoryStore, NamedAcquireOutcome, NamedLease, NamedLimits, Reply,
};
use tower_admission::{Key, Lease, Leases};

use crate::away::DelayedLeases;
use crate::{SECOND, tenant, total};

fn leases() -> (Leases, DelayedLeases) {
    let store = DelayedLeases::default();
    store.answer_at_once();
    let leases = Leases::new().ttl(3600 * SECOND).store(store.clone());
    (leases, store)
}

async fn acquire(leases: &Leases, id: u32) -> Lease {
    let acquired = leases.acquire(&tenant("acme"), &id.to_string()).await;
    acquired.unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// More than the bound on queued releases of unconfirmed acquires.
const MANY: u32 = 70_000;

#[tokio::test]
async fn every_granted_lease_is_released() {
    let (leases, store) = leases();
    let mut held = Vec::new();
    for id in 0..MANY {
        held.push(acquire(&leases, id).await);
    }
    drop(held);
    leases.flush().await;
    assert_eq!(store.taken().await, 0);
}

#[tokio::test(start_paused = true)]
async fn acquires_that_fail_in_an_outage_displace_no_granted_lease() {
    let (leases, store) = leases();
    let lease = acquire(&leases, 0).await;
    store.go_away();
    for id in 1..MANY {
        let refused = leases.acquire(&tenant("acme"), &id.to_string()).await;
        assert!(refused.is_err());
    }
    drop(lease);
    store.come_back();
    store.until_taken(0).await;
    leases.flush().await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_expired_leases() {
    let (leases, store) = leases();
    let leases = leases.ttl(SECOND);
    let held = acquire(&leases, 0).await;
    store.go_away();
    for id in 1..MANY {
        let refused = leases.acquire(&tenant("acme"), &id.to_string()).await;
        assert!(refused.is_err());
    }
    drop(held);
    let started = tokio::time::Instant::now();
    leases.flush().await;
    assert!(started.elapsed() < 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_delays_a_flush_by_the_time_to_live() {
    let (leases, store) = leases();
    let leases = leases.ttl(SECOND);
    let lease = acquire(&leases, 1).await;
    store.hang();
    drop(lease);
    let flushed = tokio::time::timeout(60 * SECOND, leases.flush()).await;
    assert!(flushed.is_ok());
}

#[test]
fn a_flush_takes_over_from_a_runtime_that_has_ended() {
    let (leases, store) = leases();
    let first = runtime();
    first.block_on(async {
        let lease = acquire(&leases, 1).await;
        tokio::spawn(async move {
            let _lease = lease;
            std::future::pending::<()>().await;
        });
        // The runtime ends before the answer arrives.
        let lease = acquire(&leases, 2).await;
        store.hang();
        drop(lease);
        tokio::task::yield_now().await;
    });
    drop(first);
    store.answer();
    runtime().block_on(async {
        assert_eq!(store.taken().await, 2);
        leases.flush().await;
        assert_eq!(store.taken().await, 0);
    });
}

#[test]
fn a_flush_takes_over_from_a_stalled_runtime() {
    let (leases, store) = leases();
    let still = runtime();
    still.block_on(async { drop(acquire(&leases, 1).await) });
    runtime().block_on(async {
        drop(acquire(&leases, 2).await);
        leases.flush().await;
        assert_eq!(store.taken().await, 0);
    });
    // The replaced task does not disturb the new one.
    still.block_on(async {
        drop(acquire(&leases, 3).await);
        leases.flush().await;
        assert_eq!(store.taken().await, 0);
    });
}

/// A store whose first releases fail or panic.
#[derive(Clone)]
struct Flaky {
    slots: Arc<dyn LeaseSlots>,
    fails: Arc<AtomicU32>,
    panics: bool,
}

impl Flaky {
    fn new(fails: u32, panics: bool) -> Self {
        Self {
            slots: MemoryStore::new().open_leases(""),
            fails: Arc::new(fails.into()),
            panics,
        }
    }
}

impl LeaseStore for Flaky {
    fn open_leases(&self, _: &str) -> Arc<dyn LeaseSlots> {
        Arc::new(self.clone())
    }
}

impl LeaseSlots for Flaky {
    fn acquire(&self, limits: LeaseLimits) -> Reply<AcquireOutcome> {
        self.slots.acquire(limits)
    }

    fn usage_at(&self, key: Option<&Key>, place: usize) -> Reply<Option<LeaseUsage>> {
        self.slots.usage_at(key, place)
    }

    fn acquire_named(&self, lease: &NamedLease, limits: NamedLimits) -> Reply<NamedAcquireOutcome> {
        self.slots.acquire_named(lease, limits)
    }

    fn heartbeat(
        &self,
        name: &LeaseName,
        holder: Option<u64>,
        ttl: Duration,
    ) -> Reply<LeaseStatus> {
        self.slots.heartbeat(name, holder, ttl)
    }

    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<LeaseStatus> {
        let one_less = |left: u32| left.checked_sub(1);
        let fails = &self.fails;
        if (fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)).is_err() {
            return self.slots.release(name, holder);
        }
        assert!(!self.panics, "the store has a bug");
        Reply::Ready(LeaseStatus::Unavailable)
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_is_retried_after_an_outage_or_a_panic_of_the_store() {
    for panics in [false, true] {
        let leases = Leases::new().store(Flaky::new(3, panics));
        drop(acquire(&leases, 1).await);
        assert_eq!(total(&leases).await, 1);
        leases.flush().await;
        assert_eq!(total(&leases).await, 0);
    }
}
