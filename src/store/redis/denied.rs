//! Denials that Redis gave, kept for as long as they hold, so that a denied key costs no calls.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::decision::Decision;
use crate::store::{Charge, OwnRules};
use crate::sync::lock;

/// Denials that are kept at most: about half a MiB with two quotas each.
const ENTRIES: usize = 4096;

/// A refund in another process is seen after this at the latest.
const LONGEST: Duration = Duration::from_secs(1);

/// Denials by the keys they were given to. Each has one place where it may be, and takes it from
/// whatever else is there: what is not in the cache is asked of Redis.
pub(super) struct Denials {
    places: Box<[Mutex<Place>]>,
    started: Instant,
    /// When quotas were changed last, in microseconds since `started`: what was asked before may be
    /// denied because they were not yet.
    changed: AtomicU64,
    /// Those of limiters that are joined here: a change of theirs is one of these. (A refund by another of
    /// them is seen as one in another process is.)
    parts: Vec<Arc<Self>>,
}

#[derive(Default)]
struct Place {
    denial: Option<Box<Denial>>,
    /// When something was given back to a key of this place: what was asked before may be denied
    /// because it was not yet.
    forgotten: Option<Instant>,
}

struct Denial {
    fingerprint: [u64; 2],
    /// The overrides that it was denied by: a request may have had another one than the next.
    rules: SmallVec<[OwnRules; 2]>,
    cost: u32,
    since: Instant,
    until: Instant,
    decision: Decision,
}

impl Denial {
    fn is_of(&self, fingerprint: [u64; 2], charges: &[Charge]) -> bool {
        let rules = || charges.iter().map(|charge| &charge.rules);
        self.fingerprint == fingerprint && self.rules.iter().eq(rules())
    }
}

impl Denials {
    pub(super) fn new() -> Self {
        Self {
            places: (0..ENTRIES).map(|_| Mutex::default()).collect(),
            started: Instant::now(),
            changed: AtomicU64::new(0),
            parts: Vec::new(),
        }
    }

    /// Those of limiters that are joined.
    pub(super) fn joined(parts: Vec<Arc<Self>>) -> Self {
        Self {
            parts,
            ..Self::new()
        }
    }

    /// Forgets everything, as quotas were changed.
    pub(super) fn forget_all(&self) {
        // Rounded up, so that what was asked in this microsecond is forgotten as well.
        let now = self.micros(Instant::now()) + 1;
        self.changed.fetch_max(now, Ordering::Release);
    }

    fn is_current(&self, asked: Instant) -> bool {
        let mut parts = self.parts.iter();
        self.micros(asked) >= self.changed.load(Ordering::Acquire)
            && parts.all(|part| part.is_current(asked))
    }

    fn micros(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.started).as_micros() as u64
    }

    /// The denial that still holds for these keys, its times counted down.
    pub(super) fn find(&self, charges: &[Charge], cost: u32) -> Option<Decision> {
        let fingerprint = fingerprint(charges);
        let mut place = lock(self.place(fingerprint));
        let denial = place.denial.as_deref();
        let denial = denial.filter(|denial| denial.is_of(fingerprint, charges))?;
        let now = Instant::now();
        if now >= denial.until || !self.is_current(denial.since) {
            place.denial = None;
            return None;
        }
        // What does not fit at one cost fits at no higher one. At another cost the numbers would
        // be others, so these are asked for.
        (cost == denial.cost).then(|| denial.decision.later(now - denial.since))
    }

    /// Keeps a denial until the request would fit.
    pub(super) fn keep(&self, charges: &[Charge], cost: u32, asked: Instant, decision: &Decision) {
        let holds = match decision.retry_after() {
            Some(wait) => wait.min(LONGEST),
            None if decision.can_never_fit() => LONGEST,
            None => return,
        };
        let fingerprint = fingerprint(charges);
        let denial = Denial {
            fingerprint,
            rules: charges.iter().map(|charge| charge.rules.clone()).collect(),
            cost,
            // Counted from when it was asked for, so that it ends too soon rather than too late.
            since: asked,
            until: asked + holds,
            decision: decision.clone(),
        };
        let mut place = lock(self.place(fingerprint));
        if self.is_current(asked) && place.forgotten.is_none_or(|forgotten| forgotten < asked) {
            place.denial = Some(Box::new(denial));
        }
    }

    /// Forgets a denial, as something was given back.
    pub(super) fn forget(&self, charges: &[Charge]) {
        let fingerprint = fingerprint(charges);
        let mut place = lock(self.place(fingerprint));
        place.forgotten = Some(Instant::now());
        let denial = place.denial.as_deref();
        if denial.is_some_and(|d| d.fingerprint == fingerprint) {
            place.denial = None;
        }
    }

    fn place(&self, [low, _]: [u64; 2]) -> &Mutex<Place> {
        &self.places[low as usize % ENTRIES]
    }
}

/// All the keys and their sets as one.
pub(super) fn fingerprint(charges: &[Charge]) -> [u64; 2] {
    charges.iter().fold([0; 2], |[low, high], charge| {
        let [first, second] = charge.key.hash_words();
        // Odd multipliers keep the order of keys apart, and sets. The bits come from a keyed hash, so nobody
        // can aim at a sum.
        let set = (charge.set as u64).wrapping_mul(0xa076_1d64_78bd_642f);
        [
            low.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(first.wrapping_add(set)),
            high.wrapping_mul(0xd6e8_feb8_6659_fd93)
                .wrapping_add(second),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Usage;
    use crate::key::Key;

    fn user(name: &str) -> Charge {
        Charge::new(Key::id("user", name), 0)
    }

    fn denied_for(millis: u64) -> Decision {
        let wait = Duration::from_millis(millis);
        Decision::from_usages([Usage::rejected(10, 0, 2 * wait, Some(wait))])
    }

    #[tokio::test(start_paused = true)]
    async fn holds_until_the_request_fits() {
        let denials = Denials::new();
        let keys = [user("alice")];
        denials.keep(&keys, 1, Instant::now(), &denied_for(400));
        tokio::time::advance(Duration::from_millis(300)).await;
        let denial = denials.find(&keys, 1).unwrap();
        assert_eq!(denial.retry_after(), Some(Duration::from_millis(100)));
        assert_eq!(denial.reset(), Some(Duration::from_millis(500)));
        assert!(denials.find(&keys, 2).is_none());
        assert!(denials.find(&[user("bob")], 1).is_none());
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(denials.find(&keys, 1).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn holds_a_second_at_most_and_not_over_a_refund() {
        let denials = Denials::new();
        let keys = [user("alice")];
        denials.keep(&keys, 1, Instant::now(), &denied_for(60_000));
        tokio::time::advance(LONGEST).await;
        assert!(denials.find(&keys, 1).is_none());
        denials.keep(&keys, 1, Instant::now(), &denied_for(60_000));
        let asked = Instant::now();
        denials.forget(&keys);
        assert!(denials.find(&keys, 1).is_none());
        // An answer that was under way.
        denials.keep(&keys, 1, asked, &denied_for(60_000));
        assert!(denials.find(&keys, 1).is_none());
        tokio::time::advance(Duration::from_millis(1)).await;
        denials.keep(&keys, 1, Instant::now(), &denied_for(60_000));
        assert!(denials.find(&keys, 1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn holds_for_the_buckets_that_denied() {
        let denials = Denials::new();
        let keys = [user("alice")];
        let in_tier = [Charge::new(keys[0].key, 1)];
        denials.keep(&in_tier, 1, Instant::now(), &denied_for(400));
        assert!(denials.find(&keys, 1).is_none());
        assert!(denials.find(&in_tier, 1).is_some());
        denials.forget(&keys);
        assert!(denials.find(&in_tier, 1).is_some());
        denials.forget(&in_tier);
        assert!(denials.find(&in_tier, 1).is_none());
    }

    #[test]
    fn keys_in_another_order_are_others() {
        let (one, two) = (user("1"), user("2"));
        let of = |charges: &[&Charge]| {
            let charges: Vec<_> = charges.iter().map(|charge| (*charge).clone()).collect();
            fingerprint(&charges)
        };
        assert_ne!(of(&[&one, &two]), of(&[&two, &one]));
        assert_ne!(of(&[&one]), of(&[&one, &two]));
    }
}
