//! The embedded store: buckets in this process, in a table with a hard bound.
//!
//! # Sliding windows
//!
//! What [`Quota::sliding`](crate::Quota::sliding) counts, as every store has to count it. For a
//! quota with a period `P` and a `limit` of count + burst:
//!
//! - **Sub-windows.** A sub-window is `S = ceil(P / 15)` long, in whole microseconds, and they are
//!   numbered from the clock's zero: the time `t` is in number `floor(t / S)`. Fifteen is the
//!   finest division whose counters, 16 of them, still fit a cache line; it makes the sub-windows
//!   of a minute 4 seconds.
//! - **What is stored** for a key: the number `newest` of a sub-window, and 16 counters of the
//!   costs that were admitted in it and in the 15 before it. A key without an entry has used
//!   nothing.
//! - **A decision** at time `t` in sub-window `i`:
//!   1. If `newest > i + 1`, the clock stepped back, and `newest = i + 1`; the counters stay.
//!   2. If `newest < i`, the counters move on by `i - newest`, with zeros behind them, and
//!      `newest = i`.
//!   3. `used` is the sum of the 16 counters: the sub-window in which the period up to `t` began
//!      is counted in full. The request fits if `used + cost <= limit`, and its cost is then added
//!      to the newest counter.
//! - **The numbers.** The counter of age `a` (0 for the newest) is gone at
//!   `(newest + 16 - a) * S`. `remaining` is `limit - used`. `reset` is the time until the newest
//!   counter above 0 is gone. `retry_after` is the time until enough of the oldest counters are gone
//!   for the cost to fit: if nobody else uses the key, the request is admitted then, and no
//!   sooner. A cost above the limit has none.
//! - **A refund** comes off the newest counter above 0; what is more than that comes off the next
//!   one, and what is more than all is dropped.
//!
//! A request is counted for more than `15 * S`, which is not below `P`, so that no interval of
//! length `P` admits more than the limit; and for at most `16 * S`. That is the granularity: what
//! an exact log of requests would admit again after `P` is admitted up to one sub-window later. A
//! period below 15 microseconds counts as that long.
//!
//! Time that a clock steps back over is not given to anybody. A key waits for up to two sub-windows
//! longer than the period then, however far the step is, and also in the time of a clock that was
//! right all along no window admits more than the limit.
//!
//! In this store the counters are behind a lock for each of up to 64 parts of the keys, held while
//! one request is decided. They take 96 bytes a key and an index of 27 to 55; up to twice that just
//! after a part has grown. The bound is spread over the parts, which keys fill unevenly: of the
//! default bound all but about a hundredth can be used. Room for a new key is looked for among eight
//! entries at a time: first one of which nothing counts any more, then memory up to the bound,
//! then the one that has used the least. One that denies is never forgotten; where there are only these,
//! new keys share an entry.

use std::fmt;
use std::sync::Arc;

use super::{LeaseSlots, LeaseStore, RateBuckets, RateStore};
use crate::policy::Policy;

mod bucket;
mod buckets;
pub(crate) mod clock;
mod gcra;
mod intervals;
mod leases;
mod phases;
mod set;
mod sliding;
pub(crate) mod table;

pub(crate) use self::buckets::MemoryBuckets;
use self::clock::Timer;

/// Counts in this process's memory.
///
/// governor is the engine, over a table of our own that is bounded and takes no lock for a key
/// that it knows. A limiter has a table for each of its quotas.
///
/// # Memory
///
/// Grows with the keys in use, not with the bound. At the default bound, each quota of a limiter
/// takes 20 KiB at rest, 0.7 MiB with 10,000 keys and 32 bytes a key when all million are in use.
/// In between it grows in steps of four, which take up to 150 bytes for each key in use just after one and
/// below 30 before the next. At any bound it ends at 32 bytes a key. Nothing is freed until the limiter goes
/// away; the room of buckets that are full again is reused by new keys, without a sweep.
///
/// A quota that is [sliding](crate::Quota::sliding) has a table of another sort, see
/// [the module](self#sliding-windows).
///
/// # At the bound
///
/// A new key takes the room of a bucket that is full again, else of the fullest bucket in sight,
/// whose owner then starts with a full one. A bucket that rejects requests of cost 1 right now is never
/// forgotten; when there is nothing but these, new keys share overflow buckets. (Shortly before
/// the bound about one new key in a million finds no room where it may be, and does the same.)
///
/// A request of a higher cost may be rejected although one of cost 1 still fits. At the bound such a
/// bucket can be forgotten, and the next request of its owner finds a full one.
///
/// # Protecting the table
///
/// A limit per address in the same decision ([`and_by`](crate::RateLimitLayer::and_by)) keeps made-up
/// tokens from filling the table. The buckets that are in use fit into it as long as
///
/// ```text
/// addresses x (address burst + address rate x refill time of a token) < keys in the table
/// ```
///
/// The refill time is the time in which an empty bucket of a token becomes full; for a
/// [sliding](crate::Quota::sliding) quota it is 16/15 of its period. Example: tokens have `10/s burst 20`, so 2 s,
/// and addresses have `100/s`. An address starts at most 100 + 100 x 2 = 300 tokens in 2 s, and the default
/// bound of a million keys holds those of 3,333 addresses. With `1000/day` for a token the refill time is a day,
/// in which such an address starts 8.6 million tokens: give addresses a limit per day as well.
///
/// A new key looks for room among a few dozen buckets and not in the whole table. Close to the bound all of
/// these may be in use, and the fullest is forgotten: plan for half of the bound.
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
    time: Timer,
    leases: leases::Names,
}

impl MemoryStore {
    /// A million keys for each quota.
    pub const DEFAULT_MAX_KEYS: usize = 1_000_000;

    /// The highest bound: 268 million keys for each quota, which would be 8 GiB. A table of that
    /// bound takes 3 MiB at rest.
    pub const MOST_KEYS: usize = 1 << 28;

    /// A store with the default bound.
    #[must_use]
    pub fn new() -> Self {
        Self {
            max_keys: Self::DEFAULT_MAX_KEYS,
            time: Timer::real(),
            leases: leases::Names::default(),
        }
    }

    /// The most keys that are held for each quota, from 1 to
    /// [`MOST_KEYS`](Self::MOST_KEYS); what is outside counts as the nearest.
    ///
    /// Default: [`DEFAULT_MAX_KEYS`](Self::DEFAULT_MAX_KEYS), which is above what most services
    /// see within the time that a bucket takes to fill, and 32 MiB when it is reached.
    #[must_use]
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys.clamp(1, Self::MOST_KEYS);
        self
    }

    /// Takes the time from a clock that a test holds.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn clock(mut self, clock: clock::TestClock) -> Self {
        self.time = Timer::Test(clock);
        self
    }
}

impl RateStore for MemoryStore {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        let time = self.time.clone();
        Arc::new(MemoryBuckets::new(policies, self.max_keys, time))
    }
}

/// For several limiters of one process that share a limit: those of the same name, in clones of one
/// store. Slots that are known by id live in the store, also when nobody who acquired them is left. What
/// has expired is given back a few at a time, and all of it when a slot would else be refused or they
/// are counted; memory that most of is not in use goes back as well.
impl LeaseStore for MemoryStore {
    fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots> {
        self.leases.open(name, self.time.clone())
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
