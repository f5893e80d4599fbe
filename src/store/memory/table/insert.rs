//! How a new key finds room.

use super::level::{Entry, FINGERPRINT, Level, Slot};
use super::{Judge, Place, State, Stripe, Table, update_slot};
use crate::sync::{Ordering, lock};

/// How long a bucket has to have been full before its slot is reused while there is other room.
/// A key that is used now and then keeps its slot, which is cheaper than putting it in again.
const IDLE: u64 = 1_000_000_000;

/// Strangers whose rows are looked at before a bucket is forgotten that is not full.
const WIDER_LOOK: u64 = 4;

/// What the rows of a key have to offer, the best of each sort.
#[derive(Default)]
struct Offers<'a> {
    /// A slot that holds no key, in the largest level that has one.
    free: Option<(&'a Slot, Entry)>,
    /// The fullest bucket of those that are not denying, and when it is full.
    fullest: Option<Fullest<'a>>,
}

/// A bucket that may be evicted.
#[derive(Clone, Copy)]
struct Fullest<'a> {
    slot: &'a Slot,
    entry: Entry,
    full_at: u64,
}

impl<'a> Offers<'a> {
    fn consider(&mut self, slot: &'a Slot, judge: &impl Judge) -> Entry {
        let entry = slot.load();
        if entry.is_free() {
            self.free.get_or_insert((slot, entry));
        } else if let Some(full_at) = judge.full_at(entry.state)
            && self.fullest.is_none_or(|best| full_at < best.full_at)
        {
            self.fullest = Some(Fullest {
                slot,
                entry,
                full_at,
            });
        }
        entry
    }

    /// The fullest bucket, if it has been full since `time`.
    fn full_since(&self, time: u64) -> Option<Fullest<'a>> {
        self.fullest.filter(|fullest| fullest.full_at <= time)
    }
}

impl Table {
    /// Puts a key in, unless another thread did so first; then updates what that one put in.
    #[cold]
    #[inline(never)]
    pub(super) fn insert<T>(
        &self,
        key: Place,
        judge: &impl Judge,
        step: &impl Fn(Option<State>) -> (T, Option<State>),
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
            match self.claim(key, judge, entry) {
                Claim::Done => return result,
                Claim::Again => {}
                Claim::NoRoom => return update_overflow(&stripe.overflow, step),
            }
        }
    }

    fn claim(&self, key: Place, judge: &impl Judge, entry: Entry) -> Claim {
        let open = self.open.load(Ordering::Acquire);
        if self.is_crowded(open) && self.open_next_level(open) {
            return Claim::Again;
        }
        let offers = self.offers(key, judge);
        if let Some(full) = offers.full_since(judge.now().saturating_sub(IDLE)) {
            return self.claim_from(full, judge, entry);
        }
        match offers.free {
            Some(free) if self.reserve() => return self.claim_free(free, entry),
            None if self.open_next_level(open) => return Claim::Again,
            _ => {}
        }
        // At the bound, or, which is rare, all rows of this key are full. Where no bucket here
        // can be forgotten without loss there may be a better one elsewhere, if there is a free
        // slot here to use its place in the count for.
        if let Some(free) = offers.free
            && offers.full_since(judge.now()).is_none()
            && self.free_elsewhere(key, judge, offers.fullest)
        {
            return self.claim_free(free, entry);
        }
        match offers.fullest {
            Some(fullest) => self.claim_from(fullest, judge, entry),
            None => Claim::NoRoom,
        }
    }

    /// Takes the slot of a bucket that is evicted.
    fn claim_from(&self, fullest: Fullest<'_>, judge: &impl Judge, entry: Entry) -> Claim {
        if self.evict(fullest, judge, entry) {
            Claim::Done
        } else {
            Claim::Again
        }
    }

    /// Puts something else in the place of a bucket, unless that has changed meanwhile.
    fn evict(&self, fullest: Fullest<'_>, judge: &impl Judge, new: Entry) -> bool {
        let is_done = fullest.slot.replace(fullest.entry, new).is_ok();
        if is_done && fullest.full_at > judge.now() {
            self.evictions.0.fetch_add(1, Ordering::Relaxed);
        }
        is_done
    }

    /// Takes a free slot, for which a place in the count is reserved.
    fn claim_free(&self, (slot, old): (&Slot, Entry), entry: Entry) -> Claim {
        let claim = Claim::from(slot.replace(old, entry));
        if claim == Claim::Again {
            self.keys.0.fetch_sub(1, Ordering::Relaxed);
        }
        claim
    }

    fn offers(&self, key: Place, judge: &impl Judge) -> Offers<'_> {
        let mut offers = Offers::default();
        let open = self.open.load(Ordering::Acquire);
        for level in self.levels[..open].iter().rev() {
            for slot in &level.make_row(key.place).0 {
                // Rows fill from the front, so the first slot never used is the last to look at.
                if offers.consider(slot, judge) == Entry::EMPTY {
                    break;
                }
            }
        }
        offers
    }

    /// Evicts the fullest bucket of a few other rows, if it is fuller than `here`; its place in
    /// the count is the caller's.
    fn free_elsewhere(&self, key: Place, judge: &impl Judge, here: Option<Fullest<'_>>) -> bool {
        let here = here.map_or(u64::MAX, |fullest| fullest.full_at);
        let victim = self.fullest_elsewhere(key, judge);
        victim.is_some_and(|fullest| {
            fullest.full_at < here && self.evict(fullest, judge, Entry::VACANT)
        })
    }

    fn fullest_elsewhere(&self, key: Place, judge: &impl Judge) -> Option<Fullest<'_>> {
        let mut offers = Offers::default();
        let open = self.open.load(Ordering::Acquire);
        for look in 1..=WIDER_LOOK {
            // Far away in every level: the high bits choose the row.
            let place = key.place.wrapping_add((look << 56) | (look << 40));
            for level in self.levels[..open].iter().rev() {
                for slot in level.row(place).iter().flat_map(|row| &row.0) {
                    offers.consider(slot, judge);
                }
            }
        }
        offers.fullest
    }

    /// The overflow bucket's state, if that is what this new key would be charged to.
    #[cold]
    pub(super) fn get_overflow(&self, key: Place, judge: &impl Judge) -> Option<State> {
        let overflow = self.stripe(key).overflow.load();
        (!overflow.is_free() && !self.has_room(key, judge)).then_some(overflow.state)
    }

    /// Whether a new key would find room.
    fn has_room(&self, key: Place, judge: &impl Judge) -> bool {
        let offers = self.offers(key, judge);
        if offers.fullest.is_some() {
            return true;
        }
        match offers.free {
            Some(_) => self.len() < self.max_keys || self.fullest_elsewhere(key, judge).is_some(),
            None => self.open.load(Ordering::Acquire) < self.levels.len(),
        }
    }

    fn stripe(&self, key: Place) -> &Stripe {
        // Other bits than those that choose rows.
        &self.stripes[(key.fingerprint >> 16) as usize % self.stripes.len()].0
    }

    /// Whether the first `open` levels are three quarters full.
    fn is_crowded(&self, open: usize) -> bool {
        let slots: usize = self.levels[..open].iter().map(Level::slots).sum();
        self.len() >= slots / 4 * 3
    }

    /// Opens one level more than `open`, unless another thread did so; `false` if there is none.
    fn open_next_level(&self, open: usize) -> bool {
        let more = open < self.levels.len();
        if more {
            let _ = self
                .open
                .compare_exchange(open, open + 1, Ordering::AcqRel, Ordering::Relaxed);
        }
        more
    }

    /// Counts one key more, unless the table is at its bound.
    fn reserve(&self) -> bool {
        let one_more = |keys| (keys < self.max_keys).then_some(keys + 1);
        self.keys
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }
}

/// Steps the state of the bucket that is shared by keys without room.
fn update_overflow<T>(overflow: &Slot, step: &impl Fn(Option<State>) -> (T, Option<State>)) -> T {
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
enum Claim {
    Done,
    /// Another thread took the slot; look again.
    Again,
    NoRoom,
}

impl From<Result<(), Entry>> for Claim {
    fn from(replaced: Result<(), Entry>) -> Self {
        match replaced {
            Ok(()) => Self::Done,
            Err(_) => Self::Again,
        }
    }
}
