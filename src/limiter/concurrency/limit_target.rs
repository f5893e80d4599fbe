//! A concurrency limiter as a target of its limits.

use std::sync::Arc;
use std::time::Duration;

use super::CounterHandle;
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limit::Limit;
use crate::limiter::key_counters::KeyCounters;
use crate::limiter::slot_counter::UNLIMITED;
use crate::limits::{
    BoxFuture, CountedIn, ExplainedSlots, LimitExplanation, LimitTarget, LimitUsage, Limits,
};
use crate::store::overrides::{LimiterDescription, SlotsDescription};
use crate::store::{LeaseSlots, StoreStatus};

/// A concurrency limiter as a target of [`Limits`].
pub(super) struct ConcurrencyTarget {
    pub(super) name: Arc<str>,
    pub(super) counter: Arc<CounterHandle>,
    pub(super) per_key: Vec<Arc<KeyCounters>>,
    pub(super) limits: Limits,
    /// The retry time of a rejection at capacity.
    pub(super) retry_after: Option<Duration>,
    /// The slots in a store that replicas share, if any.
    pub(super) leases: Option<Arc<dyn LeaseSlots>>,
}

impl ConcurrencyTarget {
    /// The key's override, or the limit of its tier, unless the limiter is switched off.
    fn override_limit(&self, key: &Key) -> Option<Capacity> {
        let override_limit = self.limits.concurrency(key, &self.name, None);
        override_limit.filter(|_| !self.counter.ignores_override(&self.limits, key))
    }

    fn usage_of(&self, used: u64, limit: u64, is_override: bool) -> LimitUsage {
        LimitUsage {
            name: self.name.clone(),
            tier: None,
            sort: "concurrency",
            used,
            here: Some(used),
            counted_in: CountedIn::Process,
            limit: limiting(limit),
            is_override,
        }
    }
}

impl LimitTarget for ConcurrencyTarget {
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>> {
        let override_limit = self.override_limit(&key);
        let is_override =
            override_limit.is_some() && self.limits.overrides_concurrency(&key, &self.name);
        let usages = self.per_key.iter().enumerate().map(|(place, per_key)| {
            let limit = override_limit.map_or_else(|| per_key.limit(), Capacity::slots);
            let usage = self.usage_of(per_key.in_flight(&key), limit, is_override);
            // A position without a limit is not counted in the store.
            let pending = usage.limit.and(self.leases.as_ref());
            (
                usage,
                pending.map(|leases| leases.usage_at(Some(&key), place)),
            )
        });
        let usages: Vec<_> = usages.collect();
        Box::pin(async move {
            let mut places = Vec::new();
            for (usage, pending) in usages {
                let in_store = match pending {
                    Some(pending) => pending.await.and_then(|usage| usage.key),
                    None => None,
                };
                places.push(LimitUsage::with_counts(usage.clone(), usage.used, in_store));
            }
            LimitUsage::most_limiting(places).into_iter().collect()
        })
    }

    fn explain(&self, key: Key, tier: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>> {
        let slots = ExplainedSlots {
            name: self.name.clone(),
            sort: "concurrency",
            retry_after: self.retry_after,
            counted_in: CountedIn::from_in_store(self.leases.is_some()),
        };
        let override_limit = match self.counter.ignores_override(&self.limits, &key) {
            true => Default::default(),
            false => (self.limits).concurrency_source(&key, &self.name, tier.as_deref()),
        };
        let places = self.per_key.iter().enumerate().map(|(place, per_key)| {
            let default = limiting(per_key.limit());
            let pending = self.leases.as_ref();
            let pending = pending.map(|leases| leases.usage_at(Some(&key), place));
            (place, default, per_key.in_flight(&key), pending)
        });
        let places: Vec<_> = places.collect();
        let counter = self.counter.slots;
        let (total, in_flight) = (limiting(counter.limit()), counter.in_flight());
        let all = self.leases.as_ref().map(|leases| leases.usage(None));
        Box::pin(async move {
            let mut explained = Vec::new();
            for (place, default, taken, pending) in places {
                // A request must fit here and, if replicas share the limit, in the store.
                let used = match pending {
                    None => Some(taken),
                    Some(pending) => pending
                        .await
                        .and_then(|used| used.key)
                        .map(|used| used.max(taken)),
                };
                explained.push(slots.explain_key(place, default, &override_limit, used));
            }
            let used = match all {
                None => Some(in_flight),
                Some(pending) => pending.await.map(|used| used.total.max(in_flight)),
            };
            explained.push(slots.explain_total(total, used));
            explained
        })
    }

    fn total(&self) -> BoxFuture<Option<LimitUsage>> {
        let slots = self.counter.slots;
        let usage = self.usage_of(slots.in_flight(), slots.limit(), false);
        let pending = self.leases.as_ref().map(|leases| leases.usage(None));
        Box::pin(async move {
            let in_store = match pending {
                Some(pending) => pending.await.map(|usage| usage.total),
                None => None,
            };
            let here = usage.used;
            Some(usage.with_counts(here, in_store))
        })
    }

    fn store_status(&self) -> Option<StoreStatus> {
        self.leases.as_ref()?.status()
    }

    fn names(&self) -> Vec<Arc<str>> {
        vec![self.name.clone()]
    }

    fn applies(&self, limit: &Limit) -> bool {
        limit.concurrency(&self.name).is_some()
    }

    fn description(&self) -> Option<LimiterDescription> {
        if self.counter.is_suspended() {
            return None;
        }
        let place = self.leases.as_ref()?.place()?;
        let total = limiting(self.counter.slots.limit());
        let per_key = self.per_key.iter();
        let per_key = per_key.map(|per_key| limiting(per_key.limit()));
        let described = SlotsDescription::new(&self.name, place, total, per_key);
        let tiers = self.limits.declared();
        let tiers = tiers.iter().map(|tier| (&*tier.name, &tier.limit));
        Some(LimiterDescription::Concurrency(described.with_tiers(tiers)))
    }
}

fn limiting(limit: u64) -> Option<u64> {
    Some(limit).filter(|limit| *limit != UNLIMITED)
}
