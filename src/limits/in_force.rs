//! Which override of a key is in force, and how limiters learn of another one.

use std::sync::{Arc, Weak};

use super::state::{Source, State};
use super::{Limits, Override};
use crate::key::{Key, KeyName};

/// An override of a key.
pub(super) struct Own {
    pub(super) entry: Arc<Override>,
    /// What the key is called in the entry.
    pub(super) name: KeyName,
}

/// The overrides of a key. The first one that has not ended is in force.
pub(super) struct Owns {
    first: Own,
    /// That of the configuration under one that was set at run time.
    second: Option<Own>,
    /// The place of the one that limiters know to be in force.
    pub(super) in_force: u8,
}

impl Owns {
    /// The place of the override that is in force. One past the last if there is none.
    #[inline]
    pub(super) fn place(&self, now: impl FnOnce() -> u64) -> u8 {
        match self.first.entry.end_seconds() {
            None => 0,
            Some(end) => self.place_at(end, now()),
        }
    }

    #[cold]
    fn place_at(&self, end: u64, now: u64) -> u8 {
        let second = self.second.as_ref();
        match second.map(|second| second.entry.has_ended(|| now)) {
            _ if now < end => 0,
            Some(false) => 1,
            Some(true) | None => 2,
        }
    }

    #[inline]
    pub(super) fn at(&self, place: u8) -> Option<&Own> {
        match place {
            0 => Some(&self.first),
            1 => self.second.as_ref(),
            _ => None,
        }
    }

    pub(super) fn in_force(&self) -> Option<&Own> {
        self.at(self.in_force)
    }

    /// What the key is called.
    pub(super) fn name(&self) -> &KeyName {
        &self.first.name
    }

    /// All of them, also those that have ended.
    pub(super) fn all(&self) -> impl Iterator<Item = &Own> {
        [Some(&self.first), self.second.as_ref()]
            .into_iter()
            .flatten()
    }
}

impl Limits {
    /// Sets an entry, or removes it, and returns the one before.
    pub(super) fn apply(
        &self,
        state: &mut State,
        source: Source,
        name: &KeyName,
        entry: Option<Override>,
    ) -> Option<Override> {
        let before = state.enter(source, name, entry);
        self.show(state, &name.key());
        before
    }

    /// Has decisions go by what is in force for a key.
    pub(super) fn show(&self, state: &State, key: &Key) {
        let owns = state.owns(key);
        let entry = |owns: &Owns| owns.in_force().map(|own| own.entry.clone());
        let is = owns.as_ref().and_then(entry);
        let was = self.0.by_key.find(key, entry).flatten();
        // Names and ends may have changed as well.
        self.set_owns(key, owns);
        if is.as_deref().map(Override::limit) != was.as_deref().map(Override::limit) {
            // Decisions go by it already. What the key used before is by it from now on, too.
            for target in state.targets.iter().filter_map(Weak::upgrade) {
                target.changed(key);
            }
        }
    }
}

impl State {
    /// The overrides of a key.
    pub(super) fn owns(&self, key: &Key) -> Option<Owns> {
        let (set, base) = (self.set.of(key), self.base.of(key));
        let (first, second) = match (set, base) {
            (Some(set), base) => (set, base),
            (None, base) => (base?, None),
        };
        let mut owns = Owns {
            first,
            second,
            in_force: 0,
        };
        owns.in_force = owns.place(|| self.clock.seconds());
        Some(owns)
    }
}
