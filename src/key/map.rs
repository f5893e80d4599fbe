//! A table by key that readers take no lock for.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use papaya::HashMap;

use super::Key;

/// Values by key, read far more often than they are changed.
///
/// While it is empty a look-up is a load of a counter.
pub(crate) struct KeyMap<T> {
    values: HashMap<u128, T, BuildHasherDefault<Unhashed>>,
    len: AtomicUsize,
}

impl<T> KeyMap<T> {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// What `read` makes of a key's value.
    #[inline]
    pub(crate) fn find<R>(&self, key: &Key, read: impl FnOnce(&T) -> R) -> Option<R> {
        if self.is_empty() {
            return None;
        }
        self.values.pin().get(&key.bits()).map(read)
    }

    /// Sets a key's value, or removes it. Changes are the caller's to keep apart.
    pub(crate) fn set(&self, key: &Key, value: Option<T>) {
        let values = self.values.pin();
        match value {
            // Counted before it can be found, so that whoever knows of it is not told that there
            // is nothing.
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

// Not derived: that would ask it of `T`.
impl<T> Default for KeyMap<T> {
    fn default() -> Self {
        Self {
            values: HashMap::default(),
            len: AtomicUsize::new(0),
        }
    }
}

/// Keys are unpredictable bits already.
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
    fn knows_whether_it_is_empty() {
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
