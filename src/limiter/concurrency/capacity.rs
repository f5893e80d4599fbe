//! Capacities as counters have them.

use crate::capacity::Capacity;
use crate::limiter::slots::UNLIMITED;

impl Capacity {
    /// As counters have it.
    pub(super) fn of_slots(limit: u64) -> Self {
        match usize::try_from(limit) {
            _ if limit == UNLIMITED => Self::Unlimited,
            Ok(limit) => Self::AtMost(limit),
            Err(_) => Self::AtMost(usize::MAX),
        }
    }

    /// As counters have it.
    pub(in crate::limiter) fn slots(self) -> u64 {
        match self {
            Self::Unlimited => UNLIMITED,
            Self::AtMost(limit) => (limit as u64).min(UNLIMITED - 1),
        }
    }
}
