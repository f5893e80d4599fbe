//! Leases that one process grants while the store is unavailable.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::key::Key;
use crate::store::{
    LeaseName, LeaseSlots, LeaseStore, MemoryStore, NamedAcquireOutcome, NamedLease, NamedLimits,
};
use crate::sync::{Mutex, lock};

/// A replica's share of the limits.
///
/// Leases that this process holds in the store also count against the share, so that no slot is
/// granted twice. Detached leases do not count, because this process does not learn when they end.
#[derive(Clone)]
pub(super) struct LeaseShare {
    /// Leases granted while the store was unavailable.
    pub(super) slots: Arc<dyn LeaseSlots>,
    held: Arc<Mutex<HeldCounts>>,
}

/// Leases that guards of this process hold in the store.
#[derive(Default)]
struct HeldCounts {
    total: u64,
    by_tenant: HashMap<Key, u64>,
}

/// Counts one lease until it is dropped.
pub(super) struct HeldCountGuard {
    held: Arc<Mutex<HeldCounts>>,
    tenant: Key,
}

impl Default for LeaseShare {
    fn default() -> Self {
        Self {
            slots: MemoryStore::new().open_leases(""),
            held: Arc::default(),
        }
    }
}

impl LeaseShare {
    /// The number of slots that this process holds, in the store or in the share: in total, or of a
    /// tenant.
    pub(super) fn held(&self, tenant: Option<&Key>) -> u64 {
        // The share is in memory and answers immediately.
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

    /// Counts a lease that the store has granted. Releases a copy of it that the share granted
    /// before.
    pub(super) fn count_held(&self, name: &LeaseName) -> HeldCountGuard {
        // The share is in memory, so the release is complete.
        drop(self.slots.release(name, None));
        let mut held = lock(&self.held);
        held.total += 1;
        *held.by_tenant.entry(name.tenant).or_default() += 1;
        HeldCountGuard {
            held: self.held.clone(),
            tenant: name.tenant,
        }
    }

    /// Acquires a slot of one replica's share. Also returns the limits of the share.
    pub(super) async fn acquire(
        &self,
        lease: &NamedLease,
        limits: NamedLimits,
        replicas: u32,
    ) -> (NamedAcquireOutcome, NamedLimits) {
        let share = |limit: u64| (limit / u64::from(replicas.max(1))).max(1);
        let limits = NamedLimits::new(limits.total.map(share), limits.per_tenant.map(share));
        let (total, by_tenant_count) = {
            let held = lock(&self.held);
            let by_tenant_count = held.by_tenant.get(&lease.name.tenant);
            (held.total, by_tenant_count.copied().unwrap_or(0))
        };
        let left = NamedLimits::new(
            limits.total.map(|limit| limit.saturating_sub(total)),
            (limits.per_tenant).map(|limit| limit.saturating_sub(by_tenant_count)),
        );
        let taken = match self.slots.acquire_named(lease, left).await {
            NamedAcquireOutcome::KeyFull(used) => {
                NamedAcquireOutcome::KeyFull(used + by_tenant_count)
            }
            NamedAcquireOutcome::Full(used) => NamedAcquireOutcome::Full(used + total),
            taken => taken,
        };
        (taken, limits)
    }
}

impl Drop for HeldCountGuard {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        held.total -= 1;
        if let Entry::Occupied(mut by_tenant_count) = held.by_tenant.entry(self.tenant) {
            *by_tenant_count.get_mut() -= 1;
            if *by_tenant_count.get() == 0 {
                by_tenant_count.remove();
            }
        }
    }
}
