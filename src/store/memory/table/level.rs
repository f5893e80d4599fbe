//! One level of the table: rows of slots, in chunks that are allocated on first use.

use std::sync::OnceLock;

use super::BucketState;
use crate::sync::{AtomicU128, Ordering};

/// Slots in a row: two cache lines, which x86 fetches as a pair.
pub(super) const ROW: usize = 8;

/// Rows in a chunk: 64 KiB, small enough to be zeroed within one insert.
const CHUNK: usize = 512;

/// One level: a flat array of rows. A key has exactly one row in each level.
#[derive(Debug)]
pub(super) struct Level {
    chunks: Box<[OnceLock<Box<[Row]>>]>,
    rows: usize,
    multiplier: u64,
}

#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Row(pub(super) [Slot; ROW]);

/// A key's fingerprint and state, read and replaced as one word.
///
/// This keeps the table simple: a successful exchange proves that the slot still held the state
/// that was checked.
#[derive(Debug)]
pub(super) struct Slot(AtomicU128);

/// The content of a slot: 48 bits of fingerprint, 16 bits of rule number, and 64 bits of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// The low 16 bits are 0.
    pub(super) fingerprint: u64,
    pub(super) state: BucketState,
}

/// The bits of a fingerprint.
pub(super) const FINGERPRINT: u64 = !0xffff;

impl Entry {
    /// Never used. Rows fill from the front, so all later slots of the row are empty too.
    pub(super) const EMPTY: Self = Self {
        fingerprint: 0,
        state: BucketState::NONE,
    };

    /// Used before and evicted. Later slots of the row may hold keys.
    pub(super) const VACANT: Self = Self {
        fingerprint: 1 << 16,
        state: BucketState::NONE,
    };

    pub(super) fn is_free(self) -> bool {
        self.fingerprint <= Self::VACANT.fingerprint
    }

    fn pack(self) -> u128 {
        let high = self.fingerprint | u64::from(self.state.rule_number);
        (u128::from(high) << 64) | u128::from(self.state.full_at)
    }

    fn unpack(word: u128) -> Self {
        let high = (word >> 64) as u64;
        Self {
            fingerprint: high & FINGERPRINT,
            state: BucketState {
                rule_number: high as u16,
                full_at: word as u64,
            },
        }
    }
}

impl Slot {
    pub(super) fn new() -> Self {
        Self(AtomicU128::new(Entry::EMPTY.pack()))
    }

    #[inline]
    pub(super) fn load(&self) -> Entry {
        Entry::unpack(self.0.load(Ordering::Acquire))
    }

    /// Replaces `old` by `new`. On failure returns the current entry.
    #[inline]
    pub(super) fn replace(&self, old: Entry, new: Entry) -> Result<(), Entry> {
        self.0
            .compare_exchange(old.pack(), new.pack(), Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(Entry::unpack)
    }
}

impl Level {
    pub(super) fn new(rows: usize, index: usize) -> Self {
        // Odd multipliers with well-mixed bits (multiples of the golden ratio's fraction) separate
        // keys in the next level that share a row in this one.
        let multiplier = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * index as u64 + 1) | 1;
        Self {
            chunks: (0..rows.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            rows,
            multiplier,
        }
    }

    pub(super) fn slots(&self) -> usize {
        self.rows * ROW
    }

    /// The row of a key, if its chunk is allocated.
    #[inline]
    pub(super) fn row(&self, row_hash: u64) -> Option<&Row> {
        let (chunk, row) = self.position(row_hash);
        self.chunks[chunk].get().map(|rows| &rows[row])
    }

    /// The row of a key. Allocates its chunk if necessary.
    pub(super) fn make_row(&self, row_hash: u64) -> &Row {
        let (chunk, row) = self.position(row_hash);
        let rows = self.chunks[chunk].get_or_init(|| {
            let rows = CHUNK.min(self.rows - chunk * CHUNK);
            let empty = || Row(std::array::from_fn(|_| Slot::new()));
            (0..rows).map(|_| empty()).collect()
        });
        &rows[row]
    }

    #[inline]
    fn position(&self, row_hash: u64) -> (usize, usize) {
        let mixed = u128::from(row_hash.wrapping_mul(self.multiplier));
        let row = ((mixed * self.rows as u128) >> 64) as usize;
        (row / CHUNK, row % CHUNK)
    }

    /// Bytes that this level uses.
    #[cfg(all(test, not(admission_loom)))]
    pub(super) fn bytes(&self) -> usize {
        let chunks = self.chunks.iter().filter_map(OnceLock::get);
        size_of_val(&*self.chunks) + chunks.map(|rows| size_of_val(&**rows)).sum::<usize>()
    }
}
