//! Limits of single tenants, changed at run time.

use std::sync::Arc;

use super::leases::{Leases, Shared};
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limits::{BoxFuture, LimitTarget, LimitUsage, Limits};
#[cfg(feature = "redis")]
use crate::limits::{Description, Slots};
use crate::store::{LeaseSlots, Reply};

/// The limits of single tenants, and what they are told of the leases.
#[derive(Clone)]
pub(super) struct TenantLimits {
    limits: Limits,
    target: Option<Arc<dyn LimitTarget>>,
}

impl Leases {
    /// How many single tenants may have at work, changed at run time: in place of
    /// [`per_tenant`](Self::per_tenant), which need not be set for that. Default: what every tenant may.
    #[must_use]
    pub fn limits(self, limits: &Limits) -> Self {
        self.with(|shared| {
            shared.limits = Some(TenantLimits {
                limits: limits.clone(),
                target: None,
            });
        })
    }
}

impl Shared {
    pub(super) fn limit_of(&self, tenant: &Key) -> Option<u64> {
        let limits = self.limits.as_ref();
        let own = limits.and_then(|limits| limits.limits.concurrency(tenant, &self.name, None));
        own.map_or(self.per_tenant, Capacity::at_most)
    }

    /// Tells the limits of these leases, as they are by now.
    pub(super) fn tell_limits(&mut self) {
        if let Some(TenantLimits { limits, target }) = &mut self.limits {
            let worked: Arc<dyn LimitTarget> = Arc::new(AtWork {
                name: self.name.clone(),
                per_tenant: self.per_tenant,
                total: self.total,
                slots: self.slots.clone(),
                limits: limits.clone(),
            });
            limits.attach(&worked);
            *target = Some(worked);
        }
    }
}

/// Leases as [`Limits`] see them.
struct AtWork {
    name: Arc<str>,
    per_tenant: Option<u64>,
    total: Option<u64>,
    slots: Arc<dyn LeaseSlots>,
    limits: Limits,
}

impl AtWork {
    fn usage_of(&self, used: u64, limit: Option<u64>, is_own: bool) -> LimitUsage {
        LimitUsage {
            name: self.name.clone(),
            tier: None,
            sort: "lease",
            used,
            limit,
            is_own,
        }
    }
}

impl LimitTarget for AtWork {
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>> {
        let own = self.limits.concurrency(&key, &self.name, None);
        let is_own = self.limits.overrides_concurrency(&key, &self.name);
        let limit = own.map_or(self.per_tenant, Capacity::at_most);
        let mut usage = self.usage_of(0, limit, is_own);
        let asked = self.slots.usage(Some(&key));
        Box::pin(async move {
            let used = asked.await.and_then(|used| used.key);
            usage.used = used.unwrap_or(0);
            // Nothing to tell of one that is neither limited nor at work, or of a store that is away.
            let told = used.is_some() && (usage.limit.is_some() || usage.used > 0);
            told.then_some(usage).into_iter().collect()
        })
    }

    /// Of a store that answers at once.
    fn total(&self) -> Option<LimitUsage> {
        match self.slots.usage(None) {
            Reply::Ready(Some(used)) => Some(self.usage_of(used.total, self.total, false)),
            Reply::Ready(None) | Reply::Pending(_) => None,
        }
    }

    fn names(&self) -> Vec<Arc<str>> {
        vec![self.name.clone()]
    }

    #[cfg(feature = "redis")]
    fn description(&self) -> Option<Description> {
        Some(Description::Lease(Slots {
            name: self.name.to_string(),
            place: self.slots.place()?.to_owned(),
            total: self.total,
            per_key: vec![self.per_tenant],
            tiers: Slots::tiers(&self.limits, &self.name),
        }))
    }
}
