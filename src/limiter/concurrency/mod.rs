//! A limit on how many are in flight.

mod build;
mod occupied;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::per_key::{KeySlot, PerKey};
use super::permit::{Permit, Watched};
use super::slots::{Slot, Slots, UNLIMITED};
use super::wait::{Acquire, Acquiring, Wait};
use crate::key::Key;
use crate::limits::{Limited, Limits};
use crate::observe::Observer;
use crate::rejection::{Reason, Rejection};
use crate::store::{FailureMode, LeaseLimits, LeaseSlots, Leased, Reply};

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
    per_key: Option<Arc<PerKey>>,
    limits: Option<Limits>,
    /// What the limits are told of this limiter; see `settled`.
    limited: Option<Arc<dyn Limited>>,
    retry_after: Option<Duration>,
    observer: Option<Arc<dyn Observer>>,
    /// Where other replicas see what is in flight here.
    leases: Option<Arc<dyn LeaseSlots>>,
}

/// Lets go of the counter with the last limiter that uses it.
pub(super) struct Counter(pub(super) &'static Slots);

impl Drop for Counter {
    fn drop(&mut self) {
        self.0.retire();
    }
}

impl ConcurrencyLimiter {
    /// What a client is told to wait when there is no capacity. When a slot frees cannot be
    /// known; a second is long enough to matter and short enough to not leave capacity idle.
    pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

    /// At most `limit` in flight; 0 turns the limit off, and they are only counted.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with_slots(slots_of(limit))
    }

    /// Admits nothing, until [`set_limit`](Self::set_limit) says otherwise.
    #[must_use]
    pub fn deny_all() -> Self {
        Self::with_slots(0)
    }

    fn with_slots(slots: u64) -> Self {
        Self(Arc::new(Limit {
            counter: Arc::new(Counter(Slots::new(slots))),
            name: "".into(),
            per_key: None,
            limits: None,
            limited: None,
            retry_after: Some(Self::DEFAULT_RETRY_AFTER),
            observer: None,
            leases: None,
        }))
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
        self.try_permit().ok_or_else(|| self.at_capacity())
    }

    /// As [`try_acquire`](Self::try_acquire), or as [`try_acquire_for`](Self::try_acquire_for) for
    /// a key, asking the store if there is one. Does not wait for capacity.
    ///
    /// # Errors
    ///
    /// As those, and [`Reason::Unavailable`] when the store cannot be reached and fails closed.
    pub async fn acquire_for(&self, key: Option<&Key>) -> Result<Permit, Rejection> {
        match self.acquire(key.copied(), None) {
            Acquire::Admitted(permit) => Ok(permit),
            Acquire::Refused(rejection) => Err(rejection),
            Acquire::Later(acquiring) => acquiring.await,
        }
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
        self.slots().try_take().map(|slot| self.permit(slot, None))
    }

    /// Takes a permit for `key`, if it has fewer in flight than it may and the service has
    /// capacity.
    ///
    /// # Errors
    ///
    /// [`Reason::KeyAtCapacity`] when the key's own limit is reached, else
    /// [`Reason::AtCapacity`].
    ///
    /// # Panics
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_for(&self, key: &Key) -> Result<Permit, Rejection> {
        self.answers_at_once();
        // The key's slot first: a key over its limit must not hold the service's capacity, not
        // even for a moment.
        let key = self.take_key(Some(*key))?;
        match self.slots().try_take() {
            Some(slot) => Ok(self.permit(slot, key)),
            None => Err(self.at_capacity()),
        }
    }

    /// As [`try_acquire_for`](Self::try_acquire_for), waiting in line if that is configured.
    #[inline]
    pub(crate) fn acquire(&self, key: Option<Key>, wait: Option<Wait>) -> Acquire {
        let key = match self.take_key(key) {
            Ok(key) => key,
            Err(rejection) => return Acquire::Refused(rejection),
        };
        match self.slots().try_take() {
            Some(slot) => self.admit(slot, key),
            None => self.join_line(key, wait),
        }
    }

    /// Whoever has a slot here is admitted, if the store has one as well.
    #[inline]
    pub(super) fn admit(&self, slot: Slot, key: Option<KeySlot>) -> Acquire {
        if self.0.leases.is_none() {
            Acquire::Admitted(self.permit(slot, key))
        } else {
            self.ask_store(slot, key)
        }
    }

    /// Asks the store for what this replica has room for.
    #[cold]
    fn ask_store(&self, slot: Slot, key: Option<KeySlot>) -> Acquire {
        match self.lease(&key) {
            Reply::Ready(leased) => match self.leased(slot, key, leased) {
                Ok(permit) => Acquire::Admitted(permit),
                Err(rejection) => Acquire::Refused(rejection),
            },
            Reply::Pending(leased) => {
                let limiter = self.clone();
                Acquire::Later(Acquiring::asking(Box::pin(async move {
                    let leased = leased.await;
                    limiter.leased(slot, key, leased)
                })))
            }
        }
    }

    fn lease(&self, key: &Option<KeySlot>) -> Reply<Leased> {
        let total = limit_of(self.slots());
        let key = key.as_ref().map(|slot| (slot.key(), slot.limit()));
        let is_limited = |(_, limit): (Key, u64)| limit != UNLIMITED;
        match &self.0.leases {
            Some(leases) if total.is_some() || key.is_some_and(is_limited) => {
                leases.acquire(LeaseLimits::new(total, key))
            }
            _ => Reply::Ready(Leased::Unavailable(FailureMode::Open)),
        }
    }

    /// What follows from the store's answer.
    fn leased(
        &self,
        slot: Slot,
        key: Option<KeySlot>,
        leased: Leased,
    ) -> Result<Permit, Rejection> {
        match leased {
            Leased::Granted(lease) => Ok(self.permit(slot, key).leased(lease)),
            Leased::KeyFull => Err(self.rejection(Reason::KeyAtCapacity)),
            Leased::Full => Err(self.at_capacity()),
            // What this replica has room for is known already.
            Leased::Unavailable(FailureMode::Open) => Ok(self.permit(slot, key)),
            Leased::Unavailable(FailureMode::Closed) => Err(self.rejection(Reason::Unavailable)),
            Leased::Unavailable(FailureMode::LocalShare { replicas }) => {
                let share = |limit: u64| (limit / u64::from(replicas.max(1))).max(1);
                if key
                    .as_ref()
                    .is_some_and(|key| key.taken() > share(key.limit()))
                {
                    Err(self.rejection(Reason::KeyAtCapacity))
                } else if !self.is_off() && slot.in_flight() > share(self.slots().limit()) {
                    Err(self.at_capacity())
                } else {
                    Ok(self.permit(slot, key))
                }
            }
        }
    }

    #[cold]
    fn join_line(&self, key: Option<KeySlot>, wait: Option<Wait>) -> Acquire {
        let place = wait.and_then(|wait| {
            let place = self.slots().join_line(wait.max_waiting)?;
            Some((place, tokio::time::sleep(wait.max_time)))
        });
        match place {
            Some((place, deadline)) => {
                Acquire::Later(Acquiring::in_line(self.clone(), place, key, deadline))
            }
            None => Acquire::Refused(self.at_capacity()),
        }
    }

    #[inline]
    fn take_key(&self, key: Option<Key>) -> Result<Option<KeySlot>, Rejection> {
        let (Some(per_key), Some(key)) = (&self.0.per_key, key) else {
            return Ok(None);
        };
        let own = self.0.limits.as_ref();
        let own = own.and_then(|limits| limits.concurrency(&key, &self.0.name));
        let limit = own.unwrap_or_else(|| per_key.limit());
        match per_key.try_take(key, limit) {
            Some(slot) => Ok(Some(slot)),
            // To come back is of no use to whom everything is denied.
            None if limit == 0 => Err(self.rejection(Reason::KeyAtCapacity).retry_after(None)),
            None => Err(self.rejection(Reason::KeyAtCapacity)),
        }
    }

    #[inline]
    pub(super) fn permit(&self, slot: Slot, key: Option<KeySlot>) -> Permit {
        match (&self.0.observer, key) {
            (None, None) => Permit::new(slot),
            (observer, key) => {
                let watched = observer
                    .as_ref()
                    .map(|observer| self.watched(observer, &slot));
                Permit::with_extra(slot, key, watched)
            }
        }
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
        self.rejection(Reason::AtCapacity)
    }

    fn rejection(&self, reason: Reason) -> Rejection {
        Rejection::new(reason, String::from(&*self.0.name)).retry_after(self.0.retry_after)
    }

    /// How many are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        // Of things in this process's memory, so it fits.
        self.slots().in_flight() as usize
    }

    /// How many may be in flight; 0 when the limit is off.
    ///
    /// A limiter that [denies all](Self::deny_all) cannot be told from one that is off by this
    /// number; [`is_off`](Self::is_off) tells.
    #[must_use]
    pub fn limit(&self) -> usize {
        match self.slots().limit() {
            UNLIMITED => 0,
            limit => limit as usize,
        }
    }

    /// Whether nothing is limited in total.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.slots().limit() == UNLIMITED
    }

    /// Changes the limit for everyone in this process who shares it; 0 turns it off. Replicas that
    /// count in one store each go by their own.
    ///
    /// Never blocks. When it is lowered, what is in flight stays, and nobody new comes in until
    /// enough permits are back. Observers are told.
    pub fn set_limit(&self, limit: usize) {
        self.slots().set_limit(slots_of(limit));
        if let Some(observer) = &self.0.observer {
            self.tell_limit(&**observer);
        }
    }

    /// Tells an observer the limit, and again if it was changed meanwhile: of several who set it
    /// the last to be heard tells what it is.
    #[cold]
    fn tell_limit(&self, observer: &dyn Observer) {
        let mut limit = limit_of(self.slots());
        loop {
            observer.limit(&self.0.name, limit);
            match limit_of(self.slots()) {
                same if same == limit => return,
                changed => limit = changed,
            }
        }
    }

    /// Changes how many each key may have in flight that has no limit of its own; 0 turns it off.
    /// Does nothing for a limiter that was made without a limit for each key.
    pub fn set_limit_per_key(&self, limit: usize) {
        if let Some(per_key) = &self.0.per_key {
            per_key.set_limit(slots_of(limit));
        }
    }

    /// What the limiter is called in answers; may be empty.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    #[inline]
    fn slots(&self) -> &'static Slots {
        self.0.counter.0
    }
}

fn limit_of(slots: &Slots) -> Option<u64> {
    Some(slots.limit()).filter(|limit| *limit != UNLIMITED)
}

fn slots_of(limit: usize) -> u64 {
    match limit {
        0 => UNLIMITED,
        limit => (limit as u64).min(UNLIMITED - 1),
    }
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
