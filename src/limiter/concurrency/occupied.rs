//! A concurrency limiter as those who look after limits see it.

use std::sync::Arc;

use super::Counter;
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limiter::per_key::PerKey;
use crate::limiter::slots::UNLIMITED;
use crate::limits::{BoxFuture, LimitTarget, LimitUsage, Limits};
#[cfg(feature = "redis")]
use crate::limits::{Description, Slots};
#[cfg(feature = "redis")]
use crate::store::LeaseSlots;

/// A limiter as [`Limits`] see it.
pub(super) struct Occupied {
    pub(super) name: Arc<str>,
    pub(super) counter: Arc<Counter>,
    pub(super) per_key: Vec<Arc<PerKey>>,
    pub(super) limits: Limits,
    /// Where it counts as well, if replicas share it.
    #[cfg(feature = "redis")]
    pub(super) leases: Option<Arc<dyn LeaseSlots>>,
}

impl Occupied {
    fn usage_of(&self, used: u64, limit: u64, is_own: bool) -> LimitUsage {
        LimitUsage {
            name: self.name.clone(),
            tier: None,
            sort: "concurrency",
            used,
            limit: Some(limit).filter(|limit| *limit != UNLIMITED),
            is_own,
        }
    }
}

impl LimitTarget for Occupied {
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>> {
        let own = self.limits.concurrency(&key, &self.name, None);
        let is_own = self.limits.overrides_concurrency(&key, &self.name);
        let usages = self.per_key.iter().map(|per_key| {
            let limit = own.map_or_else(|| per_key.limit(), Capacity::slots);
            self.usage_of(per_key.taken(&key), limit, is_own)
        });
        let usage = LimitUsage::of_places(usages);
        Box::pin(std::future::ready(usage.into_iter().collect()))
    }

    fn total(&self) -> Option<LimitUsage> {
        let slots = self.counter.0;
        Some(self.usage_of(slots.in_flight(), slots.limit(), false))
    }

    fn names(&self) -> Vec<Arc<str>> {
        vec![self.name.clone()]
    }

    #[cfg(feature = "redis")]
    fn description(&self) -> Option<Description> {
        let limiting = |limit: u64| Some(limit).filter(|limit| *limit != UNLIMITED);
        let per_key = self.per_key.iter();
        Some(Description::Concurrency(Slots {
            name: self.name.to_string(),
            place: self.leases.as_ref()?.place()?.to_owned(),
            total: limiting(self.counter.0.limit()),
            per_key: per_key.map(|per_key| limiting(per_key.limit())).collect(),
            tiers: Slots::tiers(&self.limits, &self.name),
        }))
    }
}
