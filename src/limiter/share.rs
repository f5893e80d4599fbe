//! What one process grants while the store is away.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::key::Key;
use crate::store::{
    LeaseName, LeaseSlots, LeaseStore, MemoryStore, NamedAcquireOutcome, NamedLease, NamedLimits,
};
use crate::sync::{Mutex, lock};

/// A replica's part of the limits.
///
/// What this process holds in the store counts as well, so that nothing is granted twice. What it
/// has detached does not: where that ends is not known here.
#[derive(Clone)]
pub(super) struct Share {
    /// What was granted while the store was away.
    pub(super) slots: Arc<dyn LeaseSlots>,
    held: Arc<Mutex<Held>>,
}

/// What guards of this process hold in the store.
#[derive(Default)]
struct Held {
    total: u64,
    by_tenant: HashMap<Key, u64>,
}

/// One of them, until this is dropped.
pub(super) struct AlsoHeld {
    held: Arc<Mutex<Held>>,
    tenant: Key,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            slots: MemoryStore::new().open_leases(""),
            held: Arc::default(),
        }
    }
}

impl Share {
    /// How many slots guards of this process hold in the store, and were granted while it was away: in all, or of a tenant.
    pub(super) fn held(&self, tenant: Option<&Key>) -> u64 {
        // In this process's memory, and so known at once.
        let granted = self.slots.usage(tenant).now().flatten();
        let granted = granted.map_or(0, |usage| match tenant {
            Some(_) => usage.key.unwrap_or(0),
            None => usage.total,
        });
        let held = lock(&self.held);
        granted
            + match tenant {
                Some(tenant) => held.by_tenant.get(tenant).copied().unwrap_or(0),
                None => held.total,
            }
    }

    /// Notes what the store has granted. A copy of it that was granted here before has an end.
    pub(super) fn also_held(&self, name: &LeaseName) -> AlsoHeld {
        // In this process's memory, and so done at once.
        drop(self.slots.release(name, None));
        let mut held = lock(&self.held);
        held.total += 1;
        *held.by_tenant.entry(name.tenant).or_default() += 1;
        AlsoHeld {
            held: self.held.clone(),
            tenant: name.tenant,
        }
    }

    /// Takes a slot of one of so many replicas. Also returns its limits.
    pub(super) async fn acquire(
        &self,
        lease: &NamedLease,
        limits: NamedLimits,
        replicas: u32,
    ) -> (NamedAcquireOutcome, NamedLimits) {
        let share = |limit: u64| (limit / u64::from(replicas.max(1))).max(1);
        let limits = NamedLimits::new(limits.total.map(share), limits.per_tenant.map(share));
        let (total, of_tenant) = {
            let held = lock(&self.held);
            let of_tenant = held.by_tenant.get(&lease.name.tenant);
            (held.total, of_tenant.copied().unwrap_or(0))
        };
        let left = NamedLimits::new(
            limits.total.map(|limit| limit.saturating_sub(total)),
            (limits.per_tenant).map(|limit| limit.saturating_sub(of_tenant)),
        );
        let taken = match self.slots.acquire_named(lease, left).await {
            NamedAcquireOutcome::KeyFull(used) => NamedAcquireOutcome::KeyFull(used + of_tenant),
            NamedAcquireOutcome::Full(used) => NamedAcquireOutcome::Full(used + total),
            taken => taken,
        };
        (taken, limits)
    }
}

impl Drop for AlsoHeld {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        held.total -= 1;
        if let Entry::Occupied(mut of_tenant) = held.by_tenant.entry(self.tenant) {
            *of_tenant.get_mut() -= 1;
            if *of_tenant.get() == 0 {
                of_tenant.remove();
            }
        }
    }
}
