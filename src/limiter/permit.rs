//! A guard for one admitted request.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::key_counters::{KeySlot, KeySlots};
use super::slot_counter::{Slot, SlotCounter};
use crate::key::Key;
use crate::observe::Observer;
use crate::store::LeaseGuard;

/// RAII guard for one admitted request. Dropping it releases the slot.
#[must_use = "dropping a permit releases it at once"]
pub struct Permit {
    slot: Option<Slot>,
    extra: Option<Box<PermitExtras>>,
}

/// The fields that few permits need.
#[derive(Default)]
pub(super) struct PermitExtras {
    pub(super) keys: KeySlots,
    pub(super) observed: Option<ObservedPermit>,
    /// The same slot in a store that replicas share.
    lease: Option<Box<dyn LeaseGuard>>,
    /// Permits of other limiters, released together with this one.
    others: SmallVec<[Permit; 1]>,
}

/// Notifies an observer when the permit is released.
pub(super) struct ObservedPermit {
    pub(super) limiter: Arc<str>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) since: Instant,
}

impl Permit {
    #[inline]
    pub(super) fn new(slot: Slot) -> Self {
        Self {
            slot: Some(slot),
            extra: None,
        }
    }

    pub(super) fn with_extra(slot: Slot, keys: KeySlots, observed: Option<ObservedPermit>) -> Self {
        let extra = PermitExtras {
            keys,
            observed,
            ..PermitExtras::default()
        };
        Self {
            slot: Some(slot),
            extra: Some(Box::new(extra)),
        }
    }

    /// Adds a lease to this permit.
    pub(super) fn with_lease(mut self, lease: Box<dyn LeaseGuard>) -> Self {
        self.extra.get_or_insert_default().lease = Some(lease);
        self
    }

    /// Adds a permit of another limiter to this one.
    pub(crate) fn and(mut self, other: Self) -> Self {
        if !self.is_held() {
            return other;
        }
        self.extra.get_or_insert_default().others.push(other);
        self
    }

    /// This permit and the permits that were added to it.
    pub(super) fn all(&self) -> impl Iterator<Item = &Self> {
        let others = self.extra.iter().flat_map(|extra| &extra.others);
        std::iter::once(self).chain(others)
    }

    /// Removes and returns the permit of one limiter.
    pub(super) fn take_permit_of(&mut self, slots: &'static SlotCounter) -> Self {
        let is_of = |permit: &Self| permit.slots().is_some_and(|held| std::ptr::eq(held, slots));
        if !is_of(self) {
            let others = self.extra.as_mut().map(|extra| &mut extra.others);
            let taken = others.and_then(|others| {
                let at = others.iter().position(is_of)?;
                Some(others.remove(at))
            });
            return taken.unwrap_or(Self::none());
        }
        let mut others = match &mut self.extra {
            Some(extra) => std::mem::take(&mut extra.others),
            None => SmallVec::new(),
        };
        let first = match others.is_empty() {
            true => Self::none(),
            false => others.remove(0),
        };
        std::mem::replace(self, others.into_iter().fold(first, Self::and))
    }

    /// A permit for a request that is not counted.
    #[inline]
    pub(crate) fn none() -> Self {
        Self {
            slot: None,
            extra: None,
        }
    }

    /// The counter of this permit, unless the request is not counted.
    pub(super) fn slots(&self) -> Option<&'static SlotCounter> {
        self.slot.as_ref().map(Slot::slots)
    }

    /// The keys that the permit counts for.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        let keys = self.extra.iter().flat_map(|extra| &extra.keys);
        keys.map(KeySlot::key)
    }

    /// Whether this permit holds a slot.
    pub(crate) fn is_held(&self) -> bool {
        self.slot.is_some()
    }

    /// Whether a request that needs the permit may reclaim it from a client that does not read.
    pub(crate) fn is_reclaimable(&self) -> bool {
        let mut slots = self.all().filter_map(Self::slots);
        slots.any(|slots| slots.stalled.is_on())
    }

    /// Releases the permit, unless it was released before.
    #[inline]
    pub fn release(&mut self) {
        drop(self.slot.take());
        if self.extra.is_some() {
            self.release_extra();
        }
    }

    #[cold]
    fn release_extra(&mut self) {
        let Some(mut extra) = self.extra.take() else {
            return;
        };
        drop(extra.lease.take());
        extra.keys.clear();
        // Last, so that an observer sees the counts without this permit.
        if let Some(observed) = &extra.observed {
            observed.observer.released(&observed.limiter);
            (observed.observer).held(&observed.limiter, observed.since.elapsed());
        }
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
