//! Stores of leases: counts that several processes share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Reply, StoreStatus};
use crate::key::Key;

/// Counts leases for several processes.
pub trait LeaseStore: Send + Sync + 'static {
    /// Opens the leases of one limiter. Limiters with the same name share them.
    fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots>;

    /// See [`RateStore::agrees_on_fingerprints`](super::RateStore::agrees_on_fingerprints).
    fn agrees_on_fingerprints(&self) -> bool {
        true
    }
}

impl<S: LeaseStore + ?Sized> LeaseStore for Arc<S> {
    fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots> {
        (**self).open_leases(name)
    }

    fn agrees_on_fingerprints(&self) -> bool {
        (**self).agrees_on_fingerprints()
    }
}

/// The leases of one limiter in a [`LeaseStore`].
pub trait LeaseSlots: Send + Sync + 'static {
    /// Acquires a lease if each key and the total have room. A rejection takes nothing from any of them.
    ///
    /// Each index in [`LeaseLimits::keys`] counts separately. A key that is there twice takes one lease at each index,
    /// and each limit applies to the count at its own index.
    ///
    /// Dropping the future of the reply releases the lease, before and after the store has decided.
    fn acquire(&self, limits: LeaseLimits) -> Reply<AcquireOutcome>;

    /// Counts the live leases: in total, and of a key at an index of [`LeaseLimits::keys`].
    fn usage_at(&self, key: Option<&Key>, place: usize) -> Reply<Option<LeaseUsage>>;

    /// Counts the live leases: in total, and of a key at the first index.
    fn usage(&self, key: Option<&Key>) -> Reply<Option<LeaseUsage>> {
        self.usage_at(key, 0)
    }

    /// Acquires a lease by name, until it is released or its time to live is over.
    ///
    /// It counts towards the tenant's leases at the first index.
    ///
    /// A live lease is taken over: it is not counted again, its time to live starts again, and it gets this holder.
    ///
    /// Dropping the future of the reply does not release it: the caller must release it as the holder. An acquire that
    /// arrives after its holder's release, as it may over a network, takes nothing.
    fn acquire_named(&self, lease: &NamedLease, limits: NamedLimits) -> Reply<NamedAcquireOutcome>;

    /// Extends a live lease to `ttl` from now; with a holder, only if the lease belongs to it. An expired lease stays
    /// gone.
    fn heartbeat(&self, name: &LeaseName, holder: Option<u64>, ttl: Duration)
    -> Reply<LeaseStatus>;

    /// Releases a lease by name; with a holder, only if the lease belongs to it.
    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<LeaseStatus>;

    /// The place of these leases in the store, by which other processes can find them. Default: none.
    fn place(&self) -> Option<&str> {
        None
    }

    /// Whether the shared store decides; for operators, without a call. Default: the store is in this process.
    fn status(&self) -> Option<StoreStatus> {
        None
    }
}

/// The name of a lease: its tenant, and its id.
///
/// Leases of different tenants have different names, so an id is of no use to another tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LeaseName {
    /// The tenant.
    pub tenant: Key,
    /// The id, unique within the tenant.
    pub id: Key,
}

/// A lease to be acquired by name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NamedLease {
    /// The name of the lease.
    pub name: LeaseName,
    /// A number that identifies the caller, and is not used again for this name. Only the last holder can extend and
    /// release the lease as its holder, so an abandoned attempt does not affect a later one.
    pub holder: u64,
    /// The time to live without a heartbeat. Stores clamp it to a range from one millisecond to 365 days, also in a
    /// heartbeat.
    pub ttl: Duration,
}

/// The outcome of an acquire by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NamedAcquireOutcome {
    /// The lease was acquired.
    Granted,
    /// The tenant's limit is reached. Holds the number of its leases.
    KeyFull(u64),
    /// The total limit is reached. Holds the number of leases.
    Full(u64),
    /// The store is unavailable, and this mode decides. The store may have granted the lease.
    Unavailable(FailureMode),
    /// The store was not called, because it is unavailable or too many calls are in progress, and this mode decides. No
    /// release is needed.
    NotAsked(FailureMode),
}

/// The state of a lease by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseStatus {
    /// It was live.
    Live,
    /// It was never acquired, was released, has expired, or belongs to another holder.
    Gone,
    /// The store is unavailable.
    Unavailable,
    /// The store has other data under this name, so a retry would fail, too.
    Failed,
}

/// The limits for one lease.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaseLimits {
    /// The total limit; `None` for none.
    pub total: Option<u64>,
    keys: SmallVec<[(Key, u64); 2]>,
}

/// The limits for a lease by name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NamedLimits {
    /// The total limit; `None` for none.
    pub total: Option<u64>,
    /// The limit of the tenant; `None` for none.
    pub per_tenant: Option<u64>,
}

/// The number of live leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseUsage {
    /// In total.
    pub total: u64,
    /// Of the requested key.
    pub key: Option<u64>,
}

/// The outcome of an acquire.
#[must_use = "dropping it gives the slot back"]
pub enum AcquireOutcome {
    /// The lease was acquired. Dropping the guard releases it.
    Granted(Box<dyn LeaseGuard>),
    /// The limit of a key is reached.
    KeyFull {
        /// The index of the first full key in [`LeaseLimits::keys`].
        place: usize,
    },
    /// The total limit is reached.
    Full,
    /// The store is unavailable, and this mode decides.
    Unavailable(FailureMode),
}

/// RAII guard of a lease: dropping it releases the lease.
pub trait LeaseGuard: Send + Sync + 'static {}

/// How requests are decided while the store is unavailable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureMode {
    /// Rate limits admit requests without counting. Concurrency limits apply the whole limit in each replica. Use it
    /// when the limit provides fairness.
    #[default]
    Open,
    /// Requests are rejected with 503. Use it when the limit protects a resource.
    Closed,
    /// Each replica counts in memory and applies its share: the limit divided by `replicas` (0 counts as 1), and at
    /// least one.
    ///
    /// The share of a rate is also charged for requests that the store admits through this replica, so that it is no
    /// fresh burst when the store fails. All replicas together admit at most one burst more than the store, for each
    /// outage. A request that costs more than a share is rejected with 503, because it fits when the store is available
    /// again.
    LocalShare {
        /// The number of replicas.
        replicas: u32,
    },
}

impl FailureMode {
    /// The word for logs and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::LocalShare { .. } => "local_share",
        }
    }
}

impl fmt::Debug for AcquireOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Granted(_) => "Granted(..)",
            Self::KeyFull { place } => return write!(f, "KeyFull({place})"),
            Self::Full => "Full",
            Self::Unavailable(_) => "Unavailable(..)",
        })
    }
}

/// Clamps a time to live to what stores support: from one millisecond to 365 days.
#[must_use]
pub fn clamp_ttl(ttl: Duration) -> Duration {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    ttl.clamp(Duration::from_millis(1), LONGEST)
}

impl LeaseName {
    /// Creates the name of a tenant's lease.
    #[must_use]
    pub fn new(tenant: Key, id: Key) -> Self {
        Self { tenant, id }
    }
}

impl NamedLease {
    /// Creates a request for a lease with a holder and a time to live.
    #[must_use]
    pub fn new(name: LeaseName, holder: u64, ttl: Duration) -> Self {
        Self { name, holder, ttl }
    }
}

impl LeaseLimits {
    /// Creates limits: in total, and for each key.
    #[must_use]
    pub fn new(total: Option<u64>, keys: impl IntoIterator<Item = (Key, u64)>) -> Self {
        Self {
            total,
            keys: keys.into_iter().collect(),
        }
    }

    /// The keys of the lease, each with its limit.
    #[must_use]
    pub fn keys(&self) -> &[(Key, u64)] {
        &self.keys
    }
}

impl NamedLimits {
    /// Creates limits: in total, and for the tenant.
    #[must_use]
    pub fn new(total: Option<u64>, per_tenant: Option<u64>) -> Self {
        Self { total, per_tenant }
    }
}

impl LeaseUsage {
    /// Creates counts: in total, and of a key.
    #[must_use]
    pub fn new(total: u64, key: Option<u64>) -> Self {
        Self { total, key }
    }
}
