//! The numbers of leases, which can change at run time: those of all tenants, and of one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::leases::{Leases, Shared};
use super::share::Share;
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limit::Limit;
use crate::limits::{
    BoxFuture, CountedIn, ExplainedSlots, LimitExplanation, LimitTarget, LimitUsage, Limits,
};
use crate::store::overrides::{LimiterDescription, SlotsDescription};
use crate::store::{LeaseSlots, StoreStatus};

/// What a limiter of leases allows, as it is now.
pub(super) struct LeaseNumbers {
    /// [`UNLIMITED`] for any number.
    per_tenant: AtomicU64,
    total: AtomicU64,
    ttl_nanos: AtomicU64,
    /// Whether overrides and tiers are ignored for now, because these leases are switched off.
    rests: AtomicBool,
}

const UNLIMITED: u64 = u64::MAX;

/// Below this, heartbeats would come too late on any network.
const MIN_TTL: Duration = Duration::from_millis(100);

// Each number is read on its own: a change of two of them may be seen one after the other.
impl LeaseNumbers {
    pub(super) fn per_tenant(&self) -> Option<u64> {
        limited(self.per_tenant.load(Ordering::Relaxed))
    }

    pub(super) fn set_per_tenant(&self, limit: Option<u64>) {
        self.per_tenant
            .store(limit.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    pub(super) fn total(&self) -> Option<u64> {
        limited(self.total.load(Ordering::Relaxed))
    }

    pub(super) fn set_total(&self, limit: Option<u64>) {
        self.total
            .store(limit.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    pub(super) fn ttl(&self) -> Duration {
        Duration::from_nanos(self.ttl_nanos.load(Ordering::Relaxed))
    }

    pub(super) fn set_ttl(&self, ttl: Duration) {
        let ttl = ttl.clamp(MIN_TTL, Leases::MAX_TTL).as_nanos();
        let ttl = u64::try_from(ttl).unwrap_or(u64::MAX);
        self.ttl_nanos.store(ttl, Ordering::Relaxed);
    }

    fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    /// Whether a tenant's override is ignored for now: a ban is no limit that is switched off.
    fn ignore_override(&self, limits: &Limits, tenant: &Key) -> bool {
        self.rests() && !limits.bans(tenant)
    }
}

fn limited(limit: u64) -> Option<u64> {
    Some(limit).filter(|limit| *limit != UNLIMITED)
}

/// The limit of a setting in which 0 turns it off.
pub(super) fn or_off(limit: u64) -> Option<u64> {
    Some(limit).filter(|limit| *limit > 0)
}

/// Without limits.
impl Default for LeaseNumbers {
    fn default() -> Self {
        let numbers = Self {
            per_tenant: AtomicU64::new(UNLIMITED),
            total: AtomicU64::new(UNLIMITED),
            ttl_nanos: AtomicU64::default(),
            rests: AtomicBool::default(),
        };
        numbers.set_ttl(Leases::DEFAULT_TTL);
        numbers
    }
}

impl Clone for LeaseNumbers {
    fn clone(&self) -> Self {
        let numbers = Self::default();
        numbers.set_per_tenant(self.per_tenant());
        numbers.set_total(self.total());
        numbers.set_ttl(self.ttl());
        numbers.rests.store(self.rests(), Ordering::Relaxed);
        numbers
    }
}

impl fmt::Debug for LeaseNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseNumbers")
            .field("per_tenant", &self.per_tenant())
            .field("total", &self.total())
            .field("ttl", &self.ttl())
            .finish()
    }
}

/// The limits of single tenants, and what they are told of the leases.
#[derive(Clone)]
pub(super) struct TenantLimits {
    limits: Limits,
    target: Option<Arc<dyn LimitTarget>>,
}

impl Leases {
    /// Changes how many of a tenant's may be at work, for all clones, at once. What is at work goes on; nothing new is
    /// admitted until there is room. In a store each process goes by its own number.
    ///
    /// ```
    /// use tower_admission::{Capacity, Key, Leases};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tower_admission::Rejection> {
    /// let jobs = Leases::new().per_tenant(1);
    /// let acme = Key::id("organisation", "acme");
    /// let first = jobs.acquire(&acme, "1").await?;
    /// assert!(jobs.acquire(&acme, "2").await.is_err());
    /// jobs.set_per_tenant(2);
    /// let second = jobs.acquire(&acme, "2").await?;
    /// jobs.set_per_tenant(Capacity::Unlimited);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_per_tenant(&self, limit: impl Into<Capacity>) {
        self.shared().numbers.set_per_tenant(limit.into().at_most());
    }

    /// Changes how many may be at work in all, for all clones, as [`set_per_tenant`](Self::set_per_tenant).
    pub fn set_total(&self, limit: impl Into<Capacity>) {
        self.shared().numbers.set_total(limit.into().at_most());
    }

    /// Changes how long a lease lives without a heartbeat, within the bounds of [`ttl`](Self::ttl). It applies to
    /// leases that are acquired from now on, and to heartbeats by id; a [`KeptLease`](crate::KeptLease) keeps its own.
    pub fn set_ttl(&self, ttl: Duration) {
        self.shared().numbers.set_ttl(ttl);
    }

    /// Sets whether overrides and tiers are ignored, because the leases are switched off. A ban is not. Default: they
    /// count.
    pub(crate) fn rest(&self, rests: bool) {
        self.shared().numbers.rests.store(rests, Ordering::Relaxed);
    }

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
        let own = self
            .limits
            .as_ref()
            .and_then(|TenantLimits { limits, .. }| {
                let own = limits.concurrency(tenant, &self.name, None);
                own.filter(|_| !self.numbers.ignore_override(limits, tenant))
            });
        own.map_or_else(|| self.numbers.per_tenant(), Capacity::at_most)
    }

    /// Tells the limits of these leases, as they are by now.
    pub(super) fn tell_limits(&mut self) {
        if let Some(TenantLimits { limits, target }) = &mut self.limits {
            let worked: Arc<dyn LimitTarget> = Arc::new(AtWork {
                name: self.name.clone(),
                numbers: self.numbers.clone(),
                slots: self.slots.clone(),
                share: self.share.clone(),
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
    numbers: Arc<LeaseNumbers>,
    slots: Arc<dyn LeaseSlots>,
    share: Share,
    limits: Limits,
}

impl AtWork {
    /// Whether the slots are in a store that replicas share.
    fn is_shared(&self) -> bool {
        self.slots.place().is_some()
    }

    fn usage_of(&self, used: u64, limit: Option<u64>, is_override: bool) -> LimitUsage {
        LimitUsage {
            name: self.name.clone(),
            tier: None,
            sort: "lease",
            used,
            here: Some(used),
            counted_in: CountedIn::Process,
            limit,
            is_override,
        }
    }
}

/// What slots in a store count is next to what this process holds; what slots in memory count is what it holds.
fn of_slots(usage: LimitUsage, is_shared: bool, here: u64, counted: Option<u64>) -> LimitUsage {
    match is_shared {
        true => usage.counted(here, counted),
        false => usage.counted(counted.unwrap_or(0), None),
    }
}

impl LimitTarget for AtWork {
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>> {
        let own = self.limits.concurrency(&key, &self.name, None);
        let own = own.filter(|_| !self.numbers.ignore_override(&self.limits, &key));
        let is_override = own.is_some() && self.limits.overrides_concurrency(&key, &self.name);
        let limit = own.map_or_else(|| self.numbers.per_tenant(), Capacity::at_most);
        let usage = self.usage_of(0, limit, is_override);
        let (is_shared, here) = (self.is_shared(), self.share.held(Some(&key)));
        let asked = self.slots.usage(Some(&key));
        Box::pin(async move {
            let usage = of_slots(
                usage,
                is_shared,
                here,
                asked.await.and_then(|used| used.key),
            );
            // Nothing to tell of one that is neither limited nor at work.
            let told = usage.limit.is_some() || usage.used > 0;
            told.then_some(usage).into_iter().collect()
        })
    }

    /// A lease is not acquired by a request, so only the tier that is stored for the key counts.
    fn explain(&self, key: Key, _: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>> {
        let own = match self.numbers.ignore_override(&self.limits, &key) {
            true => Default::default(),
            false => self.limits.concurrency_source(&key, &self.name, None),
        };
        let slots = ExplainedSlots {
            name: self.name.clone(),
            sort: "lease",
            retry_after: None,
            counted_in: CountedIn::of(self.is_shared()),
        };
        let (per_tenant, total) = (self.numbers.per_tenant(), self.numbers.total());
        let asked = self.slots.usage(Some(&key));
        Box::pin(async move {
            let used = asked.await;
            let of_key = slots.of_key(0, per_tenant, &own, used.as_ref().and_then(|used| used.key));
            let of_all = slots.of_all(total, used.map(|used| used.total));
            vec![of_key, of_all]
        })
    }

    fn total(&self) -> BoxFuture<Option<LimitUsage>> {
        let usage = self.usage_of(0, self.numbers.total(), false);
        let (is_shared, here) = (self.is_shared(), self.share.held(None));
        let asked = self.slots.usage(None);
        Box::pin(async move {
            let counted = asked.await.map(|used| used.total);
            Some(of_slots(usage, is_shared, here, counted))
        })
    }

    fn store_status(&self) -> Option<StoreStatus> {
        self.slots.status()
    }

    fn names(&self) -> Vec<Arc<str>> {
        vec![self.name.clone()]
    }

    fn applies(&self, limit: &Limit) -> bool {
        limit.concurrency(&self.name).is_some()
    }

    fn description(&self) -> Option<LimiterDescription> {
        if self.numbers.rests() {
            return None;
        }
        let (total, per_tenant) = (self.numbers.total(), self.numbers.per_tenant());
        let described = SlotsDescription::new(&self.name, self.slots.place()?, total, [per_tenant]);
        let tiers = self.limits.declared();
        let tiers = tiers.iter().map(|tier| (&*tier.name, &tier.limit));
        Some(LimiterDescription::Lease(described.with_tiers(tiers)))
    }
}
