//! Converts capacities to and from counter limits.

use crate::capacity::Capacity;
use crate::limiter::slot_counter::UNLIMITED;

impl Capacity {
    /// From a counter limit.
    pub(super) fn of_slots(limit: u64) -> Self {
        match usize::try_from(limit) {
            _ if limit == UNLIMITED => Self::Unlimited,
            Ok(limit) => Self::AtMost(limit),
            Err(_) => Self::AtMost(usize::MAX),
        }
    }

    /// To a counter limit.
    pub(in crate::limiter) fn slots(self) -> u64 {
        match self {
            Self::Unlimited => UNLIMITED,
            Self::AtMost(limit) => (limit as u64).min(UNLIMITED - 1),
        }
    }
}
