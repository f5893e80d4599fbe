//! What every store has to do for slots.

use std::sync::Arc;
use std::time::Duration;

use super::new_key;
use crate::store::{LeaseLimits, LeaseSlots, LeaseStore, LeaseUsage, Leased};

pub(super) async fn run(store: &dyn LeaseStore) {
    slots_of_a_key_and_of_all(store).await;
    slots_come_back(store).await;
    names_share(store).await;
    limits_of_zero(store).await;
    races_take_all_slots_and_no_more(store).await;
    cancelled_acquires_take_nothing(store).await;
}

/// The slots of a name that no run of the suite had before.
pub(super) fn new_slots(store: &dyn LeaseStore) -> (String, Arc<dyn LeaseSlots>) {
    let mut bits = [0; 8];
    getrandom::fill(&mut bits).expect("the operating system gives random bytes");
    let name = format!("suite {:x}", u64::from_le_bytes(bits));
    let slots = store.open_leases(&name);
    (name, slots)
}

/// Waits until so many slots are taken: a store may take one back a moment after it was given.
async fn until_taken(slots: &dyn LeaseSlots, expected: u64) {
    for _ in 0..1000 {
        let usage = slots.usage(None).await.expect("a store that answers");
        if usage.total == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{expected} slots are taken, within ten seconds");
}

fn is_granted(leased: &Leased) -> bool {
    matches!(leased, Leased::Granted(_))
}

async fn slots_of_a_key_and_of_all(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let (alice, bob) = (new_key(), new_key());
    let of = |key| LeaseLimits::new(Some(3), Some((key, 2)));
    let held = [
        slots.acquire(of(alice)).await,
        slots.acquire(of(alice)).await,
        slots.acquire(of(bob)).await,
    ];
    assert!(held.iter().all(is_granted), "slots within both limits");
    let usage = slots.usage(Some(&alice)).await;
    assert_eq!(usage, Some(LeaseUsage::new(3, Some(2))));
    assert!(
        matches!(slots.acquire(of(alice)).await, Leased::KeyFull),
        "a key over its limit is told so, also when there is no room at all"
    );
    assert!(matches!(slots.acquire(of(bob)).await, Leased::Full));
    let unlimited = LeaseLimits::new(None, None);
    let more = slots.acquire(unlimited).await;
    assert!(is_granted(&more), "without a limit it is counted alone");
    drop((held, more));
    until_taken(&*slots, 0).await;
}

async fn slots_come_back(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let limits = LeaseLimits::new(Some(1), Some((new_key(), 1)));
    for _ in 0..5 {
        let held = slots.acquire(limits).await;
        assert!(is_granted(&held));
        drop(held);
        until_taken(&*slots, 0).await;
    }
}

async fn names_share(store: &dyn LeaseStore) {
    let (name, slots) = new_slots(store);
    let limits = LeaseLimits::new(Some(1), None);
    let held = slots.acquire(limits).await;
    let same = store.open_leases(&name);
    assert!(matches!(same.acquire(limits).await, Leased::Full));
    let (_, others) = new_slots(store);
    assert!(is_granted(&others.acquire(limits).await));
    drop(held);
    until_taken(&*same, 0).await;
    until_taken(&*others, 0).await;
}

async fn limits_of_zero(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let none = LeaseLimits::new(Some(0), None);
    assert!(matches!(slots.acquire(none).await, Leased::Full));
    let none_of_key = LeaseLimits::new(None, Some((new_key(), 0)));
    assert!(matches!(slots.acquire(none_of_key).await, Leased::KeyFull));
    until_taken(&*slots, 0).await;
}

async fn races_take_all_slots_and_no_more(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let keys: Vec<_> = (0..16).map(|_| new_key()).collect();
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let slots = slots.clone();
            let limits = LeaseLimits::new(Some(100), Some((keys[task % 16], 10)));
            tokio::spawn(async move {
                let mut held = Vec::new();
                for _ in 0..16 {
                    let leased = slots.acquire(limits).await;
                    if is_granted(&leased) {
                        held.push(leased);
                    }
                }
                held
            })
        })
        .collect();
    let mut held = Vec::new();
    for task in tasks {
        held.extend(task.await.expect("a task that does not panic"));
    }
    assert_eq!(held.len(), 100, "never more than the limit, and all of it");
    for key in &keys {
        let usage = slots.usage(Some(key)).await.expect("a store that answers");
        assert!(usage.key <= Some(10), "never more than the limit of a key");
    }
    drop(held);
    until_taken(&*slots, 0).await;
}

async fn cancelled_acquires_take_nothing(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let limits = LeaseLimits::new(Some(10_000), Some((new_key(), 10_000)));
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let acquiring = slots.acquire(limits);
            let soon = Duration::from_micros(2 * n);
            tokio::spawn(async move {
                drop(tokio::time::timeout(soon, acquiring.into_future()).await);
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task that does not panic");
    }
    until_taken(&*slots, 0).await;
}
