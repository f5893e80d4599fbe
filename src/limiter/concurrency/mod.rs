//! Limits the number of requests in flight.

mod admit;
mod build;
mod capacity;
mod counter;
mod limit_target;
mod reclaim;
mod reconfigure;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

pub(crate) use self::build::OpenedResources;
use self::counter::CounterHandle;
use super::key_counters::{KeyCounters, KeySlotRequest, KeySlots, try_take_all};
use super::permit::{ObservedPermit, Permit};
use super::slot_counter::{Slot, SlotCounter, UNLIMITED};
use super::wait::{KeyedRejection, PermitReply, WaitLimits};
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limits::{LimitTarget, Limits};
use crate::nesting::Nesting;
use crate::observe::Observer;
use crate::rejection::{Reason, Rejection};
use crate::store::LeaseSlots;

/// Limits the number of requests in flight, in total and per key. Clones share one limit.
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
pub struct ConcurrencyLimiter(Arc<ConcurrencyLimiterInner>);

#[derive(Clone)]
struct ConcurrencyLimiterInner {
    counter: Arc<CounterHandle>,
    name: Arc<str>,
    /// One for each key position of a request.
    per_key: Vec<Arc<KeyCounters>>,
    limits: Option<Limits>,
    /// The target that the limits hold weakly; see `open`.
    limit_target: Option<Arc<dyn LimitTarget>>,
    retry_after: Option<Duration>,
    /// The maximum random time that is added to the retry time of a rejection at capacity.
    retry_after_jitter: Duration,
    observer: Option<Arc<dyn Observer>>,
    /// Whether a stalled response continues uncounted, instead of ending, when its permit is
    /// reclaimed.
    spares_stalled: bool,
    /// The slots in a store that replicas share, if any.
    leases: Option<Arc<dyn LeaseSlots>>,
}

impl ConcurrencyLimiter {
    /// The default retry time of a rejection at capacity: one second. The time at which a slot
    /// becomes free is unknown. One second spreads retries and leaves little capacity idle.
    pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

    /// Creates a limiter for at most `limit` requests in flight. 0 means unlimited: requests are
    /// only counted.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with_slots(Capacity::or_off(limit).slots())
    }

    /// Creates a limiter that rejects every request until [`set_limit`](Self::set_limit) raises its
    /// limit.
    #[must_use]
    pub fn deny_all() -> Self {
        Self::with_slots(0)
    }

    fn with_slots(slots: u64) -> Self {
        let limiter = Self(Arc::new(ConcurrencyLimiterInner {
            counter: Arc::new(CounterHandle::new(slots)),
            name: "".into(),
            per_key: Vec::new(),
            limits: None,
            limit_target: None,
            retry_after: Some(Self::DEFAULT_RETRY_AFTER),
            retry_after_jitter: Duration::ZERO,
            observer: None,
            spares_stalled: false,
            leases: None,
        }));
        limiter.set_reclaim_after(Some(Self::DEFAULT_RECLAIM_AFTER));
        limiter
    }

    /// Takes a permit if there is capacity.
    ///
    /// # Errors
    ///
    /// [`Reason::AtCapacity`] if there is no free slot, or if other requests wait for one.
    ///
    /// # Panics
    ///
    /// Panics if the limiter belongs to a layer with a store. Use
    /// [`acquire_for`](Self::acquire_for) there.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit, Rejection> {
        self.assert_no_store();
        let slot = self.take_slot().ok_or_else(|| self.at_capacity())?;
        Ok(self.permit(slot, KeySlots::new()))
    }

    /// Like [`try_acquire_for_all`](Self::try_acquire_for_all), but also asks the store, if there
    /// is one. Does not wait for capacity.
    ///
    /// # Errors
    ///
    /// The same, and [`Reason::Unavailable`] if the store is unavailable and fails closed.
    pub async fn acquire_for(&self, keys: &[Key]) -> Result<Permit, Rejection> {
        let acquired = match self.acquire(keys, None, None) {
            PermitReply::Admitted(permit) => Ok(permit),
            PermitReply::Rejected(rejected) => Err(rejected),
            PermitReply::Pending(acquiring) => acquiring.await,
        };
        acquired.map_err(|rejected| rejected.rejection)
    }

    fn assert_no_store(&self) {
        assert!(
            self.0.leases.is_none(),
            "this limiter's store answers later: await ConcurrencyLimiter::acquire_for"
        );
    }

    /// Like [`try_acquire`](Self::try_acquire), without a reason for a rejection.
    #[inline]
    pub(crate) fn try_permit(&self) -> Option<Permit> {
        let slot = self.slots().try_take()?;
        Some(match &self.0.observer {
            None => Permit::new(slot),
            Some(_) => self.permit(slot, KeySlots::new()),
        })
    }

    /// Takes a permit for `key`, charged to the first limit per key. Both the key and the service
    /// must have capacity.
    ///
    /// # Errors
    ///
    /// - [`Reason::Denied`]: the key's override is `deny all`.
    /// - [`Reason::KeyAtCapacity`]: the key's limit is reached.
    /// - [`Reason::AtCapacity`]: the service has no capacity.
    ///
    /// # Panics
    ///
    /// Like [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_for(&self, key: &Key) -> Result<Permit, Rejection> {
        self.try_acquire_for_all(std::slice::from_ref(key))
    }

    /// Takes a permit for several keys. Each key is charged to the limit at its position, in the
    /// order in which [`per_key`](crate::ConcurrencyLimitLayer::per_key) added them. All keys and
    /// the service must have capacity; otherwise nothing is charged. Keys without a limit at their
    /// position are not charged.
    ///
    /// # Errors
    ///
    /// - [`Reason::Denied`]: the override of one of the keys is `deny all`.
    /// - [`Reason::KeyAtCapacity`]: the limit of one of the keys is reached.
    /// - [`Reason::AtCapacity`]: the service has no capacity.
    ///
    /// # Panics
    ///
    /// Like [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_for_all(&self, keys: &[Key]) -> Result<Permit, Rejection> {
        self.assert_no_store();
        let keys = (self.take_keys(keys, None)).map_err(|rejected| rejected.rejection)?;
        match self.take_slot() {
            Some(slot) => Ok(self.permit(slot, keys)),
            None => Err(self.at_capacity()),
        }
    }

    /// Like [`try_acquire_for_all`](Self::try_acquire_for_all), but joins the wait queue if one is
    /// configured.
    #[inline]
    pub(crate) fn acquire(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        wait: Option<WaitLimits>,
    ) -> PermitReply {
        // The slots of the keys first: a key at its limit must not take the service's capacity, not
        // even for a moment.
        let keys = match self.take_keys(keys, tier) {
            Ok(keys) => keys,
            Err(rejected) => return PermitReply::Rejected(rejected),
        };
        match self.take_slot() {
            Some(slot) => self.admit(slot, keys),
            None => self.join_wait_queue(keys, wait),
        }
    }

    #[inline]
    fn take_keys(&self, keys: &[Key], tier: Option<&str>) -> Result<KeySlots, KeyedRejection> {
        if keys.is_empty() {
            return Ok(KeySlots::new());
        }
        let override_limit = |key| {
            let limits = self.0.limits.as_ref()?;
            let override_limit = limits.concurrency(key, &self.0.name, tier);
            // Checked last, because most keys have no override.
            override_limit.filter(|_| !self.0.counter.ignores_override(limits, key))
        };
        let requests = self.0.per_key.iter().zip(keys);
        let requests = requests.map(|(per_key, key)| KeySlotRequest {
            per_key,
            key: *key,
            limit: override_limit(key).map_or_else(|| per_key.limit(), Capacity::slots),
        });
        let requests: SmallVec<[_; 2]> = requests.collect();
        let taken =
            try_take_all(&requests).or_else(|place| self.take_stalled_keys(&requests, place));
        taken.map_err(|place| {
            let mut rejected = self.key_at_capacity(place);
            if requests[place].limit == 0 {
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
        let observed = observer.map(|observer| self.observe_permit(observer, &slot));
        Permit::with_extra(slot, keys, observed)
    }

    #[inline(never)]
    fn observe_permit(&self, observer: &Arc<dyn Observer>, slot: &Slot) -> ObservedPermit {
        let limiter = self.0.name.clone();
        observer.acquired(&limiter, slot.in_flight());
        // Reported each time, because a metrics recorder may have been installed since.
        observer.limit(&limiter, limit_of(self.slots()));
        ObservedPermit {
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
    fn key_at_capacity(&self, place: usize) -> KeyedRejection {
        KeyedRejection {
            rejection: self.rejection(Reason::KeyAtCapacity),
            key_place: Some(place),
        }
    }

    fn rejection(&self, reason: Reason) -> Rejection {
        Rejection::new(reason, String::from(&*self.0.name)).with_retry_after(self.0.retry_after)
    }

    /// The number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        // Each has something in this process's memory, so the number fits.
        self.slots().in_flight() as usize
    }

    /// The name of the limiter in answers; may be empty.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    #[inline]
    pub(crate) fn nesting(&self) -> &'static Nesting {
        &self.slots().nesting
    }

    #[inline]
    fn slots(&self) -> &'static SlotCounter {
        self.0.counter.slots
    }
}

fn limit_of(slots: &SlotCounter) -> Option<u64> {
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
