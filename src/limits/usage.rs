//! The usage of limits, and what the admin endpoints read besides.

use super::Override;
use super::replica::Replica;
use super::state::LimitsState;
use super::{LimitUsage, Limits};
use crate::key::KeyName;
use crate::limit::Limit;
use crate::store::StoreStatus;
use crate::sync::lock;

/// An override, and its source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SourcedOverride {
    /// The override.
    pub entry: Override,
    /// Whether it was set at run time. Otherwise it comes from the configuration.
    pub is_set: bool,
    /// The override of the configuration that applies if the run-time override is deleted.
    pub configured: Option<Override>,
}

impl Limits {
    /// A key's usage of each limit, in the order in which the limiters were built.
    ///
    /// For a limiter with several policies, reports the first policy and those that the key has
    /// used.
    pub async fn usage(&self, key: &KeyName) -> Vec<LimitUsage> {
        let mut usages = Vec::new();
        for target in self.targets() {
            usages.extend(target.usage(key.key()).await);
        }
        usages
    }

    /// Whether an override changes anything. False if no part of it names a limiter that uses these
    /// limits: `5 concurrent` without a concurrency limit, or `10/min` if each policy has several
    /// quotas. True if no limiter uses them.
    pub(crate) fn applies(&self, limit: &Limit) -> bool {
        let targets = self.targets();
        // A list accepts a limit that applies to everything.
        let is_for_all = limit.tier().is_some() || limit.blanket_capacity().is_some();
        targets.is_empty() || is_for_all || targets.iter().any(|target| target.applies(limit))
    }

    /// The usage of total limits. Asks the store if limiters count there.
    pub async fn totals(&self) -> Vec<LimitUsage> {
        let mut totals = Vec::new();
        for target in self.targets() {
            totals.extend(target.total().await);
        }
        totals
    }

    /// The status of the stores that keep these limits and in which their limiters count. `None`
    /// without a shared store. Makes no call.
    #[must_use]
    pub fn store_status(&self) -> Option<StoreStatus> {
        let targets = self.targets();
        let of_targets = targets.iter().filter_map(|target| target.store_status());
        let of_targets = of_targets.chain(self.0.replica.as_ref().map(Replica::status));
        of_targets.reduce(StoreStatus::and)
    }

    /// The run-time override of a key, regardless of the configuration.
    pub(crate) fn override_at_run_time(&self, key: &KeyName) -> Option<Override> {
        self.process_ends();
        lock(&self.0.state).run_time_override(&key.key())
    }

    /// The override of a key, and its source.
    pub(crate) fn sourced(&self, key: &KeyName) -> Option<SourcedOverride> {
        self.process_ends();
        let entry = self.get_override(key)?;
        Some(SourcedOverride::new(&lock(&self.0.state), key, entry))
    }

    /// A page of overrides with their sources, like [`list_after`](Self::list_after).
    pub(crate) fn sourced_after(
        &self,
        after: Option<&KeyName>,
        count: usize,
    ) -> Vec<(KeyName, SourcedOverride)> {
        self.process_ends();
        let state = lock(&self.0.state);
        let entries = state.after(after, count).into_iter();
        entries
            .map(|(key, entry)| {
                let sourced = SourcedOverride::new(&state, &key, Override::clone(&entry));
                (key, sourced)
            })
            .collect()
    }

    /// The number of overrides, set at run time or by the configuration.
    pub(crate) fn count(&self) -> usize {
        self.process_ends();
        lock(&self.0.state).count()
    }

    /// A number that increases when an override changes, so that a displayed list can be reloaded.
    /// Each process has its own.
    pub(crate) fn revision(&self) -> u64 {
        self.process_ends();
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

    fn new(state: &LimitsState, key: &KeyName, entry: Override) -> Self {
        let is_set = state.has_at_run_time(&key.key());
        let configured = is_set.then(|| state.base_override(&key.key())).flatten();
        Self {
            entry,
            is_set,
            configured: configured.map(|entry| Override::clone(&entry)),
        }
    }
}
