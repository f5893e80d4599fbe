//! Tiers, and what they and overrides say of concurrency.

use std::fmt;
use std::sync::Arc;

use super::Limits;
use crate::capacity::Capacity;
use crate::key::Key;
use crate::limit::{Limit, is_addressable};
use crate::policy::{Policy, PolicyError, Tier};
use crate::sync::lock;

/// Tiers that are logged.
const MAX_UNKNOWN: usize = 16;

impl Limits {
    /// Declares a tier: a named set of limits, which keys and requests refer to.
    ///
    /// `limit` names the limits that it is about as an override does: `"requests=600/min, jobs=20 concurrent"`. A limit
    /// that it does not name keeps its default. **Rates count apart in each tier**, see [`Policy::tier`]. Permits and
    /// leases have one count for a key in all tiers; the tier selects the number.
    ///
    /// A limiter that was built before knows the tier as well. Adding a tier changes no usage. A tier of this name that
    /// was declared before is replaced; a limiter that knows it counts it in buckets or in windows as it did before.
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
    /// When `limit` cannot be read, and where [`try_tier`](Self::try_tier) returns an error.
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

    /// As [`tier`](Self::tier), for a tier that comes from outside.
    ///
    /// # Errors
    ///
    /// - [`PolicyError::Name`]: the name is not 1 to 64 bytes of printable ASCII without `,` and `=`, has a
    ///   space at an end, or is `tier`.
    /// - [`PolicyError::TooManyTiers`]: there are [`Policy::MAX_TIERS`] already.
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

    /// How many a limiter of this name may admit for a key, whose request is of this tier, if that is not the
    /// default.
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
            let own = limit.concurrency(name);
            own.or_else(|| self.concurrency_in(limit.tier().or(tier)?, name))
        });
        found.unwrap_or_else(|| self.concurrency_in(tier?, name))
    }

    fn concurrency_in(&self, tier: &str, name: &str) -> Option<Capacity> {
        let tiers = self.0.tiers.load();
        let Some(declared) = tiers.iter().find(|declared| *declared.name == *tier) else {
            self.log_unknown(tier);
            return None;
        };
        declared.limit.concurrency(name)
    }

    #[cold]
    fn log_unknown(&self, tier: &str) {
        let mut unknown = lock(&self.0.unknown);
        if unknown.len() == MAX_UNKNOWN || unknown.iter().any(|known| **known == *tier) {
            return;
        }
        unknown.push(tier.into());
        drop(unknown);
        // A policy may have declared it, and limiters of other sorts have their defaults in it.
        if !self.tiers().iter().any(|known| **known == *tier) {
            tracing::warn!(tier, "there is no tier of this name: the defaults apply");
        }
    }

    /// Whether a key's override has a part about a limiter of this name.
    pub(crate) fn overrides_concurrency(&self, key: &Key, name: &str) -> bool {
        let overrides = self.find(key, |limit| limit.concurrency(name).is_some());
        overrides.unwrap_or(false)
    }
}
