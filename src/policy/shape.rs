//! What of a policy stays the same when its quotas are changed.

use std::sync::Arc;

use super::{NamedQuota, Policy};

/// The names of a policy's quotas and tiers, and whether each quota is counted in a sliding window: what a
/// limiter was made with, and what its state is kept by. (One that denies everything is as a bucket.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    quotas: Vec<(Arc<str>, bool)>,
    /// How many of them each tier has, behind those of none.
    tiers: Vec<(Arc<str>, usize)>,
}

impl Policy {
    /// What stays the same when its quotas are changed.
    pub(crate) fn shape(&self) -> Shape {
        let quotas = self.all_quotas();
        let tiers = self.tiers.iter();
        Shape {
            quotas: quotas
                .map(|quota| (quota.name.clone(), quota.quota.is_sliding()))
                .collect(),
            tiers: tiers
                .map(|tier| (tier.name.clone(), tier.quotas.len()))
                .collect(),
        }
    }
}

impl Shape {
    /// Whether a policy could have been there from the beginning. One that denies everything for a
    /// while could.
    pub(crate) fn fits(&self, policy: &Policy) -> bool {
        let fits = |((name, sliding), quota): (&(Arc<str>, bool), &NamedQuota)| {
            let is_alike = quota.quota.denies_all() || quota.quota.is_sliding() == *sliding;
            *name == quota.name && !quota.quota.is_off() && is_alike
        };
        let other = policy.shape();
        other.tiers == self.tiers
            && other.quotas.len() == self.quotas.len()
            && self.quotas.iter().zip(policy.all_quotas()).all(fits)
    }

    /// Whether the quota at this place slides.
    pub(crate) fn is_sliding(&self, at: usize) -> bool {
        self.quotas.get(at).is_some_and(|(_, sliding)| *sliding)
    }
}
