//! The overrides as they are set, for people and for the order of changes.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use super::ends::Ends;
use super::in_force::Own;
use super::unreadable::Unreadable;
use super::{LimitChange, LimitTarget, Limits, Override};
use crate::key::{Key, KeyName};
use crate::limit::Limit;
use crate::rule::Rule;
use crate::store::memory::clock::WallClock;

/// Where an override is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Set at run time.
    RunTime,
    /// The configuration: it counts where none was set at run time.
    Base,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) set: Entries,
    pub(super) base: Entries,
    pub(super) ends: Ends,
    /// That of the limits.
    pub(super) clock: WallClock,
    /// Overrides that have ended, and are to be deleted in the store, the first that ended first.
    pub(super) ended: BTreeMap<(u64, KeyName), Override>,
    /// Changes that were made here and that are newer than what was read of the store.
    pub(super) newer: HashMap<KeyName, u64>,
    /// What the store has and this version of the crate cannot read.
    pub(super) unreadable: Unreadable,
    /// How often an entry was set, changed or removed.
    pub(super) revision: u64,
    pub(super) targets: Vec<Weak<dyn LimitTarget>>,
    /// The last changes, the oldest first. With a store they are kept there.
    pub(super) changes: VecDeque<LimitChange>,
    /// How many parts of overrides have a rate, by the length of its rule.
    rates: HashMap<u64, usize>,
}

/// Overrides of one source.
#[derive(Default)]
pub(super) struct Entries {
    by_name: BTreeMap<KeyName, Arc<Override>>,
    /// The names of entries by their keys: one, unless replicas gave it two at a time.
    names: HashMap<Key, SmallVec<[KeyName; 1]>>,
}

impl Entries {
    fn enter(&mut self, name: &KeyName, entry: Option<Arc<Override>>) -> Option<Arc<Override>> {
        let names = self.names.entry(name.key()).or_default();
        names.retain(|other| other != name);
        let before = match entry {
            Some(entry) => {
                names.push(name.clone());
                self.by_name.insert(name.clone(), entry)
            }
            None => self.by_name.remove(name),
        };
        if names.is_empty() {
            self.names.remove(&name.key());
        }
        before
    }

    /// The entry of a key: of several names the last, which can be read.
    pub(super) fn of(&self, key: &Key) -> Option<Own> {
        let name = self.names.get(key)?.iter().max()?;
        Some(Own {
            entry: self.by_name.get(name)?.clone(),
            name: name.clone(),
        })
    }

    fn after(
        &self,
        after: Option<&KeyName>,
    ) -> impl Iterator<Item = (&KeyName, &Arc<Override>)> + '_ {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_name.range::<KeyName, _>((from, Bound::Unbounded))
    }
}

impl State {
    fn entries(&mut self, source: Source) -> &mut Entries {
        match source {
            Source::RunTime => &mut self.set,
            Source::Base => &mut self.base,
        }
    }

    pub(super) fn enter(
        &mut self,
        source: Source,
        name: &KeyName,
        entry: Option<Override>,
    ) -> Option<Override> {
        for length in entry.iter().flat_map(lengths) {
            *self.rates.entry(length).or_default() += 1;
        }
        let end = entry.as_ref().and_then(Override::end_seconds);
        let before = self.entries(source).enter(name, entry.map(Arc::new));
        self.revision += 1;
        let before = before.map(Arc::unwrap_or_clone);
        if let Some(end) = before.as_ref().and_then(Override::end_seconds) {
            self.ends.remove(end, source, name);
        }
        if let Some(end) = end {
            let (now, at) = (self.clock.seconds(), self.clock.uptime());
            self.ends.add(end, source, name, now, at);
        }
        for length in before.iter().flat_map(lengths) {
            if let Some(parts) = self.rates.get_mut(&length) {
                *parts -= 1;
                if *parts == 0 {
                    self.rates.remove(&length);
                }
            }
        }
        before
    }

    /// What was set at run time for a key, under whatever name, and has not ended.
    pub(super) fn own_at_run_time(&self, key: &Key) -> Option<Override> {
        let own = self.set.of(key)?;
        self.has_effect(&own.entry)
            .then(|| Override::clone(&own.entry))
    }

    /// Whether an override has not ended.
    pub(super) fn has_effect(&self, entry: &Override) -> bool {
        !entry.has_ended(|| self.clock.seconds())
    }

    /// Whether an override that was set at run time is in force for a key, under whatever name.
    pub(super) fn has_at_run_time(&self, key: &Key) -> bool {
        // Most services have no or few of these and many of the configuration.
        self.set.names.contains_key(key)
            && (self.set.of(key)).is_some_and(|own| self.has_effect(&own.entry))
    }

    /// The override that the configuration has for a key, under whatever name, unless it has ended.
    pub(super) fn own_at_base(&self, key: &Key) -> Option<Arc<Override>> {
        let entry = self.base.of(key)?.entry;
        self.has_effect(&entry).then_some(entry)
    }

    /// Has an override deleted in the store that has ended.
    pub(super) fn ended_in_store(&mut self, name: KeyName, entry: Option<Override>) {
        if let Some(entry) = entry
            && let Some(end) = entry.end_seconds()
        {
            self.ended.insert((end, name), entry);
        }
    }

    /// When the overrides of a key end.
    pub(super) fn ends_of(&self, key: &Key) -> SmallVec<[(u64, Source, KeyName); 2]> {
        let sources = [(Source::RunTime, &self.set), (Source::Base, &self.base)];
        let named = sources.into_iter().flat_map(|(source, entries)| {
            let names = entries.names.get(key).into_iter().flatten();
            names.filter_map(move |name| {
                let end = entries.by_name.get(name)?.end_seconds()?;
                Some((end, source, name.clone()))
            })
        });
        named.collect()
    }

    /// Keeps a change for the audit trail.
    pub(super) fn note(&mut self, change: LimitChange) {
        if self.changes.len() == Limits::MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }

    /// What was set at run time under a name, and has not ended.
    pub(super) fn get(&self, name: &KeyName) -> Option<&Override> {
        let entry = self.entry(Source::RunTime, name);
        entry.filter(|entry| self.has_effect(entry))
    }

    /// What is there under a name, also if it has ended.
    pub(super) fn entry(&self, source: Source, name: &KeyName) -> Option<&Override> {
        let entries = match source {
            Source::RunTime => &self.set,
            Source::Base => &self.base,
        };
        entries.by_name.get(name).map(|entry| &**entry)
    }

    /// How many overrides were set at run time and have not ended.
    pub(super) fn len(&self) -> usize {
        let ended = self.ends.ended_at_run_time(self.clock.seconds());
        self.set.by_name.len() - ended
    }

    /// How many overrides were set at run time, with those that have ended.
    pub(super) fn kept(&self) -> usize {
        self.set.by_name.len()
    }

    /// The names of overrides of a key that were set at run time, also of those that have ended.
    pub(super) fn names_of(&self, key: &Key) -> Vec<KeyName> {
        let names = self.set.names.get(key).into_iter().flatten();
        let mut names: Vec<_> = names.cloned().collect();
        names.sort_unstable();
        names
    }

    /// How many overrides there are, set at run time or by the configuration.
    pub(super) fn count(&self) -> usize {
        let base = self.base.by_name.iter();
        let counts = |(name, entry): &(&KeyName, &Arc<Override>)| {
            self.has_effect(entry) && !self.has_at_run_time(&name.key())
        };
        self.len() + base.filter(counts).count()
    }

    /// The next overrides, at most `count`, in the order of their names.
    pub(super) fn after(
        &self,
        after: Option<&KeyName>,
        count: usize,
    ) -> Vec<(KeyName, Arc<Override>)> {
        let base = self.base.after(after);
        let base = base
            .filter(|(name, entry)| self.has_effect(entry) && !self.has_at_run_time(&name.key()));
        let mut found: BTreeMap<_, _> = base.take(count).collect();
        let set = self.set.after(after);
        found.extend(set.filter(|(_, entry)| self.has_effect(entry)).take(count));
        let found = found.into_iter().take(count);
        found
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect()
    }

    /// The next names of one source, at most `count`.
    pub(super) fn names_after(
        &self,
        source: Source,
        after: Option<&KeyName>,
        count: usize,
    ) -> Vec<KeyName> {
        let entries = match source {
            Source::RunTime => &self.set,
            Source::Base => &self.base,
        };
        let names = entries.after(after).map(|(name, _)| name.clone());
        names.take(count).collect()
    }

    /// Whether all would have more distinct rates than buckets have numbers for, with this limit in place of the
    /// override that was set at run time under the name.
    pub(super) fn has_too_many_rates(&self, name: &KeyName, limit: &Limit) -> bool {
        let new: HashSet<u64> = lengths_of(limit).collect();
        let more = new.iter().filter(|length| !self.rates.contains_key(length));
        let rates = self.rates.len() + more.count();
        if rates <= Limits::MAX_RATES {
            return false;
        }
        let mut parts: HashMap<u64, usize> = HashMap::new();
        let replaced = self.entry(Source::RunTime, name).into_iter();
        for length in replaced.flat_map(lengths) {
            *parts.entry(length).or_default() += 1;
        }
        let is_freed = |(length, parts): &(&u64, &usize)| {
            !new.contains(length) && self.rates.get(length) == Some(parts)
        };
        rates - parts.iter().filter(is_freed).count() > Limits::MAX_RATES
    }

    /// Whether these in place of those of the configuration have too many rates.
    pub(super) fn has_too_many_rates_with<'a>(
        &self,
        base: impl Iterator<Item = &'a Override>,
    ) -> bool {
        let mut rates: HashMap<u64, usize> = self.rates.clone();
        for length in self.base.by_name.values().flat_map(|own| lengths(own)) {
            if let Some(parts) = rates.get_mut(&length) {
                *parts -= 1;
            }
        }
        rates.retain(|_, parts| *parts > 0);
        for length in base.flat_map(lengths) {
            *rates.entry(length).or_default() += 1;
        }
        rates.len() > Limits::MAX_RATES
    }
}

fn lengths(entry: &Override) -> impl Iterator<Item = u64> + '_ {
    lengths_of(entry.limit())
}

/// The rates of a limit, by the lengths of their rules. It is buckets that have numbers for them: windows of many
/// rates have sub-windows of one length.
fn lengths_of(limit: &Limit) -> impl Iterator<Item = u64> + '_ {
    let quotas = limit.quotas().filter_map(|quota| quota.counted_in(false));
    let rules = quotas.map(Rule::new);
    rules
        .map(|rule| rule.length_nanos())
        .filter(|length| *length > 0)
}
