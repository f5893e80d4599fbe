//! Sliding windows, in counters of sub-windows; the rule is in the memory store's documentation.

mod shard;
#[cfg(all(test, not(admission_loom)))]
mod tests;
mod window;

use governor::clock::Clock;

use self::shard::Shard;
pub(super) use self::window::{Numbers, PARTS, Window};
use super::clock::SinceZero;
use crate::decision::Usage;
use crate::key::Key;
use crate::quota::Rate;
use crate::store::RateStats;
use crate::sync::{Mutex, lock};

/// Locks that the keys are spread over, if each then has room for that many keys.
const MOST_SHARDS: usize = 64;
const LEAST_KEYS: usize = 64;

/// One quota that counts in a sliding window, and its keys.
pub(super) struct SlidingMeter<C: Clock> {
    numbers: Numbers,
    shards: Box<[Padded]>,
    time: SinceZero<C>,
}

/// Apart from what other cores write.
#[repr(align(128))]
struct Padded(Mutex<Shard>);

impl<C: Clock> SlidingMeter<C> {
    pub(super) fn new(rate: Rate, max_keys: usize, clock: C) -> Self {
        let max_keys = max_keys.max(1);
        let shards = (max_keys / LEAST_KEYS).clamp(1, MOST_SHARDS);
        // What is left over goes to the first ones.
        let share = |n| max_keys / shards + usize::from(n < max_keys % shards);
        Self {
            numbers: Numbers::of(rate),
            shards: (0..shards)
                .map(|n| Padded(Mutex::new(Shard::new(share(n)))))
                .collect(),
            time: SinceZero::new(clock),
        }
    }

    /// Admits a request that fits, and takes its cost.
    pub(super) fn take(&self, key: Key, cost: u32) -> Usage {
        if cost == 0 || cost > self.numbers.limit {
            // Takes nothing either way, so there is nothing to store.
            return self.peek(key, cost);
        }
        let bits = bits(key);
        let mut shard = self.shard(bits);
        let now = self.now();
        let window = shard.find_or_insert(bits, self.numbers, now);
        window.decide(self.numbers, now, cost, true)
    }

    /// What [`take`](Self::take) would answer, taking nothing.
    pub(super) fn peek(&self, key: Key, cost: u32) -> Usage {
        let bits = bits(key);
        let mut shard = self.shard(bits);
        let now = self.now();
        let mut new = Window::default();
        let window = shard.find(bits, self.numbers, now).unwrap_or(&mut new);
        window.decide(self.numbers, now, cost, false)
    }

    /// Gives back what was taken, if the key is still known.
    pub(super) fn refund(&self, key: Key, cost: u32) {
        let bits = bits(key);
        if let Some(window) = self.shard(bits).known(bits) {
            window.advance(self.numbers, self.now());
            window.give_back(cost);
        }
    }

    /// What is counted for a key, and in sub-windows of which length.
    pub(super) fn counted(&self, key: Key) -> Option<(u64, Window)> {
        let bits = bits(key);
        let counted = self.shard(bits).known(bits)?.clone();
        Some((self.numbers.part, counted))
    }

    /// What was counted elsewhere, in sub-windows of this quota's length as of a time.
    pub(super) fn converted(&self, length: u64, counted: &Window, time: u64) -> (u64, Window) {
        let counted = counted.parted(length, self.numbers, time);
        (self.numbers.part, counted)
    }

    /// Whether nothing of a key counts.
    pub(super) fn is_unused(&self, key: Key) -> bool {
        let bits = bits(key);
        let mut shard = self.shard(bits);
        let now = self.now();
        let known = shard.known(bits);
        known.is_none_or(|window| window.used(self.numbers, now) == 0)
    }

    /// The length of a sub-window.
    pub(super) fn part(&self) -> u64 {
        self.numbers.part
    }

    /// Has a key unused, if it is known.
    pub(super) fn forget(&self, key: Key) {
        let bits = bits(key);
        if let Some(window) = self.shard(bits).known(bits) {
            *window = Window::default();
        }
    }

    /// As [`forget`](Self::forget), and returns what counted beyond what was `copied`.
    pub(super) fn remove(&self, key: Key, copied: Option<&Window>) -> u32 {
        let bits = bits(key);
        let mut shard = self.shard(bits);
        let now = self.now();
        let used = |window: &Window| window.used(self.numbers, now);
        let copied = copied.map_or(0, used);
        let found = shard.known(bits).map(std::mem::take);
        found.as_ref().map_or(0, used).saturating_sub(copied)
    }

    pub(super) fn knows(&self, key: Key) -> bool {
        let bits = bits(key);
        self.shard(bits).known(bits).is_some()
    }

    /// Counts a request that was admitted elsewhere, whether it fits or not.
    pub(super) fn charge(&self, key: Key, cost: u32) {
        let bits = bits(key);
        let mut shard = self.shard(bits);
        let now = self.now();
        let window = shard.find_or_insert(bits, self.numbers, now);
        window.advance(self.numbers, now);
        window.charge(cost);
    }

    /// Counts for a key what was counted elsewhere, in sub-windows of this length; what it has
    /// here already goes, unless `keeps`.
    pub(super) fn put(&self, key: Key, length: u64, counted: &Window, keeps: bool) {
        let bits = bits(key);
        let mut shard = self.shard(bits);
        if keeps && shard.known(bits).is_some() {
            return;
        }
        let now = self.now();
        // Keys without room share counters, which stay as they are.
        if let Some(window) = shard.find_or_insert_own(bits, self.numbers, now) {
            *window = counted.parted(length, self.numbers, now);
        }
    }

    /// Nanoseconds since the clock's zero. Read under the shard's lock, so that no thread charges
    /// a time that another one has gone past.
    fn now(&self) -> u64 {
        self.time.now()
    }

    fn shard(&self, bits: u128) -> impl std::ops::DerefMut<Target = Shard> + '_ {
        let at = (bits >> 64) as u64 % self.shards.len() as u64;
        lock(&self.shards[at as usize].0)
    }

    pub(super) fn stats(&self) -> RateStats {
        let mut all = RateStats::default();
        for shard in &self.shards {
            let shard = lock(&shard.0);
            all.tracked_keys += shard.len() as u64;
            all.evictions += shard.evictions();
        }
        all
    }

    #[cfg(all(test, not(admission_loom)))]
    fn len(&self) -> usize {
        self.stats().tracked_keys as usize
    }
}

fn bits(key: Key) -> u128 {
    let [low, high] = key.place_bits();
    u128::from(high) << 64 | u128::from(low)
}
