//! Finds room for a new key.

use super::level::{Entry, FINGERPRINT, Level, Slot};
use super::{BucketState, EvictionCriteria, Stripe, Table, TableKey, update_slot};
use crate::sync::{Ordering, lock};

/// How long a bucket must be full before a new key takes its slot while other room exists. A key
/// with occasional requests keeps its slot, which costs less than a new insert.
const IDLE_NANOS: u64 = 1_000_000_000;

/// Rows of other keys that are searched before a bucket that is not full is evicted.
const OTHER_ROWS: u64 = 4;

/// The candidates in a key's rows, the best of each kind.
#[derive(Default)]
struct Candidates<'a> {
    /// A slot without a key, in the largest level that has one.
    free: Option<(&'a Slot, Entry)>,
    /// The fullest bucket that does not deny.
    fullest: Option<EvictionCandidate<'a>>,
}

/// A bucket that may be evicted.
#[derive(Clone, Copy)]
struct EvictionCandidate<'a> {
    slot: &'a Slot,
    entry: Entry,
    full_at: u64,
}

impl<'a> Candidates<'a> {
    fn consider(&mut self, slot: &'a Slot, criteria: &impl EvictionCriteria) -> Entry {
        let entry = slot.load();
        if entry.is_free() {
            self.free.get_or_insert((slot, entry));
        } else if let Some(full_at) = criteria.full_at(entry.state)
            && self.fullest.is_none_or(|best| full_at < best.full_at)
        {
            self.fullest = Some(EvictionCandidate {
                slot,
                entry,
                full_at,
            });
        }
        entry
    }

    /// The fullest bucket, if it has been full since `time`.
    fn full_since(&self, time: u64) -> Option<EvictionCandidate<'a>> {
        self.fullest.filter(|fullest| fullest.full_at <= time)
    }
}

impl Table {
    /// Inserts a key. If another thread inserted it first, updates that entry.
    #[cold]
    #[inline(never)]
    pub(super) fn insert<T>(
        &self,
        key: TableKey,
        criteria: &impl EvictionCriteria,
        step: &impl Fn(Option<BucketState>) -> (T, Option<BucketState>),
    ) -> T {
        let stripe = self.stripe(key);
        let _inserting = lock(&stripe.insert);
        loop {
            if let Some((slot, entry)) = self.find(key) {
                if let Some(result) = update_slot(slot, entry, step) {
                    return result;
                }
                continue;
            }
            let (result, state) = step(None);
            let Some(state) = state else {
                return result;
            };
            let entry = Entry {
                fingerprint: key.fingerprint,
                state,
            };
            match self.claim(key, criteria, entry) {
                ClaimOutcome::Claimed => return result,
                ClaimOutcome::Retry => {}
                ClaimOutcome::NoRoom => return update_overflow(&stripe.overflow, step),
            }
        }
    }

    fn claim(&self, key: TableKey, criteria: &impl EvictionCriteria, entry: Entry) -> ClaimOutcome {
        let open_levels = self.open_levels.load(Ordering::Acquire);
        if self.is_crowded(open_levels) && self.open_next_level(open_levels) {
            return ClaimOutcome::Retry;
        }
        let candidates = self.candidates(key, criteria);
        if let Some(full) = candidates.full_since(criteria.now().saturating_sub(IDLE_NANOS)) {
            return self.claim_from(full, criteria, entry);
        }
        match candidates.free {
            Some(free) if self.reserve() => return self.claim_free(free, entry),
            None if self.open_next_level(open_levels) => return ClaimOutcome::Retry,
            _ => {}
        }
        // The table is at its bound, or, which is rare, all rows of this key are full. If no bucket
        // here can be evicted without losing debt, another row may have a better one. That helps
        // only if this key has a free slot, which takes over the other one's place in the count.
        if let Some(free) = candidates.free
            && candidates.full_since(criteria.now()).is_none()
            && self.free_in_other_rows(key, criteria, candidates.fullest)
        {
            return self.claim_free(free, entry);
        }
        match candidates.fullest {
            Some(fullest) => self.claim_from(fullest, criteria, entry),
            None => ClaimOutcome::NoRoom,
        }
    }

    /// Evicts a bucket and takes its slot.
    fn claim_from(
        &self,
        fullest: EvictionCandidate<'_>,
        criteria: &impl EvictionCriteria,
        entry: Entry,
    ) -> ClaimOutcome {
        if self.evict(fullest, criteria, entry) {
            ClaimOutcome::Claimed
        } else {
            ClaimOutcome::Retry
        }
    }

    /// Replaces a bucket, unless it changed meanwhile.
    fn evict(
        &self,
        fullest: EvictionCandidate<'_>,
        criteria: &impl EvictionCriteria,
        new: Entry,
    ) -> bool {
        let is_replaced = fullest.slot.replace(fullest.entry, new).is_ok();
        if is_replaced && fullest.full_at > criteria.now() {
            self.evictions.0.fetch_add(1, Ordering::Relaxed);
        }
        is_replaced
    }

    /// Takes a free slot, after a place in the count was reserved.
    fn claim_free(&self, (slot, old): (&Slot, Entry), entry: Entry) -> ClaimOutcome {
        let claim = ClaimOutcome::from(slot.replace(old, entry));
        if claim == ClaimOutcome::Retry {
            self.keys.0.fetch_sub(1, Ordering::Relaxed);
        }
        claim
    }

    fn candidates(&self, key: TableKey, criteria: &impl EvictionCriteria) -> Candidates<'_> {
        let mut candidates = Candidates::default();
        let open_levels = self.open_levels.load(Ordering::Acquire);
        for level in self.levels[..open_levels].iter().rev() {
            for slot in &level.make_row(key.row_hash).0 {
                // Rows fill from the front: no key follows a slot that was never used.
                if candidates.consider(slot, criteria) == Entry::EMPTY {
                    break;
                }
            }
        }
        candidates
    }

    /// Evicts the fullest bucket of a few other rows, if it is fuller than `here`. The caller gets
    /// its place in the count.
    fn free_in_other_rows(
        &self,
        key: TableKey,
        criteria: &impl EvictionCriteria,
        here: Option<EvictionCandidate<'_>>,
    ) -> bool {
        let here = here.map_or(u64::MAX, |fullest| fullest.full_at);
        let victim = self.fullest_in_other_rows(key, criteria);
        victim.is_some_and(|fullest| {
            fullest.full_at < here && self.evict(fullest, criteria, Entry::VACANT)
        })
    }

    fn fullest_in_other_rows(
        &self,
        key: TableKey,
        criteria: &impl EvictionCriteria,
    ) -> Option<EvictionCandidate<'_>> {
        let mut candidates = Candidates::default();
        let open_levels = self.open_levels.load(Ordering::Acquire);
        for offset in 1..=OTHER_ROWS {
            // Far away in every level: the high bits choose the row.
            let row_hash = key.row_hash.wrapping_add((offset << 56) | (offset << 40));
            for level in self.levels[..open_levels].iter().rev() {
                for slot in level.row(row_hash).iter().flat_map(|row| &row.0) {
                    candidates.consider(slot, criteria);
                }
            }
        }
        candidates.fullest
    }

    /// The overflow bucket's state, if this new key would be charged to it.
    #[cold]
    pub(super) fn overflow_state(
        &self,
        key: TableKey,
        criteria: &impl EvictionCriteria,
    ) -> Option<BucketState> {
        let overflow = self.stripe(key).overflow.load();
        (!overflow.is_free() && !self.has_room(key, criteria)).then_some(overflow.state)
    }

    /// Whether a new key would find room.
    fn has_room(&self, key: TableKey, criteria: &impl EvictionCriteria) -> bool {
        let candidates = self.candidates(key, criteria);
        if candidates.fullest.is_some() {
            return true;
        }
        match candidates.free {
            Some(_) => {
                self.len() < self.max_keys || self.fullest_in_other_rows(key, criteria).is_some()
            }
            None => self.open_levels.load(Ordering::Acquire) < self.levels.len(),
        }
    }

    fn stripe(&self, key: TableKey) -> &Stripe {
        // These bits do not choose rows.
        &self.stripes[(key.fingerprint >> 16) as usize % self.stripes.len()].0
    }

    /// Whether the first `open_levels` levels are three quarters full.
    fn is_crowded(&self, open_levels: usize) -> bool {
        let slots: usize = self.levels[..open_levels].iter().map(Level::slots).sum();
        self.len() >= slots / 4 * 3
    }

    /// Opens the level after the first `open_levels`, unless another thread did. Returns `false` if there
    /// is none.
    fn open_next_level(&self, open_levels: usize) -> bool {
        let has_next = open_levels < self.levels.len();
        if has_next {
            let _ = self.open_levels.compare_exchange(
                open_levels,
                open_levels + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
        has_next
    }

    /// Counts one more key, unless the table is at its bound.
    fn reserve(&self) -> bool {
        let one_more = |keys| (keys < self.max_keys).then_some(keys + 1);
        self.keys
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }
}

/// Steps the state of the shared overflow bucket.
fn update_overflow<T>(
    overflow: &Slot,
    step: &impl Fn(Option<BucketState>) -> (T, Option<BucketState>),
) -> T {
    let mut entry = overflow.load();
    loop {
        let (result, state) = step((!entry.is_free()).then_some(entry.state));
        let Some(state) = state else {
            return result;
        };
        let fingerprint = FINGERPRINT;
        match overflow.replace(entry, Entry { fingerprint, state }) {
            Ok(()) => return result,
            Err(current) => entry = current,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClaimOutcome {
    Claimed,
    /// Another thread took the slot.
    Retry,
    NoRoom,
}

impl From<Result<(), Entry>> for ClaimOutcome {
    fn from(replaced: Result<(), Entry>) -> Self {
        match replaced {
            Ok(()) => Self::Claimed,
            Err(_) => Self::Retry,
        }
    }
}
