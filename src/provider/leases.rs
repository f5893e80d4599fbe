//! What a configuration changes of [`Leases`].

use crate::limiter::Leases;

/// For configuration: what a reload changes.
pub trait LeasesInternals {
    /// Sets whether the leases are switched off, so that overrides and tiers are ignored; a banned tenant stays banned.
    fn rest(&self, rests: bool);
}

impl LeasesInternals for Leases {
    fn rest(&self, rests: bool) {
        self.rest(rests);
    }
}
