//! The keys that are refused most, of any number of keys.

use crate::key::Key;
use crate::sync::{Mutex, lock};

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

#[derive(Clone, Copy)]
struct Count {
    key: Key,
    /// Not all of them this key's.
    count: u64,
    others: u64,
}

impl Refused {
    /// One more refusal of a key. One that would have to wait for another thread is left out.
    pub(super) fn count(&self, key: &Key, second: u32) {
        if let Ok(mut spans) = self.0.try_lock() {
            spans.turn(second);
            spans.now.count(key);
        }
    }

    /// The keys that were refused most, and how often at least, the most often first.
    pub(super) fn most(&self, second: u32, most: usize) -> Vec<(Key, u64)> {
        let mut keys = {
            let mut spans = lock(&self.0);
            spans.turn(second);
            spans.told()
        };
        // In an order that does not change while the counts do not.
        keys.sort_unstable_by_key(|(key, count)| (std::cmp::Reverse(*count), key.bits()));
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

    fn told(&self) -> Vec<(Key, u64)> {
        let mut told: Vec<(Key, u64)> = Vec::with_capacity(2 * MOST);
        for count in self.now.counts.iter().chain(&self.before.counts) {
            let own = count.count - count.others;
            match told.iter_mut().find(|(key, _)| *key == count.key) {
                Some((_, sum)) => *sum += own,
                None => told.push((count.key, own)),
            }
        }
        told
    }
}

impl Counts {
    fn count(&mut self, key: &Key) {
        let bits = key.bits();
        if let Some(at) = self.bits.iter().position(|other| *other == bits) {
            self.counts[at].count += 1;
            return;
        }
        let new = Count {
            key: *key,
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

    #[test]
    fn finds_the_keys_refused_most_in_a_flood_of_others() {
        let refused = Refused::default();
        for n in 0..100_000 {
            refused.count(&key(1_000 + n), 0);
            if n % 10 == 0 {
                refused.count(&key(1), 0);
            }
            if n % 20 == 0 {
                refused.count(&key(2), 0);
            }
        }
        let most = refused.most(0, 64);
        assert_eq!(most.len(), MOST);
        assert_eq!([most[0].0, most[1].0], [key(1), key(2)]);
        // Never too much, and the flood is what it is.
        assert!((9_000..=10_000).contains(&most[0].1), "{most:?}");
        assert!((4_000..=5_000).contains(&most[1].1), "{most:?}");
        assert!(most[2..].iter().all(|(_, count)| *count <= 2), "{most:?}");
    }

    #[test]
    fn what_is_old_is_let_go() {
        let refused = Refused::default();
        refused.count(&key(1), 0);
        refused.count(&key(1), 59);
        refused.count(&key(1), 60);
        assert_eq!(refused.most(119, 9), [(key(1), 3)]);
        assert_eq!(refused.most(120, 9), [(key(1), 1)]);
        assert_eq!(refused.most(180, 9), []);
        refused.count(&key(2), 200);
        assert_eq!(refused.most(1_000, 9), []);
    }
}
