//! The quotas of all keys, from one change to the next.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::Guard;
use governor::clock::Clock;

use super::buckets::MemoryBuckets;
use crate::policy::Policy;
use crate::quota::Quota;

/// The buckets from one change of everybody's quotas to the next.
pub(super) struct Generation<C: Clock> {
    pub(super) policies: Arc<Vec<Policy>>,
    pub(super) buckets: Arc<MemoryBuckets<C>>,
    /// Whether the policies are other ones than at first.
    pub(super) changed: bool,
    pub(super) before: Option<Before<C>>,
}

/// What was charged before a change, from which keys are carried over when they are seen.
pub(super) struct Before<C: Clock> {
    pub(super) generation: Arc<Generation<C>>,
    /// When all of it is as good as unused.
    pub(super) until: u64,
}

/// Changes of everybody's quotas that a key is carried over from, if it is not seen in between.
pub(super) const MOST_GENERATIONS: usize = 4;

/// The generation that counts.
pub(super) enum Current<'a, C: Clock> {
    First(&'a Arc<Generation<C>>),
    Later(Guard<Arc<Generation<C>>>),
}

impl<C: Clock> Deref for Current<'_, C> {
    type Target = Arc<Generation<C>>;

    #[inline]
    fn deref(&self) -> &Arc<Generation<C>> {
        match self {
            Self::First(first) => first,
            Self::Later(later) => later,
        }
    }
}

/// A generation with at most so many before it.
pub(super) fn shortened<C: Clock>(
    generation: &Arc<Generation<C>>,
    most: usize,
) -> Arc<Generation<C>> {
    let Some(before) = &generation.before else {
        return generation.clone();
    };
    let before = most.checked_sub(1).map(|most| Before {
        generation: shortened(&before.generation, most),
        until: before.until,
    });
    Arc::new(Generation {
        policies: generation.policies.clone(),
        buckets: generation.buckets.clone(),
        changed: generation.changed,
        before,
    })
}

/// How long what was charged can count, in nanoseconds.
pub(super) fn full_after(quota: Quota) -> u64 {
    let time = quota.rate().map(|rate| {
        if rate.is_sliding() {
            // One sub-window more than the period.
            2 * rate.period()
        } else {
            rate.refill()
        }
    });
    u64::try_from(time.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
