//! Overrides of the configuration, which apply beneath overrides that are set at run time.

use std::collections::{BTreeMap, BTreeSet};

use super::state::OverrideSource;
use super::{Limits, LimitsError, Override};
use crate::key::KeyName;
use crate::sync::lock;

impl Limits {
    /// Replaces the overrides of the configuration. They apply to keys without an override that was
    /// set at run time. Default: none.
    ///
    /// # Errors
    ///
    /// [`LimitsError::TooMany`], [`LimitsError::TooManyRates`], [`LimitsError::Network`] and
    /// [`LimitsError::UnknownTier`], like [`set`](Self::set). Nothing changes then.
    pub fn set_base(
        &self,
        base: impl IntoIterator<Item = (KeyName, Override)>,
    ) -> Result<(), LimitsError> {
        // Including ended ones, because this clock may be ahead for a moment.
        let base: BTreeMap<_, _> = base.into_iter().collect();
        self.check_base(base.iter())?;
        let tiers: BTreeSet<_> = base
            .values()
            .filter_map(|entry| entry.limit().tier())
            .collect();
        for tier in tiers {
            Self::check_tier_in(tier, self.tiers())?;
        }
        self.replace_base(base)
    }

    /// Replaces them after [`check_base`](Self::check_base). A key with an unknown tier gets the
    /// defaults.
    pub(crate) fn replace_base(
        &self,
        base: BTreeMap<KeyName, Override>,
    ) -> Result<(), LimitsError> {
        let mut state = lock(&self.0.state);
        // Checked again, because an override may have been set in between.
        if state.has_too_many_rates_with(base.values()) {
            return Err(LimitsError::TooManyRates);
        }
        let names = state.names_after(OverrideSource::Base, None, usize::MAX);
        for name in names.iter().filter(|name| !base.contains_key(name)) {
            self.apply(&mut state, OverrideSource::Base, name, None);
        }
        for (name, entry) in base {
            self.apply(&mut state, OverrideSource::Base, &name, Some(entry));
        }
        Ok(())
    }

    /// Whether [`set_base`](Self::set_base) would accept these, if their tiers were known.
    pub(crate) fn check_base<'a>(
        &self,
        base: impl Iterator<Item = (&'a KeyName, &'a Override)>,
    ) -> Result<(), LimitsError> {
        let base: Vec<_> = base.collect();
        if base.len() > Self::MAX_OVERRIDES {
            return Err(LimitsError::TooMany);
        }
        for (name, entry) in &base {
            Self::check_network(name, entry.limit())?;
        }
        let entries = base.iter().map(|(_, entry)| *entry);
        if lock(&self.0.state).has_too_many_rates_with(entries) {
            return Err(LimitsError::TooManyRates);
        }
        Ok(())
    }
}
