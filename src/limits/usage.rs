//! How far limits are used up, and what the admin endpoints read besides.

use super::Override;
use super::replica::Replica;
use super::state::State;
use super::{LimitUsage, Limits};
use crate::key::KeyName;
use crate::limit::Limit;
use crate::store::StoreStatus;
use crate::sync::lock;

/// An override, and where it comes from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SourcedOverride {
    /// The override.
    pub entry: Override,
    /// Whether it was set at run time. Otherwise the configuration has it.
    pub is_set: bool,
    /// The override of the configuration that applies after the override that was set is deleted.
    pub configured: Option<Override>,
}

impl Limits {
    /// How far each limit is used up by a key, in the order in which the limiters were made.
    ///
    /// Of a limiter with several policies those are told of which the key has used anything, and
    /// the first.
    pub async fn usage(&self, key: &KeyName) -> Vec<LimitUsage> {
        let mut usages = Vec::new();
        for target in self.targets() {
            usages.extend(target.usage(key.key()).await);
        }
        usages
    }

    /// Whether an override changes anything: false when no part of it is about a limiter that has these limits, as
    /// `5 concurrent` where nothing limits concurrency, or `10/min` where each policy has several quotas. True where no
    /// limiter has them.
    pub(crate) fn applies(&self, limit: &Limit) -> bool {
        let targets = self.targets();
        // A list takes what is for all limits.
        let is_for_all = limit.tier().is_some() || limit.blanket_capacity().is_some();
        targets.is_empty() || is_for_all || targets.iter().any(|target| target.applies(limit))
    }

    /// How far the limits are used up that are not of any one key. Where limiters count in a store, it is asked.
    pub async fn totals(&self) -> Vec<LimitUsage> {
        let mut totals = Vec::new();
        for target in self.targets() {
            totals.extend(target.total().await);
        }
        totals
    }

    /// Whether the stores decide in which these limits are kept and their limiters count; `None` without a store that
    /// replicas share. Makes no call.
    #[must_use]
    pub fn store_status(&self) -> Option<StoreStatus> {
        let targets = self.targets();
        let of_targets = targets.iter().filter_map(|target| target.store_status());
        let of_targets = of_targets.chain(self.0.replica.as_ref().map(Replica::status));
        of_targets.reduce(StoreStatus::and)
    }

    /// The override that was set at run time, whatever the configuration says.
    pub(crate) fn override_at_run_time(&self, key: &KeyName) -> Option<Override> {
        self.turn_ends();
        lock(&self.0.state).own_at_run_time(&key.key())
    }

    /// The override of a key, and where it comes from.
    pub(crate) fn sourced(&self, key: &KeyName) -> Option<SourcedOverride> {
        self.turn_ends();
        let entry = self.get_override(key)?;
        Some(SourcedOverride::new(&lock(&self.0.state), key, entry))
    }

    /// The next overrides, as [`list_after`](Self::list_after) has them, and where they come from.
    pub(crate) fn sourced_after(
        &self,
        after: Option<&KeyName>,
        count: usize,
    ) -> Vec<(KeyName, SourcedOverride)> {
        self.turn_ends();
        let state = lock(&self.0.state);
        let entries = state.after(after, count).into_iter();
        entries
            .map(|(key, entry)| {
                let sourced = SourcedOverride::new(&state, &key, Override::clone(&entry));
                (key, sourced)
            })
            .collect()
    }

    /// How many overrides there are, set at run time or by the configuration.
    pub(crate) fn count(&self) -> usize {
        self.turn_ends();
        lock(&self.0.state).count()
    }

    /// A number that another one follows when an override changes, so that a list that is shown can be read anew. Each
    /// process counts for itself.
    pub(crate) fn revision(&self) -> u64 {
        self.turn_ends();
        lock(&self.0.state).revision
    }
}

impl SourcedOverride {
    /// An override that was just set at run time.
    #[must_use]
    pub fn set(entry: Override) -> Self {
        Self {
            entry,
            is_set: true,
            configured: None,
        }
    }

    fn new(state: &State, key: &KeyName, entry: Override) -> Self {
        let is_set = state.has_at_run_time(&key.key());
        let configured = is_set.then(|| state.own_at_base(&key.key())).flatten();
        Self {
            entry,
            is_set,
            configured: configured.map(|entry| Override::clone(&entry)),
        }
    }
}
