//! A slot that is held for work which outlives its request.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::leases::Leases;
use super::reaper::Dropped;
use super::share::AlsoHeld;
use crate::store::{LeaseName, LeaseSlots, LeaseStatus, NamedLease};

/// A slot of [`Leases`]. Dropping it gives the slot back.
///
/// Hold it until somebody else is sure to release the slot, then [`detach`](Self::detach) it.
/// Giving back is done in the background where the store is not in this process, and tried
/// again until the lease would have expired anyway. At the end of a process
/// [`Leases::flush`] waits for that. It is a task in the runtime in which the first lease was dropped;
/// when that ends or stands still, the next drop or flush in another runtime takes over.
#[must_use = "dropping a lease gives its slot back"]
pub struct Lease {
    leases: Leases,
    id: Arc<str>,
    name: LeaseName,
    holder: u64,
    /// Before it was asked for: the store counts its time to live from later on.
    since: Instant,
    /// How long it lives without a heartbeat: that of when it was asked for.
    ttl: Duration,
    /// Whether it was granted; until then it may have been.
    pub(super) is_granted: bool,
    /// What it takes of this process's share, for as long as this process holds it.
    pub(super) in_share: Option<AlsoHeld>,
    pub(super) place: Place,
}

/// Where a lease is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Store,
    /// In this process, as long as the store is away.
    Share,
    /// The store was away and it admits then, or the lease is none any more.
    Nowhere,
}

impl Lease {
    pub(super) fn new(leases: Leases, id: &str, name: LeaseName, place: Place) -> Self {
        Self {
            ttl: leases.time_to_live(),
            leases,
            id: id.into(),
            name,
            holder: new_holder(),
            since: Instant::now(),
            is_granted: false,
            in_share: None,
            place,
        }
    }

    pub(super) fn named(&self) -> NamedLease {
        NamedLease::new(self.name, self.holder, self.ttl)
    }

    /// What the tenant knows it by.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is counted. It is not when the store could not be reached and
    /// [admits then](crate::store::FailureMode::Open): no store knows it, and heartbeats find
    /// it gone.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.place != Place::Nowhere
    }

    /// Leaves the slot to whoever knows tenant and id, or to its time to live.
    pub fn detach(mut self) {
        self.place = Place::Nowhere;
    }

    /// Gives the slot back and waits until the store knows it.
    ///
    /// Dropping the future leaves the rest to the background.
    pub async fn release(mut self) -> LeaseStatus {
        let Some(slots) = self.slots() else {
            return LeaseStatus::Gone;
        };
        let standing = slots.release(&self.name, Some(self.holder)).await;
        if standing != LeaseStatus::Unavailable {
            self.place = Place::Nowhere;
        }
        standing
    }

    /// Sends heartbeats in the background, three in the time to live, for as long as the result is
    /// held. The first is due a third of the time to live after the acquire, or now if that is over.
    ///
    /// They name this lease as the holder: when somebody else has acquired the same id, they keep
    /// nothing alive, and the lease is [lost](KeptLease::lost).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn keep_alive(self) -> KeptLease {
        let (lost, is_lost) = watch::channel(false);
        let heartbeats = self.slots().map(|slots| {
            let heartbeats = Heartbeats {
                slots: slots.clone(),
                name: self.name,
                holder: self.holder,
                since: self.since,
                ttl: self.ttl,
                // Apart from what others have started at the same time.
                jitter: 0.8 + (self.holder % 1000) as f64 / 5000.0,
            };
            let task = async move {
                heartbeats.go_on().await;
                let _ = lost.send(true);
            };
            tokio::spawn(task).abort_handle()
        });
        KeptLease {
            heartbeats,
            is_lost,
            lease: self,
        }
    }

    fn slots(&self) -> Option<&Arc<dyn LeaseSlots>> {
        let shared = self.leases.shared();
        match self.place {
            Place::Store => Some(&shared.slots),
            Place::Share => Some(&shared.share.slots),
            Place::Nowhere => None,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slots) = self.slots() {
            let shared = self.leases.shared();
            shared.reaper.give_back(Dropped {
                slots: slots.clone(),
                name: self.name,
                holder: self.holder,
                was_held: self.is_granted,
                until: Instant::now() + self.ttl,
            });
        }
    }
}

/// A [`Lease`] that is kept alive. Dropping it ends that, and gives the slot back.
#[must_use = "dropping it gives the slot back"]
pub struct KeptLease {
    // Before the lease: no heartbeat comes after it is given back.
    heartbeats: Option<AbortHandle>,
    is_lost: watch::Receiver<bool>,
    lease: Lease,
}

impl KeptLease {
    /// What the tenant knows it by.
    #[must_use]
    pub fn id(&self) -> &str {
        self.lease.id()
    }

    /// Resolves when the lease is lost: it was released, or its id acquired, by somebody else; it has
    /// expired; or the store could not be reached for nine tenths of its time to live, so that it
    /// may have, or will. Also when nobody sends heartbeats any more, as their runtime has ended.
    ///
    /// Whoever holds it should stop then, as another may have its slot.
    pub async fn lost(&self) {
        if self.heartbeats.is_none() {
            // It is not counted, so there is nothing to lose.
            pending::<()>().await;
        }
        // An error is a task that is gone.
        let _ = self.is_lost.clone().wait_for(|lost| *lost).await;
    }

    /// Whether the lease is [lost](Self::lost).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let is_gone = || self.is_lost.has_changed().is_err();
        self.heartbeats.is_some() && (*self.is_lost.borrow() || is_gone())
    }

    /// Ends the heartbeats, and leaves the slot to whoever knows tenant and id, or to its
    /// time to live.
    pub fn detach(mut self) {
        self.lease.place = Place::Nowhere;
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        if let Some(heartbeats) = &self.heartbeats {
            heartbeats.abort();
        }
    }
}

/// The task behind a [`KeptLease`].
struct Heartbeats {
    slots: Arc<dyn LeaseSlots>,
    name: LeaseName,
    holder: u64,
    since: Instant,
    ttl: Duration,
    jitter: f64,
}

impl Heartbeats {
    /// Ends when the lease is lost.
    async fn go_on(self) {
        let interval = (self.ttl / 3).mul_f64(self.jitter);
        // By the time at which the last heartbeat that arrived was sent, or the acquire, or nearly:
        // the store's clock started later.
        let mut next = self.since + interval;
        let mut end = self.since + self.ttl.mul_f64(0.9);
        // Kept alive late. Others may have sent heartbeats by its id, so the store is asked.
        end = end.max(Instant::now() + self.ttl / 10);
        loop {
            sleep_until(next.min(end)).await;
            let now = Instant::now();
            let heartbeat = self
                .slots
                .heartbeat(&self.name, Some(self.holder), self.ttl);
            // One that is not answered must not keep its holder from being told.
            let standing = timeout_at(end, heartbeat.into_future()).await;
            match standing.unwrap_or(LeaseStatus::Unavailable) {
                LeaseStatus::Live => {
                    next = now + interval;
                    end = now + self.ttl.mul_f64(0.9);
                }
                LeaseStatus::Gone => return,
                // Somebody may put right what has failed.
                LeaseStatus::Unavailable | LeaseStatus::Failed if Instant::now() >= end => return,
                LeaseStatus::Unavailable | LeaseStatus::Failed => {
                    next = Instant::now() + interval / 4
                }
            }
        }
    }
}

/// A number that no other holder has, in any process: random, and counted on from there.
fn new_holder() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).expect("the operating system gives random bytes");
        let first = u64::from_le_bytes(bits) | 1;
        // Whoever comes second counts on from the first's.
        let _ = NEXT.compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
    }
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for KeptLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptLease")
            .field("is_lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
