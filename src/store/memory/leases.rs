//! Lease slots that are counted in this process, shared by the limiters of one name.

use std::collections::HashMap;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::clock::MonotonicClock;
use super::slot_counts::{LimitReached, SlotCounts};
use crate::key::Key;
use crate::store::{
    AcquireOutcome, LeaseGuard, LeaseLimits, LeaseName, LeaseSlots, LeaseStatus, LeaseUsage,
    NamedAcquireOutcome, NamedLease, NamedLimits, Reply,
};
use crate::sync::{Mutex, lock};

/// The slots of one store, by limiter name. Opening a name removes the names that no limiter uses
/// and that have no live named slot.
#[derive(Clone, Default)]
pub(super) struct LeaseRegistry(Arc<Mutex<HashMap<String, Arc<LimiterSlots>>>>);

/// Expired slots that an ordinary call releases.
const EXPIRED_PER_CALL: usize = 64;

/// Expired slots that are released per lock, when all of them must go. The lock is free in between.
const EXPIRED_PER_LOCK: usize = 1024;

/// The slots of one limiter name.
struct LimiterSlots {
    clock: MonotonicClock,
    counts: Mutex<SlotCounts>,
}

struct MemoryLeases(Arc<LimiterSlots>);

/// Releases its slot when it is dropped.
struct SlotGuard {
    slots: Arc<LimiterSlots>,
    keys: SmallVec<[Key; 2]>,
}

impl LeaseRegistry {
    pub(super) fn open(&self, name: &str, clock: MonotonicClock) -> Arc<dyn LeaseSlots> {
        let mut names = lock(&self.0);
        names.retain(|_, slots| Arc::strong_count(slots) > 1 || slots.has_live_named());
        let open = || {
            let counts = Mutex::default();
            Arc::new(LimiterSlots { clock, counts })
        };
        let slots = names.entry(name.to_owned()).or_insert_with(open);
        Arc::new(MemoryLeases(slots.clone()))
    }
}

impl LeaseSlots for MemoryLeases {
    fn acquire(&self, limits: LeaseLimits) -> Reply<AcquireOutcome> {
        let result = self.0.take(limits.total, limits.keys());
        Reply::Ready(match result {
            Ok(()) => AcquireOutcome::Granted(Box::new(SlotGuard {
                slots: self.0.clone(),
                keys: limits.keys().iter().map(|(key, _)| *key).collect(),
            })),
            Err(LimitReached::ByKey { place, .. }) => AcquireOutcome::KeyFull { place },
            Err(LimitReached::InTotal(_)) => AcquireOutcome::Full,
        })
    }

    fn usage_at(&self, key: Option<&Key>, place: usize) -> Reply<Option<LeaseUsage>> {
        let counts = self.0.lock_without_expired(self.0.clock.now());
        let in_use = key.map(|key| counts.in_use_by(place, key));
        Reply::Ready(Some(LeaseUsage::new(counts.total, in_use)))
    }

    fn acquire_named(&self, lease: &NamedLease, limits: NamedLimits) -> Reply<NamedAcquireOutcome> {
        let now = self.0.clock.now();
        let result = (self.0).take_or_expire(now, |counts| counts.take_named(lease, limits, now));
        Reply::Ready(match result {
            Ok(()) => NamedAcquireOutcome::Granted,
            Err(LimitReached::ByKey { in_use, .. }) => NamedAcquireOutcome::KeyFull(in_use),
            Err(LimitReached::InTotal(in_use)) => NamedAcquireOutcome::Full(in_use),
        })
    }

    fn heartbeat(
        &self,
        name: &LeaseName,
        holder: Option<u64>,
        ttl: Duration,
    ) -> Reply<LeaseStatus> {
        let now = self.0.clock.now();
        let mut counts = lock(&self.0.counts);
        counts.expire(now, EXPIRED_PER_CALL);
        if !counts.is_live(name, holder, now) {
            return Reply::Ready(LeaseStatus::Gone);
        }
        counts.extend(name, now, ttl);
        Reply::Ready(LeaseStatus::Live)
    }

    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<LeaseStatus> {
        let now = self.0.clock.now();
        let mut counts = lock(&self.0.counts);
        counts.expire(now, EXPIRED_PER_CALL);
        if !counts.is_live(name, holder, now) {
            return Reply::Ready(LeaseStatus::Gone);
        }
        counts.remove(name);
        Reply::Ready(LeaseStatus::Live)
    }
}

impl LimiterSlots {
    fn take(&self, total: Option<u64>, keys: &[(Key, u64)]) -> Result<(), LimitReached> {
        {
            let mut counts = lock(&self.counts);
            // Without named slots, nothing expires and the clock is not read.
            if counts.expiries.is_empty() {
                return counts.take(total, keys);
            }
        }
        self.take_or_expire(self.clock.now(), |counts| counts.take(total, keys))
    }

    /// Tries to take a slot. If there is none, removes all expired slots and tries again.
    fn take_or_expire(
        &self,
        now: u64,
        take: impl Fn(&mut SlotCounts) -> Result<(), LimitReached>,
    ) -> Result<(), LimitReached> {
        {
            let mut counts = lock(&self.counts);
            let is_complete = counts.expire(now, EXPIRED_PER_CALL);
            let first = take(&mut counts);
            if first.is_ok() || is_complete {
                return first;
            }
        }
        take(&mut self.lock_without_expired(now))
    }

    /// Locks the counts after all expired slots are removed.
    fn lock_without_expired(&self, now: u64) -> impl DerefMut<Target = SlotCounts> + '_ {
        loop {
            let mut counts = lock(&self.counts);
            if counts.expire(now, EXPIRED_PER_LOCK) {
                return counts;
            }
            drop(counts);
            std::thread::yield_now();
        }
    }

    fn has_live_named(&self) -> bool {
        let counts = lock(&self.counts);
        let last = counts.expiries.last_key_value();
        last.is_some_and(|(expiry, _)| expiry.at > self.clock.now())
    }
}

impl LeaseGuard for SlotGuard {}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        lock(&self.slots.counts).release(&self.keys);
    }
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use super::super::clock::TestClock;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn named(n: u64) -> NamedLease {
        let tenant = Key::id("tenant", &(n % 100).to_string());
        let name = LeaseName::new(tenant, Key::id("lease", &n.to_string()));
        NamedLease::new(name, n, MINUTE)
    }

    fn slots(clock: &TestClock) -> MemoryLeases {
        MemoryLeases(Arc::new(LimiterSlots {
            clock: MonotonicClock::Test(clock.clone()),
            counts: Mutex::default(),
        }))
    }

    fn acquire(slots: &MemoryLeases, n: u64, total: u64) -> NamedAcquireOutcome {
        match slots.acquire_named(&named(n), NamedLimits::new(Some(total), None)) {
            Reply::Ready(outcome) => outcome,
            Reply::Pending(_) => panic!("the memory store answers at once"),
        }
    }

    #[test]
    fn only_a_call_that_needs_an_exact_count_removes_all_expired_slots() {
        let clock = TestClock::default();
        let slots = slots(&clock);
        for n in 0..10_000 {
            assert_eq!(acquire(&slots, n, 10_000), NamedAcquireOutcome::Granted);
        }
        let most = lock(&slots.0.counts).named.capacity();
        clock.advance(MINUTE);
        assert_eq!(
            acquire(&slots, 10_000, 20_000),
            NamedAcquireOutcome::Granted
        );
        assert_eq!(
            lock(&slots.0.counts).total,
            10_001 - EXPIRED_PER_CALL as u64
        );
        // The slot has expired and is still stored: it is not live, and an acquire takes a new one.
        let last = named(9_999).name;
        let gone = |reply| matches!(reply, Reply::Ready(LeaseStatus::Gone));
        assert!(gone(slots.heartbeat(&last, None, MINUTE)));
        assert!(gone(slots.release(&last, None)));
        assert_eq!(acquire(&slots, 9_999, 2), NamedAcquireOutcome::Granted);

        // A rejection must count exactly, so it removes all expired slots.
        assert_eq!(acquire(&slots, 10_001, 2), NamedAcquireOutcome::Full(2));
        let counts = lock(&slots.0.counts);
        assert_eq!((counts.total, counts.named.len()), (2, 2));
        assert_eq!(counts.expiries.len(), 2);
        assert!(counts.named.capacity() < most / 4);
    }

    #[test]
    fn unused_names_without_live_slots_are_removed() {
        let clock = TestClock::default();
        let names = LeaseRegistry::default();
        let open = |name| names.open(name, MonotonicClock::Test(clock.clone()));
        let limits = NamedLimits::new(None, None);
        drop(open("jobs").acquire_named(&named(1), limits));
        drop(open("streams"));
        let used = open("used");
        assert_eq!(lock(&names.0).len(), 2);
        clock.advance(MINUTE);
        drop(open("other"));
        assert!(!lock(&names.0).contains_key("jobs"));
        drop(used);
    }
}
