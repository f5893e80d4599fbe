//! Counts the requests in flight of each key.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::DerefMut;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::key::Key;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

const SHARDS: usize = 16;

/// One count for each key with requests in flight. The entry of a key is removed with its last
/// request, so the memory is bounded by the requests in flight.
pub(super) struct KeyCounters {
    /// The default limit of a key. [`UNLIMITED`] counts a key only if it has an override.
    limit: AtomicU64,
    shards: [Mutex<HashMap<Key, u64>>; SHARDS],
    hasher: std::hash::RandomState,
}

/// The key slots that a permit holds.
pub(super) type KeySlots = SmallVec<[KeySlot; 2]>;

/// A request for a slot of one key.
pub(super) struct KeySlotRequest<'a> {
    pub(super) per_key: &'a Arc<KeyCounters>,
    pub(super) key: Key,
    /// The limit of the key.
    pub(super) limit: u64,
}

/// A slot of a key. Dropping it releases it.
pub(super) struct KeySlot {
    per_key: Arc<KeyCounters>,
    key: Key,
    /// The limit at the time when the slot was taken.
    limit: u64,
}

impl KeyCounters {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit: AtomicU64::new(limit),
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
            hasher: std::hash::RandomState::new(),
        }
    }

    /// The limit of keys without an override.
    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub(super) fn in_flight(&self, key: &Key) -> u64 {
        lock(self.shard(key)).get(key).copied().unwrap_or(0)
    }

    fn release(&self, key: &Key) {
        let mut shard = lock(self.shard(key));
        let Some(taken) = shard.get_mut(key) else {
            return;
        };
        *taken -= 1;
        if *taken == 0 {
            shard.remove(key);
            // After a flood of keys, free most of the memory.
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

    /// The limit of the key.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The number of requests that the key has in flight, including this one.
    pub(super) fn in_flight(&self) -> u64 {
        self.per_key.in_flight(&self.key)
    }
}

impl Drop for KeySlot {
    fn drop(&mut self) {
        self.per_key.release(&self.key);
    }
}

/// Takes a slot of every key, or of none. Returns the index of the first key at its limit.
///
/// Holds the locks of all keys together. If a slot were taken and released because another key is
/// full, requests of its key could be rejected in between. The locks belong to different
/// [`KeyCounters`] and are always taken in the order of their positions, so they cannot deadlock.
#[inline]
pub(super) fn try_take_all(requests: &[KeySlotRequest<'_>]) -> Result<KeySlots, usize> {
    let mut shards: SmallVec<[_; 2]> = SmallVec::new();
    for (
        place,
        KeySlotRequest {
            per_key,
            key,
            limit,
        },
    ) in requests.iter().enumerate()
    {
        let shard = lock(per_key.shard(key));
        if shard.get(key).copied().unwrap_or(0) >= *limit {
            return Err(place);
        }
        shards.push(shard);
    }
    let slots = requests.iter().zip(&mut shards);
    let slots = slots.map(
        |(
            KeySlotRequest {
                per_key,
                key,
                limit,
            },
            shard,
        )| {
            *shard.deref_mut().entry(*key).or_default() += 1;
            KeySlot {
                per_key: Arc::clone(per_key),
                key: *key,
                limit: *limit,
            }
        },
    );
    Ok(slots.collect())
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    fn try_take(per_key: &Arc<KeyCounters>, key: Key, limit: u64) -> Option<KeySlots> {
        try_take_all(&[KeySlotRequest {
            per_key,
            key,
            limit,
        }])
        .ok()
    }

    #[test]
    fn a_key_without_requests_has_no_entry() {
        let per_key = Arc::new(KeyCounters::new(2));
        let keys: Vec<_> = (0..10_000u32)
            .map(|n| Key::id("user", &n.to_string()))
            .collect();
        let held: Vec<_> = keys
            .iter()
            .map(|key| try_take(&per_key, *key, 2).unwrap())
            .collect();
        let more: Vec<_> = keys
            .iter()
            .map(|key| try_take(&per_key, *key, 2).unwrap())
            .collect();
        assert!(keys.iter().all(|key| try_take(&per_key, *key, 2).is_none()));
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

    #[test]
    fn a_key_at_its_limit_takes_no_slot_of_other_keys() {
        let limits = [1, 2, 1].map(|limit| Arc::new(KeyCounters::new(limit)));
        let take = |keys: [&str; 3]| {
            let requests = keys.iter().zip(&limits);
            let requests = requests.map(|(key, per_key)| KeySlotRequest {
                per_key,
                key: Key::id("key", key),
                limit: per_key.limit(),
            });
            try_take_all(&requests.collect::<Vec<_>>())
        };
        let taken = || limits.each_ref().map(|per_key| per_key.len());
        let held = take(["a", "x", "same"]).unwrap();
        assert_eq!(take(["a", "x", "same"]).err(), Some(0));
        assert_eq!(take(["b", "y", "same"]).err(), Some(2));
        assert_eq!(taken(), [1, 1, 1], "the rejected ones have left nothing");
        let more = take(["b", "x", "other"]).unwrap();
        assert_eq!(take(["c", "x", "third"]).err(), Some(1));
        drop((held, more));
        assert_eq!(taken(), [0, 0, 0]);
    }
}
