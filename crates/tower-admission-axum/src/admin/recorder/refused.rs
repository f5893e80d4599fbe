//! The keys that are refused most, of any number of keys.

use std::sync::{Arc, Mutex, PoisonError};

use tower_admission::Key;
use tower_admission::observe::Subject;
use tower_admission::provider::KeyInternals;

/// Keys that are remembered.
const MOST: usize = 64;

/// How long they are counted, in seconds; then the counts of the time before are let go.
const SPAN: u32 = 60;

/// The keys refused most in the last one to two minutes: 9 KiB, however many keys there are.
///
/// Space-saving (Metwally et al. 2005): a key for which there is no place takes that of the key with the
/// lowest count, and goes on from there. How far that was is remembered and taken off what is told, so
/// what is told is never too much.
#[derive(Default)]
pub(super) struct Refused(Mutex<Spans>);

#[derive(Default)]
struct Spans {
    span: u32,
    now: Counts,
    before: Counts,
}

#[derive(Default)]
struct Counts {
    /// By themselves, as they are looked through.
    bits: Vec<u128>,
    counts: Vec<Count>,
}

#[derive(Clone)]
struct Count {
    key: Key,
    source: Arc<Source>,
    /// Not all of them this key's.
    count: u64,
    others: u64,
}

/// Which limit refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::admin) struct Source {
    pub(in crate::admin) limiter: Box<str>,
    pub(in crate::admin) limit_type: &'static str,
    pub(in crate::admin) policy: Box<str>,
}

/// A key that a limit refused.
pub(in crate::admin) struct RefusedMost {
    pub(in crate::admin) key: Key,
    pub(in crate::admin) source: Arc<Source>,
    /// At least so often.
    pub(in crate::admin) count: u64,
}

impl Source {
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

impl Count {
    fn is_of(&self, key: &Key, source: &Arc<Source>) -> bool {
        self.key == *key && Arc::ptr_eq(&self.source, source)
    }
}

impl Refused {
    /// One more refusal of a key by a limit. One that would have to wait for another thread is left out.
    pub(super) fn count(&self, key: &Key, source: &Arc<Source>, second: u32) {
        if let Ok(mut spans) = self.0.try_lock() {
            spans.turn(second);
            spans.now.count(key, source);
        }
    }

    /// The keys that were refused most, and how often at least, the most often first.
    pub(super) fn most(&self, second: u32, most: usize) -> Vec<RefusedMost> {
        let mut keys = {
            let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            spans.turn(second);
            spans.told()
        };
        // In an order that does not change while the counts do not.
        keys.sort_by(|one, two| {
            let order = two.count.cmp(&one.count);
            let order = order.then_with(|| one.key.bits().cmp(&two.key.bits()));
            order.then_with(|| one.source.cmp(&two.source))
        });
        keys.truncate(most);
        keys
    }
}

impl Spans {
    fn turn(&mut self, second: u32) {
        let span = second / SPAN;
        if span > self.span {
            let over = std::mem::take(&mut self.now);
            let follows = span == self.span + 1;
            self.before = if follows { over } else { Counts::default() };
            self.span = span;
        }
    }

    fn told(&self) -> Vec<RefusedMost> {
        let mut told: Vec<RefusedMost> = Vec::with_capacity(2 * MOST);
        for count in self.now.counts.iter().chain(&self.before.counts) {
            let own = count.count - count.others;
            match told
                .iter_mut()
                .find(|told| count.is_of(&told.key, &told.source))
            {
                Some(told) => told.count += own,
                None => told.push(RefusedMost {
                    key: count.key,
                    source: count.source.clone(),
                    count: own,
                }),
            }
        }
        told
    }
}

impl Counts {
    fn count(&mut self, key: &Key, source: &Arc<Source>) {
        let bits = key.bits();
        let mut places = self.bits.iter().zip(&mut self.counts);
        let found = places.find(|(other, count)| **other == bits && count.is_of(key, source));
        if let Some((_, count)) = found {
            count.count += 1;
            return;
        }
        let new = Count {
            key: *key,
            source: source.clone(),
            count: 1,
            others: 0,
        };
        if self.counts.len() < MOST {
            self.bits.push(bits);
            self.counts.push(new);
            return;
        }
        let places = self.counts.iter_mut().zip(&mut self.bits);
        if let Some((count, place)) = places.min_by_key(|(count, _)| count.count) {
            let others = count.count;
            *count = Count {
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

    fn source(policy: &str) -> Arc<Source> {
        Arc::new(Source {
            limiter: "api".into(),
            limit_type: "http",
            policy: policy.into(),
        })
    }

    fn most(refused: &Refused, second: u32) -> Vec<(Key, Box<str>, u64)> {
        let most = refused.most(second, 64).into_iter();
        most.map(|most| (most.key, most.source.policy.clone(), most.count))
            .collect()
    }

    #[test]
    fn finds_the_keys_refused_most_in_a_flood_of_others() {
        let refused = Refused::default();
        let source = source("burst");
        for n in 0..100_000 {
            refused.count(&key(1_000 + n), &source, 0);
            if n % 10 == 0 {
                refused.count(&key(1), &source, 0);
            }
            if n % 20 == 0 {
                refused.count(&key(2), &source, 0);
            }
        }
        let most = most(&refused, 0);
        assert_eq!(most.len(), MOST);
        assert_eq!([most[0].0, most[1].0], [key(1), key(2)]);
        // Never too much, and the flood is what it is.
        assert!((9_000..=10_000).contains(&most[0].2), "{most:?}");
        assert!((4_000..=5_000).contains(&most[1].2), "{most:?}");
        assert!(most[2..].iter().all(|most| most.2 <= 2), "{most:?}");
    }

    #[test]
    fn a_key_is_counted_for_each_limit_that_refuses_it() {
        let refused = Refused::default();
        let (burst, daily) = (source("burst"), source("daily"));
        for _ in 0..3 {
            refused.count(&key(1), &daily, 59);
        }
        refused.count(&key(1), &burst, 59);
        refused.count(&key(1), &burst, 60);
        let expected = [(key(1), "daily".into(), 3), (key(1), "burst".into(), 2)];
        assert_eq!(most(&refused, 60), expected);
    }

    #[test]
    fn what_is_old_is_let_go() {
        let refused = Refused::default();
        let source = source("burst");
        let told = |second| most(&refused, second).first().map(|most| most.2);
        refused.count(&key(1), &source, 0);
        refused.count(&key(1), &source, 59);
        refused.count(&key(1), &source, 60);
        assert_eq!(told(119), Some(3));
        assert_eq!(told(120), Some(1));
        assert_eq!(told(180), None);
        refused.count(&key(2), &source, 200);
        assert_eq!(told(1_000), None);
    }
}
