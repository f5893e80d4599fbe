//! Sliding windows, in counters of sub-windows; the rule is in the memory store's documentation.

mod shard;
#[cfg(all(test, feature = "test-util", not(admission_loom)))]
mod tests;
mod window;

use self::shard::Shard;
pub(super) use self::window::By;
use self::window::Window;
use super::bucket::Stale;
use super::clock::Timer;
use crate::decision::Usage;
use crate::key::Key;
use crate::store::RateStats;
use crate::sync::{Mutex, lock};

/// Locks that the keys are spread over, if each then has room for that many keys.
const MOST_SHARDS: usize = 64;
const LEAST_KEYS: usize = 64;

/// The windows of one quota.
pub(super) struct Windows {
    shards: Box<[Padded]>,
}

/// Apart from what other cores write.
#[repr(align(128))]
struct Padded(Mutex<Shard>);

impl Windows {
    pub(super) fn new(max_keys: usize) -> Self {
        let max_keys = max_keys.max(1);
        let shards = (max_keys / LEAST_KEYS).clamp(1, MOST_SHARDS);
        // What is left over goes to the first ones.
        let share = |n| max_keys / shards + usize::from(n < max_keys % shards);
        Self {
            shards: (0..shards)
                .map(|n| Padded(Mutex::new(Shard::new(share(n)))))
                .collect(),
        }
    }

    /// Decides about a request, and takes its cost if it fits and `takes`.
    ///
    /// The time is read under the shard's lock, so that no thread charges a time that another one has gone past.
    pub(super) fn decide(
        &self,
        by: By<'_>,
        key: &Key,
        cost: u32,
        takes: bool,
        time: &Timer,
    ) -> Result<Usage, Stale> {
        let bits = key.bits();
        let mut shard = self.shard(bits);
        let now = time.now();
        let mut new = Window::new(by);
        // A cost that takes nothing either way stores nothing.
        let window = if takes && cost > 0 && cost <= by.rule.limit {
            shard.find_or_insert(bits, by, now).settle(by, now)?
        } else {
            if let Some(window) = shard.find(bits, by, now) {
                new = window.clone();
            }
            new.settle(by, now)?
        };
        Ok(window.decide(by.rule, now, cost, takes))
    }

    /// Charges a request that was admitted elsewhere, whether it fits or not.
    pub(super) fn charge(
        &self,
        by: By<'_>,
        key: &Key,
        cost: u32,
        time: &Timer,
    ) -> Result<(), Stale> {
        let bits = key.bits();
        let mut shard = self.shard(bits);
        let now = time.now();
        let window = shard.find_or_insert(bits, by, now).settle(by, now)?;
        window.advance(by.rule, now);
        window.charge(cost);
        Ok(())
    }

    /// Gives back what was taken, if the key is still known. The key's window counts by this rule from now on; with a
    /// cost of 0 it does that and no more.
    pub(super) fn refund(
        &self,
        by: By<'_>,
        key: &Key,
        cost: u32,
        time: &Timer,
    ) -> Result<(), Stale> {
        let bits = key.bits();
        let mut shard = self.shard(bits);
        let now = time.now();
        if let Some(window) = shard.known(bits) {
            let window = window.settle(by, now)?;
            window.advance(by.rule, now);
            window.give_back(cost);
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
