//! Slots for work that outlives the request it came with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::lease::{Lease, Place};
use super::lease_limits::{LeaseNumbers, TenantLimits, or_off};
use super::reaper::Reaper;
use super::share::Share;
use crate::key::Key;
use crate::observe::{Observer, Observers, Subject};
use crate::rejection::{Reason, Rejection, UNAVAILABLE_RETRY_AFTER};
use crate::store::{
    FailureMode, LeaseName, LeaseSlots, LeaseStatus, LeaseStore, LeaseUsage, MemoryStore,
    NamedAcquireOutcome, NamedLimits, SecretMissing,
};

/// Limits what is at work at a time, for each tenant and in all, where the work outlives its
/// request: a session, a job, a stream in another process. Clones share one limit.
///
/// Each piece of work has an id, which the caller brings or gets, and a time to live. Whoever knows
/// tenant and id can send [heartbeats](Self::heartbeat) and [release](Self::release) it, from
/// any process that shares the [store](Self::store); without either it is free again when its
/// time to live is over.
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
/// // Before the job is made. Until it is detached, dropping it gives the slot back, so each
/// // early return, panic or cancellation does.
/// let lease = jobs.acquire(&acme, "execution-42").await?;
/// dispatch(lease.id()).await?;
/// lease.detach();
///
/// // When the job is done, here or in another process.
/// jobs.release(&acme, "execution-42").await;
/// # Ok(())
/// # }
/// ```
///
/// # Both limits at once
///
/// Tenant and total are decided together, atomically, and counted once: of any number of callers
/// that race for the last slot one gets it. A refusal is a [`Rejection`] for
/// [`KeyAtCapacity`](Reason::KeyAtCapacity) or [`AtCapacity`](Reason::AtCapacity), and its
/// [`occupancy`](Rejection::occupancy) says how many are at work and how many may be. When a slot
/// frees cannot be known, so there is no advice on when to come back. A tenant with `deny all` is
/// [`Denied`](Reason::Denied).
///
/// # Ids
///
/// An id is the tenant's own: what one tenant calls `42` has nothing to do with another's `42`,
/// so that knowing or guessing a stranger's id is of no use. Acquiring an id that is at work takes
/// it over instead of counting it twice, and lets it live anew. An earlier attempt can
/// neither keep it alive nor release it then, and is told that it is [lost](crate::KeptLease::lost); but
/// the attempt that took it over gives it back, if it is given up.
#[derive(Clone)]
pub struct Leases(Arc<Shared>);

#[derive(Clone)]
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    /// What can change at run time.
    pub(super) numbers: Arc<LeaseNumbers>,
    pub(super) limits: Option<TenantLimits>,
    store: Arc<dyn LeaseStore>,
    pub(super) slots: Arc<dyn LeaseSlots>,
    pub(super) share: Share,
    pub(super) reaper: Reaper,
    observers: Observers,
}

impl Shared {
    /// Opens the slots of another limit, which shares nothing with the one before.
    fn start_anew(&mut self) {
        self.slots = self.store.open_leases(&self.name);
        self.share = Share::default();
        self.reaper = Reaper::default();
    }
}

impl Leases {
    /// How long a lease lives without a heartbeat: two of three heartbeats may get lost.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(60);

    /// Without limits, in this process's memory.
    #[must_use]
    pub fn new() -> Self {
        let store = MemoryStore::new();
        Self(Arc::new(Shared {
            name: "".into(),
            numbers: Arc::default(),
            limits: None,
            slots: store.open_leases(""),
            share: Share::default(),
            store: Arc::new(store),
            reaper: Reaper::default(),
            observers: Observers::default(),
        }))
    }

    /// With numbers of its own, which change apart from those before.
    pub(super) fn with(self, change: impl FnOnce(&mut Shared)) -> Self {
        self.with_same_numbers(|shared| {
            shared.numbers = Arc::new(LeaseNumbers::clone(&shared.numbers));
            change(shared);
        })
    }

    fn with_same_numbers(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        let shared = Arc::make_mut(&mut self.0);
        change(shared);
        shared.tell_limits();
        // The name may be set later.
        if !shared.name.is_empty() {
            (shared.observers).attached("lease", &shared.name, [""]);
        }
        self
    }

    /// What is counted, for replicas to find each other's slots by, and for logs and metrics.
    /// Default: nothing, which is a name as well.
    ///
    /// With another name it is another limit: nothing of what was counted is shared with the one that
    /// this was made from.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.with(|shared| {
            shared.name = name.into();
            shared.start_anew();
        })
    }

    /// At most so many of a tenant's at a time; 0 turns this part off, which is the default.
    #[must_use]
    pub fn per_tenant(self, limit: u64) -> Self {
        self.with(|shared| shared.numbers.set_per_tenant(or_off(limit)))
    }

    /// At most so many in all at a time; 0 turns this part off, which is the default.
    #[must_use]
    pub fn total(self, limit: u64) -> Self {
        self.with(|shared| shared.numbers.set_total(or_off(limit)))
    }

    /// How long a lease lives without a heartbeat. Default: [`DEFAULT_TTL`](Self::DEFAULT_TTL);
    /// at least 100 milliseconds, at most [`MAX_TTL`](Self::MAX_TTL).
    ///
    /// Short, and what a dead worker held is soon free; long, and heartbeats are few. Without
    /// heartbeats it is the longest that work may take.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.with(|shared| shared.numbers.set_ttl(ttl))
    }

    /// The longest time to live: 365 days.
    pub const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

    /// Where to count. Default: in this process's memory. With another store it is another limit.
    ///
    /// # Panics
    ///
    /// Where [`try_store`](Self::try_store) returns an error.
    #[must_use]
    #[track_caller]
    pub fn store(self, store: impl LeaseStore) -> Self {
        match self.try_store(store) {
            Ok(leases) => leases,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`store`](Self::store), for a store that is configured from outside.
    ///
    /// # Errors
    ///
    /// When replicas share the store, and it has no [`Secret`](crate::Secret) by which they would
    /// agree on ids.
    pub fn try_store(self, store: impl LeaseStore) -> Result<Self, SecretMissing> {
        if !store.agrees_on_fingerprints() {
            return Err(SecretMissing);
        }
        Ok(self.with(|shared| {
            shared.store = Arc::new(store);
            shared.start_anew();
        }))
    }

    /// Adds an observer, who sees the limit type `"lease"`. Default: none. Unlike other setters, it shares all numbers.
    #[must_use]
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with_same_numbers(|shared| shared.observers.add(observer))
    }

    /// Takes a slot for a tenant's work of this id.
    ///
    /// Dropping the future before it is ready takes none.
    ///
    /// # Errors
    ///
    /// [`Reason::Denied`] when the tenant's limit is `deny all`, [`Reason::KeyAtCapacity`] when it is
    /// reached, else [`Reason::AtCapacity`]; [`Reason::Unavailable`] when the store cannot be reached
    /// and fails closed.
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

    /// As [`acquire`](Self::acquire), with a random id of 128 bits, which nobody can guess.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    ///
    /// When the operating system has no randomness to give.
    pub async fn acquire_new(&self, tenant: &Key) -> Result<Lease, Rejection> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the operating system gives random bytes");
        let id = format!("{:032x}", u128::from_le_bytes(bits));
        self.acquire(tenant, &id).await
    }

    async fn take(&self, tenant: &Key, id: &str) -> Result<Lease, Rejection> {
        let name = name_of(tenant, id);
        let limits = self.limits_for(tenant);
        // Before the store is asked: however this ends, the slot is given back unless the lease
        // is returned.
        let mut lease = Lease::new(self.clone(), id, name, Place::Store);
        let taken = self.0.slots.acquire_named(&lease.named(), limits).await;
        let mode = match taken {
            // The store may have taken the slot and its answer be lost: this lease gives it back.
            NamedAcquireOutcome::Unavailable(mode) => mode,
            NamedAcquireOutcome::NotAsked(mode) => {
                lease.place = Place::Nowhere;
                mode
            }
            _ => {
                let mut lease = self.granted(lease, taken, limits)?;
                lease.in_share = Some(self.0.share.also_held(&name));
                return Ok(lease);
            }
        };
        drop(lease);
        match mode {
            FailureMode::Open => Ok(Lease::new(self.clone(), id, name, Place::Nowhere)),
            FailureMode::Closed => {
                let rejection = Rejection::new(Reason::Unavailable, String::from(&*self.0.name));
                Err(rejection.with_retry_after(Some(UNAVAILABLE_RETRY_AFTER)))
            }
            FailureMode::LocalShare { replicas } => {
                let lease = Lease::new(self.clone(), id, name, Place::Share);
                let (taken, limits) = self.0.share.acquire(&lease.named(), limits, replicas).await;
                self.granted(lease, taken, limits)
            }
        }
    }

    fn granted(
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
        // There is nothing to give back.
        lease.place = Place::Nowhere;
        let name = String::from(&*self.0.name);
        // Whichever limit the store looked at first.
        let is_denied = limits.per_tenant == Some(0);
        Err(if is_denied {
            Rejection::new(Reason::Denied, name)
        } else {
            Rejection::new(reason, name).with_occupancy(used, allowed)
        })
    }

    fn limits_for(&self, tenant: &Key) -> NamedLimits {
        NamedLimits::new(self.0.numbers.total(), self.0.limit_of(tenant))
    }

    /// Lets a tenant's work of this id live for another time to live. One that is not at work,
    /// because it was never acquired, was released or has expired, stays
    /// [`Gone`](LeaseStatus::Gone).
    ///
    /// What the store says holds. What was taken from a [local share](FailureMode::LocalShare) is live
    /// for as long as the store is away; when it is back and does not know it, it is gone: it may
    /// have been released in another process. Acquire it again to have it counted.
    pub async fn heartbeat(&self, tenant: &Key, id: &str) -> LeaseStatus {
        let name = name_of(tenant, id);
        let ttl = self.0.numbers.ttl();
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

    /// Gives a tenant's slot back, whoever acquired it, and says what there was. That it is
    /// [`Gone`](LeaseStatus::Gone) already is no error.
    ///
    /// [`Unavailable`](LeaseStatus::Unavailable) says that the store may still count it, until its time
    /// to live is over or it is released again. A [local share](FailureMode::LocalShare) has it
    /// back then all the same.
    pub async fn release(&self, tenant: &Key, id: &str) -> LeaseStatus {
        let name = name_of(tenant, id);
        let here = self.0.share.slots.release(&name, None).await;
        match self.0.slots.release(&name, None).await {
            LeaseStatus::Gone => here,
            there => there,
        }
    }

    /// How many are at work, in all and of a tenant's; `None` when the store cannot be reached.
    pub async fn usage(&self, tenant: &Key) -> Option<LeaseUsage> {
        self.0.slots.usage(Some(tenant)).await
    }

    /// Waits until the store has back what was dropped, for the end of a process: what it drops in
    /// its last moments would otherwise stay taken for its time to live.
    ///
    /// While the store is away it waits, for that long at most; give it a timeout of your own. It
    /// gives back what is left of runtimes that have ended, too.
    pub async fn flush(&self) {
        self.0.reaper.flush().await;
    }

    /// How long a lease lives without a heartbeat.
    #[must_use]
    pub fn time_to_live(&self) -> Duration {
        self.0.numbers.ttl()
    }

    /// What is counted, as in [`name`](Self::name).
    #[must_use]
    pub fn limiter(&self) -> &str {
        &self.0.name
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    fn subject<'a>(&'a self, tenant: &'a Key) -> Subject<'a> {
        Subject::new("lease", &self.0.name, "", Some(tenant))
    }
}

/// Ids are the application's words: they are fingerprinted as tenants are, so that a store holds
/// none of them and nothing in them has a meaning there.
fn name_of(tenant: &Key, id: &str) -> LeaseName {
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
            .field("numbers", &self.0.numbers)
            .finish_non_exhaustive()
    }
}
