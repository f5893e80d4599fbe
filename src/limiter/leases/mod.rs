//! Slots for work that outlives its request.

mod build;
mod lease;
mod limits;
mod reaper;
mod share;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use self::lease::LeasePlace;
pub use self::lease::{HeartbeatLease, Lease};
use self::limits::{LeaseSettings, TenantLimits};
use self::reaper::Reaper;
use self::share::LeaseShare;
use crate::key::Key;
use crate::observe::{Observers, Subject};
use crate::rejection::{Reason, Rejection, UNAVAILABLE_RETRY_AFTER};
use crate::store::{
    FailureMode, LeaseName, LeaseSlots, LeaseStatus, LeaseStore, LeaseUsage, MemoryStore,
    NamedAcquireOutcome, NamedLimits,
};

/// Limits concurrent work per tenant and in total, for work that outlives its request: a session, a
/// job, a stream in another process. Clones share one limit.
///
/// Each piece of work has an id, chosen by the caller or generated, and a time to live. Any process
/// that shares the [store](Self::store) can send [heartbeats](Self::heartbeat) and
/// [release](Self::release) the work by tenant and id. Without heartbeats and without a release,
/// the slot is free again when the time to live ends.
///
/// ```
/// use std::time::Duration;
/// use tower_admission::{Key, Leases};
///
/// # async fn dispatch(execution: &str) -> Result<(), std::io::Error> { Ok(()) }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let jobs = Leases::new()
///     .per_tenant(5)
///     .total(50)
///     .ttl(Duration::from_secs(6 * 3600));
/// let acme = Key::id("organisation", "acme");
///
/// // Acquire before you start the job. Until `detach`, dropping the lease releases the slot, also on
/// // an early return, a panic or a cancellation.
/// let lease = jobs.acquire(&acme, "execution-42").await?;
/// dispatch(lease.id()).await?;
/// lease.detach();
///
/// // When the job is done, in this or in another process.
/// jobs.release(&acme, "execution-42").await;
/// # Ok(())
/// # }
/// ```
///
/// # Both limits at once
///
/// The store checks both limits in one atomic step and counts the work once. If callers race for
/// the last slot, exactly one gets it. A [`Rejection`] has the reason
/// [`KeyAtCapacity`](Reason::KeyAtCapacity) or [`AtCapacity`](Reason::AtCapacity); its
/// [`occupancy`](Rejection::occupancy) has the slots in use and the limit. It has no retry time,
/// because the time at which a slot becomes free is unknown. A tenant with `deny all` is rejected
/// as [`Denied`](Reason::Denied).
///
/// # Ids
///
/// An id belongs to its tenant: the work `42` of one tenant is unrelated to the work `42` of
/// another, so another tenant's id is of no use. An acquire of an id that is in use takes over its
/// slot and restarts its time to live; the work counts once. The earlier guard can then neither
/// extend nor release it, and its lease is [lost](crate::HeartbeatLease::lost). If the acquire that
/// took over is dropped, it releases the slot.
#[derive(Clone)]
pub struct Leases(Arc<LeasesInner>);

#[derive(Clone)]
struct LeasesInner {
    name: Arc<str>,
    /// The settings that can change at run time.
    settings: Arc<LeaseSettings>,
    limits: Option<TenantLimits>,
    store: Arc<dyn LeaseStore>,
    slots: Arc<dyn LeaseSlots>,
    share: LeaseShare,
    reaper: Reaper,
    observers: Observers,
}

impl LeasesInner {
    /// Opens the slots of a new limit, which shares no counts with the previous one.
    fn reopen(&mut self) {
        self.slots = self.store.open_leases(&self.name);
        self.share = LeaseShare::default();
        self.reaper = Reaper::default();
    }
}

impl Leases {
    /// The default time to live, in which two of three heartbeats may get lost: 60 seconds.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(60);

    /// Creates leases without limits, counted in this process's memory.
    #[must_use]
    pub fn new() -> Self {
        let store = MemoryStore::new();
        Self(Arc::new(LeasesInner {
            name: "".into(),
            settings: Arc::default(),
            limits: None,
            slots: store.open_leases(""),
            share: LeaseShare::default(),
            store: Arc::new(store),
            reaper: Reaper::default(),
            observers: Observers::default(),
        }))
    }

    /// Acquires a slot for the tenant's work with this id.
    ///
    /// Dropping the future before it completes takes no slot.
    ///
    /// # Errors
    ///
    /// - [`Reason::Denied`]: the tenant's limit is `deny all`.
    /// - [`Reason::KeyAtCapacity`]: the tenant's limit is reached.
    /// - [`Reason::AtCapacity`]: the total limit is reached.
    /// - [`Reason::Unavailable`]: the store is unavailable and fails closed.
    pub async fn acquire(&self, tenant: &Key, id: &str) -> Result<Lease, Rejection> {
        let begun = self.0.observers.begin();
        let acquired = self.take(tenant, id).await;
        let subject = self.subject(tenant);
        (self.0.observers).decided(begun, &subject, |observer| match &acquired {
            Ok(_) => observer.admitted(&subject),
            Err(rejection) => observer.rejected(&subject, rejection),
        });
        acquired
    }

    /// Like [`acquire`](Self::acquire), with a random id of 128 bits that cannot be guessed.
    ///
    /// # Errors
    ///
    /// Like [`acquire`](Self::acquire).
    ///
    /// # Panics
    ///
    /// Panics if the operating system returns no random bytes.
    pub async fn acquire_new(&self, tenant: &Key) -> Result<Lease, Rejection> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the operating system returns random bytes");
        let id = format!("{:032x}", u128::from_le_bytes(bits));
        self.acquire(tenant, &id).await
    }

    async fn take(&self, tenant: &Key, id: &str) -> Result<Lease, Rejection> {
        let name = lease_name(tenant, id);
        let limits = self.limits_for(tenant);
        // Created before the store is asked, so that every exit releases the slot unless the lease
        // is returned.
        let mut lease = Lease::new(self.clone(), id, name, LeasePlace::Store);
        let taken = self.0.slots.acquire_named(&lease.named(), limits).await;
        let mode = match taken {
            // The store may have granted the slot although its answer was lost: dropping this lease
            // releases it.
            NamedAcquireOutcome::Unavailable(mode) => mode,
            NamedAcquireOutcome::NotAsked(mode) => {
                lease.place = LeasePlace::Nowhere;
                mode
            }
            _ => {
                let mut lease = self.grant(lease, taken, limits)?;
                lease.held_count = Some(self.0.share.count_held(&name));
                return Ok(lease);
            }
        };
        drop(lease);
        match mode {
            FailureMode::Open => Ok(Lease::new(self.clone(), id, name, LeasePlace::Nowhere)),
            FailureMode::Closed => {
                let rejection = Rejection::new(Reason::Unavailable, String::from(&*self.0.name));
                Err(rejection.with_retry_after(Some(UNAVAILABLE_RETRY_AFTER)))
            }
            FailureMode::LocalShare { replicas } => {
                let lease = Lease::new(self.clone(), id, name, LeasePlace::LocalShare);
                let (taken, limits) = self.0.share.acquire(&lease.named(), limits, replicas).await;
                self.grant(lease, taken, limits)
            }
        }
    }

    fn grant(
        &self,
        mut lease: Lease,
        taken: NamedAcquireOutcome,
        limits: NamedLimits,
    ) -> Result<Lease, Rejection> {
        let (reason, used, allowed) = match taken {
            NamedAcquireOutcome::KeyFull(used) => {
                (Reason::KeyAtCapacity, used, limits.per_tenant.unwrap_or(0))
            }
            NamedAcquireOutcome::Full(used) => {
                (Reason::AtCapacity, used, limits.total.unwrap_or(0))
            }
            NamedAcquireOutcome::Granted
            | NamedAcquireOutcome::Unavailable(_)
            | NamedAcquireOutcome::NotAsked(_) => {
                lease.is_granted = true;
                return Ok(lease);
            }
        };
        // The store granted nothing to release.
        lease.place = LeasePlace::Nowhere;
        let name = String::from(&*self.0.name);
        // Independent of which limit the store checked first.
        let is_denied = limits.per_tenant == Some(0);
        Err(if is_denied {
            Rejection::new(Reason::Denied, name)
        } else {
            Rejection::new(reason, name).with_occupancy(used, allowed)
        })
    }

    fn limits_for(&self, tenant: &Key) -> NamedLimits {
        NamedLimits::new(self.0.settings.total(), self.0.limit_of(tenant))
    }

    /// Restarts the time to live of a tenant's work. Work that was never acquired, was released or
    /// has expired stays [`Gone`](LeaseStatus::Gone).
    ///
    /// The store's answer takes precedence. A lease from a [local share](FailureMode::LocalShare)
    /// is live while the store is unavailable. When the store returns and does not know the lease,
    /// the lease is gone, because another process may have released it. Acquire the id again to
    /// count the work.
    pub async fn heartbeat(&self, tenant: &Key, id: &str) -> LeaseStatus {
        let name = lease_name(tenant, id);
        let ttl = self.0.settings.ttl();
        let here = self.0.share.slots.heartbeat(&name, None, ttl).await;
        match self.0.slots.heartbeat(&name, None, ttl).await {
            LeaseStatus::Unavailable if here == LeaseStatus::Live => here,
            LeaseStatus::Gone => {
                self.0.share.slots.release(&name, None).await;
                LeaseStatus::Gone
            }
            there => there,
        }
    }

    /// Releases a tenant's slot, whichever process acquired it, and returns its previous status.
    /// [`Gone`](LeaseStatus::Gone) is not an error.
    ///
    /// [`Unavailable`](LeaseStatus::Unavailable) means that the store may still count the slot
    /// until its time to live ends or it is released again. A slot of a [local
    /// share](FailureMode::LocalShare) is released even then.
    pub async fn release(&self, tenant: &Key, id: &str) -> LeaseStatus {
        let name = lease_name(tenant, id);
        let here = self.0.share.slots.release(&name, None).await;
        match self.0.slots.release(&name, None).await {
            LeaseStatus::Gone => here,
            there => there,
        }
    }

    /// The slots in use, in total and of the tenant. `None` if the store is unavailable.
    pub async fn usage(&self, tenant: &Key) -> Option<LeaseUsage> {
        self.0.slots.usage(Some(tenant)).await
    }

    /// Waits until the store has released all dropped leases. Call it at the end of a process;
    /// otherwise, slots that were dropped last stay taken for their time to live.
    ///
    /// While the store is unavailable, it waits, at most for that time to live; add a timeout of
    /// your own. It also releases leases that were dropped in runtimes that have ended.
    pub async fn flush(&self) {
        self.0.reaper.flush().await;
    }

    /// The time to live without a heartbeat.
    #[must_use]
    pub fn time_to_live(&self) -> Duration {
        self.0.settings.ttl()
    }

    /// The name of the limit, see [`name`](Self::name).
    #[must_use]
    pub fn limiter(&self) -> &str {
        &self.0.name
    }

    fn shared(&self) -> &LeasesInner {
        &self.0
    }

    fn subject<'a>(&'a self, tenant: &'a Key) -> Subject<'a> {
        Subject::new("lease", &self.0.name, "", Some(tenant))
    }
}

/// Fingerprints the id like a tenant, because the application chooses it: the store never contains
/// it, and its characters have no meaning there.
fn lease_name(tenant: &Key, id: &str) -> LeaseName {
    LeaseName::new(*tenant, Key::id("lease", id))
}

impl Default for Leases {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases")
            .field("name", &self.0.name)
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}
