//! A yes that is held.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::per_key::{KeySlot, KeySlots};
use super::slots::{Slot, Slots};
use crate::key::Key;
use crate::observe::Observer;
use crate::store::LeaseGuard;

/// Permission to be in flight, given back on drop.
#[must_use = "dropping a permit gives it back at once"]
pub struct Permit {
    slot: Option<Slot>,
    extra: Option<Box<Extra>>,
}

/// What few permits have.
#[derive(Default)]
pub(super) struct Extra {
    pub(super) keys: KeySlots,
    pub(super) watched: Option<Watched>,
    /// The same slot where other replicas see it.
    lease: Option<Box<dyn LeaseGuard>>,
    /// Those of other limiters, which are given back together with this one.
    others: SmallVec<[Permit; 1]>,
}

/// Tells an observer when the permit is given back.
pub(super) struct Watched {
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

    pub(super) fn with_extra(slot: Slot, keys: KeySlots, watched: Option<Watched>) -> Self {
        let extra = Extra {
            keys,
            watched,
            ..Extra::default()
        };
        Self {
            slot: Some(slot),
            extra: Some(Box::new(extra)),
        }
    }

    /// Holds a lease as well.
    pub(super) fn leased(mut self, lease: Box<dyn LeaseGuard>) -> Self {
        self.extra.get_or_insert_default().lease = Some(lease);
        self
    }

    /// Holds a permit of another limiter as well.
    pub(crate) fn and(mut self, other: Self) -> Self {
        if !self.is_held() {
            return other;
        }
        self.extra.get_or_insert_default().others.push(other);
        self
    }

    /// The permits of the limiters that this one is of.
    pub(super) fn all(&self) -> impl Iterator<Item = &Self> {
        let others = self.extra.iter().flat_map(|extra| &extra.others);
        std::iter::once(self).chain(others)
    }

    /// Takes out the permit of one limiter.
    pub(super) fn take_of(&mut self, slots: &'static Slots) -> Self {
        let is_of = |permit: &Self| permit.slots().is_some_and(|own| std::ptr::eq(own, slots));
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

    /// Permission for what does not count.
    #[inline]
    pub(crate) fn none() -> Self {
        Self {
            slot: None,
            extra: None,
        }
    }

    /// The counter that the permit is from, unless it does not count.
    pub(super) fn slots(&self) -> Option<&'static Slots> {
        self.slot.as_ref().map(Slot::slots)
    }

    /// The keys that the permit counts for.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        let keys = self.extra.iter().flat_map(|extra| &extra.keys);
        keys.map(KeySlot::key)
    }

    /// Whether this holds a slot.
    pub(crate) fn is_held(&self) -> bool {
        self.slot.is_some()
    }

    /// Whether a request that needs the permit may take it from a client that does not read.
    pub(crate) fn is_reclaimable(&self) -> bool {
        let mut slots = self.all().filter_map(Self::slots);
        slots.any(|slots| slots.stalled.is_on())
    }

    /// Releases the permit before it is dropped. A second call does nothing.
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
        // Last, so that an observer sees the counts without this one.
        if let Some(watched) = &extra.watched {
            watched.observer.released(&watched.limiter);
            (watched.observer).held(&watched.limiter, watched.since.elapsed());
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
