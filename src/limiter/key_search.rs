//! When to search for a stalled response of a key again.

use crate::key::Key;
use crate::sync::{AtomicU64, Ordering};

/// For how many keys a search that found nothing is remembered.
pub(super) const REMEMBERED_KEYS: usize = 64;

/// When to search for a key again: its place in the table, and its mark in there.
pub(super) struct KeySearch {
    bucket: usize,
    /// Bits that tell the keys of one bucket apart.
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
