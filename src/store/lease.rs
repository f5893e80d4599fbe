//! Slots that are held for a time, in a place that others see.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Reply, StoreStatus};
use crate::key::Key;

/// A place where slots are counted for several processes.
pub trait LeaseStore: Send + Sync + 'static {
    /// The slots of one limiter. Limiters of the same name share them.
    fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots>;

    /// As [`RateStore::agrees_on_fingerprints`](super::RateStore::agrees_on_fingerprints).
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

/// The slots of one limiter in a [`LeaseStore`].
pub trait LeaseSlots: Send + Sync + 'static {
    /// Takes a slot if each key and the whole have one left, as one decision: a slot that is
    /// rejected takes nothing from any of them.
    ///
    /// The place of a key in [`LeaseLimits::keys`] is part of what is counted. A key that is there
    /// twice takes one slot at each place, and each limit is compared with the count of its own place.
    ///
    /// Dropping the reply's future, before or after the store has decided, takes no slot.
    fn acquire(&self, limits: LeaseLimits) -> Reply<AcquireOutcome>;

    /// Counts the slots that are taken: in all, and by a key at a place of [`LeaseLimits::keys`].
    fn usage_at(&self, key: Option<&Key>, place: usize) -> Reply<Option<LeaseUsage>>;

    /// Counts the slots that are taken: in all, and by a key at the first place.
    fn usage(&self, key: Option<&Key>) -> Reply<Option<LeaseUsage>> {
        self.usage_at(key, 0)
    }

    /// Takes a slot that is known by name, until it is released or its time to live is over.
    ///
    /// It counts with the slots that the tenant has as the key at the first place.
    ///
    /// One that is live already is taken over: it is not counted again, lives for the time to
    /// live from now on, and has this holder.
    ///
    /// Dropping the reply's future does not undo it: the asker releases then, as the holder. An acquire that
    /// arrives after its holder's release, as it may over a network, takes nothing.
    fn acquire_named(&self, lease: &NamedLease, limits: NamedLimits) -> Reply<NamedAcquireOutcome>;

    /// Lets a named slot that is live live for `ttl` from now on; with a holder, only if it is that
    /// one's. One that is not live stays gone.
    fn heartbeat(&self, name: &LeaseName, holder: Option<u64>, ttl: Duration)
    -> Reply<LeaseStatus>;

    /// Gives a named slot back; with a holder, only if it is that one's.
    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<LeaseStatus>;

    /// What these slots are called in the store where other processes find them. Default: none do.
    fn place(&self) -> Option<&str> {
        None
    }

    /// Whether a store that replicas share decides; asked for operators, without a call. Default: it is in this process.
    fn status(&self) -> Option<StoreStatus> {
        None
    }
}

/// What a slot that outlives its taker is known by: whose it is, and which of theirs.
///
/// Names of different tenants never meet, so that one who knows or guesses another's id can do
/// nothing with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LeaseName {
    /// Who has the slot.
    pub tenant: Key,
    /// Which of the tenant's.
    pub id: Key,
}

/// A slot to be taken by name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NamedLease {
    /// What it is known by.
    pub name: LeaseName,
    /// Who asks, a number that no other asker has, and which is not used again for this name. Only
    /// the last to take a slot can keep it alive and give it back as its holder: an attempt that
    /// was given up leaves alone what a later one has taken.
    pub holder: u64,
    /// How long it lives without a heartbeat. Stores count less than a millisecond as one, and more
    /// than 365 days as that, also of a heartbeat.
    pub ttl: Duration,
}

/// What became of a slot that was asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NamedAcquireOutcome {
    /// Taken.
    Granted,
    /// The tenant has none left: how many it has taken.
    KeyFull(u64),
    /// There is none left: how many are taken.
    Full(u64),
    /// The store cannot be reached, and this is to be done. It may have taken the slot all the same.
    Unavailable(FailureMode),
    /// The store was not asked, because it is known that it cannot be reached or as there is too much
    /// to ask, and this is to be done. So there is nothing to give back.
    NotAsked(FailureMode),
}

/// How a named slot was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseStatus {
    /// It was live.
    Live,
    /// Never taken, given back, expired, or another holder's.
    Gone,
    /// The store cannot be reached.
    Unavailable,
    /// The store cannot do it, and could not if it were asked again: where the slot should be there
    /// is something else.
    Failed,
}

/// The limits of one slot that is asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaseLimits {
    /// How many slots there are in all; `None` for any number.
    pub total: Option<u64>,
    keys: SmallVec<[(Key, u64); 2]>,
}

/// The limits of a slot that is asked for by name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NamedLimits {
    /// How many slots there are in all; `None` for any number.
    pub total: Option<u64>,
    /// How many of them the tenant may have; `None` for any number.
    pub per_tenant: Option<u64>,
}

/// How many slots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseUsage {
    /// In all.
    pub total: u64,
    /// By the key that was asked about.
    pub key: Option<u64>,
}

/// What became of a slot that was asked for.
#[must_use = "dropping it gives the slot back"]
pub enum AcquireOutcome {
    /// Taken, until this is dropped.
    Granted(Box<dyn LeaseGuard>),
    /// A key has none left.
    KeyFull {
        /// The place of the key in [`LeaseLimits::keys`], the first of those that are full.
        place: usize,
    },
    /// There is none left.
    Full,
    /// The store cannot be reached, and this is to be done.
    Unavailable(FailureMode),
}

/// A slot that is given back when this is dropped.
pub trait LeaseGuard: Send + Sync + 'static {}

/// What becomes of requests when the store cannot be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureMode {
    /// Rate limits: requests are admitted, uncounted. Concurrency limits: each replica keeps to
    /// the whole limit. For limits that are there for fairness.
    #[default]
    Open,
    /// Requests are refused with 503. For limits that protect something.
    Closed,
    /// Each replica counts in memory and grants its share: the limits over `replicas` (which
    /// counts as 1 when it is 0), and at least one.
    ///
    /// A rate's share is charged for what the store admits through this replica too, so that
    /// it is no fresh burst when the store goes away, however often it does. All replicas together
    /// admit at most a burst more than the store would have, once for each time that it goes
    /// away and comes back. A request that costs more than a share holds is refused with 503, as it
    /// will fit when the store is back.
    LocalShare {
        /// How many replicas there are.
        replicas: u32,
    },
}

impl FailureMode {
    /// A word for logs and metric labels.
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
    /// The slot of `tenant`'s with this id.
    #[must_use]
    pub fn new(tenant: Key, id: Key) -> Self {
        Self { tenant, id }
    }
}

impl NamedLease {
    /// A slot of this name, for a holder, that lives so long without a heartbeat.
    #[must_use]
    pub fn new(name: LeaseName, holder: u64, ttl: Duration) -> Self {
        Self { name, holder, ttl }
    }
}

impl LeaseLimits {
    /// The limit in all, and each key with its own.
    #[must_use]
    pub fn new(total: Option<u64>, keys: impl IntoIterator<Item = (Key, u64)>) -> Self {
        Self {
            total,
            keys: keys.into_iter().collect(),
        }
    }

    /// The keys that take the slot, each with the number of slots that it may have.
    #[must_use]
    pub fn keys(&self) -> &[(Key, u64)] {
        &self.keys
    }
}

impl NamedLimits {
    /// The limit in all, and the tenant's.
    #[must_use]
    pub fn new(total: Option<u64>, per_tenant: Option<u64>) -> Self {
        Self { total, per_tenant }
    }
}

impl LeaseUsage {
    /// So many in all, and so many of a key.
    #[must_use]
    pub fn new(total: u64, key: Option<u64>) -> Self {
        Self { total, key }
    }
}
