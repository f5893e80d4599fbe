//! What other crates need of a [`ConcurrencyLimiter`].

use std::sync::Arc;

use crate::limiter::ConcurrencyLimiter;
use crate::limits::Limits;
use crate::observe::Observer;
use crate::store::LeaseStore;

/// The settings of a [`ConcurrencyLimiter`] without a layer.
#[derive(Clone, Copy, Default)]
pub struct ConcurrencySettings<'a> {
    /// The name, in messages and in overrides.
    pub name: &'a str,
    /// The permits in all; 0 for any number.
    pub limit: usize,
    /// The permits for each key; 0 for any number.
    pub per_key: usize,
    /// The store that counts for all replicas. Default: this process counts.
    pub store: Option<&'a dyn LeaseStore>,
    /// The overrides of keys.
    pub limits: Option<&'a Limits>,
    /// Sees each permit.
    pub observer: Option<&'a Arc<dyn Observer>>,
}

impl std::fmt::Debug for ConcurrencySettings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConcurrencySettings")
            .field("name", &self.name)
            .field("limit", &self.limit)
            .field("per_key", &self.per_key)
            .finish_non_exhaustive()
    }
}

/// For WebSocket connections, which are limited without a layer. For configuration: what a reload changes.
pub trait ConcurrencyLimiterInternals {
    /// A limiter with these settings.
    fn with_settings(settings: ConcurrencySettings<'_>) -> Self;

    /// Sets whether the limiter is switched off, so that overrides and tiers are ignored; a banned key stays banned.
    fn suspend_except_bans(&self, is_suspended: bool);

    /// Sets whether the limiter is switched off, so that overrides and tiers are ignored.
    fn set_suspended(&self, is_suspended: bool);

    /// Expects several services with the layer of this limit, before the first request: nested ones count a request
    /// once.
    fn expect_nested_services(&self);
}

impl ConcurrencyLimiterInternals for ConcurrencyLimiter {
    fn with_settings(settings: ConcurrencySettings<'_>) -> Self {
        let mut limiter = Self::new(settings.limit)
            .named(settings.name)
            .per_key(settings.per_key);
        if let Some(observer) = settings.observer {
            limiter = limiter.observed(observer.clone());
        }
        if let Some(limits) = settings.limits {
            limiter = limiter.limits(limits);
        }
        let opened = limiter.open(settings.store);
        limiter.opened(&opened)
    }

    fn suspend_except_bans(&self, is_suspended: bool) {
        self.suspend_except_bans(is_suspended);
    }

    fn set_suspended(&self, is_suspended: bool) {
        self.set_suspended(is_suspended);
    }

    fn expect_nested_services(&self) {
        self.nesting().expect();
    }
}
