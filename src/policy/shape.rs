//! The parts of a policy that stay fixed when its quotas change.

use std::sync::Arc;

use super::{NamedQuota, Policy};
use crate::quota::Quota;

/// The names and the algorithms of a policy's quotas. A limiter opens its buckets with them, so
/// they are fixed. A quota that is off or denies all requests counts as a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyShape(Box<[(Arc<str>, bool)]>);

impl Policy {
    /// Converts the quotas to the algorithms of `shape`. A quota that is out of the bounds of its
    /// new algorithm is turned off, because it is above the highest rate that can be counted.
    pub(crate) fn with_shape(&self, shape: &PolicyShape) -> Self {
        let mut sliding = shape.0.iter().map(|(_, sliding)| *sliding);
        self.map_quotas(|quota| {
            let sliding = sliding.next().unwrap_or_default();
            let counted = quota.quota.counted_in(sliding);
            counted.unwrap_or(Quota::off())
        })
    }

    /// The parts that stay fixed when the quotas change.
    pub(crate) fn shape(&self) -> PolicyShape {
        let quotas = self.quotas.iter();
        PolicyShape(
            quotas
                .map(|quota| (quota.name.clone(), quota.quota.is_sliding()))
                .collect(),
        )
    }
}

impl PolicyShape {
    /// Whether buckets opened with this shape can serve `policy`. A quota that is off or denies all
    /// requests fits either algorithm.
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

    /// The name of each quota and whether it slides, and whether there is only one quota.
    pub(crate) fn quotas(&self) -> (impl Iterator<Item = (&str, bool)>, bool) {
        let quotas = self.0.iter().map(|(name, sliding)| (&**name, *sliding));
        (quotas, self.0.len() == 1)
    }

    /// Whether the quota at this index slides.
    pub(crate) fn is_sliding(&self, at: usize) -> bool {
        self.0.get(at).is_some_and(|(_, sliding)| *sliding)
    }
}
