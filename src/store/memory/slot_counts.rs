//! The counts of lease slots, with their names and expiry.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use crate::key::Key;
use crate::store::lease::clamp_ttl;
use crate::store::{LeaseName, NamedLease, NamedLimits};

/// The slots in use. An entry is removed with its last slot, so the memory is bounded by the live
/// slots. Calls remove expired slots a few at a time; before a rejection or a count they remove all
/// of them.
#[derive(Default)]
pub(super) struct SlotCounts {
    pub(super) total: u64,
    /// Counts by key, for each key position of a request.
    by_key: Vec<HashMap<Key, u64>>,
    pub(super) named: HashMap<LeaseName, NamedSlot>,
    /// The named slots in the order of their expiry.
    pub(super) expiries: BTreeMap<Expiry, LeaseName>,
    /// The number of the next_number named slot.
    next_number: u64,
}

/// A slot with an id.
pub(super) struct NamedSlot {
    holder: u64,
    expiry: Expiry,
}

/// When a named slot expires, in nanoseconds of the clock. The number separates slots that expire
/// at the same time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Expiry {
    pub(super) at: u64,
    number: u64,
}

/// The limit that was reached, and the slots in use under it.
pub(super) enum LimitReached {
    ByKey { place: usize, in_use: u64 },
    InTotal(u64),
}

impl SlotCounts {
    pub(super) fn in_use_by(&self, place: usize, key: &Key) -> u64 {
        let by_key = self.by_key.get(place);
        by_key
            .and_then(|by_key| by_key.get(key))
            .map_or(0, |count| *count)
    }

    pub(super) fn take(
        &mut self,
        total: Option<u64>,
        keys: &[(Key, u64)],
    ) -> Result<(), LimitReached> {
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

    pub(super) fn release(&mut self, keys: &[Key]) {
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
    pub(super) fn take_named(
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
    pub(super) fn is_live(&self, name: &LeaseName, holder: Option<u64>, now: u64) -> bool {
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

    pub(super) fn extend(&mut self, name: &LeaseName, now: u64, ttl: Duration) -> &mut NamedSlot {
        let named = self.named.get_mut(name).expect("a live slot");
        self.expiries.remove(&named.expiry);
        named.expiry.at = expiry_time(now, ttl);
        self.expiries.insert(named.expiry, *name);
        named
    }

    pub(super) fn remove(&mut self, name: &LeaseName) {
        if let Some(named) = self.named.remove(name) {
            shrink_if_sparse(&mut self.named);
            self.expiries.remove(&named.expiry);
            self.release(&[name.tenant]);
        }
    }

    /// Removes at most `at_most` expired slots. Returns whether no expired slot is left.
    pub(super) fn expire(&mut self, now: u64, at_most: usize) -> bool {
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
