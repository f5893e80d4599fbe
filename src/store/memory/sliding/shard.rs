//! A bounded part of a sliding quota's keys, behind one lock.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::window::{Window, WindowContext};

/// Entries that are sampled to find room for a new key.
const SAMPLE_SIZE: usize = 8;

/// Keys and their counters.
pub(super) struct Shard {
    indexes: HashMap<u128, u32, BuildHasherDefault<IdentityHasher>>,
    entries: Vec<Entry>,
    max_keys: usize,
    /// The first entry of the next sample. It wraps around, so that every entry is sampled in turn.
    next_sample: usize,
    /// Shared by keys that found no room; `None` until then.
    overflow: Option<Window>,
    /// Keys that were evicted with costs that still counted.
    evictions: u64,
}

struct Entry {
    key: u128,
    window: Window,
}

/// Where a new key can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// In the entry of a key without counted costs.
    Unused(usize),
    /// In the entry of a key that is evicted.
    Evicted(usize),
    /// In a new entry.
    New,
    /// Nowhere: all sampled entries deny.
    None,
}

impl Shard {
    pub(super) fn new(max_keys: usize) -> Self {
        Self {
            indexes: HashMap::default(),
            entries: Vec::new(),
            max_keys,
            next_sample: 0,
            overflow: None,
            evictions: 0,
        }
    }

    /// The counters of a stored key.
    pub(super) fn find_existing(&mut self, key: u128) -> Option<&mut Window> {
        let at = *self.indexes.get(&key)?;
        Some(&mut self.entries[at as usize].window)
    }

    /// The counters that a request of this key would be charged to: its own, or the shared ones.
    /// `None`: the key would get new ones.
    pub(super) fn find(
        &mut self,
        key: u128,
        context: WindowContext<'_>,
        now: u64,
    ) -> Option<&mut Window> {
        if let Some(at) = self.indexes.get(&key) {
            return Some(&mut self.entries[*at as usize].window);
        }
        match self.room(context, now) {
            Room::None => self.overflow.as_mut(),
            Room::Unused(_) | Room::Evicted(_) | Room::New => None,
        }
    }

    /// Like [`find`](Self::find), but inserts a new key.
    pub(super) fn find_or_insert(
        &mut self,
        key: u128,
        context: WindowContext<'_>,
        now: u64,
    ) -> &mut Window {
        if let Some(at) = self.indexes.get(&key) {
            return &mut self.entries[*at as usize].window;
        }
        let entry = Entry {
            key,
            window: Window::new(context),
        };
        let room = self.room(context, now);
        let at = match room {
            Room::None => return self.overflow.get_or_insert_with(|| Window::new(context)),
            Room::Unused(at) | Room::Evicted(at) => {
                self.evictions += u64::from(room == Room::Evicted(at));
                self.indexes.remove(&self.entries[at].key);
                self.entries[at] = entry;
                at
            }
            Room::New => {
                if self.entries.len() == self.entries.capacity() {
                    // Double the capacity, up to the bound.
                    let room = self.max_keys - self.entries.len();
                    self.entries
                        .reserve_exact(self.entries.len().clamp(1, room));
                }
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        self.next_sample = (self.next_sample + 1) % self.entries.len();
        // Bounds are below 2^32.
        self.indexes.insert(key, at as u32);
        &mut self.entries[at].window
    }

    /// Chooses an entry without counted costs, else new memory, else the least used entry that does
    /// not deny.
    fn room(&self, context: WindowContext<'_>, now: u64) -> Room {
        let len = self.entries.len();
        // Spread out: neighbours were inserted together and are used alike.
        let step = (len / SAMPLE_SIZE).max(1);
        let sample = (0..SAMPLE_SIZE.min(len)).map(|n| (self.next_sample + n * step) % len);
        let evictable = sample.filter_map(|at| {
            let used = self.entries[at].window.evictable_cost(context, now)?;
            Some((used, at))
        });
        match evictable.min() {
            Some((0, at)) => Room::Unused(at),
            _ if len < self.max_keys => Room::New,
            Some((_, at)) => Room::Evicted(at),
            None => Room::None,
        }
    }

    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.indexes.len(), self.entries.len());
        self.entries.len()
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }
}

/// Keys are already unpredictable bits, so they are not hashed again.
#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
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
