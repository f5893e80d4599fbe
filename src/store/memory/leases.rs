//! Slots that are counted in this process, for several limiters of one name.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::clock::Timer;
use crate::key::Key;
use crate::store::lease::lifetime;
use crate::store::{
    Held, LeaseLimits, LeaseName, LeaseSlots, LeaseUsage, Leased, NamedLease, NamedLeased, Reply,
    Standing,
};
use crate::sync::{Mutex, lock};

/// The slots of one store, by the name of their limiter; gone with the last of those who use them.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<Mutex<HashMap<String, Weak<Slots>>>>);

/// The slots of one name.
struct Slots {
    timer: Timer,
    taken: Mutex<Taken>,
}

/// What is taken. An entry goes with the last slot it is for, so the memory is bounded by what is
/// held; what has expired goes when the next slot is asked for.
#[derive(Default)]
struct Taken {
    total: u64,
    by_key: HashMap<Key, u64>,
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
    key: Option<Key>,
}

impl Names {
    pub(super) fn open(&self, name: &str, timer: Timer) -> Arc<dyn LeaseSlots> {
        let mut names = lock(&self.0);
        names.retain(|_, slots| slots.strong_count() > 0);
        let open = || {
            let taken = Mutex::default();
            Arc::new(Slots { timer, taken })
        };
        let slots = names.get(name).and_then(Weak::upgrade).unwrap_or_else(open);
        names.insert(name.to_owned(), Arc::downgrade(&slots));
        Arc::new(MemoryLeases(slots))
    }
}

impl LeaseSlots for MemoryLeases {
    fn acquire(&self, limits: LeaseLimits) -> Reply<Leased> {
        let taken = self.0.take(limits);
        Reply::Ready(match taken {
            Ok(()) => Leased::Granted(Box::new(Slot {
                slots: self.0.clone(),
                key: limits.key.map(|(key, _)| key),
            })),
            Err(Short::OfKey(_)) => Leased::KeyFull,
            Err(Short::OfAll(_)) => Leased::Full,
        })
    }

    fn usage(&self, key: Option<&Key>) -> Reply<Option<LeaseUsage>> {
        let mut taken = lock(&self.0.taken);
        taken.expire(self.0.timer.now());
        let of_key = key.map(|key| taken.by(key));
        Reply::Ready(Some(LeaseUsage::new(taken.total, of_key)))
    }

    fn acquire_named(&self, lease: &NamedLease, limits: LeaseLimits) -> Reply<NamedLeased> {
        let now = self.0.timer.now();
        let mut taken = lock(&self.0.taken);
        taken.expire(now);
        if let Some(named) = taken.named.get_mut(&lease.name) {
            named.holder = lease.holder;
            taken.extend(&lease.name, now, lease.ttl);
            return Reply::Ready(NamedLeased::Granted);
        }
        let tenant = (
            lease.name.tenant,
            limits.key.map_or(u64::MAX, |(_, limit)| limit),
        );
        let limits = LeaseLimits::new(limits.total, Some(tenant));
        Reply::Ready(match taken.take(limits) {
            Ok(()) => {
                taken.insert(lease, now);
                NamedLeased::Granted
            }
            Err(Short::OfKey(taken)) => NamedLeased::KeyFull(taken),
            Err(Short::OfAll(taken)) => NamedLeased::Full(taken),
        })
    }

    fn heartbeat(&self, name: &LeaseName, holder: Option<u64>, ttl: Duration) -> Reply<Standing> {
        let now = self.0.timer.now();
        let mut taken = lock(&self.0.taken);
        taken.expire(now);
        if !taken.is_held(name, holder) {
            return Reply::Ready(Standing::Gone);
        }
        Reply::Ready(taken.extend(name, now, ttl))
    }

    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<Standing> {
        let mut taken = lock(&self.0.taken);
        taken.expire(self.0.timer.now());
        if !taken.is_held(name, holder) {
            return Reply::Ready(Standing::Gone);
        }
        taken.remove(name);
        Reply::Ready(Standing::Live)
    }
}

/// Which limit is reached, and how many slots it has taken.
enum Short {
    OfKey(u64),
    OfAll(u64),
}

impl Slots {
    fn take(&self, limits: LeaseLimits) -> Result<(), Short> {
        let mut taken = lock(&self.taken);
        if !taken.expiries.is_empty() {
            taken.expire(self.timer.now());
        }
        taken.take(limits)
    }
}

impl Taken {
    fn by(&self, key: &Key) -> u64 {
        self.by_key.get(key).copied().unwrap_or(0)
    }

    fn take(&mut self, limits: LeaseLimits) -> Result<(), Short> {
        if let Some((key, limit)) = limits.key {
            let taken = self.by(&key);
            if taken >= limit {
                return Err(Short::OfKey(taken));
            }
        }
        if limits.total.is_some_and(|limit| self.total >= limit) {
            return Err(Short::OfAll(self.total));
        }
        self.total += 1;
        if let Some((key, _)) = limits.key {
            *self.by_key.entry(key).or_default() += 1;
        }
        Ok(())
    }

    fn give_back(&mut self, key: Option<Key>) {
        self.total -= 1;
        let Some(Entry::Occupied(mut of_key)) = key.map(|key| self.by_key.entry(key)) else {
            return;
        };
        *of_key.get_mut() -= 1;
        if *of_key.get() == 0 {
            of_key.remove();
        }
    }

    /// Whether there is a slot of this name, held by whom it has to be.
    fn is_held(&self, name: &LeaseName, holder: Option<u64>) -> bool {
        let is_theirs = |named: &Named| holder.is_none_or(|holder| named.holder == holder);
        self.named.get(name).is_some_and(is_theirs)
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

    fn extend(&mut self, name: &LeaseName, now: u64, ttl: Duration) -> Standing {
        let Some(named) = self.named.get_mut(name) else {
            return Standing::Gone;
        };
        self.expiries.remove(&named.expiry);
        named.expiry.at = after(now, ttl);
        self.expiries.insert(named.expiry, *name);
        Standing::Live
    }

    fn remove(&mut self, name: &LeaseName) {
        if let Some(named) = self.named.remove(name) {
            self.expiries.remove(&named.expiry);
            self.give_back(Some(name.tenant));
        }
    }

    /// Gives back what has not been heard of for its time to live.
    fn expire(&mut self, now: u64) {
        while let Some((expiry, name)) = self.expiries.first_key_value()
            && expiry.at <= now
        {
            let name = *name;
            self.remove(&name);
        }
    }
}

fn after(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(u64::try_from(lifetime(ttl).as_nanos()).unwrap_or(u64::MAX))
}

impl Held for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots.taken).give_back(self.key);
    }
}
