//! A limit on how many are in flight.

mod build;
mod capacity;
mod counter;
mod occupied;
mod reclaim;
mod reconfigure;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

pub(crate) use self::build::Opened;
use self::counter::Counter;
use super::per_key::{KeySlot, KeySlots, PerKey, Wanted, try_take_all};
use super::permit::{Permit, Watched};
use super::slots::{Slot, Slots, UNLIMITED};
use super::stalled::Charged;
use super::wait::{Acquire, Acquiring, Rejected, Wait};
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limits::{LimitTarget, Limits};
use crate::nesting::Nesting;
use crate::observe::Observer;
use crate::rejection::{Reason, Rejection};
use crate::store::{AcquireOutcome, FailureMode, LeaseLimits, LeaseSlots, Reply};

/// Limits how many are in flight, in total and for each key. Clones share one limit.
///
/// ```
/// use tower_admission::ConcurrencyLimiter;
///
/// let jobs = ConcurrencyLimiter::new(1);
/// let permit = jobs.try_acquire().unwrap();
/// assert!(jobs.try_acquire().is_err());
/// drop(permit);
/// assert!(jobs.try_acquire().is_ok());
/// ```
#[derive(Clone)]
pub struct ConcurrencyLimiter(Arc<Limit>);

#[derive(Clone)]
struct Limit {
    counter: Arc<Counter>,
    name: Arc<str>,
    /// One for each place of a request's keys.
    per_key: Vec<Arc<PerKey>>,
    limits: Option<Limits>,
    /// The target that the limits hold weakly; see `open`.
    limited: Option<Arc<dyn LimitTarget>>,
    retry_after: Option<Duration>,
    /// At most so much is added to the wait of a rejection at capacity.
    retry_after_jitter: Duration,
    observer: Option<Arc<dyn Observer>>,
    /// Whether a stalled response goes on uncounted, and is not ended, when its permit is reclaimed.
    spares_stalled: bool,
    /// Where other replicas see what is in flight here.
    leases: Option<Arc<dyn LeaseSlots>>,
}

impl ConcurrencyLimiter {
    /// What a client is told to wait when there is no capacity. When a slot frees cannot be
    /// known; a second is long enough to matter and short enough to not leave capacity idle.
    pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

    /// At most `limit` in flight; 0 turns the limit off, and they are only counted.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with_slots(Capacity::or_off(limit).slots())
    }

    /// Admits nothing, until [`set_limit`](Self::set_limit) says otherwise.
    #[must_use]
    pub fn deny_all() -> Self {
        Self::with_slots(0)
    }

    fn with_slots(slots: u64) -> Self {
        let limiter = Self(Arc::new(Limit {
            counter: Arc::new(Counter::new(slots)),
            name: "".into(),
            per_key: Vec::new(),
            limits: None,
            limited: None,
            retry_after: Some(Self::DEFAULT_RETRY_AFTER),
            retry_after_jitter: Duration::ZERO,
            observer: None,
            spares_stalled: false,
            leases: None,
        }));
        limiter.set_reclaim_after(Some(Self::DEFAULT_RECLAIM_AFTER));
        limiter
    }

    /// Takes a permit for somebody, if the service has capacity.
    ///
    /// # Errors
    ///
    /// [`Reason::AtCapacity`] when there is none, or when others wait for it in line.
    ///
    /// # Panics
    ///
    /// When the limiter is that of a layer with a store, which does not answer at once. Use
    /// [`acquire_for`](Self::acquire_for) there.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit, Rejection> {
        self.answers_at_once();
        let slot = self.take_slot().ok_or_else(|| self.at_capacity())?;
        Ok(self.permit(slot, KeySlots::new()))
    }

    /// As [`try_acquire_for_all`](Self::try_acquire_for_all), asking the store if there is one. Does
    /// not wait for capacity.
    ///
    /// # Errors
    ///
    /// As those, and [`Reason::Unavailable`] when the store cannot be reached and fails closed.
    pub async fn acquire_for(&self, keys: &[Key]) -> Result<Permit, Rejection> {
        let acquired = match self.acquire(keys, None, None) {
            Acquire::Admitted(permit) => Ok(permit),
            Acquire::Refused(rejected) => Err(rejected),
            Acquire::Later(acquiring) => acquiring.await,
        };
        acquired.map_err(|rejected| rejected.rejection)
    }

    fn answers_at_once(&self) {
        assert!(
            self.0.leases.is_none(),
            "this limiter's store answers later: await ConcurrencyLimiter::acquire_for"
        );
    }

    /// As [`try_acquire`](Self::try_acquire), without a reason for a refusal.
    #[inline]
    pub(crate) fn try_permit(&self) -> Option<Permit> {
        let slot = self.slots().try_take()?;
        Some(match &self.0.observer {
            None => Permit::new(slot),
            Some(_) => self.permit(slot, KeySlots::new()),
        })
    }

    /// Takes a permit for `key`, charged to the first limit for each key, if the key has fewer in
    /// flight than it may and the service has capacity.
    ///
    /// # Errors
    ///
    /// [`Reason::Denied`] when the key's own limit is `deny all`, [`Reason::KeyAtCapacity`] when it
    /// is reached, else [`Reason::AtCapacity`].
    ///
    /// # Panics
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_for(&self, key: &Key) -> Result<Permit, Rejection> {
        self.try_acquire_for_all(std::slice::from_ref(key))
    }

    /// Takes a permit for several keys, each charged to the limit at its place in the order in which
    /// [`per_key`](crate::ConcurrencyLimitLayer::per_key) added them. It is taken from all keys and
    /// the whole, or from none of them. Keys without a limit at their place are not charged.
    ///
    /// # Errors
    ///
    /// [`Reason::KeyAtCapacity`] when the limit of one of the keys is reached, else
    /// [`Reason::AtCapacity`].
    ///
    /// # Panics
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_for_all(&self, keys: &[Key]) -> Result<Permit, Rejection> {
        self.answers_at_once();
        let keys = (self.take_keys(keys, None)).map_err(|rejected| rejected.rejection)?;
        match self.take_slot() {
            Some(slot) => Ok(self.permit(slot, keys)),
            None => Err(self.at_capacity()),
        }
    }

    /// As [`try_acquire_for_all`](Self::try_acquire_for_all), waiting in line if that is configured.
    #[inline]
    pub(crate) fn acquire(&self, keys: &[Key], tier: Option<&str>, wait: Option<Wait>) -> Acquire {
        // The keys' slots first: a key over its limit must not hold the service's capacity, not
        // even for a moment.
        let keys = match self.take_keys(keys, tier) {
            Ok(keys) => keys,
            Err(rejected) => return Acquire::Refused(rejected),
        };
        match self.take_slot() {
            Some(slot) => self.admit(slot, keys),
            None => self.join_line(keys, wait),
        }
    }

    /// Whoever has a slot here is admitted, if the store has one as well.
    #[inline]
    pub(super) fn admit(&self, slot: Slot, keys: KeySlots) -> Acquire {
        if self.0.leases.is_none() {
            Acquire::Admitted(self.permit(slot, keys))
        } else {
            self.ask_store(slot, keys)
        }
    }

    /// Asks the store for what this replica has room for.
    #[cold]
    fn ask_store(&self, slot: Slot, keys: KeySlots) -> Acquire {
        match self.lease(&keys) {
            Reply::Ready(leased) => match self.leased(slot, keys, leased) {
                Ok(permit) => Acquire::Admitted(permit),
                Err(rejected) => Acquire::Refused(rejected),
            },
            Reply::Pending(leased) => {
                let limiter = self.clone();
                Acquire::Later(Acquiring::asking(Box::pin(async move {
                    let leased = leased.await;
                    limiter.leased(slot, keys, leased)
                })))
            }
        }
    }

    fn lease(&self, keys: &KeySlots) -> Reply<AcquireOutcome> {
        let total = limit_of(self.slots());
        let limits_a_key = || keys.iter().any(|slot| slot.limit() != UNLIMITED);
        match &self.0.leases {
            Some(leases) if total.is_some() || limits_a_key() => {
                let keys = keys.iter().map(|slot| (slot.key(), slot.limit()));
                leases.acquire(LeaseLimits::new(total, keys))
            }
            _ => Reply::Ready(AcquireOutcome::Unavailable(FailureMode::Open)),
        }
    }

    /// What follows from the store's answer.
    fn leased(
        &self,
        slot: Slot,
        keys: KeySlots,
        leased: AcquireOutcome,
    ) -> Result<Permit, Rejected> {
        match leased {
            AcquireOutcome::Granted(lease) => Ok(self.permit(slot, keys).leased(lease)),
            AcquireOutcome::KeyFull { place } => {
                if let Some(key) = keys.get(place).map(KeySlot::key) {
                    self.make_room_in_store(Some(Charged { place, key: &key }));
                }
                Err(self.key_at_capacity(place))
            }
            AcquireOutcome::Full => {
                self.make_room_in_store(None);
                Err(self.at_capacity().into())
            }
            // What this replica has room for is known already.
            AcquireOutcome::Unavailable(FailureMode::Open) => Ok(self.permit(slot, keys)),
            AcquireOutcome::Unavailable(FailureMode::Closed) => {
                Err(self.rejection(Reason::Unavailable).into())
            }
            AcquireOutcome::Unavailable(FailureMode::LocalShare { replicas }) => {
                let share = |limit: u64| (limit / u64::from(replicas.max(1))).max(1);
                let is_full = |key: &KeySlot| key.taken() > share(key.limit());
                let limit = limit_of(self.slots());
                if let Some(place) = keys.iter().position(is_full) {
                    Err(self.key_at_capacity(place))
                } else if limit.is_some_and(|limit| slot.in_flight() > share(limit)) {
                    Err(self.at_capacity().into())
                } else {
                    Ok(self.permit(slot, keys))
                }
            }
        }
    }

    #[cold]
    fn join_line(&self, keys: KeySlots, wait: Option<Wait>) -> Acquire {
        let place = wait.and_then(|wait| {
            let place = self.slots().join_line(wait.max_waiting)?;
            Some((place, wait.max_time))
        });
        match place {
            Some((place, max_time)) => {
                Acquire::Later(Acquiring::in_line(self.clone(), place, keys, max_time))
            }
            None => Acquire::Refused(self.at_capacity().into()),
        }
    }

    #[inline]
    fn take_keys(&self, keys: &[Key], tier: Option<&str>) -> Result<KeySlots, Rejected> {
        if keys.is_empty() {
            return Ok(KeySlots::new());
        }
        let own = |key| {
            let limits = self.0.limits.as_ref()?;
            let own = limits.concurrency(key, &self.0.name, tier);
            // Asked last, as most keys have no override.
            own.filter(|_| !self.0.counter.ignores_override(limits, key))
        };
        let wanted = self.0.per_key.iter().zip(keys);
        let wanted = wanted.map(|(per_key, key)| Wanted {
            per_key,
            key: *key,
            limit: own(key).map_or_else(|| per_key.limit(), Capacity::slots),
        });
        let wanted: SmallVec<[_; 2]> = wanted.collect();
        let taken = try_take_all(&wanted).or_else(|place| self.take_stalled_keys(&wanted, place));
        taken.map_err(|place| {
            let mut rejected = self.key_at_capacity(place);
            if wanted[place].limit == 0 {
                let name = String::from(&*self.0.name);
                rejected.rejection = Rejection::new(Reason::Denied, name);
            }
            rejected
        })
    }

    #[inline]
    pub(super) fn permit(&self, slot: Slot, keys: KeySlots) -> Permit {
        let observer = self.0.observer.as_ref();
        if observer.is_none() && keys.is_empty() {
            return Permit::new(slot);
        }
        let watched = observer.map(|observer| self.watched(observer, &slot));
        Permit::with_extra(slot, keys, watched)
    }

    #[inline(never)]
    fn watched(&self, observer: &Arc<dyn Observer>, slot: &Slot) -> Watched {
        let limiter = self.0.name.clone();
        observer.acquired(&limiter, slot.in_flight());
        // Each time, as a recorder of metrics may have been installed since.
        observer.limit(&limiter, limit_of(self.slots()));
        Watched {
            limiter,
            observer: observer.clone(),
            since: Instant::now(),
        }
    }

    #[cold]
    pub(super) fn at_capacity(&self) -> Rejection {
        let jitter = self.0.retry_after_jitter.mul_f64(fastrand::f64());
        let wait = self.0.retry_after.map(|wait| wait.saturating_add(jitter));
        self.rejection(Reason::AtCapacity).with_retry_after(wait)
    }

    #[cold]
    fn key_at_capacity(&self, place: usize) -> Rejected {
        Rejected {
            rejection: self.rejection(Reason::KeyAtCapacity),
            key_place: Some(place),
        }
    }

    fn rejection(&self, reason: Reason) -> Rejection {
        Rejection::new(reason, String::from(&*self.0.name)).with_retry_after(self.0.retry_after)
    }

    /// How many are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        // Of things in this process's memory, so it fits.
        self.slots().in_flight() as usize
    }

    /// What the limiter is called in answers; may be empty.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    #[inline]
    pub(crate) fn nesting(&self) -> &'static Nesting {
        &self.slots().nesting
    }

    #[inline]
    fn slots(&self) -> &'static Slots {
        self.0.counter.slots
    }
}

fn limit_of(slots: &Slots) -> Option<u64> {
    Some(slots.limit()).filter(|limit| *limit != UNLIMITED)
}

impl fmt::Debug for ConcurrencyLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimiter")
            .field("name", &self.name())
            .field("in_flight", &self.in_flight())
            .field("limit", &self.limit())
            .finish_non_exhaustive()
    }
}
