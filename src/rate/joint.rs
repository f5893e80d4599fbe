//! Layers of several limits as one: a request is decided by all of them at once.

use std::sync::Arc;

use http::Request;

use super::layer::RateLimitLayer;
use super::shared::{Asked, CountIf, Rejected, Settings, Shared, Skip};
use crate::decision::{Decision, Usage};
use crate::enforce::Enforcement;
use crate::extract::KeyExtractor;
use crate::extract::{RequestHead, ResponseHead};
use crate::key::Key;
use crate::limiter::LimiterSet;
use crate::limiter::RateLimiter;
use crate::store::Reply;

/// One of the limits that are decided as one.
#[derive(Clone)]
pub(super) struct Part {
    name: Arc<str>,
    pub(super) enforce: Enforcement,
    skip: Option<Skip>,
    count_if: Option<CountIf>,
    /// How many policies it has, each with a key.
    policies: usize,
}

/// What becomes of a rejection by several limits.
pub(super) enum Joint {
    Enforced(Rejected),
    /// Some of those that reject are not enforced: decide again without them.
    Without(LimiterSet),
}

impl<K: KeyExtractor> RateLimitLayer<K> {
    /// This layer, whose requests are decided by the limits of `others` as well: each fits all, or takes
    /// nothing from any. How responses report limits and what a request costs are those of this layer;
    /// each limit keeps its name, how far it is enforced, what it skips and what it counts. What this layer skips
    /// passes all.
    ///
    /// `None`: they count in different stores, or in one that cannot.
    pub(crate) fn joined(self, others: &[Self]) -> Option<Self> {
        let all = std::iter::once(&self).chain(others);
        let all: Vec<_> = all.map(|layer| (layer, layer.limiter())).collect();
        let on = || all.iter().filter(|(_, limiter)| !limiter.is_off());
        let limiters: Vec<_> = on().map(|(_, limiter)| limiter.clone()).collect();
        let parts = on().map(|(layer, limiter)| {
            let settings = layer.settings();
            // What this layer skips is passed on before.
            let is_override = std::ptr::eq(*layer, &self);
            Part {
                name: settings.name.clone(),
                enforce: settings.enforce.clone(),
                skip: settings.skip.clone().filter(|_| !is_override),
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

impl Shared {
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

    /// The limit whose quota a usage is of, with its place.
    fn part_of(&self, usage: &Usage) -> Option<(usize, &Part)> {
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

    /// What becomes of a decision that rejects. Those of its limits that are not enforced are reported.
    #[cold]
    pub(super) fn joint<B>(
        &self,
        mut request: Option<&mut Request<B>>,
        keys: &[Key],
        decision: &Decision,
        excluded: LimiterSet,
    ) -> Joint {
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
            // A store that cannot be reached has no numbers: each limit is enforced for its own part of the keys.
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
            true => Joint::Enforced(self.rejected(keys, decision.clone())),
            false => Joint::Without(unenforced),
        }
    }

    /// Whether a request is under none of the limits any more.
    pub(super) fn has_left_out_all(&self, excluded: LimiterSet) -> bool {
        !self.parts.is_empty() && excluded.contains_all(self.parts.len())
    }

    /// Decides about a request by the limits that are not left out.
    pub(super) fn decide(&self, keys: &[Key], asked: &Asked) -> Reply<Decision> {
        if self.has_left_out_all(asked.excluded) {
            return Reply::Ready(Decision::unlimited());
        }
        let tier = asked.tier.as_deref();
        (self.limiter).decide_excluding(asked.excluded, tier, keys, asked.cost)
    }

    /// The numbers that clients are told: not those of a dry run.
    pub(super) fn told(&self, decision: &Decision) -> Option<Decision> {
        let is_dry = |part: &Part| part.enforce.is_dry_run();
        if !self.parts.iter().any(is_dry) {
            return None;
        }
        let is_told = |usage: &Usage| self.part_of(usage).is_none_or(|(_, part)| !is_dry(part));
        Some(decision.filtered(is_told))
    }
}
