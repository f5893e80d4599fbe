//! The embedded store: buckets in this process, in a table with a hard bound.

use std::fmt;
use std::sync::Arc;

use governor::clock::Clock;

use super::{RateBuckets, RateStore};
use crate::policy::Policy;

pub(crate) mod clock;
mod rate;
pub(crate) mod table;

use self::clock::RealClock;
use self::rate::MemoryBuckets;

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
/// # At the bound
///
/// A new key takes the room of a bucket that is full again, else of the fullest bucket in sight,
/// whose owner then starts with a full one. A bucket that is denying right now is never
/// forgotten; when there is nothing but these, new keys share overflow buckets. (Shortly before
/// the bound about one new key in a million finds no room where it may be, and does the same.)
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
    time: Time,
}

#[derive(Clone)]
enum Time {
    Real,
    #[cfg(feature = "test-util")]
    Test(clock::TestClock),
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
            time: Time::Real,
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
        self.time = Time::Test(clock);
        self
    }

    fn buckets<C>(&self, policies: &[Policy], clock: C) -> Arc<dyn RateBuckets>
    where
        C: Clock + Clone + Send + Sync + 'static,
    {
        Arc::new(MemoryBuckets::new(policies, self.max_keys, clock))
    }
}

impl RateStore for MemoryStore {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        match &self.time {
            Time::Real => self.buckets(policies, RealClock::new()),
            #[cfg(feature = "test-util")]
            Time::Test(clock) => self.buckets(policies, clock.clone()),
        }
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
