//! The embedded store: counts in this process, in a table with a hard bound.
//!
//! # Sliding windows
//!
//! This section defines how every store counts a [`Quota::sliding`](crate::Quota::sliding) quota.
//! The quota has a period `P` and a `limit`, the sum of count and burst:
//!
//! - **Sub-windows.** A sub-window is `S = ceil(P / 15)` long, in whole microseconds. Sub-windows
//!   are numbered from the clock's zero: the time `t` is in number `floor(t / S)`. Fifteen is the
//!   finest division whose 16 counters fit a cache line. The sub-windows of a minute are 4 seconds
//!   long.
//! - **State of a key:** the number `newest` of a sub-window, and 16 counters. They hold the costs
//!   that were admitted in that sub-window and in the 15 before it. A key without an entry has used
//!   nothing.
//! - **A decision** at time `t` in sub-window `i`:
//!   1. If `newest > i + 1`, the clock stepped back: set `newest = i + 1` and keep the counters.
//!   2. If `newest < i`, shift the counters by `i - newest`, fill the new ones with zeros, and set
//!      `newest = i`.
//!   3. `used` is the sum of the 16 counters. The sub-window that contains `t - P` counts in full.
//!      The request fits if `used + cost <= limit`; its cost is then added to the newest counter.
//! - **Reported numbers.** The counter of age `a` (0 for the newest) expires at
//!   `(newest + 16 - a) * S`. `remaining` is `limit - used`. `reset` is the time until the newest
//!   counter above 0 expires. `retry_after` is the time until enough of the oldest counters expire for the cost to
//!   fit. If no other request uses the key, a retry is admitted at that time and no sooner. A cost
//!   above the limit has no `retry_after`.
//! - **A refund** is subtracted from the newest counter above 0. The rest is subtracted from the
//!   next older counters; an excess over all counters is dropped.
//!
//! A request counts for more than `15 * S`, which is at least `P`: no interval of length `P` admits
//! more than the limit. It counts for at most `16 * S`. An exact log would free capacity after `P`;
//! these counters free it up to one sub-window later. A period below 15 microseconds counts as 15
//! microseconds.
//!
//! A clock that steps back grants no extra capacity. After a step of any size, a key waits for at
//! most two sub-windows longer than the period. Measured by a correct clock, too, no window admits
//! more than the limit.
//!
//! This store spreads the keys over up to 64 shards, each with a lock. A decision holds the lock of
//! its shard. A key takes 96 bytes and an index of 27 to 55 bytes; just after a shard has grown, up
//! to twice that. Each shard has an equal part of the bound, and keys fill the shards unevenly:
//! about 99% of the default bound is usable. A new key samples eight entries. It takes an entry
//! without counted costs, else new memory up to the bound, else the least used entry. The store
//! never evicts a key that denies requests. If all sampled entries deny, new keys share one entry.

use std::fmt;
use std::sync::Arc;

use super::{LeaseSlots, LeaseStore, RateBuckets, RateStore};
use crate::policy::Policy;

mod bucket;
mod bucket_context;
mod buckets;
pub(crate) mod clock;
mod gcra;
mod intervals;
mod leases;
mod phases;
mod set;
mod sliding;
mod slot_counts;
pub(crate) mod table;

pub(crate) use self::buckets::MemoryBuckets;
use self::clock::MonotonicClock;

/// Counts in this process's memory.
///
/// governor decides each request. The state is in a bounded table, which takes no lock for a known
/// key. A limiter has one table for each of its quotas.
///
/// # Memory
///
/// Memory grows with the keys in use, not with the bound. At the default bound, each quota of a
/// limiter takes 20 KiB when idle, 0.7 MiB with 10,000 keys, and 32 bytes for each key when all
/// million keys are in use. Between these, the table grows in steps by a factor of four: up to 150
/// bytes for each key just after a step, below 30 before the next one. At any bound, a full table
/// takes 32 bytes for each key. The table frees no memory until the limiter is dropped. New keys
/// reuse the slots of full buckets, without background cleanup.
///
/// A [sliding](crate::Quota::sliding) quota has another kind of table, see [the
/// module](self#sliding-windows).
///
/// # At the bound
///
/// A new key takes the slot of a full bucket. If there is none, it evicts the fullest bucket that
/// it finds; the evicted key then starts with a full bucket. The table never evicts a bucket that
/// currently rejects requests of cost 1. When all candidates reject, new keys share overflow
/// buckets. (Shortly before the bound, about one new key in a million finds its rows full and
/// shares an overflow bucket too.)
///
/// A bucket can reject a request of a higher cost and still admit one of cost 1. At the bound, such
/// a bucket can be evicted, and the next request of its key finds a full bucket.
///
/// # Protecting the table
///
/// A limit per address in the same decision ([`and_by`](crate::RateLimitLayer::and_by)) keeps
/// made-up tokens from filling the table. Choose the limit per address so that this holds:
///
/// ```text
/// addresses x (burst of an address + rate of an address x refill time of a token)
///     < half of the keys in the table
/// ```
///
/// The refill time is the time in which an empty bucket of a token becomes full; for a
/// [sliding](crate::Quota::sliding) quota it is 16/15 of its period. Example: tokens have `10/s
/// burst 20`, so their refill time is 2 s, and addresses have `100/s`. One address can start at
/// most 100 + 100 x 2 = 300 tokens in 2 s. Half of the default bound of a million keys holds the
/// tokens of 1,666 such addresses. With `1000/day` for a token the refill time is a day, and one
/// address can start 8.6 million tokens: give addresses a daily limit as well.
///
/// Half, because a new key searches a few dozen buckets and not the whole table. Near the bound all
/// of them can be in use, and the fullest is evicted. Size the bound at twice the number of keys
/// that you expect.
///
/// ```
/// use tower_admission::{Quota, RateLimitByTokenLayer, store::MemoryStore};
///
/// let store = MemoryStore::new().max_keys(50_000);
/// let layer = RateLimitByTokenLayer::new(Quota::per_second(10)).store(store);
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    max_keys: usize,
    clock: MonotonicClock,
    leases: leases::LeaseRegistry,
}

impl MemoryStore {
    /// One million keys for each quota.
    pub const DEFAULT_MAX_KEYS: usize = 1_000_000;

    /// The highest bound: 268 million keys for each quota, which take 8 GiB. An empty table with
    /// this bound takes 3 MiB.
    pub const MAX_KEYS: usize = 1 << 28;

    /// Creates a store with the default bound.
    #[must_use]
    pub fn new() -> Self {
        Self {
            max_keys: Self::DEFAULT_MAX_KEYS,
            clock: MonotonicClock::process(),
            leases: leases::LeaseRegistry::default(),
        }
    }

    /// Sets the maximum number of keys for each quota. Values outside 1 to
    /// [`MAX_KEYS`](Self::MAX_KEYS) are clamped.
    ///
    /// Default: [`DEFAULT_MAX_KEYS`](Self::DEFAULT_MAX_KEYS). Most services see fewer keys within
    /// the time in which a bucket fills. A full table takes 32 MiB for each quota.
    #[must_use]
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys.clamp(1, Self::MAX_KEYS);
        self
    }

    /// Reads the time from a clock that a test controls.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn clock(mut self, clock: clock::TestClock) -> Self {
        self.clock = MonotonicClock::Test(clock);
        self
    }
}

impl RateStore for MemoryStore {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        let clock = self.clock.clone();
        Arc::new(MemoryBuckets::new(policies, self.max_keys, clock))
    }
}

/// For several limiters of one process that share a limit: limiters of the same name, opened on
/// clones of one store.
///
/// The store keeps slots with an id, also after the limiter that acquired them is dropped. Each
/// call releases a few expired slots. A call that would be rejected, or that counts slots, releases
/// all of them first. Maps that are mostly empty shrink.
impl LeaseStore for MemoryStore {
    fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots> {
        self.leases.open(name, self.clock.clone())
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("max_keys", &self.max_keys)
            .finish_non_exhaustive()
    }
}
