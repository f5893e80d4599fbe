//! Rejections of a remote store, kept for as long as they hold: a rejected key costs no further calls.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Charge, OverrideRules};
use crate::decision::Decision;

/// The maximum number of rejections that are kept: about half a MiB with two quotas each.
const ENTRIES: usize = 4096;

/// How long a rejection is kept at most. A refund by another process takes effect after this time.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The last rejections of a remote store, by the keys that were rejected.
///
/// Each combination of keys has one slot, and replaces the entry that was there before. For keys that are not in the
/// cache the store is called.
pub struct DenialCache {
    slots: Box<[Mutex<CacheSlot>]>,
    started: Instant,
    /// When quotas were last changed, in microseconds since `started`. A rejection that was requested before may come
    /// from the old quotas.
    changed: AtomicU64,
    /// The caches of joined limiters: a change of their quotas also changes this cache. A refund by one of them takes
    /// effect like a refund by another process.
    parts: Vec<Arc<Self>>,
}

#[derive(Default)]
struct CacheSlot {
    denial: Option<Box<Denial>>,
    /// When a key of this slot was last refunded. A rejection that was requested before may be outdated.
    forgotten: Option<Instant>,
}

struct Denial {
    fingerprint: [u64; 2],
    /// The overrides at the time of the rejection: the next request may have others.
    rules: SmallVec<[OverrideRules; 2]>,
    cost: u32,
    since: Instant,
    until: Instant,
    decision: Decision,
}

impl Denial {
    fn matches(&self, fingerprint: [u64; 2], charges: &[Charge]) -> bool {
        let rules = || charges.iter().map(|charge| &charge.rules);
        self.fingerprint == fingerprint && self.rules.iter().eq(rules())
    }
}

impl DenialCache {
    /// Creates an empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slots: (0..ENTRIES).map(|_| Mutex::default()).collect(),
            started: Instant::now(),
            changed: AtomicU64::new(0),
            parts: Vec::new(),
        }
    }

    /// Creates the cache of joined limiters.
    #[must_use]
    pub fn joined(parts: Vec<Arc<Self>>) -> Self {
        Self {
            parts,
            ..Self::new()
        }
    }

    /// Forgets all rejections, because quotas were changed.
    pub fn forget_all(&self) {
        // Rounded up, to forget also what was requested in this microsecond.
        let now = self.micros(Instant::now()) + 1;
        self.changed.fetch_max(now, Ordering::Release);
    }

    fn is_current(&self, requested: Instant) -> bool {
        let mut parts = self.parts.iter();
        self.micros(requested) >= self.changed.load(Ordering::Acquire)
            && parts.all(|part| part.is_current(requested))
    }

    fn micros(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.started).as_micros() as u64
    }

    /// The rejection that still holds for these keys, with its times counted down.
    #[must_use]
    pub fn find(&self, charges: &[Charge], cost: u32) -> Option<Decision> {
        let fingerprint = Self::fingerprint(charges);
        let mut slot = lock(self.slot(fingerprint));
        let denial = slot.denial.as_deref();
        let denial = denial.filter(|denial| denial.matches(fingerprint, charges))?;
        let now = Instant::now();
        if now >= denial.until || !self.is_current(denial.since) {
            slot.denial = None;
            return None;
        }
        // Another cost has other numbers, so the store is called.
        (cost == denial.cost).then(|| denial.decision.later(now - denial.since))
    }

    /// Keeps a rejection until the request would fit.
    pub fn keep(&self, charges: &[Charge], cost: u32, requested: Instant, decision: &Decision) {
        let holds = match decision.retry_after() {
            Some(wait) => wait.min(MAX_AGE),
            None if decision.can_never_fit() => MAX_AGE,
            None => return,
        };
        let fingerprint = Self::fingerprint(charges);
        let denial = Denial {
            fingerprint,
            rules: charges.iter().map(|charge| charge.rules.clone()).collect(),
            cost,
            // Counted from the request: an end that is too early does no harm.
            since: requested,
            until: requested + holds,
            decision: decision.clone(),
        };
        let mut slot = lock(self.slot(fingerprint));
        if self.is_current(requested)
            && slot.forgotten.is_none_or(|forgotten| forgotten < requested)
        {
            slot.denial = Some(Box::new(denial));
        }
    }

    /// Forgets the rejection of these keys, because they were refunded.
    pub fn forget(&self, charges: &[Charge]) {
        let fingerprint = Self::fingerprint(charges);
        let mut slot = lock(self.slot(fingerprint));
        slot.forgotten = Some(Instant::now());
        let denial = slot.denial.as_deref();
        if denial.is_some_and(|denial| denial.fingerprint == fingerprint) {
            slot.denial = None;
        }
    }

    fn slot(&self, [low, _]: [u64; 2]) -> &Mutex<CacheSlot> {
        &self.slots[low as usize % ENTRIES]
    }

    /// Combines all keys and their sets, in their order.
    #[must_use]
    pub fn fingerprint(charges: &[Charge]) -> [u64; 2] {
        charges.iter().fold([0; 2], |[low, high], charge| {
            let [first, second] = charge.key.hash_words();
            // Odd multipliers separate orders of keys, and sets. The bits come from a keyed hash, so a client cannot
            // aim at a sum.
            let set = (charge.set as u64).wrapping_mul(0xa076_1d64_78bd_642f);
            [
                low.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .wrapping_add(first.wrapping_add(set)),
                high.wrapping_mul(0xd6e8_feb8_6659_fd93)
                    .wrapping_add(second),
            ]
        })
    }
}

impl Default for DenialCache {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DenialCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DenialCache").finish_non_exhaustive()
    }
}

/// Locks a slot, also after a panic: a slot is never left half changed.
fn lock(slot: &Mutex<CacheSlot>) -> std::sync::MutexGuard<'_, CacheSlot> {
    slot.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
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
    async fn a_rejection_holds_until_the_request_fits() {
        let denials = DenialCache::new();
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
    async fn a_rejection_holds_for_at_most_a_second_and_ends_with_a_refund() {
        let denials = DenialCache::new();
        let keys = [user("alice")];
        denials.keep(&keys, 1, Instant::now(), &denied_for(60_000));
        tokio::time::advance(MAX_AGE).await;
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
    async fn a_rejection_holds_only_for_the_set_that_rejected() {
        let denials = DenialCache::new();
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
    fn the_order_of_keys_changes_the_fingerprint() {
        let (one, two) = (user("1"), user("2"));
        let of = |charges: &[&Charge]| {
            let charges: Vec<_> = charges.iter().map(|charge| (*charge).clone()).collect();
            DenialCache::fingerprint(&charges)
        };
        assert_ne!(of(&[&one, &two]), of(&[&two, &one]));
        assert_ne!(of(&[&one]), of(&[&one, &two]));
    }
}
