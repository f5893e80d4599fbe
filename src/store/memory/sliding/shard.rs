//! A bounded part of the keys of a sliding quota, behind one lock.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::window::{By, Window};

/// Entries that are looked at to find room for a new key.
const SAMPLE: usize = 8;

/// Keys and their counters.
pub(super) struct Shard {
    places: HashMap<u128, u32, BuildHasherDefault<Unhashed>>,
    entries: Vec<Entry>,
    max_keys: usize,
    /// The first entry of the next sample. It goes round, so that all are looked at in turn.
    hand: usize,
    /// Shared by keys that find no room; `None` until then.
    overflow: Option<Window>,
    /// Keys that were given up while something of theirs counted.
    evictions: u64,
}

struct Entry {
    key: u128,
    window: Window,
}

/// Where a new key may be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// In the place of another, of which nothing counts any more.
    Entry(usize),
    /// In the place of one that is given up for it.
    Evicted(usize),
    /// In a new entry.
    More,
    /// Nowhere: everything in sight is denying.
    None,
}

impl Shard {
    pub(super) fn new(max_keys: usize) -> Self {
        Self {
            places: HashMap::default(),
            entries: Vec::new(),
            max_keys,
            hand: 0,
            overflow: None,
            evictions: 0,
        }
    }

    /// The counters of a key that is known.
    pub(super) fn known(&mut self, key: u128) -> Option<&mut Window> {
        let at = *self.places.get(&key)?;
        Some(&mut self.entries[at as usize].window)
    }

    /// The counters that a request of this key would be charged to: its own, those that are
    /// shared, or `None` for new ones.
    pub(super) fn find(&mut self, key: u128, by: By<'_>, now: u64) -> Option<&mut Window> {
        if let Some(at) = self.places.get(&key) {
            return Some(&mut self.entries[*at as usize].window);
        }
        match self.room(by, now) {
            Room::None => self.overflow.as_mut(),
            Room::Entry(_) | Room::Evicted(_) | Room::More => None,
        }
    }

    /// As [`find`](Self::find), and puts a new key in.
    pub(super) fn find_or_insert(&mut self, key: u128, by: By<'_>, now: u64) -> &mut Window {
        if let Some(at) = self.places.get(&key) {
            return &mut self.entries[*at as usize].window;
        }
        let entry = Entry {
            key,
            window: Window::new(by),
        };
        let room = self.room(by, now);
        let at = match room {
            Room::None => return self.overflow.get_or_insert_with(|| Window::new(by)),
            Room::Entry(at) | Room::Evicted(at) => {
                self.evictions += u64::from(room == Room::Evicted(at));
                self.places.remove(&self.entries[at].key);
                self.entries[at] = entry;
                at
            }
            Room::More => {
                if self.entries.len() == self.entries.capacity() {
                    // Twice as many, but not beyond the bound.
                    let room = self.max_keys - self.entries.len();
                    self.entries
                        .reserve_exact(self.entries.len().clamp(1, room));
                }
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        self.hand = (self.hand + 1) % self.entries.len();
        // Bounds are below 2^32.
        self.places.insert(key, at as u32);
        &mut self.entries[at].window
    }

    /// An entry that has nothing counted, else more memory, else the least used one that does
    /// not deny.
    fn room(&self, by: By<'_>, now: u64) -> Room {
        let len = self.entries.len();
        // Far apart: neighbours came in together and are used alike.
        let step = (len / SAMPLE).max(1);
        let sample = (0..SAMPLE.min(len)).map(|n| (self.hand + n * step) % len);
        let evictable = sample.filter_map(|at| {
            let used = self.entries[at].window.evictable(by, now)?;
            Some((used, at))
        });
        match evictable.min() {
            Some((0, at)) => Room::Entry(at),
            _ if len < self.max_keys => Room::More,
            Some((_, at)) => Room::Evicted(at),
            None => Room::None,
        }
    }

    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.places.len(), self.entries.len());
        self.entries.len()
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }
}

/// Keys are unpredictable bits already.
#[derive(Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are 128-bit numbers");
    }

    fn write_u128(&mut self, bits: u128) {
        // The other half chooses the shard.
        self.0 = bits as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
