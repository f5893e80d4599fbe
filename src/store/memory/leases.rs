//! Lease slots that are counted in this process, shared by the limiters of one name.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::clock::MonotonicClock;
use crate::key::Key;
use crate::store::lease::clamp_ttl;
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

/// The slots in use. An entry is removed with its last slot, so the memory is bounded by the live
/// slots. Calls remove expired slots a few at a time; before a rejection or a count they remove all
/// of them.
#[derive(Default)]
struct SlotCounts {
    total: u64,
    /// Counts by key, for each key position of a request.
    by_key: Vec<HashMap<Key, u64>>,
    named: HashMap<LeaseName, NamedSlot>,
    /// The named slots in the order of their expiry.
    expiries: BTreeMap<Expiry, LeaseName>,
    /// The number of the next_number named slot.
    next_number: u64,
}

/// A slot with an id.
struct NamedSlot {
    holder: u64,
    expiry: Expiry,
}

/// When a named slot expires, in nanoseconds of the clock. The number separates slots that expire
/// at the same time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Expiry {
    at: u64,
    number: u64,
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

/// The limit that was reached, and the slots in use under it.
enum LimitReached {
    ByKey { place: usize, in_use: u64 },
    InTotal(u64),
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

impl SlotCounts {
    fn in_use_by(&self, place: usize, key: &Key) -> u64 {
        let by_key = self.by_key.get(place);
        by_key
            .and_then(|by_key| by_key.get(key))
            .map_or(0, |count| *count)
    }

    fn take(&mut self, total: Option<u64>, keys: &[(Key, u64)]) -> Result<(), LimitReached> {
        for (place, (key, limit)) in keys.iter().enumerate() {
            let in_use = self.in_use_by(place, key);
            if in_use >= *limit {
                return Err(LimitReached::ByKey { place, in_use });
            }
        }
        if total.is_some_and(|limit| self.total >= limit) {
            return Err(LimitReached::InTotal(self.total));
        }
        self.total += 1;
        if self.by_key.len() < keys.len() {
            self.by_key.resize_with(keys.len(), HashMap::new);
        }
        for ((key, _), by_key) in keys.iter().zip(&mut self.by_key) {
            *by_key.entry(*key).or_default() += 1;
        }
        Ok(())
    }

    fn release(&mut self, keys: &[Key]) {
        self.total -= 1;
        for (key, by_key) in keys.iter().zip(&mut self.by_key) {
            let Entry::Occupied(mut in_use) = by_key.entry(*key) else {
                continue;
            };
            *in_use.get_mut() -= 1;
            if *in_use.get() == 0 {
                in_use.remove();
                shrink_if_sparse(by_key);
            }
        }
    }

    /// Takes a named slot, or takes over the live slot of the same name.
    fn take_named(
        &mut self,
        lease: &NamedLease,
        limits: NamedLimits,
        now: u64,
    ) -> Result<(), LimitReached> {
        if self.is_live(&lease.name, None, now) {
            self.extend(&lease.name, now, lease.ttl).holder = lease.holder;
            return Ok(());
        }
        self.remove(&lease.name);
        let per_tenant = limits.per_tenant.unwrap_or(u64::MAX);
        self.take(limits.total, &[(lease.name.tenant, per_tenant)])?;
        self.insert(lease, now);
        Ok(())
    }

    /// Whether this name has a live slot, with this holder if one is given.
    fn is_live(&self, name: &LeaseName, holder: Option<u64>, now: u64) -> bool {
        let has_holder = |named: &NamedSlot| holder.is_none_or(|holder| named.holder == holder);
        let named = self.named.get(name);
        named.is_some_and(|named| named.expiry.at > now && has_holder(named))
    }

    /// Records the name of a slot that was just counted.
    fn insert(&mut self, lease: &NamedLease, now: u64) {
        let expiry = Expiry {
            at: expiry_time(now, lease.ttl),
            number: self.next_number,
        };
        self.next_number += 1;
        self.expiries.insert(expiry, lease.name);
        let holder = lease.holder;
        self.named.insert(lease.name, NamedSlot { holder, expiry });
    }

    fn extend(&mut self, name: &LeaseName, now: u64, ttl: Duration) -> &mut NamedSlot {
        let named = self.named.get_mut(name).expect("a live slot");
        self.expiries.remove(&named.expiry);
        named.expiry.at = expiry_time(now, ttl);
        self.expiries.insert(named.expiry, *name);
        named
    }

    fn remove(&mut self, name: &LeaseName) {
        if let Some(named) = self.named.remove(name) {
            shrink_if_sparse(&mut self.named);
            self.expiries.remove(&named.expiry);
            self.release(&[name.tenant]);
        }
    }

    /// Removes at most `at_most` expired slots. Returns whether no expired slot is left.
    fn expire(&mut self, now: u64, at_most: usize) -> bool {
        for _ in 0..at_most {
            match self.expiries.first_key_value() {
                Some((expiry, name)) if expiry.at <= now => {
                    let name = *name;
                    self.remove(&name);
                }
                _ => return true,
            }
        }
        false
    }
}

/// Frees memory when less than an eighth of it is in use.
fn shrink_if_sparse<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > 1024 && map.len() < map.capacity() / 8 {
        map.shrink_to(2 * map.len());
    }
}

fn expiry_time(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(u64::try_from(clamp_ttl(ttl).as_nanos()).unwrap_or(u64::MAX))
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
