//! When to search again for a stalled response of a key.

use crate::key::Key;
use crate::sync::{AtomicU64, Ordering};

/// The number of keys for which a search without result is remembered.
pub(super) const REMEMBERED_KEYS: usize = 64;

/// The place and mark of a key in the table of searches.
pub(super) struct KeySearch {
    bucket: usize,
    /// Distinguishes the keys of one bucket.
    mark: u64,
}

impl KeySearch {
    const MARK_BITS: u32 = 24;

    pub(super) fn new(key: &Key) -> Self {
        let [bucket, mark] = key.hash_words();
        Self {
            bucket: bucket as usize % REMEMBERED_KEYS,
            mark: mark & ((1 << Self::MARK_BITS) - 1),
        }
    }

    pub(super) fn not_before(&self, searches: &[AtomicU64; REMEMBERED_KEYS]) -> u64 {
        let search = searches[self.bucket].load(Ordering::Relaxed);
        let is_mine = search & ((1 << Self::MARK_BITS) - 1) == self.mark;
        if is_mine {
            search >> Self::MARK_BITS
        } else {
            0
        }
    }

    pub(super) fn set_not_before(&self, searches: &[AtomicU64; REMEMBERED_KEYS], not_before: u64) {
        let search = (not_before << Self::MARK_BITS) | self.mark;
        searches[self.bucket].store(search, Ordering::Relaxed);
    }
}
