//! The quotas of all keys, from one change to the next.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::Guard;
use governor::clock::Clock;

use super::buckets::{MemoryBuckets, Meter};
use super::rate::Debt;
use super::sliding::Window;
use crate::key::Key;
use crate::policy::Policy;
use crate::quota::Quota;

/// The buckets from one change of everybody's quotas to the next.
pub(super) struct Generation<C: Clock> {
    pub(super) policies: Arc<Vec<Policy>>,
    pub(super) buckets: Arc<MemoryBuckets<C>>,
    /// Whether the policies are other ones than at first.
    pub(super) changed: bool,
    /// When it began, in nanoseconds of the time that all share.
    pub(super) since: u64,
    pub(super) before: Option<Before<C>>,
}

/// What was charged before a change, from which keys are carried over when they are seen.
pub(super) struct Before<C: Clock> {
    pub(super) generation: Arc<Generation<C>>,
    /// When all of it is as good as unused.
    pub(super) until: u64,
}

/// Changes of everybody's quotas within the time that what is charged counts. Each keeps the
/// keys that it has seen.
pub(super) const MOST_GENERATIONS: usize = 64;

impl<C: Clock> Generation<C> {
    /// The same with none before it, once these do not count any more.
    pub(super) fn settled(&self) -> Self {
        Self {
            policies: self.policies.clone(),
            buckets: self.buckets.clone(),
            changed: self.changed,
            since: self.since,
            before: None,
        }
    }

    /// The same without those before it that do not count any more.
    pub(super) fn trimmed(&self, now: u64) -> Self {
        // What was before one that does not count counts even less.
        let before = self.before.as_ref().filter(|before| now < before.until);
        Self {
            before: before.map(|before| Before {
                generation: Arc::new(before.generation.trimmed(now)),
                until: before.until,
            }),
            ..self.settled()
        }
    }

    /// How many there are before it that count.
    pub(super) fn depth(&self, now: u64) -> usize {
        match &self.before {
            Some(before) if now < before.until => 1 + before.generation.depth(now),
            _ => 0,
        }
    }

    /// What a key owed of a quota at a time of this generation, `now` being later: as it was seen in it,
    /// or else as what it owed before has become under this quota since this began.
    pub(super) fn owed(
        &self,
        policy: usize,
        at: usize,
        key: &Key,
        time: u64,
        now: u64,
    ) -> Option<Debt> {
        let meter = self.buckets.of_policy(policy).nth(at)?;
        if let Meter::Rate(meter) = meter
            && meter.knows(key)
        {
            return meter.debt(key, now.saturating_sub(time));
        }
        let owed = || {
            let before = &self.before.as_ref()?.generation;
            before.owed(policy, at, key, self.since, now)
        };
        // A clock that stepped back may tell an earlier time.
        let passed = time.saturating_sub(self.since);
        match meter {
            Meter::Rate(meter) => meter.converted(owed()?).after(passed),
            Meter::DenyAll => owed()?.after(passed),
            Meter::Sliding(_) => None,
        }
    }

    /// The same for what is counted in a window, with the length of its sub-windows.
    pub(super) fn counted(&self, policy: usize, at: usize, key: &Key) -> Option<(u64, Window)> {
        let meter = self.buckets.of_policy(policy).nth(at)?;
        if let Meter::Sliding(meter) = meter
            && let Some(counted) = meter.counted(*key)
        {
            return Some(counted);
        }
        let before = &self.before.as_ref()?.generation;
        let (length, counted) = before.counted(policy, at, key)?;
        Some(match meter {
            Meter::Sliding(meter) => meter.converted(length, &counted, self.since),
            _ => (length, counted),
        })
    }

    /// Has a key unused in all that were before. What is full again may be forgotten here, and would be found
    /// there again.
    pub(super) fn forget_before(&self, policy: usize, at: usize, key: &Key) {
        let mut before = &self.before;
        while let Some(earlier) = before {
            match earlier.generation.buckets.of_policy(policy).nth(at) {
                Some(Meter::Rate(meter)) => drop(meter.remove(key)),
                Some(Meter::Sliding(meter)) => meter.forget(*key),
                Some(Meter::DenyAll) | None => {}
            }
            before = &earlier.generation.before;
        }
    }
}

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

/// How long what was charged can count, in nanoseconds.
pub(super) fn full_after(policies: &[Policy]) -> u64 {
    let quotas = policies.iter().flat_map(Policy::all_quotas);
    quotas
        .map(|quota| gone_after(quota.quota()))
        .max()
        .unwrap_or(0)
}

fn gone_after(quota: Quota) -> u64 {
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
