//! A bounded table of arrival times, by fingerprint, that reads and updates without a lock.
//!
//! # How it is laid out
//!
//! A pyramid of *levels*, each four times the one before; a key has one *row* of eight slots in
//! each. A slot is one 128-bit atomic: 64 bits of fingerprint and 64 bits of arrival time. Slots
//! never move and rows are never freed, so there is no resize: when the open levels are three
//! quarters full, or a key's rows are full in all of them, the next one is opened, and its memory
//! is taken in chunks of 64 KiB as rows are first used.
//!
//! - **A known key** is found by scanning its rows, the largest level first, where three of four
//!   keys are, and updated by a compare-and-swap of the whole slot. No lock.
//! - **A new key** takes the lock of its *stripe* (all inserts of one key meet there, so a key is
//!   never in the table twice), looks again, and claims a slot by compare-and-swap.
//! - **Room** comes from slots whose bucket has been full again for over a second, then from
//!   slots never used. At the bound it comes from any full bucket, then from the fullest one that
//!   can be seen. A bucket that is denying right now is never given up: the compare-and-swap
//!   names the very arrival time that was judged.
//! - **When there is no room at all**, because everything in sight is denying, new keys of a
//!   stripe share one overflow bucket.
//!
//! # Collisions
//!
//! Two keys are one to the table when their 64-bit fingerprints agree and they meet in a row,
//! which other bits decide: below 3 in 10¹⁸ for a new key, whatever the table holds. All 128 bits come from a
//! keyed hash, so nobody without the secret can aim at a row, a stripe or another key.

mod insert;
mod level;

use std::fmt;

use self::level::{Entry, Level, ROW, Slot};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

/// Rows of the first level: 2 KiB.
const FIRST_ROWS: usize = 16;

/// Slots beyond two for every key, so that small tables have room to part in as well.
const SPARE_SLOTS: usize = 64;

/// How much larger each level is than the one before.
const GROWTH: usize = 4;

/// Locks that inserts are spread over.
#[cfg(not(admission_loom))]
const STRIPES: usize = 64;
#[cfg(admission_loom)]
const STRIPES: usize = 1;

/// A place in the table, from 128 unpredictable bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    fingerprint: u64,
    place: u64,
}

impl Place {
    #[inline]
    pub(crate) fn new([fingerprint, place]: [u64; 2]) -> Self {
        Self {
            // 0 and 1 mark slots that hold no key.
            fingerprint: fingerprint.max(Entry::VACANT.fingerprint + 1),
            place,
        }
    }
}

/// What may be forgotten, as of one reading of the clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    /// The time. A bucket with an arrival time up to here is full.
    pub(crate) now: u64,
    /// The latest arrival time at which a bucket does not deny.
    pub(crate) admits: u64,
    /// The arrival time of an empty bucket.
    pub(crate) empty: u64,
    /// Arrival times above this come from a clock that has stepped back since.
    pub(crate) latest: u64,
}

/// The bounded table; see the module's documentation.
pub(crate) struct Table {
    levels: Box<[Level]>,
    /// How many of the levels are in use, from the smallest.
    open: AtomicUsize,
    keys: Padded<AtomicUsize>,
    /// Buckets that were given up and not full.
    evictions: Padded<AtomicU64>,
    max_keys: usize,
    stripes: Box<[Padded<Stripe>]>,
}

/// Apart from what other cores write.
#[repr(align(128))]
struct Padded<T>(T);

struct Stripe {
    /// Held while a key of this stripe is put in.
    insert: Mutex<()>,
    /// The arrival time of the bucket for keys that found no room; 0 until then.
    overflow: AtomicU64,
}

impl Table {
    /// A table that holds at most `max_keys` keys, and at least one.
    pub(crate) fn new(max_keys: usize) -> Self {
        let max_keys = max_keys.max(1);
        Self {
            levels: level_rows(max_keys)
                .into_iter()
                .enumerate()
                .map(|(index, rows)| Level::new(rows, index))
                .collect(),
            open: AtomicUsize::new(1),
            keys: Padded(AtomicUsize::new(0)),
            evictions: Padded(AtomicU64::new(0)),
            max_keys,
            stripes: (0..STRIPES)
                .map(|_| {
                    Padded(Stripe {
                        insert: Mutex::new(()),
                        overflow: AtomicU64::new(0),
                    })
                })
                .collect(),
        }
    }

    /// How many keys the table holds, the forgotten ones not counted.
    pub(crate) fn len(&self) -> usize {
        self.keys.0.load(Ordering::Relaxed)
    }

    /// How many buckets were given up that were not full, since the table was made.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.0.load(Ordering::Relaxed)
    }

    /// Bytes in use.
    #[cfg(all(test, not(admission_loom)))]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.stripes) + self.levels.iter().map(Level::bytes).sum::<usize>()
    }

    /// The arrival time that an update of this key would find: its own, or that of the overflow
    /// bucket if there is no room for it.
    #[inline]
    pub(crate) fn get(&self, key: Place, judge: impl FnOnce() -> Judge) -> Option<u64> {
        match self.find(key) {
            Some((_, entry)) => Some(entry.arrival),
            None => self.get_overflow(key, judge()),
        }
    }

    /// Updates a key's arrival time by `step`, which is called with what the table has, if it has
    /// anything, again whenever another thread came in between. An error changes nothing.
    ///
    /// `judge` is asked for only when the key is new and room has to be found.
    #[inline]
    pub(crate) fn update<T, E>(
        &self,
        key: Place,
        judge: impl FnOnce() -> Judge,
        step: impl Fn(Option<u64>) -> Result<(T, u64), E>,
    ) -> Result<T, E> {
        if let Some((slot, entry)) = self.find(key)
            && let Some(result) = update_slot(slot, entry, &step)
        {
            return result;
        }
        self.insert(key, judge(), &step)
    }

    /// As [`update`](Self::update) of a key that the table has; nothing of one that it has not.
    #[inline]
    pub(crate) fn update_known<T, E>(
        &self,
        key: Place,
        step: impl Fn(Option<u64>) -> Result<(T, u64), E>,
    ) -> Option<Result<T, E>> {
        let (slot, entry) = self.find(key)?;
        update_slot(slot, entry, &step)
    }

    /// Forgets a key, and returns its arrival time. Ordered with inserts of the key: one that comes after
    /// this sees what was done before.
    pub(crate) fn remove(&self, key: Place) -> Option<u64> {
        let _inserting = self.hold_inserts(key);
        loop {
            let (slot, entry) = self.find(key)?;
            if slot.replace(entry, Entry::VACANT).is_ok() {
                self.keys.0.fetch_sub(1, Ordering::Relaxed);
                return Some(entry.arrival);
            }
        }
    }

    /// Whether the table has the key.
    pub(crate) fn has(&self, key: Place) -> bool {
        self.find(key).is_some()
    }

    /// Takes `amount` off a key's arrival time, if the table has the key.
    pub(crate) fn give_back(&self, key: Place, amount: u64) {
        self.change(key, |arrival| arrival.saturating_sub(amount));
    }

    /// Lowers a key's arrival time to `arrival`, if the table has the key and a later one.
    #[cold]
    pub(crate) fn lower(&self, key: Place, arrival: u64) {
        self.change(key, |current| current.min(arrival));
    }

    fn change(&self, key: Place, change: impl Fn(u64) -> u64) {
        if let Some((slot, entry)) = self.find(key) {
            // With another owner by now the bucket was forgotten, which gave back more than this.
            let _ = update_slot(slot, entry, &|arrival: Option<u64>| {
                Ok::<_, ()>(((), change(arrival.unwrap_or(0))))
            });
        }
    }

    #[inline]
    fn find(&self, key: Place) -> Option<(&Slot, Entry)> {
        let open = self.open.load(Ordering::Acquire);
        for level in self.levels[..open].iter().rev() {
            let Some(row) = level.row(key.place) else {
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

/// Steps the arrival time in a slot, or returns `None` when the slot has another owner by now.
#[inline]
fn update_slot<T, E>(
    slot: &Slot,
    mut entry: Entry,
    step: &impl Fn(Option<u64>) -> Result<(T, u64), E>,
) -> Option<Result<T, E>> {
    let fingerprint = entry.fingerprint;
    loop {
        let (value, arrival) = match step(Some(entry.arrival)) {
            Ok(stepped) => stepped,
            Err(error) => return Some(Err(error)),
        };
        let stepped = Entry {
            fingerprint,
            arrival,
        };
        match slot.replace(entry, stepped) {
            Ok(()) => return Some(Ok(value)),
            Err(current) if current.fingerprint == fingerprint => entry = current,
            Err(_) => return None,
        }
    }
}

/// The rows of each level for a bound: two slots for every key, so that rows are half full.
fn level_rows(max_keys: usize) -> Vec<usize> {
    let slots = max_keys.saturating_mul(2).saturating_add(SPARE_SLOTS);
    let mut left = slots.div_ceil(ROW);
    let mut rows = FIRST_ROWS;
    let mut levels = Vec::new();
    while left > 0 {
        // The last level takes what would be too little for one of its own.
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
