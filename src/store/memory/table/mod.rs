//! A bounded table of bucket states by fingerprint. Reads and updates take no lock.
//!
//! # Layout
//!
//! A pyramid of *levels*, each four times the size of the one before. A key has one *row* of eight
//! slots in each level. A slot is one 128-bit atomic: 48 bits of fingerprint, a 16-bit number of
//! the rule that charged the key, and the 64-bit time at which its bucket is full. The table never
//! interprets the number; the caller defines what a state means ([`EvictionCriteria`]). Slots never
//! move and rows are never freed, so no resize is needed. When the open levels are three quarters
//! full, or when a key's rows are full in all of them, the next level opens. Its memory is
//! allocated in chunks of 64 KiB when rows are first used.
//!
//! - **A known key:** the lookup scans its rows from the largest level on, which has three of four
//!   keys. A compare-and-swap of the whole slot updates it, without a lock.
//! - **A new key:** the insert takes the lock of its *stripe*, looks up the key again, and claims a
//!   slot by compare-and-swap. All inserts of one key use the same stripe, so a key is never in the
//!   table twice.
//! - **Room:** an insert takes a slot whose bucket has been full for over a second, then a slot
//!   that was never used. At the bound, it takes any full bucket, then the fullest one that it
//!   finds. It never evicts a bucket that denies: the compare-and-swap names the state that was
//!   checked.
//! - **No room:** when every candidate denies, the new keys of a stripe share one overflow bucket.
//!
//! # Collisions
//!
//! Two keys share a bucket if their 48-bit fingerprints are equal and they meet in a row, which
//! other bits choose. The probability is about 1 in 10¹³ for a new key in a table of a million. All
//! 128 bits come from a keyed hash, so without the secret a client cannot aim at a row, a stripe or
//! another key.

mod insert;
mod level;

use std::fmt;

use self::level::{Entry, FINGERPRINT, Level, ROW, Slot};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

/// Rows of the first level: 2 KiB.
const FIRST_ROWS: usize = 16;

/// Slots beyond two for each key, which spread the keys of small tables.
const SPARE_SLOTS: usize = 64;

/// The ratio of the sizes of successive levels.
const GROWTH: usize = 4;

/// The number of insert locks.
#[cfg(not(admission_loom))]
const STRIPES: usize = 64;
#[cfg(admission_loom)]
const STRIPES: usize = 1;

/// The key of an entry, from 128 unpredictable bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TableKey {
    fingerprint: u64,
    row_hash: u64,
}

impl TableKey {
    #[inline]
    pub(crate) fn new([fingerprint, row_hash]: [u64; 2]) -> Self {
        // The low values mark slots without a key.
        let least = Entry::VACANT.fingerprint + (1 << 16);
        Self {
            fingerprint: (fingerprint & FINGERPRINT).max(least),
            row_hash,
        }
    }
}

/// The state of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketState {
    /// The number of the rule that charged the key.
    pub(crate) rule_number: u16,
    /// The time at which the bucket is full at the rate of that rule.
    pub(crate) full_at: u64,
}

impl BucketState {
    /// The state of a slot without a key.
    pub(crate) const NONE: Self = Self {
        rule_number: 0,
        full_at: 0,
    };
}

/// Decides which buckets may be evicted, at one reading of the clock.
pub(crate) trait EvictionCriteria {
    /// The current time. A bucket with a `full_at` up to this time is full.
    fn now(&self) -> u64;

    /// The time at which the bucket is full under the rules in force. `None`: the bucket denies and
    /// must not be evicted.
    fn full_at(&self, state: BucketState) -> Option<u64>;
}

/// The bounded table; see the module documentation.
pub(crate) struct Table {
    levels: Box<[Level]>,
    /// The number of open levels, from the smallest.
    open_levels: AtomicUsize,
    keys: Padded<AtomicUsize>,
    /// Evicted buckets that were not full.
    evictions: Padded<AtomicU64>,
    max_keys: usize,
    stripes: Box<[Padded<Stripe>]>,
}

/// Keeps a value off the cache lines that other cores write.
#[repr(align(128))]
struct Padded<T>(T);

struct Stripe {
    /// Locked while a key of this stripe is inserted.
    insert: Mutex<()>,
    /// The bucket for keys that found no room. Free until first used.
    overflow: Slot,
}

impl Table {
    /// Creates a table for at most `max_keys` keys, and at least one.
    pub(crate) fn new(max_keys: usize) -> Self {
        let max_keys = max_keys.max(1);
        Self {
            levels: level_rows(max_keys)
                .into_iter()
                .enumerate()
                .map(|(index, rows)| Level::new(rows, index))
                .collect(),
            open_levels: AtomicUsize::new(1),
            keys: Padded(AtomicUsize::new(0)),
            evictions: Padded(AtomicU64::new(0)),
            max_keys,
            stripes: (0..STRIPES)
                .map(|_| {
                    Padded(Stripe {
                        insert: Mutex::new(()),
                        overflow: Slot::new(),
                    })
                })
                .collect(),
        }
    }

    /// The number of keys in the table.
    pub(crate) fn len(&self) -> usize {
        self.keys.0.load(Ordering::Relaxed)
    }

    /// The number of evicted buckets that were not full, since the table was created.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.0.load(Ordering::Relaxed)
    }

    /// Bytes in use.
    #[cfg(all(test, not(admission_loom)))]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.stripes) + self.levels.iter().map(Level::bytes).sum::<usize>()
    }

    /// The state that an update of this key would find: its own, or the overflow bucket's if there
    /// is no room for the key.
    #[inline]
    pub(crate) fn get(
        &self,
        key: TableKey,
        criteria: &impl EvictionCriteria,
    ) -> Option<BucketState> {
        match self.find(key) {
            Some((_, entry)) => Some(entry.state),
            None => self.overflow_state(key, criteria),
        }
    }

    /// Updates a key's state. `step` gets the stored state, if there is one, and returns a result
    /// and the state to store; `None` stores nothing. `step` runs again whenever another thread
    /// changed the state meanwhile.
    #[inline]
    pub(crate) fn update<T>(
        &self,
        key: TableKey,
        criteria: &impl EvictionCriteria,
        step: impl Fn(Option<BucketState>) -> (T, Option<BucketState>),
    ) -> T {
        if let Some((slot, entry)) = self.find(key)
            && let Some(result) = update_slot(slot, entry, &step)
        {
            return result;
        }
        self.insert(key, criteria, &step)
    }

    /// Like [`update`](Self::update), but only for a key that is in the table.
    #[inline]
    pub(crate) fn update_known<T>(
        &self,
        key: TableKey,
        step: impl Fn(Option<BucketState>) -> (T, Option<BucketState>),
    ) -> Option<T> {
        let (slot, entry) = self.find(key)?;
        // If another key has the slot by now, the bucket was evicted.
        update_slot(slot, entry, &step)
    }

    // A separate call would cost a tenth of a decision.
    #[inline(always)]
    fn find(&self, key: TableKey) -> Option<(&Slot, Entry)> {
        let open_levels = self.open_levels.load(Ordering::Acquire);
        for level in self.levels[..open_levels].iter().rev() {
            let Some(row) = level.row(key.row_hash) else {
                continue;
            };
            for slot in &row.0 {
                let entry = slot.load();
                if entry.fingerprint == key.fingerprint {
                    return Some((slot, entry));
                }
                if entry == Entry::EMPTY {
                    break;
                }
            }
        }
        None
    }
}

/// Steps the state in a slot. Returns `None` if another key has the slot by now.
#[inline(always)]
fn update_slot<T>(
    slot: &Slot,
    mut entry: Entry,
    step: &impl Fn(Option<BucketState>) -> (T, Option<BucketState>),
) -> Option<T> {
    let fingerprint = entry.fingerprint;
    loop {
        let (result, state) = step(Some(entry.state));
        let Some(state) = state else {
            return Some(result);
        };
        match slot.replace(entry, Entry { fingerprint, state }) {
            Ok(()) => return Some(result),
            Err(current) if current.fingerprint == fingerprint => entry = current,
            Err(_) => return None,
        }
    }
}

/// The rows of each level for a bound. Each key gets two slots, so rows are half full.
fn level_rows(max_keys: usize) -> Vec<usize> {
    let slots = max_keys.saturating_mul(2).saturating_add(SPARE_SLOTS);
    let mut left = slots.div_ceil(ROW);
    let mut rows = FIRST_ROWS;
    let mut levels = Vec::new();
    while left > 0 {
        // The last level also takes a remainder that is too small for another level.
        let take = if left <= 2 * rows { left } else { rows };
        levels.push(take);
        left -= take;
        rows *= GROWTH;
    }
    levels
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("keys", &self.len())
            .field("max_keys", &self.max_keys)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, admission_loom))]
mod loom_tests;
#[cfg(all(test, not(admission_loom)))]
mod tests;
