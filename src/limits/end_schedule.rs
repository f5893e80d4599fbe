//! Ended overrides: they have no effect, and apply again if the clock is set back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::in_force::KeyOverride;
use super::state::{LimitsState, OverrideSource};
use super::{LimitChange, Limits};
use crate::key::{Key, KeyName};
use crate::sync::{lock, try_lock};

/// How long a run-time override in memory is kept after its end, in monotonic time: the wall clock
/// may have stepped forward for a moment. A shared store deletes ended overrides by its own clock.
const RETENTION: Duration = Duration::from_secs(3600);

/// Further transitions that a decision applies when it finds an ended override.
const TRANSITIONS_PER_DECISION: usize = 8;

/// Transitions that an operator's call or a task applies.
const TRANSITIONS_PER_CALL: usize = 1_000;

/// The ends of overrides, in seconds since the Unix epoch.
#[derive(Default)]
pub(super) struct EndSchedule {
    /// Overrides that are in force.
    upcoming: BTreeSet<(u64, OverrideSource, KeyName)>,
    /// Overrides that have ended, by source, with the time since when.
    ended: [BTreeMap<(u64, KeyName), Duration>; 2],
}

/// An override that has ended, or is in force again.
enum EndTransition {
    Ended(OverrideSource, KeyName),
    Restored(OverrideSource, KeyName),
}

impl EndSchedule {
    pub(super) fn add(
        &mut self,
        end: u64,
        source: OverrideSource,
        name: &KeyName,
        now: u64,
        at: Duration,
    ) {
        if end <= now {
            self.ended[source as usize].insert((end, name.clone()), at);
        } else {
            self.upcoming.insert((end, source, name.clone()));
        }
    }

    pub(super) fn remove(&mut self, end: u64, source: OverrideSource, name: &KeyName) {
        self.ended[source as usize].remove(&(end, name.clone()));
        self.upcoming.remove(&(end, source, name.clone()));
    }

    /// The number of run-time overrides that have ended.
    pub(super) fn ended_at_run_time(&self, now: u64) -> usize {
        let due = self.upcoming.iter().take_while(|(end, ..)| *end <= now);
        let due = due.filter(|(_, source, _)| *source == OverrideSource::RunTime);
        self.ended[OverrideSource::RunTime as usize].len() + due.count()
    }

    /// The run-time override that ended first.
    pub(super) fn first_ended(&self) -> Option<KeyName> {
        let (_, name) = self.ended[OverrideSource::RunTime as usize].keys().next()?;
        Some(name.clone())
    }

    /// The next override whose end was reached, or was undone by a clock that was set back.
    fn next_transition(&mut self, now: u64, at: Duration) -> Option<EndTransition> {
        if let Some((end, ..)) = self.upcoming.first()
            && *end <= now
        {
            let (end, source, name) = self.upcoming.pop_first()?;
            self.add(end, source, &name, now, at);
            return Some(EndTransition::Ended(source, name));
        }
        for source in [OverrideSource::RunTime, OverrideSource::Base] {
            let ended = &mut self.ended[source as usize];
            if let Some(((end, _), _)) = ended.last_key_value()
                && *end > now
            {
                let ((end, name), _) = ended.pop_last()?;
                self.add(end, source, &name, now, at);
                return Some(EndTransition::Restored(source, name));
            }
        }
        None
    }

    /// Like [`next_transition`](Self::next_transition), for one override.
    fn transition_of(
        &mut self,
        end: u64,
        source: OverrideSource,
        name: KeyName,
        now: u64,
        at: Duration,
    ) -> Option<EndTransition> {
        let was_ended = self.ended[source as usize].contains_key(&(end, name.clone()));
        if was_ended == (end <= now) {
            return None;
        }
        self.remove(end, source, &name);
        self.add(end, source, &name, now, at);
        Some(match was_ended {
            true => EndTransition::Restored(source, name),
            false => EndTransition::Ended(source, name),
        })
    }

    /// The next run-time override whose retention is over.
    fn past_retention(&self, at: Duration) -> Option<KeyName> {
        let ((_, name), since) = self.ended[OverrideSource::RunTime as usize].first_key_value()?;
        (at.saturating_sub(*since) >= RETENTION).then(|| name.clone())
    }
}

impl Limits {
    /// Applies `read` to the override that is in force for a key.
    #[inline]
    pub(super) fn find_override<R>(
        &self,
        key: &Key,
        read: impl FnOnce(&KeyOverride) -> R,
    ) -> Option<R> {
        let clock = &self.0.clock;
        let found = self.0.by_key.find(key, |overrides| {
            let index = overrides.index(|| clock.seconds());
            if index == overrides.in_force {
                Ok(overrides.at(index).map(read))
            } else {
                Err(read)
            }
        })?;
        match found {
            Ok(found) => found,
            Err(read) => self.find_after_transition(key, read),
        }
    }

    /// Like [`find_override`](Self::find_override), when an override of the key has ended or is in
    /// force again.
    #[cold]
    fn find_after_transition<R>(
        &self,
        key: &Key,
        read: impl FnOnce(&KeyOverride) -> R,
    ) -> Option<R> {
        // A decision must not wait for another change, and an observer of the change may look up an
        // override.
        if let Some(mut state) = try_lock(&self.0.state) {
            let (now, at) = (state.clock.seconds(), state.clock.uptime());
            for (end, source, name) in state.ends_of(key) {
                let transition = state.ends.transition_of(end, source, name, now, at);
                self.apply_transition(&mut state, transition);
            }
            self.apply_transitions(&mut state, TRANSITIONS_PER_DECISION);
        }
        let now = || self.0.clock.seconds();
        self.0.by_key.find(key, |overrides| {
            overrides.at(overrides.index(now)).map(read)
        })?
    }

    /// Applies the pending transitions, a bounded number at a time, because there may be very many.
    pub(super) fn process_ends(&self) {
        self.apply_transitions(&mut lock(&self.0.state), TRANSITIONS_PER_CALL);
    }

    fn apply_transitions(&self, state: &mut LimitsState, at_most: usize) {
        let at = state.clock.uptime();
        for _ in 0..at_most {
            let now = state.clock.seconds();
            let transition = state.ends.next_transition(now, at);
            if !self.apply_transition(state, transition) {
                break;
            }
        }
        if self.0.replica.is_some() {
            return;
        }
        for _ in 0..at_most {
            let Some(name) = state.ends.past_retention(at) else {
                break;
            };
            self.apply(state, OverrideSource::RunTime, &name, None);
        }
    }

    /// Updates the limiters to the override in force, and reports the transition. Returns `false`
    /// if there was none.
    fn apply_transition(&self, state: &mut LimitsState, transition: Option<EndTransition>) -> bool {
        let Some(transition) = transition else {
            return false;
        };
        let (EndTransition::Ended(source, name) | EndTransition::Restored(source, name)) =
            &transition;
        state.revision += 1;
        self.update_decisions(state, &name.key());
        let entry = state.entry(*source, name).cloned();
        let in_store = self.0.replica.is_some() && *source == OverrideSource::RunTime;
        let now = state.clock.seconds();
        let change = match transition {
            EndTransition::Ended(_, name) if in_store => {
                // Reported when the store has deleted it.
                state.ended_in_store(name, entry);
                return true;
            }
            EndTransition::Ended(_, name) => LimitChange::ended(name, entry, now),
            EndTransition::Restored(_, name) => LimitChange::restored(name, entry, now),
        };
        change.report();
        if !in_store {
            state.record_change(change);
        }
        true
    }
}
