//! Control over running limits: what a reload of a configuration changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::concurrency::ConcurrencyLimitLayer;
use crate::extract::KeyExtractor;
use crate::key::KeyName;
use crate::limit::{Limit, LimitError};
use crate::limiter::{ConcurrencyLimiter, Leases, RateLimiter, SetPolicyError};
use crate::limits::{LimitTarget, Limits, LimitsError, Override};
use crate::policy::Policy;
use crate::quota::Quota;
use crate::rate::RateLimitLayer;

use super::KnownNames;

/// Policies of a configuration.
pub trait PolicyControl: Sized {
    /// A policy without quotas.
    #[must_use]
    fn empty() -> Self;

    /// Removes the quotas that are off in every tier.
    #[must_use]
    fn without_off_quotas(self) -> Self;

    /// A limit with these rates by quota name.
    ///
    /// # Errors
    ///
    /// A name is invalid or occurs twice.
    fn limit_of<'a>(
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
    ) -> Result<Limit, LimitError>;
}

impl PolicyControl for Policy {
    fn empty() -> Self {
        Self::empty()
    }

    fn without_off_quotas(self) -> Self {
        self.without_off_quotas()
    }

    fn limit_of<'a>(
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
    ) -> Result<Limit, LimitError> {
        Limit::from_quotas(quotas)
    }
}

/// Control over a running [`RateLimiter`].
pub trait RateLimiterControl {
    /// Replaces all policies of the limiter, as [`RateLimiter::set_policy`] does for one.
    ///
    /// # Errors
    ///
    /// As [`RateLimiter::set_policy`].
    fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError>;

    /// Whether [`set_policies`](Self::set_policies) accepts these policies and all their tiers.
    fn accepts_policies(&self, policies: &[Policy]) -> bool;

    /// Switches the limiter off: reports and tools do not list it. Default: on.
    fn set_suspended(&self, is_suspended: bool);

    /// Whether the limiter is switched off.
    fn is_suspended(&self) -> bool;

    /// Lets another limiter count under the same name in a store that replicas share. Requests in flight may go on to use
    /// this one.
    fn retire(&self);

    /// The names of the quotas of all policies.
    fn quota_names(&self) -> impl Iterator<Item = &str>;

    /// Expects the layer around several services: one request then counts once, also before all services are built.
    fn expect_nested_services(&self);

    /// The keys that the store evicted since the last call.
    #[cfg(feature = "metrics")]
    fn new_evictions(&self) -> Option<u64>;
}

impl RateLimiterControl for RateLimiter {
    fn set_policies(&self, policies: Vec<Policy>) -> Result<(), SetPolicyError> {
        Self::set_policies(self, policies)
    }

    fn accepts_policies(&self, policies: &[Policy]) -> bool {
        self.accepts_policies(policies)
    }

    fn set_suspended(&self, is_suspended: bool) {
        self.set_suspended(is_suspended);
    }

    fn is_suspended(&self) -> bool {
        self.is_suspended()
    }

    fn retire(&self) {
        Self::retire(self);
    }

    fn quota_names(&self) -> impl Iterator<Item = &str> {
        self.quota_names()
    }

    fn expect_nested_services(&self) {
        self.nesting().expect();
    }

    #[cfg(feature = "metrics")]
    fn new_evictions(&self) -> Option<u64> {
        Self::new_evictions(self)
    }
}

/// Control over a running [`ConcurrencyLimiter`].
pub trait ConcurrencyLimiterControl {
    /// Ignores overrides and tiers, because the limiter is switched off. Default: they apply.
    fn set_suspended(&self, is_suspended: bool);

    /// As [`set_suspended`](Self::set_suspended) for a limiter that no allow and deny list precedes: a banned key
    /// stays banned.
    fn suspend_except_bans(&self, is_suspended: bool);

    /// Expects the layer around several services: one request then counts once, also before all services are built.
    fn expect_nested_services(&self);
}

impl ConcurrencyLimiterControl for ConcurrencyLimiter {
    fn set_suspended(&self, is_suspended: bool) {
        self.set_suspended(is_suspended);
    }

    fn suspend_except_bans(&self, is_suspended: bool) {
        self.suspend_except_bans(is_suspended);
    }

    fn expect_nested_services(&self) {
        self.nesting().expect();
    }
}

/// Control over running [`Leases`].
pub trait LeasesControl {
    /// Ignores overrides and tiers, because the leases are switched off. A banned tenant stays banned. Default: they
    /// apply.
    fn set_suspended(&self, is_suspended: bool);
}

impl LeasesControl for Leases {
    fn set_suspended(&self, is_suspended: bool) {
        self.set_suspended(is_suspended);
    }
}

/// Control over [`Limits`] by a configuration.
pub trait LimitsControl: Sized {
    /// Whether [`Limits::set_base`] accepts these overrides, apart from unknown tiers.
    ///
    /// # Errors
    ///
    /// As [`Limits::set_base`].
    fn check_base<'a>(
        &self,
        base: impl Iterator<Item = (&'a KeyName, &'a Override)>,
    ) -> Result<(), LimitsError>;

    /// Replaces the base after [`check_base`](Self::check_base). A key with an unknown tier has the defaults.
    ///
    /// # Errors
    ///
    /// [`LimitsError::TooManyRates`]: another override was set since the check.
    fn replace_base(&self, base: BTreeMap<KeyName, Override>) -> Result<(), LimitsError>;

    /// Whether a tier of this name is declared.
    fn declares_tier(&self, tier: &str) -> bool;

    /// New limits in memory whose overrides end by the same clock.
    #[must_use]
    fn with_same_clock(&self) -> Self;

    /// Whether an override of this key is possible: only bans and exemptions apply to networks.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Network`] and [`LimitsError::Embedded`].
    fn check_network(name: &KeyName, limit: &Limit) -> Result<(), LimitsError>;

    /// Accepts overrides that name these limits and tiers, for as long as the returned value lives.
    #[must_use = "the names are known until it is dropped"]
    fn attach_names(&self, names: KnownNames) -> Arc<KnownNames>;
}

impl LimitsControl for Limits {
    fn check_base<'a>(
        &self,
        base: impl Iterator<Item = (&'a KeyName, &'a Override)>,
    ) -> Result<(), LimitsError> {
        Self::check_base(self, base)
    }

    fn replace_base(&self, base: BTreeMap<KeyName, Override>) -> Result<(), LimitsError> {
        Self::replace_base(self, base)
    }

    fn declares_tier(&self, tier: &str) -> bool {
        self.declares(tier)
    }

    fn with_same_clock(&self) -> Self {
        self.beside()
    }

    fn check_network(name: &KeyName, limit: &Limit) -> Result<(), LimitsError> {
        Self::check_network(name, limit)
    }

    fn attach_names(&self, names: KnownNames) -> Arc<KnownNames> {
        let names = Arc::new(names);
        let target: Arc<dyn LimitTarget> = names.clone();
        self.attach(&target);
        names
    }
}

/// Control over a [`RateLimitLayer`].
pub trait RateLayerControl: Sized {
    /// Counts with a limiter that runs already, of the same policies.
    #[must_use]
    fn resumed(self, limiter: RateLimiter) -> Self;

    /// Guards by address with a limiter that runs already and answers at once, as
    /// [`guard_by_ip`](RateLimitLayer::guard_by_ip).
    #[must_use]
    fn guard_resumed(self, client_ip: impl KeyExtractor, limiter: RateLimiter) -> Self;

    /// Adds the limits of `others` to the decision: a request fits all of them or is charged to none. Each limit keeps its
    /// name, its enforcement, and what it skips and counts. Headers and cost are those of this layer, and a request that
    /// this layer skips passes all.
    ///
    /// Returns `None` if the layers count in different stores, or in a store that cannot join them.
    #[must_use]
    fn joined(self, others: &[Self]) -> Option<Self>;

    /// Informs the observers that the limit is in force, unless they know it.
    fn notify_attached(&self);
}

impl<K: KeyExtractor> RateLayerControl for RateLimitLayer<K> {
    fn resumed(self, limiter: RateLimiter) -> Self {
        Self::resumed(self, limiter)
    }

    fn guard_resumed(self, client_ip: impl KeyExtractor, limiter: RateLimiter) -> Self {
        Self::guard_resumed(self, client_ip, limiter)
    }

    fn joined(self, others: &[Self]) -> Option<Self> {
        Self::joined(self, others)
    }

    fn notify_attached(&self) {
        self.tell_attached();
    }
}

/// Control over a [`ConcurrencyLimitLayer`].
pub trait ConcurrencyLayerControl: Sized {
    /// A layer over a limiter that runs already. The extractors find the keys of its first limits per key.
    fn resumed<E: KeyExtractor>(
        limiter: ConcurrencyLimiter,
        keys: impl IntoIterator<Item = E>,
    ) -> Self;

    /// Takes a permit of each of `others` as well, after its own; all are released together. Each limit keeps its name, its
    /// answers, its enforcement and what it skips. A request that this layer skips passes all.
    #[must_use]
    fn joined(self, others: &[Self]) -> Self;
}

impl ConcurrencyLayerControl for ConcurrencyLimitLayer {
    fn resumed<E: KeyExtractor>(
        limiter: ConcurrencyLimiter,
        keys: impl IntoIterator<Item = E>,
    ) -> Self {
        Self::resumed(limiter, keys)
    }

    fn joined(self, others: &[Self]) -> Self {
        Self::joined(self, others)
    }
}
