//! Removes overrides that have ended, when a decision or a person looks.

use super::state::{Own, State};
use super::{LimitChange, Limits};
use crate::key::Key;
use crate::sync::{lock, try_lock};

impl Limits {
    #[inline]
    pub(super) fn find_own<R>(&self, key: &Key, read: impl FnOnce(&Own) -> R) -> Option<R> {
        let clock = &self.0.clock;
        let found = self.0.by_key.find(key, |own| {
            if own.entry.has_ended(|| clock.seconds()) {
                Err(read)
            } else {
                Ok(read(own))
            }
        })?;
        match found {
            Ok(found) => Some(found),
            Err(read) => {
                // When another change is being made, the override counts until that is done: a decision does not wait,
                // and what is told of the change may ask for an override.
                if let Some(mut state) = try_lock(&self.0.state) {
                    self.remove_ended_from(&mut state);
                }
                self.0.by_key.find(key, read)
            }
        }
    }

    /// Removes the overrides that have ended.
    pub(super) fn remove_ended(&self) {
        self.remove_ended_from(&mut lock(&self.0.state));
    }

    fn remove_ended_from(&self, state: &mut State) {
        let now = self.0.clock.seconds();
        while let Some((source, name)) = state.ended(now) {
            let before = self.apply(state, source, &name, None);
            #[cfg(feature = "redis")]
            if let (Some(_), Some(before), super::state::Source::RunTime) =
                (&self.0.replica, &before, source)
            {
                // The store has it until a replica deletes it there.
                state.ended_in_store(name, before.clone());
                continue;
            }
            let change = LimitChange::ended(name, before, now);
            change.report();
            state.note(change);
        }
    }
}
