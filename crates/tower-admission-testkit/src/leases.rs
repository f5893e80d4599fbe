//! The suite for leases.

use std::sync::Arc;
use std::time::Duration;

use super::new_key;
use tower_admission::Key;
use tower_admission::store::{AcquireOutcome, LeaseLimits, LeaseSlots, LeaseStore, LeaseUsage};

pub(super) async fn run(store: &dyn LeaseStore) {
    slots_of_a_key_and_of_all(store).await;
    several_keys_take_all_or_nothing(store).await;
    a_key_at_two_places_is_counted_at_each(store).await;
    races_for_several_keys_exceed_none(store).await;
    slots_come_back(store).await;
    names_share(store).await;
    limits_of_zero(store).await;
    races_take_all_slots_and_no_more(store).await;
    cancelled_acquires_take_nothing(store).await;
}

/// The leases of a name that no other run of the suite uses.
pub(super) fn new_slots(store: &dyn LeaseStore) -> (String, Arc<dyn LeaseSlots>) {
    let mut bits = [0; 8];
    getrandom::fill(&mut bits).expect("the operating system gives random bytes");
    let name = format!("suite {:x}", u64::from_le_bytes(bits));
    let slots = store.open_leases(&name);
    (name, slots)
}

/// Waits until this many leases are live: a store may need a moment for a release.
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

fn is_granted(leased: &AcquireOutcome) -> bool {
    matches!(leased, AcquireOutcome::Granted(_))
}

fn is_key_full(leased: &AcquireOutcome, expected: usize) -> bool {
    matches!(leased, AcquireOutcome::KeyFull { place } if *place == expected)
}

/// The number of leases of a key at each of two indexes.
async fn taken_by(slots: &dyn LeaseSlots, key: &Key) -> [Option<u64>; 2] {
    let mut taken = [None; 2];
    for (place, taken) in taken.iter_mut().enumerate() {
        let usage = slots.usage_at(Some(key), place).await;
        *taken = usage.expect("a store that answers").key;
    }
    taken
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
        is_key_full(&slots.acquire(of(alice)).await, 0),
        "a key over its limit is told so, also when there is no room at all"
    );
    assert!(matches!(slots.acquire(of(bob)).await, AcquireOutcome::Full));
    let unlimited = LeaseLimits::new(None, None);
    let more = slots.acquire(unlimited).await;
    assert!(is_granted(&more), "without a limit it is counted alone");
    drop((held, more));
    until_taken(&*slots, 0).await;
}

async fn several_keys_take_all_or_nothing(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let (alice, bob, address) = (new_key(), new_key(), new_key());
    let of = |token: Key| LeaseLimits::new(Some(4), [(token, 2), (address, 3)]);
    let mut held = Vec::new();
    for token in [alice, alice, bob] {
        held.push(slots.acquire(of(token)).await);
    }
    assert!(held.iter().all(is_granted), "slots within all limits");
    assert!(
        is_key_full(&slots.acquire(of(alice)).await, 0),
        "of two keys that are full it is the first"
    );
    assert!(is_key_full(&slots.acquire(of(bob)).await, 1));
    assert_eq!(taken_by(&*slots, &bob).await, [Some(1), Some(0)]);
    assert_eq!(taken_by(&*slots, &address).await, [Some(0), Some(3)]);

    // A key with room, after a full key and before a full total.
    let elsewhere = new_key();
    let other = LeaseLimits::new(Some(4), [(alice, 2), (elsewhere, 3)]);
    assert!(is_key_full(&slots.acquire(other).await, 0));
    let full = LeaseLimits::new(Some(3), [(bob, 2), (elsewhere, 3)]);
    assert!(matches!(slots.acquire(full).await, AcquireOutcome::Full));
    assert_eq!(taken_by(&*slots, &bob).await, [Some(1), Some(0)]);
    assert_eq!(taken_by(&*slots, &elsewhere).await, [Some(0), Some(0)]);
    let usage = slots.usage(Some(&alice)).await;
    assert_eq!(usage, Some(LeaseUsage::new(3, Some(2))));

    drop(held);
    until_taken(&*slots, 0).await;
    for key in [alice, bob, address] {
        assert_eq!(taken_by(&*slots, &key).await, [Some(0), Some(0)]);
    }
}

/// Like an address that stands for a missing token, and is limited as an address, too.
async fn a_key_at_two_places_is_counted_at_each(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let (alice, address) = (new_key(), new_key());
    let of = |first: Key| LeaseLimits::new(None, [(first, 2), (address, 4)]);
    let mut held = Vec::new();
    for first in [alice, alice, address, address] {
        held.push(slots.acquire(of(first)).await);
    }
    assert!(
        held.iter().all(is_granted),
        "what others take at the second place does not count at the first"
    );
    assert_eq!(taken_by(&*slots, &address).await, [Some(2), Some(4)]);
    assert!(is_key_full(&slots.acquire(of(address)).await, 0));
    assert!(is_key_full(&slots.acquire(of(new_key())).await, 1));
    held.truncate(3);
    until_taken(&*slots, 3).await;
    assert_eq!(taken_by(&*slots, &address).await, [Some(1), Some(3)]);
    drop(held);
    until_taken(&*slots, 0).await;
    assert_eq!(taken_by(&*slots, &address).await, [Some(0), Some(0)]);
}

async fn races_for_several_keys_exceed_none(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let (tokens, addresses) = ([(); 16].map(|()| new_key()), [(); 4].map(|()| new_key()));
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let slots = slots.clone();
            let keys = [(tokens[task % 16], 10), (addresses[task % 4], 25)];
            let limits = LeaseLimits::new(None, keys);
            tokio::spawn(async move {
                let mut held = Vec::new();
                for _ in 0..16 {
                    let leased = slots.acquire(limits.clone()).await;
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
    assert_eq!(held.len(), 100, "never more than the limits, and all of it");
    for token in &tokens {
        assert!(taken_by(&*slots, token).await[0] <= Some(10));
    }
    for address in &addresses {
        assert_eq!(taken_by(&*slots, address).await, [Some(0), Some(25)]);
    }
    drop(held);
    until_taken(&*slots, 0).await;
}

async fn slots_come_back(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let limits = LeaseLimits::new(Some(1), Some((new_key(), 1)));
    for _ in 0..5 {
        let held = slots.acquire(limits.clone()).await;
        assert!(is_granted(&held));
        drop(held);
        until_taken(&*slots, 0).await;
    }
}

async fn names_share(store: &dyn LeaseStore) {
    let (name, slots) = new_slots(store);
    let limits = LeaseLimits::new(Some(1), None);
    let held = slots.acquire(limits.clone()).await;
    let same = store.open_leases(&name);
    assert!(matches!(
        same.acquire(limits.clone()).await,
        AcquireOutcome::Full
    ));
    let (_, others) = new_slots(store);
    assert!(is_granted(&others.acquire(limits).await));
    drop(held);
    until_taken(&*same, 0).await;
    until_taken(&*others, 0).await;
}

async fn limits_of_zero(store: &dyn LeaseStore) {
    let (_, slots) = new_slots(store);
    let none = LeaseLimits::new(Some(0), None);
    assert!(matches!(slots.acquire(none).await, AcquireOutcome::Full));
    let none_of_key = LeaseLimits::new(None, Some((new_key(), 0)));
    assert!(is_key_full(&slots.acquire(none_of_key).await, 0));
    let none_of_second = LeaseLimits::new(None, [(new_key(), 1), (new_key(), 0)]);
    assert!(is_key_full(&slots.acquire(none_of_second).await, 1));
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
                    let leased = slots.acquire(limits.clone()).await;
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
    let keys = [(new_key(), 10_000), (new_key(), 10_000)];
    let limits = LeaseLimits::new(Some(10_000), keys);
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let acquiring = slots.acquire(limits.clone());
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
