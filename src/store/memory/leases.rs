//! Slots that are counted in this process, for several limiters of one name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};

use crate::key::Key;
use crate::store::{Held, LeaseLimits, LeaseUsage, Leased, Leases, Reply};
use crate::sync::{Mutex, lock};

/// The slots of one store, by the name of their limiter; gone with the last of those who use them.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<Mutex<HashMap<String, Weak<Slots>>>>);

/// The slots of one name.
#[derive(Default)]
struct Slots(Mutex<Taken>);

/// How many are taken. A key's count goes with the last of its slots, so the memory is bounded by
/// what is held.
#[derive(Default)]
struct Taken {
    total: u64,
    by_key: HashMap<Key, u64>,
}

struct MemoryLeases(Arc<Slots>);

/// A slot that is given back when this is dropped.
struct Slot {
    slots: Arc<Slots>,
    key: Option<Key>,
}

impl Names {
    pub(super) fn open(&self, name: &str) -> Arc<dyn Leases> {
        let mut names = lock(&self.0);
        names.retain(|_, slots| slots.strong_count() > 0);
        let slots = names.get(name).and_then(Weak::upgrade).unwrap_or_default();
        names.insert(name.to_owned(), Arc::downgrade(&slots));
        Arc::new(MemoryLeases(slots))
    }
}

impl Leases for MemoryLeases {
    fn acquire(&self, limits: LeaseLimits) -> Reply<Leased> {
        let mut taken = lock(&self.0.0);
        if let Some((key, limit)) = limits.key
            && taken.by(&key) >= limit
        {
            return Reply::Ready(Leased::KeyFull);
        }
        if limits.total.is_some_and(|limit| taken.total >= limit) {
            return Reply::Ready(Leased::Full);
        }
        taken.total += 1;
        let key = limits.key.map(|(key, _)| key);
        if let Some(key) = key {
            *taken.by_key.entry(key).or_default() += 1;
        }
        let slots = self.0.clone();
        Reply::Ready(Leased::Granted(Box::new(Slot { slots, key })))
    }

    fn usage(&self, key: Option<&Key>) -> Reply<Option<LeaseUsage>> {
        let taken = lock(&self.0.0);
        let of_key = key.map(|key| taken.by(key));
        Reply::Ready(Some(LeaseUsage::new(taken.total, of_key)))
    }
}

impl Taken {
    fn by(&self, key: &Key) -> u64 {
        self.by_key.get(key).copied().unwrap_or(0)
    }
}

impl Held for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = lock(&self.slots.0);
        taken.total -= 1;
        let Some(Entry::Occupied(mut of_key)) = self.key.map(|key| taken.by_key.entry(key)) else {
            return;
        };
        *of_key.get_mut() -= 1;
        if *of_key.get() == 0 {
            of_key.remove();
        }
    }
}
