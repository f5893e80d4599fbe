//! The numbers of leases, which can change at run time: those of all tenants, and of one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::leases::{Leases, Shared};
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limits::{BoxFuture, ExplainedSlots, LimitExplanation, LimitTarget, LimitUsage, Limits};
#[cfg(feature = "redis")]
use crate::limits::{Description, Slots};
use crate::store::{LeaseSlots, Reply};

/// What a limiter of leases allows, as it is now.
pub(super) struct LeaseNumbers {
    /// [`UNLIMITED`] for any number.
    per_tenant: AtomicU64,
    total: AtomicU64,
    ttl_nanos: AtomicU64,
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
}

fn limited(limit: u64) -> Option<u64> {
    Some(limit).filter(|limit| *limit != UNLIMITED)
}

/// Without limits.
impl Default for LeaseNumbers {
    fn default() -> Self {
        let numbers = Self {
            per_tenant: AtomicU64::new(UNLIMITED),
            total: AtomicU64::new(UNLIMITED),
            ttl_nanos: AtomicU64::default(),
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
        own.map_or_else(|| self.numbers.per_tenant(), Capacity::at_most)
    }

    /// Tells the limits of these leases, as they are by now.
    pub(super) fn tell_limits(&mut self) {
        if let Some(TenantLimits { limits, target }) = &mut self.limits {
            let worked: Arc<dyn LimitTarget> = Arc::new(AtWork {
                name: self.name.clone(),
                numbers: self.numbers.clone(),
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
    numbers: Arc<LeaseNumbers>,
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
        let limit = own.map_or_else(|| self.numbers.per_tenant(), Capacity::at_most);
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

    /// A lease is not acquired by a request, so only the tier that is stored for the key counts.
    fn explain(&self, key: Key, _: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>> {
        let own = self.limits.concurrency_source(&key, &self.name, None);
        let slots = ExplainedSlots {
            name: self.name.clone(),
            sort: "lease",
            retry_after: None,
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

    /// Of a store that answers at once.
    fn total(&self) -> Option<LimitUsage> {
        match self.slots.usage(None) {
            Reply::Ready(Some(used)) => {
                Some(self.usage_of(used.total, self.numbers.total(), false))
            }
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
            total: self.numbers.total(),
            per_key: vec![self.numbers.per_tenant()],
            tiers: Slots::tiers(&self.limits, &self.name),
        }))
    }
}
