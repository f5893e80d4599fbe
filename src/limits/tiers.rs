//! Tiers, and the concurrency limits of tiers and overrides.

use std::fmt;
use std::sync::Arc;

use super::Limits;
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limit::{Limit, is_addressable};
use crate::policy::{Policy, PolicyError, Tier};
use crate::sync::lock;

/// The maximum number of unknown tiers that are logged.
const MAX_LOGGED_TIERS: usize = 16;

impl Limits {
    /// Declares a tier: a named set of limits that keys and requests refer to.
    ///
    /// `limit` names its limits like an override does: `"requests=600/min, jobs=20 concurrent"`. A
    /// limit that it does not name keeps its default. **Rates count separately in each tier**, see
    /// [`Policy::tier`]. Permits and leases have one count per key in all tiers; the tier selects
    /// the limit.
    ///
    /// Limiters that were built before use the tier as well. Adding a tier changes no usage. A
    /// second declaration of the same name replaces the first. A limiter that has the tier keeps
    /// its algorithm, bucket or sliding window.
    ///
    /// ```
    /// use tower_admission::{Limits, Policy, Quota, RateLimitByTokenLayer};
    ///
    /// #[derive(Clone)]
    /// struct Plan(String);
    ///
    /// let limits = Limits::new().tier("pro", "requests=600/min, jobs=20 concurrent");
    /// let layer = RateLimitByTokenLayer::new(Policy::new("requests", Quota::per_minute(10)))
    ///     .limits(&limits)
    ///     .tier_by(|head| Some(&head.extensions.get::<Plan>()?.0));
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if `limit` cannot be parsed, and where [`try_tier`](Self::try_tier) returns an error.
    #[must_use]
    #[track_caller]
    pub fn tier(self, name: &str, limit: impl TryInto<Limit, Error: fmt::Display>) -> Self {
        let limit = match limit.try_into() {
            Ok(limit) => limit,
            Err(error) => panic!("{error}: tier {name:?}"),
        };
        match self.try_tier(name, limit) {
            Ok(()) => self,
            Err(error) => panic!("{error}: tier {name:?}"),
        }
    }

    /// Like [`tier`](Self::tier), but returns an error, for a tier that is configured at run time.
    ///
    /// # Errors
    ///
    /// - [`PolicyError::Name`]: the name is not 1 to 64 bytes of printable ASCII without `,` and
    ///   `=`, starts or ends with a space, or is `tier`.
    /// - [`PolicyError::TooManyTiers`]: there are [`Policy::MAX_TIERS`] tiers.
    /// - [`PolicyError::Nested`]: the limit names a tier.
    pub fn try_tier(&self, name: &str, limit: Limit) -> Result<(), PolicyError> {
        if !is_addressable(name) {
            return Err(PolicyError::Name);
        }
        if limit.tier().is_some() {
            return Err(PolicyError::Nested);
        }
        let state = lock(&self.0.state);
        let mut tiers = Vec::clone(&self.0.tiers.load());
        match tiers.iter().position(|tier| *tier.name == *name) {
            Some(at) => tiers[at].limit = limit,
            None if tiers.len() == Policy::MAX_TIERS => return Err(PolicyError::TooManyTiers),
            None => tiers.push(Tier {
                name: name.into(),
                limit,
            }),
        }
        self.0.tiers.store(Arc::new(tiers));
        drop(state);
        for target in self.targets() {
            target.tiers_changed();
        }
        Ok(())
    }

    /// The names of the tiers that are declared here or by a policy that uses these limits.
    #[must_use]
    pub fn tiers(&self) -> Vec<Arc<str>> {
        let declared = self.declared();
        let mut names: Vec<_> = declared.iter().map(|tier| tier.name.clone()).collect();
        names.extend(self.targets().iter().flat_map(|target| target.tiers()));
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The tiers that are declared here.
    pub(crate) fn declared(&self) -> Arc<Vec<Tier>> {
        self.0.tiers.load_full()
    }

    /// Whether a tier is declared here.
    pub(crate) fn declares(&self, tier: &str) -> bool {
        let tiers = self.0.tiers.load();
        tiers.iter().any(|declared| *declared.name == *tier)
    }

    /// The concurrency limit of a key for a limiter of this name, in a request of this tier.
    /// `None`: the default.
    #[inline]
    pub(crate) fn concurrency(
        &self,
        key: &Key,
        name: &str,
        tier: Option<&str>,
    ) -> Option<Capacity> {
        if self.has_no_overrides() && tier.is_none() {
            return None;
        }
        let found = self.find(key, |limit| {
            let override_limit = limit.concurrency(name);
            override_limit.or_else(|| self.concurrency_in(limit.tier().or(tier)?, name))
        });
        found.unwrap_or_else(|| self.concurrency_in(tier?, name))
    }

    fn concurrency_in(&self, tier: &str, name: &str) -> Option<Capacity> {
        let tiers = self.0.tiers.load();
        let Some(declared) = tiers.iter().find(|declared| *declared.name == *tier) else {
            self.warn_unknown_tier(tier);
            return None;
        };
        declared.limit.concurrency(name)
    }

    #[cold]
    fn warn_unknown_tier(&self, tier: &str) {
        let mut unknown = lock(&self.0.unknown);
        if unknown.len() == MAX_LOGGED_TIERS || unknown.iter().any(|known| **known == *tier) {
            return;
        }
        unknown.push(tier.into());
        drop(unknown);
        // A policy may declare it; other kinds of limiters then use their defaults.
        if !self.tiers().iter().any(|known| **known == *tier) {
            tracing::warn!(tier, "unknown tier: the defaults apply");
        }
    }

    /// Whether a key's override has a part for a limiter of this name.
    pub(crate) fn overrides_concurrency(&self, key: &Key, name: &str) -> bool {
        let overrides = self.find(key, |limit| limit.concurrency(name).is_some());
        overrides.unwrap_or(false)
    }
}
