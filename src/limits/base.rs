//! Overrides of the configuration, which count under those that are set at run time.

use std::collections::{BTreeMap, BTreeSet};

use super::state::Source;
use super::{Limits, LimitsError, Override};
use crate::key::KeyName;
use crate::sync::lock;

impl Limits {
    /// Replaces the overrides that come from the configuration. They count for keys that have no override which was set
    /// at run time. Default: none.
    ///
    /// # Errors
    ///
    /// [`LimitsError::TooMany`], [`LimitsError::TooManyRates`], [`LimitsError::Network`] and
    /// [`LimitsError::UnknownTier`], as
    /// [`set`](Self::set): then nothing changes.
    pub fn set_base(
        &self,
        base: impl IntoIterator<Item = (KeyName, Override)>,
    ) -> Result<(), LimitsError> {
        // Also those that have ended, as this clock may be ahead for the moment.
        let base: BTreeMap<_, _> = base.into_iter().collect();
        self.check_base(base.iter())?;
        let tiers: BTreeSet<_> = base.values().filter_map(|own| own.limit().tier()).collect();
        for tier in tiers {
            Self::check_tier_in(tier, self.tiers())?;
        }
        self.replace_base(base)
    }

    /// Replaces them after [`check_base`](Self::check_base). A key whose tier is not known has the defaults.
    pub(crate) fn replace_base(
        &self,
        base: BTreeMap<KeyName, Override>,
    ) -> Result<(), LimitsError> {
        let mut state = lock(&self.0.state);
        // Again, as an override may have been set in between.
        if state.has_too_many_rates_with(base.values()) {
            return Err(LimitsError::TooManyRates);
        }
        let names = state.names_after(Source::Base, None, usize::MAX);
        for name in names.iter().filter(|name| !base.contains_key(name)) {
            self.apply(&mut state, Source::Base, name, None);
        }
        for (name, own) in base {
            self.apply(&mut state, Source::Base, &name, Some(own));
        }
        Ok(())
    }

    /// Whether [`set_base`](Self::set_base) would take these, if their tiers were known.
    pub(crate) fn check_base<'a>(
        &self,
        base: impl Iterator<Item = (&'a KeyName, &'a Override)>,
    ) -> Result<(), LimitsError> {
        let base: Vec<_> = base.collect();
        if base.len() > Self::MAX_OVERRIDES {
            return Err(LimitsError::TooMany);
        }
        for (name, own) in &base {
            Self::check_network(name, own.limit())?;
        }
        let entries = base.iter().map(|(_, own)| *own);
        if lock(&self.0.state).has_too_many_rates_with(entries) {
            return Err(LimitsError::TooManyRates);
        }
        Ok(())
    }
}
