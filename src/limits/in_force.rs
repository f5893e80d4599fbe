//! The override of a key that is in force, and the notification of limiters.

use std::sync::{Arc, Weak};

use super::state::{LimitsState, OverrideSource};
use super::{Limits, Override};
use crate::key::{Key, KeyName};

/// An override of a key.
pub(super) struct KeyOverride {
    pub(super) entry: Arc<Override>,
    /// The name of the key in the entry.
    pub(super) name: KeyName,
}

/// The overrides of a key. The first one that has not ended is in force.
pub(super) struct KeyOverrides {
    first: KeyOverride,
    /// The override of the configuration, beneath one that was set at run time.
    second: Option<KeyOverride>,
    /// The index of the override that limiters treat as in force.
    pub(super) in_force: u8,
}

impl KeyOverrides {
    /// The index of the override in force; past the last if none is.
    #[inline]
    pub(super) fn index(&self, now: impl FnOnce() -> u64) -> u8 {
        match self.first.entry.end_seconds() {
            None => 0,
            Some(end) => self.index_at(end, now()),
        }
    }

    #[cold]
    fn index_at(&self, end: u64, now: u64) -> u8 {
        let second = self.second.as_ref();
        match second.map(|second| second.entry.has_ended(|| now)) {
            _ if now < end => 0,
            Some(false) => 1,
            Some(true) | None => 2,
        }
    }

    #[inline]
    pub(super) fn at(&self, index: u8) -> Option<&KeyOverride> {
        match index {
            0 => Some(&self.first),
            1 => self.second.as_ref(),
            _ => None,
        }
    }

    pub(super) fn in_force(&self) -> Option<&KeyOverride> {
        self.at(self.in_force)
    }

    /// The name of the key.
    pub(super) fn name(&self) -> &KeyName {
        &self.first.name
    }

    /// All overrides of the key, including ended ones.
    pub(super) fn all(&self) -> impl Iterator<Item = &KeyOverride> {
        [Some(&self.first), self.second.as_ref()]
            .into_iter()
            .flatten()
    }
}

impl Limits {
    /// Sets or removes an entry, and returns the previous one.
    pub(super) fn apply(
        &self,
        state: &mut LimitsState,
        source: OverrideSource,
        name: &KeyName,
        entry: Option<Override>,
    ) -> Option<Override> {
        let before = state.enter(source, name, entry);
        self.update_decisions(state, &name.key());
        before
    }

    /// Makes decisions use the override that is in force for a key.
    pub(super) fn update_decisions(&self, state: &LimitsState, key: &Key) {
        let overrides = state.overrides_of(key);
        let entry = |overrides: &KeyOverrides| {
            overrides
                .in_force()
                .map(|key_override| key_override.entry.clone())
        };
        let is = overrides.as_ref().and_then(entry);
        let was = self.0.by_key.find(key, entry).flatten();
        // Names and ends may have changed as well.
        self.set_overrides_of(key, overrides);
        if is.as_deref().map(Override::limit) != was.as_deref().map(Override::limit) {
            // Decisions already use it. Now convert what the key has used.
            for target in state.targets.iter().filter_map(Weak::upgrade) {
                target.changed(key);
            }
        }
    }
}

impl LimitsState {
    /// The overrides of a key.
    pub(super) fn overrides_of(&self, key: &Key) -> Option<KeyOverrides> {
        let (set, base) = (self.set.of(key), self.base.of(key));
        let (first, second) = match (set, base) {
            (Some(set), base) => (set, base),
            (None, base) => (base?, None),
        };
        let mut overrides = KeyOverrides {
            first,
            second,
            in_force: 0,
        };
        overrides.in_force = overrides.index(|| self.clock.seconds());
        Some(overrides)
    }
}
