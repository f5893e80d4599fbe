//! Slots that are counted in this process, for several limiters of one name.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::clock::Timer;
use crate::key::Key;
use crate::store::lease::clamp_ttl;
use crate::store::{
    AcquireOutcome, LeaseGuard, LeaseLimits, LeaseName, LeaseSlots, LeaseStatus, LeaseUsage,
    NamedAcquireOutcome, NamedLease, NamedLimits, Reply,
};
use crate::sync::{Mutex, lock};

/// The slots of one store, by the name of their limiter. What nobody uses and nothing named is live in
/// is gone when the next is opened.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<Mutex<HashMap<String, Arc<Slots>>>>);

/// How many expired slots a call gives back besides what it has to know.
const BY_THE_WAY: usize = 64;

/// How many at a time, where all have to go: the lock is free in between.
const STEP: usize = 1024;

/// The slots of one name.
struct Slots {
    timer: Timer,
    taken: Mutex<Taken>,
}

/// What is taken. An entry goes with the last slot it is for, so the memory is bounded by what is
/// held. What has expired goes by and by as slots are asked for, and all of it before one is refused or
/// they are counted.
#[derive(Default)]
struct Taken {
    total: u64,
    /// For each place of a key.
    by_key: Vec<HashMap<Key, u64>>,
    named: HashMap<LeaseName, Named>,
    /// The named slots in the order in which they expire.
    expiries: BTreeMap<Expiry, LeaseName>,
    /// The next named slot's number.
    next: u64,
}

/// A named slot.
struct Named {
    holder: u64,
    expiry: Expiry,
}

/// When a named slot expires, in the timer's nanoseconds, and its number, as several may expire
/// at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Expiry {
    at: u64,
    number: u64,
}

struct MemoryLeases(Arc<Slots>);

/// A slot that is given back when this is dropped.
struct Slot {
    slots: Arc<Slots>,
    keys: SmallVec<[Key; 2]>,
}

impl Names {
    pub(super) fn open(&self, name: &str, timer: Timer) -> Arc<dyn LeaseSlots> {
        let mut names = lock(&self.0);
        names.retain(|_, slots| Arc::strong_count(slots) > 1 || slots.has_named());
        let open = || {
            let taken = Mutex::default();
            Arc::new(Slots { timer, taken })
        };
        let slots = names.entry(name.to_owned()).or_insert_with(open);
        Arc::new(MemoryLeases(slots.clone()))
    }
}

impl LeaseSlots for MemoryLeases {
    fn acquire(&self, limits: LeaseLimits) -> Reply<AcquireOutcome> {
        let taken = self.0.take(limits.total, limits.keys());
        Reply::Ready(match taken {
            Ok(()) => AcquireOutcome::Granted(Box::new(Slot {
                slots: self.0.clone(),
                keys: limits.keys().iter().map(|(key, _)| *key).collect(),
            })),
            Err(Short::OfKey { place, .. }) => AcquireOutcome::KeyFull { place },
            Err(Short::OfAll(_)) => AcquireOutcome::Full,
        })
    }

    fn usage_at(&self, key: Option<&Key>, place: usize) -> Reply<Option<LeaseUsage>> {
        let taken = self.0.live(self.0.timer.now());
        let of_key = key.map(|key| taken.by(place, key));
        Reply::Ready(Some(LeaseUsage::new(taken.total, of_key)))
    }

    fn acquire_named(&self, lease: &NamedLease, limits: NamedLimits) -> Reply<NamedAcquireOutcome> {
        let now = self.0.timer.now();
        let taken = (self.0).attempt(now, |taken| taken.take_named(lease, limits, now));
        Reply::Ready(match taken {
            Ok(()) => NamedAcquireOutcome::Granted,
            Err(Short::OfKey { taken, .. }) => NamedAcquireOutcome::KeyFull(taken),
            Err(Short::OfAll(taken)) => NamedAcquireOutcome::Full(taken),
        })
    }

    fn heartbeat(
        &self,
        name: &LeaseName,
        holder: Option<u64>,
        ttl: Duration,
    ) -> Reply<LeaseStatus> {
        let now = self.0.timer.now();
        let mut taken = lock(&self.0.taken);
        taken.expire(now, BY_THE_WAY);
        if !taken.is_held(name, holder, now) {
            return Reply::Ready(LeaseStatus::Gone);
        }
        taken.extend(name, now, ttl);
        Reply::Ready(LeaseStatus::Live)
    }

    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<LeaseStatus> {
        let now = self.0.timer.now();
        let mut taken = lock(&self.0.taken);
        taken.expire(now, BY_THE_WAY);
        if !taken.is_held(name, holder, now) {
            return Reply::Ready(LeaseStatus::Gone);
        }
        taken.remove(name);
        Reply::Ready(LeaseStatus::Live)
    }
}

/// Which limit is reached, and how many slots it has taken.
enum Short {
    OfKey { place: usize, taken: u64 },
    OfAll(u64),
}

impl Slots {
    fn take(&self, total: Option<u64>, keys: &[(Key, u64)]) -> Result<(), Short> {
        {
            let mut taken = lock(&self.taken);
            // Without named slots no time is read.
            if taken.expiries.is_empty() {
                return taken.take(total, keys);
            }
        }
        self.attempt(self.timer.now(), |taken| taken.take(total, keys))
    }

    /// Tries to take a slot, and again when all that has expired is given back if there is none.
    fn attempt(
        &self,
        now: u64,
        take: impl Fn(&mut Taken) -> Result<(), Short>,
    ) -> Result<(), Short> {
        {
            let mut taken = lock(&self.taken);
            let is_all = taken.expire(now, BY_THE_WAY);
            let first = take(&mut taken);
            if first.is_ok() || is_all {
                return first;
            }
        }
        take(&mut self.live(now))
    }

    /// What is taken, without what has expired.
    fn live(&self, now: u64) -> impl DerefMut<Target = Taken> + '_ {
        loop {
            let mut taken = lock(&self.taken);
            if taken.expire(now, STEP) {
                return taken;
            }
            drop(taken);
            std::thread::yield_now();
        }
    }

    fn has_named(&self) -> bool {
        let taken = lock(&self.taken);
        let last = taken.expiries.last_key_value();
        last.is_some_and(|(expiry, _)| expiry.at > self.timer.now())
    }
}

impl Taken {
    fn by(&self, place: usize, key: &Key) -> u64 {
        let by_key = self.by_key.get(place);
        by_key
            .and_then(|by_key| by_key.get(key))
            .map_or(0, |taken| *taken)
    }

    fn take(&mut self, total: Option<u64>, keys: &[(Key, u64)]) -> Result<(), Short> {
        for (place, (key, limit)) in keys.iter().enumerate() {
            let taken = self.by(place, key);
            if taken >= *limit {
                return Err(Short::OfKey { place, taken });
            }
        }
        if total.is_some_and(|limit| self.total >= limit) {
            return Err(Short::OfAll(self.total));
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

    fn give_back(&mut self, keys: &[Key]) {
        self.total -= 1;
        for (key, by_key) in keys.iter().zip(&mut self.by_key) {
            let Entry::Occupied(mut of_key) = by_key.entry(*key) else {
                continue;
            };
            *of_key.get_mut() -= 1;
            if *of_key.get() == 0 {
                of_key.remove();
                shrink(by_key);
            }
        }
    }

    /// Takes a named slot, or takes over the one that there is.
    fn take_named(
        &mut self,
        lease: &NamedLease,
        limits: NamedLimits,
        now: u64,
    ) -> Result<(), Short> {
        if self.is_held(&lease.name, None, now) {
            self.extend(&lease.name, now, lease.ttl).holder = lease.holder;
            return Ok(());
        }
        self.remove(&lease.name);
        let per_tenant = limits.per_tenant.unwrap_or(u64::MAX);
        self.take(limits.total, &[(lease.name.tenant, per_tenant)])?;
        self.insert(lease, now);
        Ok(())
    }

    /// Whether there is a live slot of this name, held by whom it has to be.
    fn is_held(&self, name: &LeaseName, holder: Option<u64>, now: u64) -> bool {
        let is_theirs = |named: &Named| holder.is_none_or(|holder| named.holder == holder);
        let named = self.named.get(name);
        named.is_some_and(|named| named.expiry.at > now && is_theirs(named))
    }

    /// Notes the name of a slot that was taken.
    fn insert(&mut self, lease: &NamedLease, now: u64) {
        let expiry = Expiry {
            at: after(now, lease.ttl),
            number: self.next,
        };
        self.next += 1;
        self.expiries.insert(expiry, lease.name);
        let holder = lease.holder;
        self.named.insert(lease.name, Named { holder, expiry });
    }

    fn extend(&mut self, name: &LeaseName, now: u64, ttl: Duration) -> &mut Named {
        let named = self.named.get_mut(name).expect("a slot that is held");
        self.expiries.remove(&named.expiry);
        named.expiry.at = after(now, ttl);
        self.expiries.insert(named.expiry, *name);
        named
    }

    fn remove(&mut self, name: &LeaseName) {
        if let Some(named) = self.named.remove(name) {
            shrink(&mut self.named);
            self.expiries.remove(&named.expiry);
            self.give_back(&[name.tenant]);
        }
    }

    /// Gives back what has not been heard of for its time to live, so many at most. Returns whether
    /// that was all.
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

/// Gives memory back when most of it is not in use.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > 1024 && map.len() < map.capacity() / 8 {
        map.shrink_to(2 * map.len());
    }
}

fn after(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(u64::try_from(clamp_ttl(ttl).as_nanos()).unwrap_or(u64::MAX))
}

impl LeaseGuard for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots.taken).give_back(&self.keys);
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
        MemoryLeases(Arc::new(Slots {
            timer: Timer::Test(clock.clone()),
            taken: Mutex::default(),
        }))
    }

    fn acquire(slots: &MemoryLeases, n: u64, total: u64) -> NamedAcquireOutcome {
        match slots.acquire_named(&named(n), NamedLimits::new(Some(total), None)) {
            Reply::Ready(taken) => taken,
            Reply::Pending(_) => panic!("a store in memory answers at once"),
        }
    }

    #[test]
    fn no_call_pays_for_all_that_has_expired_unless_it_has_to_know() {
        let clock = TestClock::default();
        let slots = slots(&clock);
        for n in 0..10_000 {
            assert_eq!(acquire(&slots, n, 10_000), NamedAcquireOutcome::Granted);
        }
        let most = lock(&slots.0.taken).named.capacity();
        clock.advance(MINUTE);
        assert_eq!(
            acquire(&slots, 10_000, 20_000),
            NamedAcquireOutcome::Granted
        );
        assert_eq!(lock(&slots.0.taken).total, 10_001 - BY_THE_WAY as u64);
        // One that has expired and is still there is taken anew, and is not live.
        let last = named(9_999).name;
        let gone = |reply| matches!(reply, Reply::Ready(LeaseStatus::Gone));
        assert!(gone(slots.heartbeat(&last, None, MINUTE)));
        assert!(gone(slots.release(&last, None)));
        assert_eq!(acquire(&slots, 9_999, 2), NamedAcquireOutcome::Granted);

        // One that is refused has to know.
        assert_eq!(acquire(&slots, 10_001, 2), NamedAcquireOutcome::Full(2));
        let taken = lock(&slots.0.taken);
        assert_eq!((taken.total, taken.named.len()), (2, 2));
        assert_eq!(taken.expiries.len(), 2);
        assert!(taken.named.capacity() < most / 4);
    }

    #[test]
    fn names_that_nobody_uses_and_nothing_is_live_in_are_forgotten() {
        let clock = TestClock::default();
        let names = Names::default();
        let open = |name| names.open(name, Timer::Test(clock.clone()));
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
