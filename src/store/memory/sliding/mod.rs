//! Sliding windows, in counters of sub-windows; the rule is in the memory store's documentation.

mod shard;
#[cfg(all(test, not(admission_loom)))]
mod tests;
mod window;

use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::nanos::Nanos;

use self::shard::Shard;
use self::window::{Numbers, PARTS, Window};
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
    clock: C,
    zero: C::Instant,
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
        let period = rate.period().as_nanos();
        let micros = period.div_ceil(u128::from(PARTS) * 1_000);
        Self {
            numbers: Numbers {
                limit: rate.limit(),
                // A quota's period is below 100 years.
                part: micros as u64 * 1_000,
            },
            shards: (0..shards)
                .map(|n| Padded(Mutex::new(Shard::new(share(n)))))
                .collect(),
            // As governor counts, see `FromZero`.
            zero: clock.now().saturating_sub(Nanos::from(u64::MAX)),
            clock,
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
        window.advance(self.numbers, now);
        if self.left(window, now) >= cost {
            window.charge(cost);
            return self.admitted(window, now);
        }
        self.refused(window, cost, now)
    }

    /// What [`take`](Self::take) would answer, taking nothing.
    pub(super) fn peek(&self, key: Key, cost: u32) -> Usage {
        let bits = bits(key);
        let mut shard = self.shard(bits);
        let now = self.now();
        let mut new = Window::default();
        let window = shard.find(bits, self.numbers, now).unwrap_or(&mut new);
        window.advance(self.numbers, now);
        if self.left(window, now) >= cost {
            return self.admitted(window, now);
        }
        self.refused(window, cost, now)
    }

    /// Gives back what was taken, if the key is still known.
    pub(super) fn refund(&self, key: Key, cost: u32) {
        let bits = bits(key);
        if let Some(window) = self.shard(bits).known(bits) {
            window.advance(self.numbers, self.now());
            window.give_back(cost);
        }
    }

    fn left(&self, window: &Window, now: u64) -> u32 {
        self.numbers.limit - window.used(self.numbers, now)
    }

    fn admitted(&self, window: &Window, now: u64) -> Usage {
        let reset = Duration::from_nanos(window.reset(self.numbers, now));
        Usage::admitted(self.numbers.limit, self.left(window, now), reset)
    }

    fn refused(&self, window: &Window, cost: u32, now: u64) -> Usage {
        let limit = self.numbers.limit;
        let wait = limit
            .checked_sub(cost)
            .map(|most| Duration::from_nanos(window.wait(most, self.numbers, now)));
        let reset = Duration::from_nanos(window.reset(self.numbers, now));
        Usage::refused(limit, self.left(window, now), reset, wait)
    }

    /// Nanoseconds since the clock's zero. Read under the shard's lock, so that no thread charges
    /// a time that another one has gone past.
    fn now(&self) -> u64 {
        self.clock.now().duration_since(self.zero).into()
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
