//! The overrides as they are set, for people and for the order of changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use super::{LimitTarget, Limits};
use crate::key::{Key, KeyName};
use crate::limit::Limit;
use crate::rule::Rule;

/// The override of a key.
pub(super) struct Own {
    pub(super) limit: Arc<Limit>,
    /// What the key is called in the entry.
    pub(super) name: KeyName,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) entries: BTreeMap<KeyName, Arc<Limit>>,
    /// The names of entries by their keys: one, unless replicas gave it two at a time.
    pub(super) names: HashMap<Key, SmallVec<[KeyName; 1]>>,
    /// Changes that were made here and that are newer than what was read of the store.
    #[cfg(feature = "redis")]
    pub(super) newer: HashMap<KeyName, u64>,
    pub(super) targets: Vec<Weak<dyn LimitTarget>>,
    /// How many parts of entries have a rate, by the length of its rule.
    rates: HashMap<u64, usize>,
}

impl State {
    pub(super) fn enter(&mut self, name: &KeyName, limit: Option<Limit>) -> Option<Limit> {
        for length in limit.iter().flat_map(lengths) {
            *self.rates.entry(length).or_default() += 1;
        }
        let names = self.names.entry(name.key()).or_default();
        names.retain(|other| other != name);
        let before = match limit {
            Some(limit) => {
                names.push(name.clone());
                self.entries.insert(name.clone(), Arc::new(limit))
            }
            None => self.entries.remove(name),
        };
        if names.is_empty() {
            self.names.remove(&name.key());
        }
        let before = before.map(Arc::unwrap_or_clone);
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

    /// Whether another entry would have more distinct rates than buckets have numbers for.
    pub(super) fn has_too_many_rates(&self, limit: &Limit) -> bool {
        let new = lengths(limit).filter(|length| !self.rates.contains_key(length));
        self.rates.len() + new.count() > Limits::MAX_RATES
    }

    /// What counts for a key: of several names the last, which can be read.
    pub(super) fn own(&self, key: &Key) -> Option<Own> {
        let name = self.names.get(key)?.iter().max()?;
        Some(Own {
            limit: self.entries.get(name)?.clone(),
            name: name.clone(),
        })
    }
}

/// The rates of a limit, by the lengths of their rules. It is buckets that have numbers for them: windows of many
/// rates have sub-windows of one length.
fn lengths(limit: &Limit) -> impl Iterator<Item = u64> + '_ {
    let quotas = limit.quotas().filter_map(|quota| quota.counted_in(false));
    let rules = quotas.map(Rule::new);
    rules
        .map(|rule| rule.length_nanos())
        .filter(|length| *length > 0)
}
