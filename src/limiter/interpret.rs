//! Interprets a decision: the quota and key that decided, and the rejection.

use std::sync::Arc;

use super::rate::RateLimiter;
use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::policy::Policy;
use crate::rejection::{Reason, Rejection};

impl RateLimiter {
    /// The name of the quota that determined an admission; empty if none did.
    pub(crate) fn binding_quota(&self, decision: &Decision) -> &str {
        let name = decision
            .least()
            .and_then(|least| self.quota_names().nth(least.index()));
        name.unwrap_or("")
    }

    /// The key that determined a decision: that of the first quota that rejects, or of the one with
    /// the least remaining.
    ///
    /// # Panics
    ///
    /// Panics if there are no keys.
    pub(crate) fn deciding_key<'a>(&self, keys: &'a [Key], decision: &Decision) -> &'a Key {
        let mut usages = decision.usages().iter();
        let usage = match decision.is_admitted() {
            true => decision.least(),
            false => usages.find(|usage| !usage.fits()),
        };
        // An unavailable store reports no usage.
        let policy = usage.and_then(|usage| self.policy_index(usage));
        policy.and_then(|at| keys.get(at)).unwrap_or(&keys[0])
    }

    /// The index of the policy that a usage belongs to.
    pub(crate) fn policy_index(&self, usage: &Usage) -> Option<usize> {
        let mut quotas = 0;
        self.policies().iter().position(|policy| {
            quotas += policy.quotas().len();
            usage.index() < quotas
        })
    }

    /// The keys whose quotas reject.
    pub(crate) fn rejecting_keys<'a>(
        &'a self,
        keys: &'a [Key],
        decision: &'a Decision,
    ) -> impl Iterator<Item = &'a Key> {
        let rejecting = decision.usages().iter().filter(|usage| !usage.fits());
        rejecting.filter_map(|usage| keys.get(self.policy_index(usage)?))
    }

    /// The rejection for a decision, from a limiter of this name.
    pub(crate) fn rejection(&self, name: &str, decision: Decision) -> Rejection {
        let reason = decision.rejection_reason();
        let reason = reason.unwrap_or(Reason::QuotaExceeded);
        self.rejection_for(reason, name, decision)
    }

    /// Like [`rejection`](Self::rejection), with a given reason.
    pub(crate) fn rejection_for(
        &self,
        reason: Reason,
        name: &str,
        decision: Decision,
    ) -> Rejection {
        let violated = self
            .named_usages(&decision)
            .filter(|(_, usage)| !usage.fits());
        let violated = violated.map(|(name, _)| name).collect();
        Rejection::new(reason, name.to_owned()).with_decision(decision, violated)
    }

    /// Pairs each usage of a decision with the name of its quota.
    fn named_usages<'a>(
        &'a self,
        decision: &'a Decision,
    ) -> impl Iterator<Item = (Arc<str>, &'a Usage)> {
        let quotas = || self.policies().iter().flat_map(Policy::quotas);
        let usages = decision.usages().iter();
        usages.filter_map(move |usage| Some((quotas().nth(usage.index())?.shared_name(), usage)))
    }
}
