//! A slot for work that outlives its request.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Leases;
use super::reaper::PendingRelease;
use super::share::HeldCountGuard;
use crate::store::{LeaseName, LeaseSlots, LeaseStatus, NamedLease};

/// A slot of [`Leases`]. Dropping it releases the slot.
///
/// Keep the lease until another component is responsible for the release, then
/// [`detach`](Self::detach) it. If the store is not in this process, a background task releases the
/// slot. It retries until the lease would have expired anyway. At the end of a process,
/// [`Leases::flush`] waits for it. The task runs in the runtime in which the first lease was
/// dropped. If that runtime ends or stalls, the next drop or flush in another runtime takes over.
#[must_use = "dropping a lease releases its slot"]
pub struct Lease {
    leases: Leases,
    id: Arc<str>,
    name: LeaseName,
    holder: u64,
    /// Taken before the acquire; the store's time to live starts later.
    since: Instant,
    /// The time to live without a heartbeat, as of the acquire.
    ttl: Duration,
    /// Whether the store granted it. Until then the store may have.
    pub(super) is_granted: bool,
    /// Counts it in this process's local share while this process holds it.
    pub(super) held_count: Option<HeldCountGuard>,
    pub(super) place: LeasePlace,
}

/// Where a lease is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeasePlace {
    Store,
    /// In this process, while the store is unavailable.
    LocalShare,
    /// Nowhere: the store was unavailable and fails open, or the lease has ended.
    Nowhere,
}

impl Lease {
    pub(super) fn new(leases: Leases, id: &str, name: LeaseName, place: LeasePlace) -> Self {
        Self {
            ttl: leases.time_to_live(),
            leases,
            id: id.into(),
            name,
            holder: new_holder(),
            since: Instant::now(),
            is_granted: false,
            held_count: None,
            place,
        }
    }

    pub(super) fn named(&self) -> NamedLease {
        NamedLease::new(self.name, self.holder, self.ttl)
    }

    /// The id of the work, unique within its tenant.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the lease is counted. It is not if the store was unavailable and [fails
    /// open](crate::store::FailureMode::Open). No store knows such a lease, and heartbeats by id
    /// return [`Gone`](LeaseStatus::Gone).
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.place != LeasePlace::Nowhere
    }

    /// Ends this guard without a release. The slot stays taken until a release by tenant and id, or
    /// until its time to live ends.
    pub fn detach(mut self) {
        self.place = LeasePlace::Nowhere;
    }

    /// Releases the slot and waits for the store's answer.
    ///
    /// If the future is dropped, the release continues in the background.
    pub async fn release(mut self) -> LeaseStatus {
        let Some(slots) = self.slots() else {
            return LeaseStatus::Gone;
        };
        let standing = slots.release(&self.name, Some(self.holder)).await;
        if standing != LeaseStatus::Unavailable {
            self.place = LeasePlace::Nowhere;
        }
        standing
    }

    /// Sends heartbeats in the background until the result is dropped, three per time to live. The
    /// first is due a third of the time to live after the acquire, or immediately if that time has
    /// passed.
    ///
    /// The heartbeats name this lease as the holder. If another caller acquires the same id, they
    /// no longer extend it, and the lease is [lost](HeartbeatLease::lost).
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    pub fn keep_alive(self) -> HeartbeatLease {
        let (lost, is_lost) = watch::channel(false);
        let heartbeats = self.slots().map(|slots| {
            let heartbeats = Heartbeats {
                slots: slots.clone(),
                name: self.name,
                holder: self.holder,
                since: self.since,
                ttl: self.ttl,
                // Spreads the heartbeats of leases that start at the same time.
                jitter: 0.8 + (self.holder % 1000) as f64 / 5000.0,
            };
            let task = async move {
                heartbeats.run().await;
                let _ = lost.send(true);
            };
            tokio::spawn(task).abort_handle()
        });
        HeartbeatLease {
            heartbeats,
            is_lost,
            lease: self,
        }
    }

    fn slots(&self) -> Option<&Arc<dyn LeaseSlots>> {
        let shared = self.leases.shared();
        match self.place {
            LeasePlace::Store => Some(&shared.slots),
            LeasePlace::LocalShare => Some(&shared.share.slots),
            LeasePlace::Nowhere => None,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slots) = self.slots() {
            let shared = self.leases.shared();
            shared.reaper.release(PendingRelease {
                slots: slots.clone(),
                name: self.name,
                holder: self.holder,
                was_granted: self.is_granted,
                until: Instant::now() + self.ttl,
            });
        }
    }
}

/// A [`Lease`] with heartbeats. Dropping it stops the heartbeats and releases the slot.
#[must_use = "dropping it releases the slot"]
pub struct HeartbeatLease {
    // Declared before the lease: no heartbeat follows the release.
    heartbeats: Option<AbortHandle>,
    is_lost: watch::Receiver<bool>,
    lease: Lease,
}

impl HeartbeatLease {
    /// The id of the work, unique within its tenant.
    #[must_use]
    pub fn id(&self) -> &str {
        self.lease.id()
    }

    /// Resolves when the lease is lost. Stop the work then: another caller may have the slot.
    ///
    /// A lease is lost in these cases:
    /// - Another caller released it or acquired its id.
    /// - It has expired.
    /// - The store was unreachable for nine tenths of its time to live, so it may have expired or
    ///   soon will.
    /// - The runtime that sends the heartbeats has ended.
    pub async fn lost(&self) {
        if self.heartbeats.is_none() {
            // It is not counted, so it cannot be lost.
            pending::<()>().await;
        }
        // An error means that the heartbeat task is gone.
        let _ = self.is_lost.clone().wait_for(|lost| *lost).await;
    }

    /// Whether the lease is [lost](Self::lost).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let is_gone = || self.is_lost.has_changed().is_err();
        self.heartbeats.is_some() && (*self.is_lost.borrow() || is_gone())
    }

    /// Stops the heartbeats without a release. The slot stays taken until a release by tenant and
    /// id, or until its time to live ends.
    pub fn detach(mut self) {
        self.lease.place = LeasePlace::Nowhere;
    }
}

impl Drop for HeartbeatLease {
    fn drop(&mut self) {
        if let Some(heartbeats) = &self.heartbeats {
            heartbeats.abort();
        }
    }
}

/// The background task of a [`HeartbeatLease`].
struct Heartbeats {
    slots: Arc<dyn LeaseSlots>,
    name: LeaseName,
    holder: u64,
    since: Instant,
    ttl: Duration,
    jitter: f64,
}

impl Heartbeats {
    /// Sends heartbeats until the lease is lost.
    async fn run(self) {
        let interval = (self.ttl / 3).mul_f64(self.jitter);
        // Both times count from the acquire, or from when the last successful heartbeat was sent.
        // The store's time to live starts slightly later.
        let mut next = self.since + interval;
        let mut end = self.since + self.ttl.mul_f64(0.9);
        // `keep_alive` was called late. Heartbeats by id may have extended the lease, so ask the
        // store.
        end = end.max(Instant::now() + self.ttl / 10);
        loop {
            sleep_until(next.min(end)).await;
            let now = Instant::now();
            let heartbeat = self
                .slots
                .heartbeat(&self.name, Some(self.holder), self.ttl);
            // A heartbeat without an answer must not delay the report of a lost lease.
            let standing = timeout_at(end, heartbeat.into_future()).await;
            match standing.unwrap_or(LeaseStatus::Unavailable) {
                LeaseStatus::Live => {
                    next = now + interval;
                    end = now + self.ttl.mul_f64(0.9);
                }
                LeaseStatus::Gone => return,
                // A failure may be repaired before the lease ends.
                LeaseStatus::Unavailable | LeaseStatus::Failed if Instant::now() >= end => return,
                LeaseStatus::Unavailable | LeaseStatus::Failed => {
                    next = Instant::now() + interval / 4
                }
            }
        }
    }
}

/// Returns a number that is unique in all processes: it starts at random and counts up.
fn new_holder() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).expect("the operating system returns random bytes");
        let first = u64::from_le_bytes(bits) | 1;
        // If another thread stored its number first, count on from that.
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

impl fmt::Debug for HeartbeatLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeartbeatLease")
            .field("is_lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
