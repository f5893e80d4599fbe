//! Checks by which a tool rejects changes that would have no effect.

use std::sync::Arc;

use super::shared_limiters::{Shared, SharedLimiters};
use crate::key::{KeyName, Secret};
use crate::limit::Limit;
use crate::policy::{NamedQuota, Policy};

impl SharedLimiters {
    /// The names of limits that an override can have parts for, including limits that count in a service's memory.
    #[must_use]
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Whether a service checks requests against the [allow and deny lists](crate::access) of these limits. Without
    /// one, an override of a network has no effect.
    #[must_use]
    pub fn has_lists(&self) -> bool {
        self.has_lists
    }

    /// Whether an override of a key can have an effect: false for a network when no service [has
    /// lists](Self::has_lists), because no request is charged to a network.
    #[must_use]
    pub fn reaches(&self, key: &KeyName) -> bool {
        self.has_lists || key.key().uncharged_network().is_none()
    }

    /// Whether no service has described a limit in the last day: none runs, or it has another prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
            && self.limiters.is_empty()
            && self.tiers.is_empty()
            && !self.has_lists
    }

    /// Whether the [secret](crate::Secret) of this process is that of a service. `None` when no service has one.
    #[must_use]
    pub fn has_their_secret(&self) -> Option<bool> {
        let check = || Secret::check_value();
        (!self.checks.is_empty()).then(|| self.checks.contains(&check()))
    }

    /// The number of overrides that services keep although the store has [lost](crate::Limits::lost) them: the maximum
    /// over all services. While it is not 0, services apply overrides that are not in the store. It is up to date
    /// within a second of the loss, and until 3 minutes after the last such service ended.
    #[must_use]
    pub fn lost_overrides(&self) -> u64 {
        self.lost
    }

    /// Whether an override has an effect: false when no service has a limit for any part of it, for example `5
    /// concurrent` without a concurrency limit, or `10/min` when each policy has several quotas.
    #[must_use]
    pub fn applies(&self, limit: &Limit) -> bool {
        let described: Vec<_> = self.limiters.iter().flat_map(Shared::names).collect();
        // Limits that count in memory, of which only the names are known.
        let is_other = |name: &str| {
            let is_known = self.names.iter().any(|known| **known == *name);
            is_known && !described.contains(&name)
        };
        let is_for_others = match limit.names().next() {
            Some(_) => limit.names().any(is_other),
            None => self.names.iter().any(|name| is_other(name)),
        };
        limit.tier().is_some()
            || self.has_lists && limit.blanket_capacity().is_some()
            || is_for_others
            || self.limiters.iter().any(|limiter| limiter.applies(limit))
    }
}

impl Shared {
    fn names(&self) -> Vec<&str> {
        match self {
            Self::Rate { policies, .. } => {
                let quotas = policies.iter().flat_map(Policy::quotas);
                quotas.map(NamedQuota::name).collect()
            }
            Self::Slots { described, .. } => vec![&described.name],
        }
    }

    fn applies(&self, limit: &Limit) -> bool {
        match self {
            Self::Rate { policies, .. } => {
                policies.iter().any(|policy| policy.is_changed_by(limit))
            }
            Self::Slots { described, .. } => limit.concurrency(&described.name).is_some(),
        }
    }
}
