//! Joint layers: several limits decide about a request at once.

use std::sync::Arc;

use http::Request;

use super::layer::RateLimitLayer;
use super::state::{CountIf, DecisionContext, LayerState, Rejected, Settings, Skip};
use crate::decision::{Decision, Usage};
use crate::enforce::Enforcement;
use crate::extract::KeyExtractor;
use crate::extract::{RequestHead, ResponseHead};
use crate::key::Key;
use crate::limiter::LimiterSet;
use crate::limiter::RateLimiter;
use crate::store::Reply;

/// One of the jointly decided limits.
#[derive(Clone)]
pub(super) struct JoinedLimit {
    name: Arc<str>,
    pub(super) enforce: Enforcement,
    skip: Option<Skip>,
    count_if: Option<CountIf>,
    /// The number of its policies, each with one key.
    policies: usize,
}

/// The outcome of a joint rejection.
pub(super) enum JointRejection {
    Enforced(Rejected),
    /// Some of the rejecting limits are not enforced: decide again without them.
    Without(LimiterSet),
}

impl<K: KeyExtractor> RateLimitLayer<K> {
    /// Joins the limits of `others` to this layer: a request must fit all of them, and otherwise is
    /// charged to none. The response fields and the cost are those of this layer. Each limit keeps
    /// its name, its enforced percentage, `skip` and `count_if`. A request that this layer skips is
    /// not limited by any.
    ///
    /// `None` if they count in different stores, or in a store that cannot decide jointly.
    pub(crate) fn joined(self, others: &[Self]) -> Option<Self> {
        let all = std::iter::once(&self).chain(others);
        let all: Vec<_> = all.map(|layer| (layer, layer.limiter())).collect();
        let on = || all.iter().filter(|(_, limiter)| !limiter.is_off());
        let limiters: Vec<_> = on().map(|(_, limiter)| limiter.clone()).collect();
        let parts = on().map(|(layer, limiter)| {
            let settings = layer.settings();
            // A request that this layer skips is passed on before.
            let is_self = std::ptr::eq(*layer, &self);
            JoinedLimit {
                name: settings.name.clone(),
                enforce: settings.enforce.clone(),
                skip: settings.skip.clone().filter(|_| !is_self),
                count_if: settings.count_if.clone(),
                policies: limiter.policies().len(),
            }
        });
        let parts: Vec<_> = parts.collect();
        let keys: Vec<_> = on()
            .flat_map(|(layer, _)| layer.settings().keys.clone())
            .collect();
        let guards = all
            .iter()
            .flat_map(|(layer, _)| layer.settings().owned_guards());
        let guards: Vec<_> = guards.collect();
        let joined = match &*limiters {
            [] => None,
            limiters => Some(RateLimiter::join(limiters)?),
        };
        let layer = match joined {
            None => self,
            Some(joined) => self.decided_by(joined).with(|settings| {
                settings.keys = keys;
                settings.parts = parts.into();
            }),
        };
        Some(layer.with(|settings| settings.guards = guards))
    }
}

impl Settings {
    /// Whether no rejection is enforced.
    pub(super) fn is_dry_run(&self) -> bool {
        match &*self.parts {
            [] => self.enforce.is_dry_run(),
            parts => parts.iter().all(|part| part.enforce.is_dry_run()),
        }
    }
}

impl Settings {
    /// Whether a response may lead to a refund.
    pub(super) fn refunds(&self) -> bool {
        match &*self.parts {
            [] => self.count_if.is_some(),
            parts => parts.iter().any(|part| part.count_if.is_some()),
        }
    }
}

impl LayerState {
    /// The limits that do not count a request with this response.
    pub(super) fn not_counting(&self, head: ResponseHead<'_>) -> LimiterSet {
        let mut not_counting = LimiterSet::NONE;
        for (place, part) in self.parts.iter().enumerate() {
            if part.count_if.as_ref().is_some_and(|counts| !counts(head)) {
                not_counting.add(place);
            }
        }
        not_counting
    }

    /// The limits that skip a request.
    pub(super) fn skipping(&self, head: RequestHead<'_>) -> LimiterSet {
        let mut skipping = LimiterSet::NONE;
        for (place, part) in self.parts.iter().enumerate() {
            if part.skip.as_ref().is_some_and(|skip| skip(head)) {
                skipping.add(place);
            }
        }
        skipping
    }

    /// The index and the limit to which the quota of a usage belongs.
    fn part_of(&self, usage: &Usage) -> Option<(usize, &JoinedLimit)> {
        let policy = self.limiter.policy_index(usage)?;
        let mut policies = 0;
        self.parts.iter().enumerate().find(|(_, part)| {
            policies += part.policies;
            policy < policies
        })
    }

    /// The name of the limit that rejects.
    pub(super) fn rejecting_name(&self, decision: &Decision) -> &str {
        let rejecting = decision.usages().iter().find(|usage| !usage.fits());
        let part = rejecting.and_then(|usage| self.part_of(usage));
        part.map_or(&*self.name, |(_, part)| &*part.name)
    }

    /// Resolves a rejection by several limits, and reports those that are not enforced.
    #[cold]
    pub(super) fn resolve_joint_rejection<B>(
        &self,
        mut request: Option<&mut Request<B>>,
        keys: &[Key],
        decision: &Decision,
        excluded: LimiterSet,
    ) -> JointRejection {
        let mut would_reject = |rejected: &Rejected| {
            let head = request.as_deref().map(RequestHead::from);
            self.would_reject(rejected, None, head);
            if let Some(request) = &mut request {
                self.mark(request);
            }
        };
        let (mut enforced, mut others) = (LimiterSet::NONE, LimiterSet::NONE);
        for usage in decision.usages().iter().filter(|usage| !usage.fits()) {
            let key = self.limiter.policy_index(usage).and_then(|at| keys.get(at));
            if let Some((place, part)) = self.part_of(usage)
                && !enforced.contains(place)
            {
                match part.enforce.is_enforced(key) {
                    true => enforced.add(place),
                    false => others.add(place),
                }
            }
        }
        if decision.usages().is_empty() {
            // An unavailable store reports no numbers: each limit enforces its own share of the
            // keys.
            let mut first = 0;
            for (place, part) in self.parts.iter().enumerate() {
                let key = keys.get(first);
                first += part.policies;
                if excluded.contains(place) {
                    continue;
                }
                match part.enforce.is_enforced(key) {
                    true => enforced.add(place),
                    false => others.add(place),
                }
            }
            if enforced.is_empty() {
                would_reject(&self.rejected(keys, decision.clone()));
            }
        }
        let mut unenforced = LimiterSet::NONE;
        for place in (0..self.parts.len()).filter(|place| others.contains(*place)) {
            if !enforced.contains(place) {
                unenforced.add(place);
                let is_of = |usage: &Usage| self.part_of(usage).is_some_and(|(at, _)| at == place);
                let own = decision.filtered(is_of);
                if !own.usages().is_empty() {
                    would_reject(&self.rejected(keys, own));
                }
            }
        }
        match unenforced.is_empty() {
            true => JointRejection::Enforced(self.rejected(keys, decision.clone())),
            false => JointRejection::Without(unenforced),
        }
    }

    /// Whether no limit applies to a request any more.
    pub(super) fn has_left_out_all(&self, excluded: LimiterSet) -> bool {
        !self.parts.is_empty() && excluded.contains_all(self.parts.len())
    }

    /// Decides about a request with the limits that are not left out.
    pub(super) fn decide(&self, keys: &[Key], context: &DecisionContext) -> Reply<Decision> {
        if self.has_left_out_all(context.excluded) {
            return Reply::Ready(Decision::unlimited());
        }
        let tier = context.tier.as_deref();
        (self.limiter).decide_excluding(context.excluded, tier, keys, context.cost)
    }

    /// The numbers to report to clients, without those of limits on a dry run. `None` if no limit is
    /// on one.
    pub(super) fn reportable(&self, decision: &Decision) -> Option<Decision> {
        let is_dry = |part: &JoinedLimit| part.enforce.is_dry_run();
        if !self.parts.iter().any(is_dry) {
            return None;
        }
        let is_reportable =
            |usage: &Usage| self.part_of(usage).is_none_or(|(_, part)| !is_dry(part));
        Some(decision.filtered(is_reportable))
    }
}
