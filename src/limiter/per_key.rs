//! How many each key has in flight.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::sync::Arc;

use crate::key::Key;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

const SHARDS: usize = 16;

/// A count for each key that has anything in flight; the entry goes with the last of it, so the
/// memory is bounded by what is in flight.
pub(super) struct PerKey {
    /// [`UNLIMITED`] for keys that are counted only if they have a limit of their own.
    limit: AtomicU64,
    shards: [Mutex<HashMap<Key, u64>>; SHARDS],
    hasher: std::hash::RandomState,
}

/// One slot of a key's, taken. Dropping it gives it back.
pub(super) struct KeySlot {
    per_key: Arc<PerKey>,
    key: Key,
    /// As it was when the slot was taken.
    limit: u64,
}

impl PerKey {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit: AtomicU64::new(limit),
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
            hasher: std::hash::RandomState::new(),
        }
    }

    /// How many a key may have that has no limit of its own.
    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Takes one of the key's slots if it has fewer than `limit`.
    pub(super) fn try_take(self: &Arc<Self>, key: Key, limit: u64) -> Option<KeySlot> {
        let mut shard = lock(self.shard(&key));
        let taken = shard.entry(key);
        match taken {
            Entry::Occupied(mut taken) if *taken.get() < limit => *taken.get_mut() += 1,
            Entry::Vacant(vacant) if limit > 0 => {
                vacant.insert(1);
            }
            _ => return None,
        }
        drop(shard);
        Some(KeySlot {
            per_key: self.clone(),
            key,
            limit,
        })
    }

    pub(super) fn taken(&self, key: &Key) -> u64 {
        lock(self.shard(key)).get(key).copied().unwrap_or(0)
    }

    fn give_back(&self, key: &Key) {
        let mut shard = lock(self.shard(key));
        let Some(taken) = shard.get_mut(key) else {
            return;
        };
        *taken -= 1;
        if *taken == 0 {
            shard.remove(key);
            // After a flood of keys, give its memory back.
            if shard.capacity() > 256 && shard.len() * 8 < shard.capacity() {
                let keep = shard.len() * 2;
                shard.shrink_to(keep);
            }
        }
    }

    fn shard(&self, key: &Key) -> &Mutex<HashMap<Key, u64>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    #[cfg(all(test, not(admission_loom)))]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

impl KeySlot {
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// How many the key may have.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// How many the key has, this one counted.
    pub(super) fn taken(&self) -> u64 {
        self.per_key.taken(&self.key)
    }
}

impl Drop for KeySlot {
    fn drop(&mut self) {
        self.per_key.give_back(&self.key);
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    #[test]
    fn entries_vanish_at_zero() {
        let per_key = Arc::new(PerKey::new(2));
        let keys: Vec<_> = (0..10_000u32)
            .map(|n| Key::id("user", &n.to_string()))
            .collect();
        let held: Vec<_> = keys
            .iter()
            .map(|key| per_key.try_take(*key, 2).unwrap())
            .collect();
        let more: Vec<_> = keys
            .iter()
            .map(|key| per_key.try_take(*key, 2).unwrap())
            .collect();
        assert!(keys.iter().all(|key| per_key.try_take(*key, 2).is_none()));
        assert_eq!(per_key.len(), keys.len());
        drop((held, more));
        assert_eq!(per_key.len(), 0);
        let capacity: usize = per_key
            .shards
            .iter()
            .map(|shard| lock(shard).capacity())
            .sum();
        assert!(capacity <= 256 * SHARDS, "{capacity}");
    }
}
