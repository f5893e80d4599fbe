//! Sets up leases.

use std::sync::Arc;
use std::time::Duration;

use super::limits::{LeaseSettings, zero_as_unlimited};
use super::{Leases, LeasesInner};
use crate::observe::Observer;
use crate::store::{LeaseStore, SecretMissing};

impl Leases {
    /// Changes a copy with its own settings, which later changes of the original do not affect.
    pub(super) fn with(self, change: impl FnOnce(&mut LeasesInner)) -> Self {
        self.with_same_settings(|shared| {
            shared.settings = Arc::new(LeaseSettings::clone(&shared.settings));
            change(shared);
        })
    }

    fn with_same_settings(mut self, change: impl FnOnce(&mut LeasesInner)) -> Self {
        let shared = Arc::make_mut(&mut self.0);
        change(shared);
        shared.attach_limits();
        // The name can still be set later.
        if !shared.name.is_empty() {
            (shared.observers).attached("lease", &shared.name, [""]);
        }
        self
    }

    /// Sets the name of the limit. Replicas find each other's slots by it; logs and metrics contain
    /// it. Default: empty, which is also a valid name.
    ///
    /// A different name is a different limit: it shares no counts with the original.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.with(|shared| {
            shared.name = name.into();
            shared.reopen();
        })
    }

    /// Sets the maximum number of concurrent leases per tenant. Default: 0, which means unlimited.
    #[must_use]
    pub fn per_tenant(self, limit: u64) -> Self {
        self.with(|shared| shared.settings.set_per_tenant(zero_as_unlimited(limit)))
    }

    /// Sets the maximum number of concurrent leases in total. Default: 0, which means unlimited.
    #[must_use]
    pub fn total(self, limit: u64) -> Self {
        self.with(|shared| shared.settings.set_total(zero_as_unlimited(limit)))
    }

    /// Sets how long a lease lives without a heartbeat. Default:
    /// [`DEFAULT_TTL`](Self::DEFAULT_TTL). Minimum: 100 milliseconds. Maximum:
    /// [`MAX_TTL`](Self::MAX_TTL).
    ///
    /// A short time frees the slots of a dead worker early; a long time needs fewer heartbeats.
    /// Without heartbeats, it is the longest time that the work may take.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.with(|shared| shared.settings.set_ttl(ttl))
    }

    /// The maximum time to live: 365 days.
    pub const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

    /// Sets the store. Default: this process's memory. A different store is a different limit.
    ///
    /// # Panics
    ///
    /// Panics where [`try_store`](Self::try_store) returns an error.
    #[must_use]
    #[track_caller]
    pub fn store(self, store: impl LeaseStore) -> Self {
        match self.try_store(store) {
            Ok(leases) => leases,
            Err(error) => panic!("{error}"),
        }
    }

    /// Like [`store`](Self::store), but returns an error, for a store that is configured at run
    /// time.
    ///
    /// # Errors
    ///
    /// Returns [`SecretMissing`] if replicas share the store and no [`Secret`](crate::Secret) makes
    /// their fingerprints of ids equal.
    pub fn try_store(self, store: impl LeaseStore) -> Result<Self, SecretMissing> {
        if !store.agrees_on_fingerprints() {
            return Err(SecretMissing);
        }
        Ok(self.with(|shared| {
            shared.store = Arc::new(store);
            shared.reopen();
        }))
    }

    /// Adds an observer, which sees the limit type `"lease"`. Default: none. Unlike the other
    /// setters, it keeps sharing all settings with the original.
    #[must_use]
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with_same_settings(|shared| shared.observers.add(observer))
    }
}
