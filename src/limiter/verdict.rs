//! What a decision means: the quota and the key that decided, and the rejection.

use std::sync::Arc;

use super::rate::RateLimiter;
use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::policy::Policy;
use crate::rejection::{Reason, Rejection};

impl RateLimiter {
    /// The name of the quota that binds in a decision that admits; empty where none does.
    pub(crate) fn binding(&self, decision: &Decision) -> &str {
        let name = decision
            .least()
            .and_then(|least| self.names().nth(least.index()));
        name.unwrap_or("")
    }

    /// The key whose quota decides, of those that a decision is about: the first that rejects, or
    /// the one with the least left.
    ///
    /// # Panics
    ///
    /// When there are no keys.
    pub(crate) fn deciding_key<'a>(&self, keys: &'a [Key], decision: &Decision) -> &'a Key {
        let mut usages = decision.usages().iter();
        let usage = match decision.is_admitted() {
            true => decision.least(),
            false => usages.find(|usage| !usage.fits()),
        };
        // A store that cannot be reached has no numbers.
        let policy = usage.and_then(|usage| self.policy_of(usage));
        policy.and_then(|at| keys.get(at)).unwrap_or(&keys[0])
    }

    /// The place of the policy whose quota a usage is of.
    pub(crate) fn policy_of(&self, usage: &Usage) -> Option<usize> {
        let mut quotas = 0;
        self.policies().iter().position(|policy| {
            quotas += policy.quotas().len();
            usage.index() < quotas
        })
    }

    /// All keys whose quotas reject, of those that a decision is about.
    pub(crate) fn rejecting_keys<'a>(
        &'a self,
        keys: &'a [Key],
        decision: &'a Decision,
    ) -> impl Iterator<Item = &'a Key> {
        let rejecting = decision.usages().iter().filter(|usage| !usage.fits());
        rejecting.filter_map(|usage| keys.get(self.policy_of(usage)?))
    }

    /// What a decision that rejects means, for a limiter of this name.
    pub(crate) fn rejection(&self, name: &str, decision: Decision) -> Rejection {
        let reason = decision.rejection_reason();
        let reason = reason.unwrap_or(Reason::QuotaExceeded);
        self.rejection_for(reason, name, decision)
    }

    /// As [`rejection`](Self::rejection), for a reason that the caller knows.
    pub(crate) fn rejection_for(
        &self,
        reason: Reason,
        name: &str,
        decision: Decision,
    ) -> Rejection {
        let violated = self.named(&decision).filter(|(_, usage)| !usage.fits());
        let violated = violated.map(|(name, _)| name).collect();
        Rejection::new(reason, name.to_owned()).with_decision(decision, violated)
    }

    /// Each usage of a decision, with the name of its quota.
    fn named<'a>(&'a self, decision: &'a Decision) -> impl Iterator<Item = (Arc<str>, &'a Usage)> {
        let quotas = || self.policies().iter().flat_map(Policy::quotas);
        let usages = decision.usages().iter();
        usages.filter_map(move |usage| Some((quotas().nth(usage.index())?.shared_name(), usage)))
    }
}
