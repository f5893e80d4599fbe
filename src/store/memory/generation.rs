//! The quotas of all keys, from one change to the next.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::Guard;
use governor::clock::Clock;

use super::buckets::{MemoryBuckets, Meter};
use super::own::Used;
use super::rate::Debt;
use super::sliding::{self, Window};
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
    /// When all of it is as good as unused, by the quotas since and as they are now.
    pub(super) until: u64,
    /// The most that a key may have used of each quota that was not seen since.
    most: Vec<Most>,
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

    /// This as what comes before others, from a change to these buckets on, with what came before it and
    /// still counts.
    pub(super) fn as_before(&self, buckets: &MemoryBuckets<C>, now: u64) -> Option<Before<C>> {
        let most = self.buckets.meters().zip(buckets.meters());
        let most = most.map(|(meter, next)| Most::of(meter, now).by(next, now));
        let before = self.before.as_ref();
        let earlier = before.and_then(|before| before.later(self, buckets, now));
        Before::new(self, most.collect(), earlier, now)
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

    /// What a key used before everything was denied, for a quota of its own.
    pub(super) fn used_before(
        &self,
        policy: usize,
        at: usize,
        key: &Key,
        own: Quota,
        now: u64,
    ) -> Used {
        if own.is_sliding() {
            Used::window(self.counted(policy, at, key))
        } else {
            Used::bucket(self.owed(policy, at, key, now, now), now)
        }
    }

    /// What there was before of a key's buckets of one policy. What is given back has to be given back there as well:
    /// a bucket that is full may be forgotten here, and would be found there again.
    pub(super) fn each_before(&self, policy: usize, change: impl Fn(usize, &Meter<C>)) {
        let mut before = &self.before;
        while let Some(earlier) = before {
            let meters = earlier.generation.buckets.of_policy(policy).enumerate();
            meters.for_each(|(at, meter)| change(at, meter));
            before = &earlier.generation.before;
        }
    }
}

impl<C: Clock> Before<C> {
    /// `None` if nothing of it counts.
    fn new(
        generation: &Generation<C>,
        most: Vec<Most>,
        earlier: Option<Self>,
        now: u64,
    ) -> Option<Self> {
        let until = most.iter().map(|most| most.until(now));
        let until = until
            .chain(earlier.iter().map(|earlier| earlier.until))
            .max();
        let until = until.filter(|until| now < *until)?;
        let generation = Arc::new(Generation {
            before: earlier,
            ..generation.settled()
        });
        Some(Self {
            generation,
            until,
            most,
        })
    }

    /// From the next change on, after the `last` one.
    fn later(&self, last: &Generation<C>, buckets: &MemoryBuckets<C>, now: u64) -> Option<Self> {
        let passed = now.saturating_sub(last.since);
        let most = self.most.iter().zip(buckets.meters());
        let most = most.map(|(most, next)| most.after(passed, now).by(next, now));
        let before = self.generation.before.as_ref();
        let earlier = before.and_then(|before| before.later(last, buckets, now));
        Self::new(&self.generation, most.collect(), earlier, now)
    }
}

/// The most that a key may have used of a quota.
#[derive(Clone, Copy)]
enum Most {
    Nothing,
    /// As of the last change.
    Bucket(Debt),
    /// In sub-windows of a length, and up to a time.
    Window {
        length: u64,
        latest: u64,
    },
}

impl Most {
    /// Of a key that used all it could.
    fn of<C: Clock>(meter: &Meter<C>, now: u64) -> Self {
        match meter {
            Meter::DenyAll => Self::Nothing,
            Meter::Rate(meter) => Self::Bucket(meter.empty()),
            Meter::Sliding(meter) => {
                let length = meter.part();
                // A clock that stepped back may have left it in the next one.
                let latest = now.saturating_add(length);
                Self::Window { length, latest }
            }
        }
    }

    /// What is left of it by the same quota.
    fn after(self, passed: u64, now: u64) -> Self {
        match self {
            Self::Bucket(debt) => debt.after(passed).map_or(Self::Nothing, Self::Bucket),
            Self::Window { .. } if self.until(now) <= now => Self::Nothing,
            most => most,
        }
    }

    /// What it is by another one.
    fn by<C: Clock>(self, meter: &Meter<C>, now: u64) -> Self {
        match (self, meter) {
            (Self::Bucket(debt), Meter::Rate(meter)) => Self::Bucket(meter.converted(debt)),
            (Self::Window { length, latest }, Meter::Sliding(meter)) if length != meter.part() => {
                let length = meter.part();
                // As young as it can be in a sub-window of that length.
                let latest = latest.min(now).saturating_add(length);
                Self::Window { length, latest }
            }
            (most, _) => most,
        }
    }

    /// When it does not count any more.
    fn until(self, now: u64) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Bucket(debt) => now.saturating_add(debt.time),
            Self::Window { length, latest } => {
                latest.saturating_add(length.saturating_mul(sliding::PARTS + 2))
            }
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
