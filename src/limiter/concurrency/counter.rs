//! The counter of requests in flight, and whether overrides apply.

use crate::key::Key;
use crate::limiter::slot_counter::SlotCounter;
use crate::limits::Limits;
use crate::sync::{AtomicBool, Ordering};

/// Owns the counter; retires it with the last limiter that uses it.
pub(super) struct CounterHandle {
    pub(super) slots: &'static SlotCounter,
    /// Whether overrides and tiers are ignored, because the limiter is switched off.
    pub(super) suspended: AtomicBool,
    /// Whether bans apply even then.
    pub(super) keeps_bans: AtomicBool,
}

impl CounterHandle {
    pub(super) fn new(slots: u64) -> Self {
        Self {
            slots: SlotCounter::new(slots),
            suspended: AtomicBool::new(false),
            keeps_bans: AtomicBool::new(false),
        }
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }

    /// Whether a key's override is ignored.
    pub(super) fn ignores_override(&self, limits: &Limits, key: &Key) -> bool {
        self.is_suspended() && !(self.keeps_bans.load(Ordering::Relaxed) && limits.is_banned(key))
    }
}

impl Drop for CounterHandle {
    fn drop(&mut self) {
        self.slots.retire();
    }
}
