//! A hash table by key with lock-free reads.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use papaya::HashMap;

use super::Key;

/// Values by key, for data that is read far more often than it changes.
///
/// A lookup in an empty map only loads a counter.
pub(crate) struct KeyMap<T> {
    values: HashMap<u128, T, BuildHasherDefault<Unhashed>>,
    len: AtomicUsize,
}

impl<T> KeyMap<T> {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// Calls `read` with the value of a key.
    #[inline]
    pub(crate) fn find<R>(&self, key: &Key, read: impl FnOnce(&T) -> R) -> Option<R> {
        if self.is_empty() {
            return None;
        }
        self.values.pin().get(&key.bits()).map(read)
    }

    /// Sets the value of a key, or removes it. The caller must serialise changes.
    pub(crate) fn set(&self, key: &Key, value: Option<T>) {
        let values = self.values.pin();
        match value {
            // Count before inserting: a reader that knows of the entry must not take the empty-map
            // shortcut.
            Some(value) => {
                self.len.fetch_add(1, Ordering::Relaxed);
                if values.insert(key.bits(), value).is_some() {
                    self.len.fetch_sub(1, Ordering::Relaxed);
                }
            }
            None => {
                if values.remove(&key.bits()).is_some() {
                    self.len.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }
}

// Not derived, because the derive would require `T: Default`.
impl<T> Default for KeyMap<T> {
    fn default() -> Self {
        Self {
            values: HashMap::default(),
            len: AtomicUsize::new(0),
        }
    }
}

/// Passes keys through: their bits are already unpredictable.
#[derive(Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are 128-bit numbers");
    }

    #[inline]
    fn write_u128(&mut self, bits: u128) {
        self.0 = bits as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_emptied_map_is_empty_again() {
        let map = KeyMap::default();
        let key = Key::id("org", "acme");
        for _ in 0..2 {
            assert!(map.is_empty() && map.find(&key, |_| ()).is_none());
            map.set(&key, Some(1));
            map.set(&key, Some(2));
            assert_eq!(map.find(&key, |value| *value), Some(2));
            map.set(&Key::id("org", "other"), None);
            assert!(!map.is_empty());
            map.set(&key, None);
        }
    }
}
