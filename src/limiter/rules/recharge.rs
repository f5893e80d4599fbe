//! Finds the buckets for later charges and refunds of a request.

use super::{Charges, RateRules, with_override};
use crate::key::Key;
use crate::store::Charge;
use crate::sync::lock;

impl RateRules {
    /// The bucket sets of the keys, if the tier of one differs from the request's tier. Kept,
    /// because the tier that is stored for a key may change before a refund.
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
        let has_other_tier =
            |(policy, charge): (usize, &Charge)| charge.set != self.set(policy, tier);
        let is_kept = charges.iter().enumerate().any(has_other_tier);
        is_kept.then(|| charges.iter().map(|charge| charge.set).collect())
    }

    /// Further charges of the same request: to known bucket sets, or to those of the request's
    /// tier.
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
            self.with_override_rules(charge, policy)
        };
        keys.map(charge).collect()
    }

    fn with_override_rules(&self, charge: Charge, policy: usize) -> Charge {
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
        let overridden = limits.find(&charge.key, |limit| {
            with_override(charge.clone(), limit, shape)
        });
        overridden.unwrap_or(charge)
    }
}
