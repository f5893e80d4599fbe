//! What of a policy stays the same when its quotas are changed.

use std::sync::Arc;

use super::{NamedQuota, Policy};
use crate::quota::Quota;

/// The names of a policy's quotas, and whether each is counted in a sliding window: what the buckets of a limiter
/// were opened with. (A quota that denies everything or is off counts as a bucket.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape(Box<[(Arc<str>, bool)]>);

impl Policy {
    /// The policy with the algorithms of a shape. A quota that is out of the bounds of its algorithm is off: it is
    /// above the highest rate that can be counted.
    pub(crate) fn in_shape(&self, shape: &Shape) -> Self {
        let mut sliding = shape.0.iter().map(|(_, sliding)| *sliding);
        self.map_quotas(|quota| {
            let sliding = sliding.next().unwrap_or_default();
            let counted = quota.quota.counted_in(sliding);
            counted.unwrap_or(Quota::off())
        })
    }

    /// What stays the same when its quotas are changed.
    pub(crate) fn shape(&self) -> Shape {
        let quotas = self.quotas.iter();
        Shape(
            quotas
                .map(|quota| (quota.name.clone(), quota.quota.is_sliding()))
                .collect(),
        )
    }
}

impl Shape {
    /// Whether the buckets could have been opened with a policy. One that is off or denies everything for a
    /// while could.
    pub(crate) fn fits(&self, policy: &Policy) -> bool {
        let fits = |((name, sliding), quota): (&(Arc<str>, bool), &NamedQuota)| {
            let is_alike = quota
                .quota
                .rate()
                .is_none_or(|rate| rate.is_sliding() == *sliding);
            *name == quota.name && is_alike
        };
        self.0.len() == policy.quotas.len() && self.0.iter().zip(&policy.quotas).all(fits)
    }

    /// The names and algorithms of the quotas, and whether there is a single one.
    pub(crate) fn quotas(&self) -> (impl Iterator<Item = (&str, bool)>, bool) {
        let quotas = self.0.iter().map(|(name, sliding)| (&**name, *sliding));
        (quotas, self.0.len() == 1)
    }

    /// Whether the quota at this place slides.
    pub(crate) fn is_sliding(&self, at: usize) -> bool {
        self.0.get(at).is_some_and(|(_, sliding)| *sliding)
    }
}
