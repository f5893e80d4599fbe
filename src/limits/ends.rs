//! What becomes of overrides that have ended: they have no effect, and come back if the clock is set back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::in_force::Own;
use super::state::{Source, State};
use super::{LimitChange, Limits};
use crate::key::{Key, KeyName};
use crate::sync::{lock, try_lock};

/// How long an override that was set at run time in memory is kept past its end: by another clock, as the wall clock may
/// have stepped forward for a moment only. In a store they are deleted by the store's clock.
const KEPT: Duration = Duration::from_secs(3600);

/// Overrides that a decision turns besides its own, when it finds one that has ended.
const AT_A_DECISION: usize = 8;

/// Overrides that are turned when a person or a task looks.
const AT_A_TIME: usize = 1_000;

/// When overrides end, in seconds since the Unix epoch.
#[derive(Default)]
pub(super) struct Ends {
    /// Those that are in force.
    to_come: BTreeSet<(u64, Source, KeyName)>,
    /// Those that have ended, by source, and since when.
    ended: [BTreeMap<(u64, KeyName), Duration>; 2],
}

/// An override that ends, or is in force again.
enum Turn {
    Ended(Source, KeyName),
    Back(Source, KeyName),
}

impl Ends {
    pub(super) fn add(&mut self, end: u64, source: Source, name: &KeyName, now: u64, at: Duration) {
        if end <= now {
            self.ended[source as usize].insert((end, name.clone()), at);
        } else {
            self.to_come.insert((end, source, name.clone()));
        }
    }

    pub(super) fn remove(&mut self, end: u64, source: Source, name: &KeyName) {
        self.ended[source as usize].remove(&(end, name.clone()));
        self.to_come.remove(&(end, source, name.clone()));
    }

    /// How many of those that were set at run time have ended.
    pub(super) fn ended_at_run_time(&self, now: u64) -> usize {
        let due = self.to_come.iter().take_while(|(end, ..)| *end <= now);
        let due = due.filter(|(_, source, _)| *source == Source::RunTime);
        self.ended[Source::RunTime as usize].len() + due.count()
    }

    /// The override that ended first of those that were set at run time.
    pub(super) fn first_ended(&self) -> Option<KeyName> {
        let (_, name) = self.ended[Source::RunTime as usize].keys().next()?;
        Some(name.clone())
    }

    /// The next override for which the time has come, or was set back.
    fn turn(&mut self, now: u64, at: Duration) -> Option<Turn> {
        if let Some((end, ..)) = self.to_come.first()
            && *end <= now
        {
            let (end, source, name) = self.to_come.pop_first()?;
            self.add(end, source, &name, now, at);
            return Some(Turn::Ended(source, name));
        }
        for source in [Source::RunTime, Source::Base] {
            let ended = &mut self.ended[source as usize];
            if let Some(((end, _), _)) = ended.last_key_value()
                && *end > now
            {
                let ((end, name), _) = ended.pop_last()?;
                self.add(end, source, &name, now, at);
                return Some(Turn::Back(source, name));
            }
        }
        None
    }

    /// As [`turn`](Self::turn), of one override.
    fn turn_one(
        &mut self,
        end: u64,
        source: Source,
        name: KeyName,
        now: u64,
        at: Duration,
    ) -> Option<Turn> {
        let was_ended = self.ended[source as usize].contains_key(&(end, name.clone()));
        if was_ended == (end <= now) {
            return None;
        }
        self.remove(end, source, &name);
        self.add(end, source, &name, now, at);
        Some(match was_ended {
            true => Turn::Back(source, name),
            false => Turn::Ended(source, name),
        })
    }

    /// The next override that was set at run time and has ended long enough ago.
    fn outdated(&self, at: Duration) -> Option<KeyName> {
        let ((_, name), since) = self.ended[Source::RunTime as usize].first_key_value()?;
        (at.saturating_sub(*since) >= KEPT).then(|| name.clone())
    }
}

impl Limits {
    /// What `read` makes of the override that is in force for a key.
    #[inline]
    pub(super) fn find_own<R>(&self, key: &Key, read: impl FnOnce(&Own) -> R) -> Option<R> {
        let clock = &self.0.clock;
        let found = self.0.by_key.find(key, |owns| {
            let place = owns.place(|| clock.seconds());
            if place == owns.in_force {
                Ok(owns.at(place).map(read))
            } else {
                Err(read)
            }
        })?;
        match found {
            Ok(found) => found,
            Err(read) => self.find_turned(key, read),
        }
    }

    /// As [`find_own`](Self::find_own), when an override of the key has ended, or is in force again.
    #[cold]
    fn find_turned<R>(&self, key: &Key, read: impl FnOnce(&Own) -> R) -> Option<R> {
        // A decision does not wait for another change, and an observer of the change may ask for an override.
        if let Some(mut state) = try_lock(&self.0.state) {
            let (now, at) = (state.clock.seconds(), state.clock.uptime());
            for (end, source, name) in state.ends_of(key) {
                let turned = state.ends.turn_one(end, source, name, now, at);
                self.turned(&mut state, turned);
            }
            self.turn_ends_in(&mut state, AT_A_DECISION);
        }
        let now = || self.0.clock.seconds();
        self.0
            .by_key
            .find(key, |owns| owns.at(owns.place(now)).map(read))?
    }

    /// Turns overrides that have ended or are in force again: not all at a time, as these may be very many.
    pub(super) fn turn_ends(&self) {
        self.turn_ends_in(&mut lock(&self.0.state), AT_A_TIME);
    }

    fn turn_ends_in(&self, state: &mut State, at_most: usize) {
        let at = state.clock.uptime();
        for _ in 0..at_most {
            let now = state.clock.seconds();
            let turn = state.ends.turn(now, at);
            if !self.turned(state, turn) {
                break;
            }
        }
        if self.0.replica.is_some() {
            return;
        }
        for _ in 0..at_most {
            let Some(name) = state.ends.outdated(at) else {
                break;
            };
            self.apply(state, Source::RunTime, &name, None);
        }
    }

    /// Has limiters go by what is in force now, and reports it. False if there is nothing to do.
    fn turned(&self, state: &mut State, turn: Option<Turn>) -> bool {
        let Some(turn) = turn else {
            return false;
        };
        let (Turn::Ended(source, name) | Turn::Back(source, name)) = &turn;
        state.revision += 1;
        self.show(state, &name.key());
        let entry = state.entry(*source, name).cloned();
        let in_store = self.0.replica.is_some() && *source == Source::RunTime;
        let now = state.clock.seconds();
        let change = match turn {
            Turn::Ended(_, name) if in_store => {
                // It is reported when the store has deleted it.
                state.ended_in_store(name, entry);
                return true;
            }
            Turn::Ended(_, name) => LimitChange::ended(name, entry, now),
            Turn::Back(_, name) => LimitChange::back(name, entry, now),
        };
        change.report();
        if !in_store {
            state.note(change);
        }
        true
    }
}
