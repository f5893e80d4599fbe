//! Sliding windows as counters of sub-windows; the memory store's documentation has the exact rule.

mod shard;
#[cfg(all(test, feature = "test-util", not(admission_loom)))]
mod tests;
mod window;

use self::shard::Shard;
use self::window::Window;
pub(super) use self::window::WindowContext;
use super::bucket::StaleRules;
use super::clock::MonotonicClock;
use crate::decision::Usage;
use crate::key::Key;
use crate::store::RateStats;
use crate::sync::{Mutex, lock};

/// The maximum number of locks that the keys are spread over.
const MAX_SHARDS: usize = 64;
/// Fewer shards are used if each would have room for fewer keys than this.
const MIN_KEYS_PER_SHARD: usize = 64;

/// The windows of one quota.
pub(super) struct Windows {
    shards: Box<[Padded]>,
}

/// Keeps a lock off the cache lines that other cores write.
#[repr(align(128))]
struct Padded(Mutex<Shard>);

impl Windows {
    pub(super) fn new(max_keys: usize) -> Self {
        let max_keys = max_keys.max(1);
        let shards = (max_keys / MIN_KEYS_PER_SHARD).clamp(1, MAX_SHARDS);
        // The first shards share the remainder.
        let share = |n| max_keys / shards + usize::from(n < max_keys % shards);
        Self {
            shards: (0..shards)
                .map(|n| Padded(Mutex::new(Shard::new(share(n)))))
                .collect(),
        }
    }

    /// Decides a request. If it fits and `should_charge` is set, charges its cost.
    ///
    /// Reads the time under the shard's lock, so that no thread charges an earlier time than
    /// another.
    pub(super) fn decide(
        &self,
        context: WindowContext<'_>,
        key: &Key,
        cost: u32,
        should_charge: bool,
        clock: &MonotonicClock,
    ) -> Result<Usage, StaleRules> {
        let bits = key.bits();
        let mut shard = self.shard(bits);
        let now = clock.now();
        let mut new = Window::new(context);
        // A cost that is not charged stores nothing.
        let window = if should_charge && cost > 0 && cost <= context.rule.limit {
            shard
                .find_or_insert(bits, context, now)
                .convert_to(context, now)?
        } else {
            if let Some(window) = shard.find(bits, context, now) {
                new = window.clone();
            }
            new.convert_to(context, now)?
        };
        Ok(window.decide(context.rule, now, cost, should_charge))
    }

    /// Charges a request that another store admitted, whether it fits or not.
    pub(super) fn charge(
        &self,
        context: WindowContext<'_>,
        key: &Key,
        cost: u32,
        clock: &MonotonicClock,
    ) -> Result<(), StaleRules> {
        let bits = key.bits();
        let mut shard = self.shard(bits);
        let now = clock.now();
        let window = shard
            .find_or_insert(bits, context, now)
            .convert_to(context, now)?;
        window.advance(context.rule, now);
        window.charge(cost);
        Ok(())
    }

    /// Refunds a request, if the key is still stored, and converts the key's window to this rule.
    /// With a cost of 0 it only converts.
    pub(super) fn refund(
        &self,
        context: WindowContext<'_>,
        key: &Key,
        cost: u32,
        clock: &MonotonicClock,
    ) -> Result<(), StaleRules> {
        let bits = key.bits();
        let mut shard = self.shard(bits);
        let now = clock.now();
        if let Some(window) = shard.find_existing(bits) {
            let window = window.convert_to(context, now)?;
            window.advance(context.rule, now);
            window.refund(cost);
        }
        Ok(())
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

    #[cfg(all(test, feature = "test-util", not(admission_loom)))]
    fn len(&self) -> usize {
        self.stats().tracked_keys as usize
    }
}
