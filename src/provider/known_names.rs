//! Names of limits that no limiter has at the moment.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;

use crate::key::Key;
use crate::limit::Limit;
use crate::limits::{BoxFuture, LimitExplanation, LimitTarget, LimitUsage};

/// Names of limits and tiers that are switched off. Operators can set and import overrides that use them.
#[derive(Debug)]
pub struct KnownNames {
    limits: BTreeSet<Arc<str>>,
    tiers: BTreeSet<Arc<str>>,
}

impl KnownNames {
    /// The names of these limits and tiers.
    pub fn new<'a>(
        limits: impl IntoIterator<Item = &'a str>,
        tiers: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self {
            limits: limits.into_iter().map(Arc::from).collect(),
            tiers: tiers.into_iter().map(Arc::from).collect(),
        }
    }
}

impl LimitTarget for KnownNames {
    fn tiers(&self) -> Vec<Arc<str>> {
        self.tiers.iter().cloned().collect()
    }

    fn usage(&self, _: Key) -> BoxFuture<Vec<LimitUsage>> {
        Box::pin(ready(Vec::new()))
    }

    fn explain(&self, _: Key, _: Option<Arc<str>>) -> BoxFuture<Vec<LimitExplanation>> {
        Box::pin(ready(Vec::new()))
    }

    fn total(&self) -> BoxFuture<Option<LimitUsage>> {
        Box::pin(ready(None))
    }

    fn names(&self) -> Vec<Arc<str>> {
        self.limits.iter().cloned().collect()
    }

    /// The override applies once the limits are switched on.
    fn applies(&self, limit: &Limit) -> bool {
        limit.names().all(|name| self.limits.contains(name))
    }
}
