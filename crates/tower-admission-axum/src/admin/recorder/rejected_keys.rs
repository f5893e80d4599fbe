//! The keys with the most rejections, in bounded memory.

use std::sync::{Arc, Mutex, PoisonError};

use tower_admission::Key;
use tower_admission::observe::Subject;
use tower_admission::provider::KeyInternals;

/// The number of keys with counts.
const MAX_KEYS: usize = 64;

/// The length of a count span, in seconds. The counts of the last two spans are kept.
const SPAN_SECONDS: u32 = 60;

/// The keys with the most rejections in the last one to two minutes: 9 KiB for any number of keys.
///
/// Space-saving (Metwally et al. 2005): a new key replaces the key with the lowest count and continues from that count. The
/// inherited count is subtracted from the result, so a result is never too high.
#[derive(Default)]
pub(super) struct RejectedKeys(Mutex<CountSpans>);

#[derive(Default)]
struct CountSpans {
    span: u32,
    now: KeyCounts,
    before: KeyCounts,
}

#[derive(Default)]
struct KeyCounts {
    /// A separate list, because each rejection searches it.
    bits: Vec<u128>,
    counts: Vec<KeyCount>,
}

#[derive(Clone)]
struct KeyCount {
    key: Key,
    source: Arc<RejectingLimit>,
    /// Includes the count inherited from replaced keys.
    count: u64,
    others: u64,
}

/// The limit that rejected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::admin) struct RejectingLimit {
    pub(in crate::admin) limiter: Box<str>,
    pub(in crate::admin) limit_type: &'static str,
    pub(in crate::admin) policy: Box<str>,
}

/// A key with rejections by a limit.
pub(in crate::admin) struct RejectedKey {
    pub(in crate::admin) key: Key,
    pub(in crate::admin) source: Arc<RejectingLimit>,
    /// A lower bound.
    pub(in crate::admin) count: u64,
}

impl RejectingLimit {
    pub(super) fn of(subject: &Subject<'_>) -> Self {
        Self {
            limiter: subject.limiter.into(),
            limit_type: subject.limit_type,
            policy: subject.policy.into(),
        }
    }

    pub(super) fn is_of(&self, subject: &Subject<'_>) -> bool {
        *self.limiter == *subject.limiter
            && self.limit_type == subject.limit_type
            && *self.policy == *subject.policy
    }
}

impl KeyCount {
    fn is_of(&self, key: &Key, source: &Arc<RejectingLimit>) -> bool {
        self.key == *key && Arc::ptr_eq(&self.source, source)
    }
}

impl RejectedKeys {
    /// Counts a rejection of a key by a limit. Skips it if the lock is taken, so that no decision waits.
    pub(super) fn count(&self, key: &Key, source: &Arc<RejectingLimit>, second: u32) {
        if let Ok(mut spans) = self.0.try_lock() {
            spans.turn(second);
            spans.now.count(key, source);
        }
    }

    /// The keys with the most rejections, in descending order.
    pub(super) fn most(&self, second: u32, most: usize) -> Vec<RejectedKey> {
        let mut keys = {
            let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            spans.turn(second);
            spans.counts()
        };
        // Ties have a fixed order.
        keys.sort_by(|one, two| {
            let order = two.count.cmp(&one.count);
            let order = order.then_with(|| one.key.bits().cmp(&two.key.bits()));
            order.then_with(|| one.source.cmp(&two.source))
        });
        keys.truncate(most);
        keys
    }
}

impl CountSpans {
    fn turn(&mut self, second: u32) {
        let span = second / SPAN_SECONDS;
        if span > self.span {
            let over = std::mem::take(&mut self.now);
            let follows = span == self.span + 1;
            self.before = if follows { over } else { KeyCounts::default() };
            self.span = span;
        }
    }

    fn counts(&self) -> Vec<RejectedKey> {
        let mut counts: Vec<RejectedKey> = Vec::with_capacity(2 * MAX_KEYS);
        for count in self.now.counts.iter().chain(&self.before.counts) {
            let own = count.count - count.others;
            match counts
                .iter_mut()
                .find(|found| count.is_of(&found.key, &found.source))
            {
                Some(found) => found.count += own,
                None => counts.push(RejectedKey {
                    key: count.key,
                    source: count.source.clone(),
                    count: own,
                }),
            }
        }
        counts
    }
}

impl KeyCounts {
    fn count(&mut self, key: &Key, source: &Arc<RejectingLimit>) {
        let bits = key.bits();
        let mut places = self.bits.iter().zip(&mut self.counts);
        let found = places.find(|(other, count)| **other == bits && count.is_of(key, source));
        if let Some((_, count)) = found {
            count.count += 1;
            return;
        }
        let new = KeyCount {
            key: *key,
            source: source.clone(),
            count: 1,
            others: 0,
        };
        if self.counts.len() < MAX_KEYS {
            self.bits.push(bits);
            self.counts.push(new);
            return;
        }
        let places = self.counts.iter_mut().zip(&mut self.bits);
        if let Some((count, place)) = places.min_by_key(|(count, _)| count.count) {
            let others = count.count;
            *count = KeyCount {
                count: others + 1,
                others,
                ..new
            };
            *place = bits;
        }
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::id("org", &n.to_string())
    }

    fn source(policy: &str) -> Arc<RejectingLimit> {
        Arc::new(RejectingLimit {
            limiter: "api".into(),
            limit_type: "http",
            policy: policy.into(),
        })
    }

    fn most(rejected: &RejectedKeys, second: u32) -> Vec<(Key, Box<str>, u64)> {
        let most = rejected.most(second, 64).into_iter();
        most.map(|most| (most.key, most.source.policy.clone(), most.count))
            .collect()
    }

    #[test]
    fn the_most_rejected_keys_are_found_among_many_others() {
        let rejected = RejectedKeys::default();
        let source = source("burst");
        for n in 0..100_000 {
            rejected.count(&key(1_000 + n), &source, 0);
            if n % 10 == 0 {
                rejected.count(&key(1), &source, 0);
            }
            if n % 20 == 0 {
                rejected.count(&key(2), &source, 0);
            }
        }
        let most = most(&rejected, 0);
        assert_eq!(most.len(), MAX_KEYS);
        assert_eq!([most[0].0, most[1].0], [key(1), key(2)]);
        // The counts are lower bounds, and the other keys have low counts.
        assert!((9_000..=10_000).contains(&most[0].2), "{most:?}");
        assert!((4_000..=5_000).contains(&most[1].2), "{most:?}");
        assert!(most[2..].iter().all(|most| most.2 <= 2), "{most:?}");
    }

    #[test]
    fn a_key_has_a_count_for_each_limit_that_rejects_it() {
        let rejected = RejectedKeys::default();
        let (burst, daily) = (source("burst"), source("daily"));
        for _ in 0..3 {
            rejected.count(&key(1), &daily, 59);
        }
        rejected.count(&key(1), &burst, 59);
        rejected.count(&key(1), &burst, 60);
        let expected = [(key(1), "daily".into(), 3), (key(1), "burst".into(), 2)];
        assert_eq!(most(&rejected, 60), expected);
    }

    #[test]
    fn old_counts_expire() {
        let rejected = RejectedKeys::default();
        let source = source("burst");
        let told = |second| most(&rejected, second).first().map(|most| most.2);
        rejected.count(&key(1), &source, 0);
        rejected.count(&key(1), &source, 59);
        rejected.count(&key(1), &source, 60);
        assert_eq!(told(119), Some(3));
        assert_eq!(told(120), Some(1));
        assert_eq!(told(180), None);
        rejected.count(&key(2), &source, 200);
        assert_eq!(told(1_000), None);
    }
}
