//! The overrides as they were set, and the order of changes.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use super::end_schedule::EndSchedule;
use super::in_force::KeyOverride;
use super::unreadable::UnreadableOverrides;
use super::{LimitChange, LimitTarget, Limits, Override};
use crate::key::{Key, KeyName};
use crate::limit::Limit;
use crate::rule::Rule;
use crate::store::memory::clock::WallClock;

/// The source of an override.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum OverrideSource {
    /// Set at run time.
    RunTime,
    /// The configuration. Applies to keys without an override that was set at run time.
    Base,
}

#[derive(Default)]
pub(super) struct LimitsState {
    pub(super) set: NamedOverrides,
    pub(super) base: NamedOverrides,
    pub(super) ends: EndSchedule,
    /// The clock of the limits.
    pub(super) clock: WallClock,
    /// Ended overrides that must be deleted in the store, in the order of their ends.
    pub(super) ended: BTreeMap<(u64, KeyName), Override>,
    /// Changes by this process that are newer than what it has read from the store.
    pub(super) newer: HashMap<KeyName, u64>,
    /// Overrides in the store that this version cannot read.
    pub(super) unreadable: UnreadableOverrides,
    /// The number of changes to entries.
    pub(super) revision: u64,
    pub(super) targets: Vec<Weak<dyn LimitTarget>>,
    /// The last changes, the oldest first. A shared store keeps them instead.
    pub(super) changes: VecDeque<LimitChange>,
    /// The number of override parts with a rate, by the length of its rule.
    rates: HashMap<u64, usize>,
}

/// The overrides of one source.
#[derive(Default)]
pub(super) struct NamedOverrides {
    by_name: BTreeMap<KeyName, Arc<Override>>,
    /// The names of entries by key: one, unless replicas set two at the same time.
    names: HashMap<Key, SmallVec<[KeyName; 1]>>,
}

impl NamedOverrides {
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

    /// The entry of a key. Of several names the last one, which is readable.
    pub(super) fn of(&self, key: &Key) -> Option<KeyOverride> {
        let name = self.names.get(key)?.iter().max()?;
        Some(KeyOverride {
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

impl LimitsState {
    fn entries(&mut self, source: OverrideSource) -> &mut NamedOverrides {
        match source {
            OverrideSource::RunTime => &mut self.set,
            OverrideSource::Base => &mut self.base,
        }
    }

    pub(super) fn enter(
        &mut self,
        source: OverrideSource,
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

    /// A key's run-time override that has not ended, under any name.
    pub(super) fn run_time_override(&self, key: &Key) -> Option<Override> {
        let key_override = self.set.of(key)?;
        self.has_effect(&key_override.entry)
            .then(|| Override::clone(&key_override.entry))
    }

    /// Whether an override has not ended.
    pub(super) fn has_effect(&self, entry: &Override) -> bool {
        !entry.has_ended(|| self.clock.seconds())
    }

    /// Whether a key has a run-time override that has not ended, under any name.
    pub(super) fn has_at_run_time(&self, key: &Key) -> bool {
        // Most services have few of these and many of the configuration.
        self.set.names.contains_key(key)
            && (self.set.of(key)).is_some_and(|key_override| self.has_effect(&key_override.entry))
    }

    /// A key's override in the configuration, under any name, unless it has ended.
    pub(super) fn base_override(&self, key: &Key) -> Option<Arc<Override>> {
        let entry = self.base.of(key)?.entry;
        self.has_effect(&entry).then_some(entry)
    }

    /// Schedules the deletion of an ended override in the store.
    pub(super) fn ended_in_store(&mut self, name: KeyName, entry: Option<Override>) {
        if let Some(entry) = entry
            && let Some(end) = entry.end_seconds()
        {
            self.ended.insert((end, name), entry);
        }
    }

    /// The ends of a key's overrides.
    pub(super) fn ends_of(&self, key: &Key) -> SmallVec<[(u64, OverrideSource, KeyName); 2]> {
        let sources = [
            (OverrideSource::RunTime, &self.set),
            (OverrideSource::Base, &self.base),
        ];
        let named = sources.into_iter().flat_map(|(source, entries)| {
            let names = entries.names.get(key).into_iter().flatten();
            names.filter_map(move |name| {
                let end = entries.by_name.get(name)?.end_seconds()?;
                Some((end, source, name.clone()))
            })
        });
        named.collect()
    }

    /// Adds a change to the audit trail.
    pub(super) fn record_change(&mut self, change: LimitChange) {
        if self.changes.len() == Limits::MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }

    /// The run-time override under a name, unless it has ended.
    pub(super) fn get(&self, name: &KeyName) -> Option<&Override> {
        let entry = self.entry(OverrideSource::RunTime, name);
        entry.filter(|entry| self.has_effect(entry))
    }

    /// The override under a name, even if it has ended.
    pub(super) fn entry(&self, source: OverrideSource, name: &KeyName) -> Option<&Override> {
        let entries = match source {
            OverrideSource::RunTime => &self.set,
            OverrideSource::Base => &self.base,
        };
        entries.by_name.get(name).map(|entry| &**entry)
    }

    /// The number of run-time overrides that have not ended.
    pub(super) fn len(&self) -> usize {
        let ended = self.ends.ended_at_run_time(self.clock.seconds());
        self.set.by_name.len() - ended
    }

    /// The number of run-time overrides, including ended ones.
    pub(super) fn stored_len(&self) -> usize {
        self.set.by_name.len()
    }

    /// The names of a key's run-time overrides, including ended ones.
    pub(super) fn names_of(&self, key: &Key) -> Vec<KeyName> {
        let names = self.set.names.get(key).into_iter().flatten();
        let mut names: Vec<_> = names.cloned().collect();
        names.sort_unstable();
        names
    }

    /// The number of overrides, set at run time or by the configuration.
    pub(super) fn count(&self) -> usize {
        let base = self.base.by_name.iter();
        let counts = |(name, entry): &(&KeyName, &Arc<Override>)| {
            self.has_effect(entry) && !self.has_at_run_time(&name.key())
        };
        self.len() + base.filter(counts).count()
    }

    /// A page of overrides in the order of their names.
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

    /// A page of names from one source.
    pub(super) fn names_after(
        &self,
        source: OverrideSource,
        after: Option<&KeyName>,
        count: usize,
    ) -> Vec<KeyName> {
        let entries = match source {
            OverrideSource::RunTime => &self.set,
            OverrideSource::Base => &self.base,
        };
        let names = entries.after(after).map(|(name, _)| name.clone());
        names.take(count).collect()
    }

    /// Whether the distinct rates would exceed the bound if `limit` replaced the run-time override
    /// of this name.
    pub(super) fn has_too_many_rates(&self, name: &KeyName, limit: &Limit) -> bool {
        let new: HashSet<u64> = lengths_of(limit).collect();
        let more = new.iter().filter(|length| !self.rates.contains_key(length));
        let rates = self.rates.len() + more.count();
        if rates <= Limits::MAX_RATES {
            return false;
        }
        let mut parts: HashMap<u64, usize> = HashMap::new();
        let replaced = self.entry(OverrideSource::RunTime, name).into_iter();
        for length in replaced.flat_map(lengths) {
            *parts.entry(length).or_default() += 1;
        }
        let is_freed = |(length, parts): &(&u64, &usize)| {
            !new.contains(length) && self.rates.get(length) == Some(parts)
        };
        rates - parts.iter().filter(is_freed).count() > Limits::MAX_RATES
    }

    /// Whether the distinct rates would exceed the bound if these overrides replaced the
    /// configuration's.
    pub(super) fn has_too_many_rates_with<'a>(
        &self,
        base: impl Iterator<Item = &'a Override>,
    ) -> bool {
        let mut rates: HashMap<u64, usize> = self.rates.clone();
        for length in self.base.by_name.values().flat_map(|entry| lengths(entry)) {
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

/// The rates of a limit, as the lengths of their bucket rules. Only buckets number rates; many
/// window rates share one sub-window length.
fn lengths_of(limit: &Limit) -> impl Iterator<Item = u64> + '_ {
    let quotas = limit.quotas().filter_map(|quota| quota.counted_in(false));
    let rules = quotas.map(Rule::new);
    rules
        .map(|rule| rule.length_nanos())
        .filter(|length| *length > 0)
}
