//! A concurrency limiter as those who look after limits see it.

use std::sync::Arc;

use super::Counter;
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limiter::per_key::PerKey;
use crate::limiter::slots::UNLIMITED;
use crate::limits::{BoxFuture, CountedIn, LimitTarget, LimitUsage, Limits};
#[cfg(feature = "redis")]
use crate::limits::{Description, Slots};
use crate::store::{LeaseSlots, StoreStatus};

/// A limiter as [`Limits`] see it.
pub(super) struct Occupied {
    pub(super) name: Arc<str>,
    pub(super) counter: Arc<Counter>,
    pub(super) per_key: Vec<Arc<PerKey>>,
    pub(super) limits: Limits,
    /// Where it counts as well, if replicas share it.
    pub(super) leases: Option<Arc<dyn LeaseSlots>>,
}

impl Occupied {
    fn usage_of(&self, used: u64, limit: u64, is_own: bool) -> LimitUsage {
        LimitUsage {
            name: self.name.clone(),
            tier: None,
            sort: "concurrency",
            used,
            here: Some(used),
            counted_in: CountedIn::Process,
            limit: Some(limit).filter(|limit| *limit != UNLIMITED),
            is_own,
        }
    }
}

impl LimitTarget for Occupied {
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>> {
        let own = self.limits.concurrency(&key, &self.name, None);
        let is_own = self.limits.overrides_concurrency(&key, &self.name);
        let usages = self.per_key.iter().enumerate().map(|(place, per_key)| {
            let limit = own.map_or_else(|| per_key.limit(), Capacity::slots);
            let usage = self.usage_of(per_key.taken(&key), limit, is_own);
            // A place without a limit is not counted in the store.
            let asked = usage.limit.and(self.leases.as_ref());
            (
                usage,
                asked.map(|leases| leases.usage_at(Some(&key), place)),
            )
        });
        let usages: Vec<_> = usages.collect();
        Box::pin(async move {
            let mut places = Vec::new();
            for (usage, asked) in usages {
                let in_store = match asked {
                    Some(asked) => asked.await.and_then(|usage| usage.key),
                    None => None,
                };
                places.push(LimitUsage::counted(usage.clone(), usage.used, in_store));
            }
            LimitUsage::of_places(places).into_iter().collect()
        })
    }

    fn total(&self) -> BoxFuture<Option<LimitUsage>> {
        let slots = self.counter.0;
        let usage = self.usage_of(slots.in_flight(), slots.limit(), false);
        let asked = self.leases.as_ref().map(|leases| leases.usage(None));
        Box::pin(async move {
            let in_store = match asked {
                Some(asked) => asked.await.map(|usage| usage.total),
                None => None,
            };
            let here = usage.used;
            Some(usage.counted(here, in_store))
        })
    }

    fn store_status(&self) -> Option<StoreStatus> {
        self.leases.as_ref()?.status()
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
