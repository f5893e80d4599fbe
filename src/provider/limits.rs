//! What the admin endpoints read of [`Limits`], and what a configuration changes.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use crate::key::KeyName;
use crate::limit::Limit;
use crate::limits::{LimitTarget, Limits, LimitsError, Override, SourcedOverride};

use super::KnownNames;

/// For the admin endpoints: overrides with their sources, and which lists are in use. For configuration: the base.
pub trait LimitsInternals: Sized {
    /// Whether an override changes anything: false when no limiter goes by any part of it.
    fn applies(&self, limit: &Limit) -> bool;

    /// The override of a key that was set at run time, whatever the configuration has.
    fn override_at_run_time(&self, key: &KeyName) -> Option<Override>;

    /// The override of a key, with its source.
    fn sourced(&self, key: &KeyName) -> Option<SourcedOverride>;

    /// The next overrides in the order of their keys, with their sources.
    fn sourced_after(
        &self,
        after: Option<&KeyName>,
        count: usize,
    ) -> Vec<(KeyName, SourcedOverride)>;

    /// The number of overrides, set at run time or by the configuration.
    fn count(&self) -> usize;

    /// A number that grows with each change of an override. Each process counts for itself.
    fn revision(&self) -> u64;

    /// Whether no entry is on an allow or deny list.
    fn has_no_lists(&self) -> bool;

    /// Whether a service of this process looks its requests up on these lists.
    fn are_lists_applied(&self) -> bool;

    /// Whether a service of any replica does so.
    fn are_lists_applied_anywhere(&self) -> impl Future<Output = bool> + Send;

    /// Whether a service of this process looks up the keys of requests, not only addresses.
    fn are_lists_applied_to_keys(&self) -> bool;

    /// Checks that a network has only `deny all` or `unlimited`.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Network`] and [`LimitsError::Embedded`].
    fn check_network(key: &KeyName, limit: &Limit) -> Result<(), LimitsError>;

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

    /// Accepts overrides that name these limits and tiers, for as long as the returned value lives.
    #[must_use = "the names are known until it is dropped"]
    fn attach_names(&self, names: KnownNames) -> Arc<KnownNames>;
}

/// For entity tags of overrides, which all replicas and all versions must compute from the same text.
pub trait OverrideInternals {
    /// The text in a shared store: the limit, and one line for each of the other values that are set.
    fn to_stored(&self) -> String;
}

impl OverrideInternals for Override {
    fn to_stored(&self) -> String {
        self.to_stored()
    }
}

impl LimitsInternals for Limits {
    fn applies(&self, limit: &Limit) -> bool {
        self.applies(limit)
    }

    fn override_at_run_time(&self, key: &KeyName) -> Option<Override> {
        self.override_at_run_time(key)
    }

    fn sourced(&self, key: &KeyName) -> Option<SourcedOverride> {
        self.sourced(key)
    }

    fn sourced_after(
        &self,
        after: Option<&KeyName>,
        count: usize,
    ) -> Vec<(KeyName, SourcedOverride)> {
        self.sourced_after(after, count)
    }

    fn count(&self) -> usize {
        self.count()
    }

    fn revision(&self) -> u64 {
        self.revision()
    }

    fn has_no_lists(&self) -> bool {
        self.has_no_lists()
    }

    fn are_lists_applied(&self) -> bool {
        self.are_lists_applied()
    }

    fn are_lists_applied_anywhere(&self) -> impl Future<Output = bool> + Send {
        self.are_lists_applied_anywhere()
    }

    fn are_lists_applied_to_keys(&self) -> bool {
        self.are_lists_applied_to_keys()
    }

    fn check_network(key: &KeyName, limit: &Limit) -> Result<(), LimitsError> {
        Self::check_network(key, limit)
    }

    fn check_base<'a>(
        &self,
        base: impl Iterator<Item = (&'a KeyName, &'a Override)>,
    ) -> Result<(), LimitsError> {
        self.check_base(base)
    }

    fn replace_base(&self, base: BTreeMap<KeyName, Override>) -> Result<(), LimitsError> {
        self.replace_base(base)
    }

    fn declares_tier(&self, tier: &str) -> bool {
        self.declares(tier)
    }

    fn with_same_clock(&self) -> Self {
        self.beside()
    }

    fn attach_names(&self, names: KnownNames) -> Arc<KnownNames> {
        let names = Arc::new(names);
        let target: Arc<dyn LimitTarget> = names.clone();
        self.attach(&target);
        names
    }
}
