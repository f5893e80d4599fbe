//! What a configuration changes of [`Leases`].

use crate::limiter::Leases;

/// For configuration: what a reload changes.
pub trait LeasesInternals {
    /// Sets whether the leases are switched off, so that overrides and tiers are ignored; a banned tenant stays banned.
    fn set_suspended(&self, is_suspended: bool);
}

impl LeasesInternals for Leases {
    fn set_suspended(&self, is_suspended: bool) {
        self.set_suspended(is_suspended);
    }
}
