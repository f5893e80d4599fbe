//! More for a request that was charged: where what it is charged in addition, or given back, goes.

use super::{Charges, Rules, with_override};
use crate::key::Key;
use crate::store::Charge;
use crate::sync::lock;

impl Rules {
    /// The sets of buckets that keys are charged to, if one has a tier of its own: what is stored for it may be another
    /// tier by the time that something is given back.
    #[inline]
    pub(in crate::limiter) fn sets(
        &self,
        keys: &[Key],
        tier: Option<&str>,
    ) -> Option<Box<[usize]>> {
        let limits = self.limits.as_ref()?;
        if limits.has_no_overrides() {
            return None;
        }
        let charges = self.charges(keys, tier);
        let is_override = |(policy, charge): (usize, &Charge)| charge.set != self.set(policy, tier);
        let has_own = charges.iter().enumerate().any(is_override);
        has_own.then(|| charges.iter().map(|charge| charge.set).collect())
    }

    /// More of the same: what keys are charged to whose sets are known, or are those of the request's tier.
    pub(in crate::limiter) fn charges_to(
        &self,
        keys: &[Key],
        tier: Option<&str>,
        sets: Option<&[usize]>,
    ) -> Charges {
        let keys = keys.iter().take(self.shapes.len()).enumerate();
        let charge = |(policy, key): (usize, &Key)| {
            let known = sets.and_then(|sets| sets.get(policy)).copied();
            let charge = Charge::new(*key, known.unwrap_or_else(|| self.set(policy, tier)));
            self.with_own_rules(charge, policy)
        };
        keys.map(charge).collect()
    }

    fn with_own_rules(&self, charge: Charge, policy: usize) -> Charge {
        let Some(limits) = self
            .limits
            .as_ref()
            .filter(|limits| !limits.has_no_overrides())
        else {
            return charge;
        };
        let of_tier = || {
            let state = lock(&self.state);
            let found = state.opened.values().find(|tier| tier.set == charge.set);
            found.cloned()
        };
        let of_tier = (charge.set != policy).then(of_tier).flatten();
        let shape = of_tier
            .as_ref()
            .map_or(&self.shapes[policy], |of| &of.shape);
        let own = limits.find(&charge.key, |limit| {
            with_override(charge.clone(), limit, shape)
        });
        own.unwrap_or(charge)
    }
}
