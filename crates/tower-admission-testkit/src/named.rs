//! The suite for leases by name.

use std::sync::Arc;
use std::time::Duration;

use super::leases::new_slots;
use super::new_key;
use tower_admission::Key;
use tower_admission::store::{
    LeaseLimits, LeaseName, LeaseSlots, LeaseStatus, LeaseStore, NamedAcquireOutcome, NamedLease,
    NamedLimits,
};

/// Long enough for a few calls to any store.
const TTL: Duration = Duration::from_secs(2);

pub(super) async fn run(store: &dyn LeaseStore, pass: impl AsyncFn(Duration)) {
    limits_and_what_they_have_taken(store).await;
    released_once_by_whom_it_may(store).await;
    taken_over_and_not_counted_twice(store).await;
    lives_as_long_as_it_is_heard_of(store, &pass).await;
    times_to_live_of_any_length(store, &pass).await;
    counted_with_slots_that_have_no_name(store).await;
    races_take_all_and_no_more(store).await;
}

/// The leases of a name that no other run uses.
struct Case(Arc<dyn LeaseSlots>);

impl Case {
    fn new(store: &dyn LeaseStore) -> Self {
        let (_, slots) = new_slots(store);
        Self(slots)
    }

    async fn take(&self, name: LeaseName, holder: u64, limits: (u64, u64)) -> NamedAcquireOutcome {
        let limits = NamedLimits::new(Some(limits.0), Some(limits.1));
        let lease = NamedLease::new(name, holder, TTL);
        self.0.acquire_named(&lease, limits).await
    }

    async fn release(&self, name: LeaseName, holder: Option<u64>) -> LeaseStatus {
        self.0.release(&name, holder).await
    }

    async fn taken(&self, tenant: &Key) -> (u64, Option<u64>) {
        let usage = self.0.usage(Some(tenant)).await;
        let usage = usage.expect("a store that answers");
        (usage.total, usage.key)
    }
}

fn of(tenant: Key) -> LeaseName {
    LeaseName::new(tenant, new_key())
}

async fn limits_and_what_they_have_taken(store: &dyn LeaseStore) {
    let case = Case::new(store);
    let (a, b) = (new_key(), new_key());
    let limits = (3, 2);
    for tenant in [a, a, b] {
        assert_eq!(
            case.take(of(tenant), 1, limits).await,
            NamedAcquireOutcome::Granted
        );
    }
    assert_eq!(
        case.take(of(a), 1, limits).await,
        NamedAcquireOutcome::KeyFull(2),
        "a tenant over its limit is told so, also when there is no room at all"
    );
    assert_eq!(
        case.take(of(b), 1, limits).await,
        NamedAcquireOutcome::Full(3)
    );
    assert_eq!(case.taken(&a).await, (3, Some(2)));

    let none = NamedLimits::new(None, None);
    let lease = NamedLease::new(of(a), 1, TTL);
    let more = case.0.acquire_named(&lease, none).await;
    assert_eq!(more, NamedAcquireOutcome::Granted);
    assert_eq!(
        case.taken(&a).await,
        (4, Some(3)),
        "without limits it is counted alone"
    );
    let nothing = NamedLimits::new(Some(0), None);
    let lease = NamedLease::new(of(b), 1, TTL);
    let refused = case.0.acquire_named(&lease, nothing).await;
    assert_eq!(refused, NamedAcquireOutcome::Full(4));
}

async fn released_once_by_whom_it_may(store: &dyn LeaseStore) {
    let case = Case::new(store);
    let name = of(new_key());
    assert_eq!(case.release(name, None).await, LeaseStatus::Gone);
    assert_eq!(case.0.heartbeat(&name, None, TTL).await, LeaseStatus::Gone);
    assert_eq!(case.taken(&name.tenant).await, (0, Some(0)));

    case.take(name, 7, (9, 9)).await;
    let namesake = LeaseName::new(new_key(), name.id);
    assert_eq!(case.release(namesake, None).await, LeaseStatus::Gone);
    assert_eq!(
        case.0.heartbeat(&namesake, None, TTL).await,
        LeaseStatus::Gone
    );
    assert_eq!(case.release(name, Some(8)).await, LeaseStatus::Gone);
    assert_eq!(case.taken(&name.tenant).await, (1, Some(1)));
    assert_eq!(case.release(name, Some(7)).await, LeaseStatus::Live);
    assert_eq!(case.release(name, None).await, LeaseStatus::Gone);
    assert_eq!(case.taken(&name.tenant).await, (0, Some(0)));
}

async fn taken_over_and_not_counted_twice(store: &dyn LeaseStore) {
    let case = Case::new(store);
    let name = of(new_key());
    for holder in [1, 2] {
        let taken = case.take(name, holder, (1, 1)).await;
        assert_eq!(taken, NamedAcquireOutcome::Granted, "also at the limit");
        assert_eq!(case.taken(&name.tenant).await, (1, Some(1)));
    }
    assert_eq!(
        case.release(name, Some(1)).await,
        LeaseStatus::Gone,
        "an earlier holder leaves a later one's alone"
    );
    let heartbeat = async |holder| case.0.heartbeat(&name, holder, TTL).await;
    assert_eq!(heartbeat(Some(1)).await, LeaseStatus::Gone, "and is told");
    assert_eq!(heartbeat(Some(2)).await, LeaseStatus::Live);
    assert_eq!(heartbeat(None).await, LeaseStatus::Live);
    assert_eq!(case.taken(&name.tenant).await, (1, Some(1)));
    assert_eq!(case.release(name, None).await, LeaseStatus::Live);
}

async fn lives_as_long_as_it_is_heard_of(store: &dyn LeaseStore, pass: &impl AsyncFn(Duration)) {
    let case = Case::new(store);
    let tenant = new_key();
    let (heard_of, forgotten) = (of(tenant), of(tenant));
    for name in [heard_of, forgotten] {
        assert_eq!(
            case.take(name, 1, (2, 2)).await,
            NamedAcquireOutcome::Granted
        );
    }
    for _ in 0..3 {
        pass(TTL / 2).await;
        assert_eq!(
            case.0.heartbeat(&heard_of, None, TTL).await,
            LeaseStatus::Live
        );
    }
    assert_eq!(case.taken(&tenant).await, (1, Some(1)));
    assert_eq!(
        case.0.heartbeat(&forgotten, None, TTL).await,
        LeaseStatus::Gone,
        "a heartbeat does not bring back what has expired"
    );
    assert_eq!(case.release(forgotten, None).await, LeaseStatus::Gone);
    assert_eq!(
        case.take(of(tenant), 1, (2, 2)).await,
        NamedAcquireOutcome::Granted
    );
    pass(2 * TTL).await;
    assert_eq!(case.taken(&tenant).await, (0, Some(0)));
}

async fn times_to_live_of_any_length(store: &dyn LeaseStore, pass: &impl AsyncFn(Duration)) {
    let case = Case::new(store);
    let tenant = new_key();
    let none = NamedLimits::new(None, None);
    let mut names = Vec::new();
    for ttl in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        let lease = NamedLease::new(of(tenant), 1, ttl);
        let taken = case.0.acquire_named(&lease, none).await;
        assert_eq!(taken, NamedAcquireOutcome::Granted, "for {ttl:?}");
        names.push(lease.name);
    }
    let longest = names[2];
    let heartbeat = async |ttl| case.0.heartbeat(&longest, None, ttl).await;
    assert_eq!(heartbeat(Duration::MAX).await, LeaseStatus::Live);
    pass(TTL / 2).await;
    assert_eq!(case.taken(&tenant).await, (1, Some(1)));
    assert_eq!(heartbeat(Duration::ZERO).await, LeaseStatus::Live);
    pass(TTL / 2).await;
    assert_eq!(case.taken(&tenant).await, (0, Some(0)));
}

async fn counted_with_slots_that_have_no_name(store: &dyn LeaseStore) {
    let case = Case::new(store);
    let name = of(new_key());
    let limits = LeaseLimits::new(Some(2), [(name.tenant, 2), (new_key(), 2)]);
    let held = case.0.acquire(limits).await;
    case.take(name, 1, (2, 2)).await;
    assert_eq!(case.taken(&name.tenant).await, (2, Some(2)));
    let refused = case.take(of(name.tenant), 1, (2, 2)).await;
    assert_eq!(refused, NamedAcquireOutcome::KeyFull(2));
    assert_eq!(case.release(name, None).await, LeaseStatus::Live);
    drop(held);
}

async fn races_take_all_and_no_more(store: &dyn LeaseStore) {
    let case = Arc::new(Case::new(store));
    let tenants: Vec<_> = (0..16).map(|_| new_key()).collect();
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let case = case.clone();
            let tenant = tenants[task % 16];
            tokio::spawn(async move {
                let mut granted = 0;
                for _ in 0..16 {
                    let taken = case.take(of(tenant), 1, (100, 10)).await;
                    granted += u32::from(taken == NamedAcquireOutcome::Granted);
                }
                granted
            })
        })
        .collect();
    let mut granted = 0;
    for task in tasks {
        granted += task.await.expect("a task that does not panic");
    }
    assert_eq!(granted, 100, "never more than the limit, and all of it");
    for tenant in &tenants {
        assert!(case.taken(tenant).await.1 <= Some(10));
    }
}
