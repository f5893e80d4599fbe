//! The counter of requests in flight, and whether overrides apply.

use crate::key::Key;
use crate::limiter::slots::Slots;
use crate::limits::Limits;
use crate::sync::{AtomicBool, Ordering};

/// Owns the counter; retires it with the last limiter that uses it.
pub(super) struct Counter {
    pub(super) slots: &'static Slots,
    /// Whether overrides and tiers are ignored, because the limiter is switched off.
    pub(super) rests: AtomicBool,
    /// Whether bans apply even then.
    pub(super) keeps_bans: AtomicBool,
}

impl Counter {
    pub(super) fn new(slots: u64) -> Self {
        Self {
            slots: Slots::new(slots),
            rests: AtomicBool::new(false),
            keeps_bans: AtomicBool::new(false),
        }
    }

    pub(super) fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    /// Whether a key's override is ignored.
    pub(super) fn ignores_override(&self, limits: &Limits, key: &Key) -> bool {
        self.rests() && !(self.keeps_bans.load(Ordering::Relaxed) && limits.bans(key))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.slots.retire();
    }
}
