//! The limits of leases, which can change at run time: in total, per tenant, and for single
//! tenants.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::share::LeaseShare;
use super::{Leases, LeasesInner};
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limit::Limit;
use crate::limits::{
    BoxFuture, CountedIn, ExplainedSlots, LimitExplanation, LimitTarget, LimitUsage, Limits,
};
use crate::store::overrides::{LimiterDescription, SlotsDescription};
use crate::store::{LeaseSlots, StoreStatus};

/// The settings of a lease limiter that are in force.
pub(super) struct LeaseSettings {
    /// [`UNLIMITED`] stands for no limit.
    per_tenant: AtomicU64,
    total: AtomicU64,
    ttl_nanos: AtomicU64,
    /// Whether overrides and tiers are ignored, because the leases are switched off.
    suspended: AtomicBool,
}

const UNLIMITED: u64 = u64::MAX;

/// Below this, heartbeats would arrive too late on any network.
const MIN_TTL: Duration = Duration::from_millis(100);

// Each setting is read separately: a reader may see a change of two settings one after the other.
impl LeaseSettings {
    pub(super) fn per_tenant(&self) -> Option<u64> {
        finite_limit(self.per_tenant.load(Ordering::Relaxed))
    }

    pub(super) fn set_per_tenant(&self, limit: Option<u64>) {
        self.per_tenant
            .store(limit.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    pub(super) fn total(&self) -> Option<u64> {
        finite_limit(self.total.load(Ordering::Relaxed))
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

    fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }

    /// Whether a tenant's override is ignored. A ban always applies.
    fn ignores_override(&self, limits: &Limits, tenant: &Key) -> bool {
        self.is_suspended() && !limits.is_banned(tenant)
    }
}

fn finite_limit(limit: u64) -> Option<u64> {
    Some(limit).filter(|limit| *limit != UNLIMITED)
}

/// Interprets 0 as unlimited.
pub(super) fn zero_as_unlimited(limit: u64) -> Option<u64> {
    Some(limit).filter(|limit| *limit > 0)
}

/// Unlimited.
impl Default for LeaseSettings {
    fn default() -> Self {
        let settings = Self {
            per_tenant: AtomicU64::new(UNLIMITED),
            total: AtomicU64::new(UNLIMITED),
            ttl_nanos: AtomicU64::default(),
            suspended: AtomicBool::default(),
        };
        settings.set_ttl(Leases::DEFAULT_TTL);
        settings
    }
}

impl Clone for LeaseSettings {
    fn clone(&self) -> Self {
        let settings = Self::default();
        settings.set_per_tenant(self.per_tenant());
        settings.set_total(self.total());
        settings.set_ttl(self.ttl());
        settings
            .suspended
            .store(self.is_suspended(), Ordering::Relaxed);
        settings
    }
}

impl fmt::Debug for LeaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseSettings")
            .field("per_tenant", &self.per_tenant())
            .field("total", &self.total())
            .field("ttl", &self.ttl())
            .finish()
    }
}

/// The overrides of single tenants, and the target that reports these leases to them.
#[derive(Clone)]
pub(super) struct TenantLimits {
    limits: Limits,
    target: Option<Arc<dyn LimitTarget>>,
}

impl Leases {
    /// Changes the limit per tenant, for all clones, immediately. Running work continues; new work
    /// is rejected until the tenant has room. With a shared store, each process applies its own
    /// limit.
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
        self.shared()
            .settings
            .set_per_tenant(limit.into().at_most());
    }

    /// Changes the total limit, for all clones. Otherwise like
    /// [`set_per_tenant`](Self::set_per_tenant).
    pub fn set_total(&self, limit: impl Into<Capacity>) {
        self.shared().settings.set_total(limit.into().at_most());
    }

    /// Changes how long a lease lives without a heartbeat, within the bounds of [`ttl`](Self::ttl).
    /// Applies to later acquires and to heartbeats by id. A
    /// [`HeartbeatLease`](crate::HeartbeatLease) keeps its time to live.
    pub fn set_ttl(&self, ttl: Duration) {
        self.shared().settings.set_ttl(ttl);
    }

    /// Sets whether overrides and tiers are ignored, because the leases are switched off. Bans
    /// always apply. Default: not ignored.
    pub(crate) fn set_suspended(&self, is_suspended: bool) {
        self.shared()
            .settings
            .suspended
            .store(is_suspended, Ordering::Relaxed);
    }

    /// Sets overrides for single tenants, changeable at run time. An override replaces
    /// [`per_tenant`](Self::per_tenant), which need not be set. Default: none.
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

impl LeasesInner {
    pub(super) fn limit_of(&self, tenant: &Key) -> Option<u64> {
        let override_limit = self
            .limits
            .as_ref()
            .and_then(|TenantLimits { limits, .. }| {
                let override_limit = limits.concurrency(tenant, &self.name, None);
                override_limit.filter(|_| !self.settings.ignores_override(limits, tenant))
            });
        override_limit.map_or_else(|| self.settings.per_tenant(), Capacity::at_most)
    }

    /// Attaches these leases to their limits.
    pub(super) fn attach_limits(&mut self) {
        if let Some(TenantLimits { limits, target }) = &mut self.limits {
            let new_target: Arc<dyn LimitTarget> = Arc::new(LeaseTarget {
                name: self.name.clone(),
                settings: self.settings.clone(),
                slots: self.slots.clone(),
                share: self.share.clone(),
                limits: limits.clone(),
            });
            limits.attach(&new_target);
            *target = Some(new_target);
        }
    }
}

/// Leases as a target of [`Limits`].
struct LeaseTarget {
    name: Arc<str>,
    settings: Arc<LeaseSettings>,
    slots: Arc<dyn LeaseSlots>,
    share: LeaseShare,
    limits: Limits,
}

impl LeaseTarget {
    /// Whether replicas share the store of the slots.
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

/// A shared store's count is separate from this process's count; a memory store's count is this
/// process's count.
fn with_counts(usage: LimitUsage, is_shared: bool, here: u64, counted: Option<u64>) -> LimitUsage {
    match is_shared {
        true => usage.with_counts(here, counted),
        false => usage.with_counts(counted.unwrap_or(0), None),
    }
}

impl LimitTarget for LeaseTarget {
    fn usage(&self, key: Key) -> BoxFuture<Vec<LimitUsage>> {
        let override_limit = self.limits.concurrency(&key, &self.name, None);
        let override_limit =
            override_limit.filter(|_| !self.settings.ignores_override(&self.limits, &key));
        let is_override =
            override_limit.is_some() && self.limits.overrides_concurrency(&key, &self.name);
        let limit = override_limit.map_or_else(|| self.settings.per_tenant(), Capacity::at_most);
        let usage = self.usage_of(0, limit, is_override);
        let (is_shared, here) = (self.is_shared(), self.share.held(Some(&key)));
        let pending = self.slots.usage(Some(&key));
        Box::pin(async move {
            let usage = with_counts(
                usage,
                is_shared,
                here,
                pending.await.and_then(|used| used.key),
            );
            // Report nothing for a key without a limit and without leases.
            let is_reported = usage.limit.is_some() || usage.used > 0;
            is_reported.then_some(usage).into_iter().collect()
        })
    }

    /// No request acquires a lease, so only the tier that is stored for the key applies.
    fn explain(&self, key: Key, _: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>> {
        let override_limit = match self.settings.ignores_override(&self.limits, &key) {
            true => Default::default(),
            false => self.limits.concurrency_source(&key, &self.name, None),
        };
        let slots = ExplainedSlots {
            name: self.name.clone(),
            sort: "lease",
            retry_after: None,
            counted_in: CountedIn::from_in_store(self.is_shared()),
        };
        let (per_tenant, total) = (self.settings.per_tenant(), self.settings.total());
        let pending = self.slots.usage(Some(&key));
        Box::pin(async move {
            let used = pending.await;
            let of_key = slots.explain_key(
                0,
                per_tenant,
                &override_limit,
                used.as_ref().and_then(|used| used.key),
            );
            let of_all = slots.explain_total(total, used.map(|used| used.total));
            vec![of_key, of_all]
        })
    }

    fn total(&self) -> BoxFuture<Option<LimitUsage>> {
        let usage = self.usage_of(0, self.settings.total(), false);
        let (is_shared, here) = (self.is_shared(), self.share.held(None));
        let pending = self.slots.usage(None);
        Box::pin(async move {
            let counted = pending.await.map(|used| used.total);
            Some(with_counts(usage, is_shared, here, counted))
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
        if self.settings.is_suspended() {
            return None;
        }
        let (total, per_tenant) = (self.settings.total(), self.settings.per_tenant());
        let described = SlotsDescription::new(&self.name, self.slots.place()?, total, [per_tenant]);
        let tiers = self.limits.declared();
        let tiers = tiers.iter().map(|tier| (&*tier.name, &tier.limit));
        Some(LimiterDescription::Lease(described.with_tiers(tiers)))
    }
}
