//! A bounded table of bucket states, by fingerprint, that reads and updates without a lock.
//!
//! # How it is laid out
//!
//! A pyramid of *levels*, each four times the one before; a key has one *row* of eight slots in
//! each. A slot is one 128-bit atomic: 48 bits of fingerprint, a 16-bit number that says under which rule
//! the key was charged, and the 64-bit time at which its bucket is full. The table never reads the number: what
//! a state means is the caller's to say ([`Judge`]). Slots never move and rows are never freed, so there is no resize: when the open levels are three
//! quarters full, or a key's rows are full in all of them, the next one is opened, and its memory
//! is taken in chunks of 64 KiB as rows are first used.
//!
//! - **A known key** is found by scanning its rows, the largest level first, where three of four
//!   keys are, and updated by a compare-and-swap of the whole slot. No lock.
//! - **A new key** takes the lock of its *stripe* (all inserts of one key meet there, so a key is
//!   never in the table twice), looks again, and claims a slot by compare-and-swap.
//! - **Room** comes from slots whose bucket has been full again for over a second, then from
//!   slots never used. At the bound it comes from any full bucket, then from the fullest one that
//!   can be seen. A bucket that is denying right now is never evicted: the compare-and-swap
//!   names the very state that was judged.
//! - **When there is no room at all**, because everything in sight is denying, new keys of a
//!   stripe share one overflow bucket.
//!
//! # Collisions
//!
//! Two keys are one to the table when their 48-bit fingerprints agree and they meet in a row,
//! which other bits decide: about 1 in 10¹³ for a new key in a table of a million. All 128 bits come from a
//! keyed hash, so nobody without the secret can aim at a row, a stripe or another key.

mod insert;
mod level;

use std::fmt;

use self::level::{Entry, FINGERPRINT, Level, ROW, Slot};
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
        // The low values mark slots that hold no key.
        let least = Entry::VACANT.fingerprint + (1 << 16);
        Self {
            fingerprint: (fingerprint & FINGERPRINT).max(least),
            place,
        }
    }
}

/// The state of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Under which rule the key was charged.
    pub(crate) number: u16,
    /// When the bucket is full at the rate of that rule.
    pub(crate) full_at: u64,
}

impl State {
    /// Of no key.
    pub(crate) const NONE: Self = Self {
        number: 0,
        full_at: 0,
    };
}

/// Says what may be evicted, as of one reading of the clock.
pub(crate) trait Judge {
    /// The time. A bucket that is full up to here is full.
    fn now(&self) -> u64;

    /// When the bucket is full under the rules as they are now. `None`: it denies, and must not be evicted.
    fn full_at(&self, state: State) -> Option<u64>;
}

/// The bounded table; see the module's documentation.
pub(crate) struct Table {
    levels: Box<[Level]>,
    /// How many of the levels are in use, from the smallest.
    open: AtomicUsize,
    keys: Padded<AtomicUsize>,
    /// Buckets that were evicted and not full.
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
    /// The bucket for keys that found no room. Its fingerprint is that of no key until then.
    overflow: Slot,
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
                        overflow: Slot::new(),
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

    /// The state that an update of this key would find: its own, or that of the overflow
    /// bucket if there is no room for it.
    #[inline]
    pub(crate) fn get(&self, key: Place, judge: &impl Judge) -> Option<State> {
        match self.find(key) {
            Some((_, entry)) => Some(entry.state),
            None => self.get_overflow(key, judge),
        }
    }

    /// Updates a key's state by `step`, which is called with what the table has, if it has
    /// anything, again whenever another thread came in between. It returns a result and the state to store; `None`
    /// stores nothing.
    #[inline]
    pub(crate) fn update<T>(
        &self,
        key: Place,
        judge: &impl Judge,
        step: impl Fn(Option<State>) -> (T, Option<State>),
    ) -> T {
        if let Some((slot, entry)) = self.find(key)
            && let Some(result) = update_slot(slot, entry, &step)
        {
            return result;
        }
        self.insert(key, judge, &step)
    }

    /// As [`update`](Self::update) of a key that the table has; nothing of one that it has not.
    #[inline]
    pub(crate) fn update_known<T>(
        &self,
        key: Place,
        step: impl Fn(Option<State>) -> (T, Option<State>),
    ) -> Option<T> {
        let (slot, entry) = self.find(key)?;
        // With another owner by now the bucket was evicted.
        update_slot(slot, entry, &step)
    }

    // A call of its own would cost a tenth of a decision.
    #[inline(always)]
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

/// Steps the state in a slot, or returns `None` when the slot has another owner by now.
#[inline(always)]
fn update_slot<T>(
    slot: &Slot,
    mut entry: Entry,
    step: &impl Fn(Option<State>) -> (T, Option<State>),
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
