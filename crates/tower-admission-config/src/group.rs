//! The layers of one group.

use std::iter;
use std::time::Duration;

use tower_admission::concurrency::ConcurrencyLimitLayer;
use tower_admission::extract::{RequestHead, Shared};
use tower_admission::provider::{
    ConcurrencyLayerInternals, ConcurrencyLimiterInternals, LimitsInternals, RateLayerInternals,
    RateLimiterInternals,
};
use tower_admission::rate::RateLimitLayer;
use tower_admission::store::MemoryStore;
use tower_admission::{
    Capacity, ConcurrencyLimiter, Limits, Policy, Quota, RateLimiter, Rejection,
};

use super::ambiguous::Selectors;
use super::builder::AppHooks;
use super::error::ConfigError;
use super::keys::GroupKey;
use super::leases::CANNOT_CHANGE;
use super::model::{Config, Group, OnFailure};
use super::path::Prefix;
use super::policies::Policies;
use super::retired::RetiredLimiters;
use super::status_filter::StatusFilter;
use super::stores::Stores;
use super::strictness::Strictness;
use super::text::{OrOff, TimeSpan};

/// A group at work.
#[derive(Clone)]
pub(super) struct RunningGroup {
    pub(super) name: String,
    pub(super) selectors: Selectors,
    pub(super) strictness: Strictness,
    /// The limiter of its own rates, which `rate` may join with those of other groups.
    pub(super) limiter: RateLimiter,
    pub(super) on_failure: OnFailure,
    pub(super) concurrency: ConcurrencyLimitLayer,
    pub(super) rate: RateLimitLayer<GroupKey>,
    bad_credentials: Option<RateLimiter>,
    #[cfg(feature = "axum")]
    pub(super) explained: Vec<super::explain::ExplainedGroup>,
}

/// What a changed group does with limits that go on, once all groups are known to be right.
pub(super) struct GroupUpdate {
    policies: Vec<Policy>,
    bad_credentials: Option<Policy>,
    concurrency: Capacity,
    concurrency_per_key: [Capacity; 2],
    reclaim_after: Option<Duration>,
    resumes: (bool, bool),
    is_on: bool,
}

impl Group {
    pub(super) fn name<'a>(&'a self, group: &'a str) -> &'a str {
        self.name.as_deref().unwrap_or(group)
    }

    /// Whether it selects requests, and is not only known by its name.
    pub(super) fn has_selectors(&self) -> bool {
        !self.path.is_empty()
            || !self.methods.is_empty()
            || !self.hosts.is_empty()
            || !self.grpc.is_empty()
    }

    /// How many each key may have in flight, and each address; 0 for any number.
    pub(super) fn concurrency_per_key(&self) -> [usize; 2] {
        [self.concurrency_per_key, self.concurrency_per_ip]
    }

    /// When a response that its client does not read loses its permit.
    fn reclaim_after(&self) -> Option<Duration> {
        let default = OrOff(Some(TimeSpan(ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER)));
        self.reclaim_after
            .unwrap_or(default)
            .0
            .map(|TimeSpan(after)| after)
    }
}

impl RunningGroup {
    /// Passes everything on.
    pub(super) fn off() -> Self {
        let rate = RateLimitLayer::by(GroupKey::new(Shared), Quota::off());
        Self {
            name: String::new(),
            selectors: Selectors::default(),
            strictness: Strictness::default(),
            limiter: rate.limiter(),
            on_failure: OnFailure::default(),
            concurrency: ConcurrencyLimitLayer::new(0),
            rate,
            bad_credentials: None,
            #[cfg(feature = "axum")]
            explained: Vec::new(),
        }
    }

    /// Whether a group's layers can be made. Nothing of what is running changes.
    pub(super) fn check(
        config: &Config,
        group: &str,
        hooks: &AppHooks,
        before: Option<&Self>,
    ) -> Result<(), ConfigError> {
        let settings = &config.groups[group];
        let at = |field: &str, problem: &str| {
            Err(ConfigError::at(format!("groups.{group}.{field}"), problem))
        };
        let on_failure = config.on_failure(settings.on_failure);
        if before.is_some_and(|before| before.on_failure != on_failure) {
            return at("on_failure", CANNOT_CHANGE);
        }
        if let Err(problem) = config.clients.key(&settings.key, &hooks.keys) {
            return at("key", &problem);
        }
        if let Err(problem) = hooks.costs.of(settings.cost.as_ref()) {
            return at("cost", &problem);
        }
        if !settings.tiers.is_empty() && hooks.tier_by.is_none() {
            let problem = "this program selects no tiers (AdmissionBuilder::tier_by): remove them";
            return at("tiers", problem);
        }
        Ok(())
    }

    /// A group's layers; what goes on of those `before`, and of what is kept, is changed by
    /// [`apply`](Self::apply).
    pub(super) fn new(
        config: &Config,
        group: &str,
        stores: &Stores,
        limits: &Limits,
        hooks: &AppHooks,
        before: Option<&Self>,
        retired: &mut RetiredLimiters,
    ) -> Result<(Self, GroupUpdate), ConfigError> {
        let settings = &config.groups[group];
        let name = settings.name(group);
        let policies = settings.policies(group)?;
        let on_failure = config.on_failure(settings.on_failure);
        let key = config.clients.key(&settings.key, &hooks.keys);
        let key = key.map_err(|error| ConfigError::at(format!("groups.{group}.key"), error))?;

        let resumed = retired.take(&policies.list(), on_failure);
        let rate_resumes = resumed.is_some();
        let rate = rate(config, settings, &key, &policies, stores, limits, resumed);
        let skip = |head: RequestHead<'_>, exclude: &[Prefix]| {
            exclude.iter().any(|path| path.excludes(head.uri.path()))
        };
        let exclude = settings.exclude.clone();
        let mut rate = rate
            .name(name)
            .headers(settings.headers.into())
            .retry_after_ms(settings.retry_after_ms)
            .dry_run(settings.dry_run);
        if let Some(percent) = settings.enforce {
            rate = rate.enforce(percent);
        }
        if !settings.count.is_empty() {
            let count = settings.count.clone();
            rate = rate
                .count_if(move |response| StatusFilter::contain(&count, response.status.as_u16()));
        }
        let (concurrency, concurrency_resumes) =
            concurrency(config, settings, key, name, stores, limits, before);
        let mut concurrency = concurrency
            .retry_after_ms(settings.retry_after_ms)
            .dry_run(settings.dry_run);
        if let Some(percent) = settings.enforce {
            concurrency = concurrency.enforce(percent);
        }
        if !exclude.is_empty() {
            let excluded = exclude.clone();
            rate = rate.skip(move |head| skip(head, &excluded));
            concurrency = concurrency.skip(move |head| skip(head, &exclude));
        }
        let cost = hooks.costs.of(settings.cost.as_ref());
        let cost = cost.map_err(|error| ConfigError::at(format!("groups.{group}.cost"), error))?;
        if let Some(cost) = cost {
            rate = rate.cost(move |head| cost(head));
        }
        if let Some(responder) = &hooks.responder {
            let (of_rates, of_permits) = (responder.clone(), responder.clone());
            rate = rate.respond(move |rejection: &Rejection, head: RequestHead<'_>| {
                of_rates.respond(rejection, head)
            });
            concurrency =
                concurrency.respond(move |rejection: &Rejection, head: RequestHead<'_>| {
                    of_permits.respond(rejection, head)
                });
        }
        let quota = settings
            .bad_credentials_per_ip
            .filter(|quota| !quota.is_off());
        let quota = quota.map(|quota| Policy::new("guard", quota));
        let bad_credentials = quota.clone().map(|quota| bad_credentials(quota, before));
        if let Some(limiter) = &bad_credentials {
            rate = rate.guard_resumed(config.clients.ip(), limiter.clone());
        }
        let mut also = config.also(group)?.into_iter();
        let has_tiers = !settings.tiers.is_empty();
        let has_tiers_also = also.any(|other| !config.groups[other].tiers.is_empty());
        if let Some(tier_by) = &hooks.tier_by {
            // Another group may have this tier, so it is not logged here.
            let (of_rates, of_limits) = (tier_by.clone(), limits.clone());
            rate = rate.tier_by(move |head| {
                let has_tiers = has_tiers || has_tiers_also;
                of_rates(head).filter(|tier| has_tiers || of_limits.declares_tier(tier))
            });
            let (of_keys, of_limits) = (tier_by.clone(), limits.clone());
            concurrency = concurrency
                .tier_by(move |head| of_keys(head).filter(|tier| of_limits.declares_tier(tier)));
        }
        rate = rate.client_ip(config.clients.ip());
        concurrency = concurrency.client_ip(config.clients.ip());
        for observer in &hooks.observers {
            rate = rate.observe(observer.clone());
            concurrency = concurrency.observe(observer.clone());
        }
        let update = GroupUpdate {
            policies: policies.list(),
            bad_credentials: quota,
            concurrency: Capacity::or_off(settings.concurrency),
            concurrency_per_key: settings.concurrency_per_key().map(Capacity::or_off),
            reclaim_after: settings.reclaim_after(),
            resumes: (rate_resumes, concurrency_resumes),
            is_on: config.is_enabled(settings.enabled),
        };
        let running = Self {
            name: name.to_owned(),
            selectors: Selectors::of(settings),
            strictness: settings.strictness(&policies),
            limiter: rate.limiter(),
            on_failure,
            concurrency,
            rate,
            #[cfg(feature = "axum")]
            explained: vec![super::explain::ExplainedGroup::new(
                name,
                settings,
                &policies,
                bad_credentials.as_ref(),
            )],
            bad_credentials,
        };
        Ok((running, update))
    }

    /// This group, whose requests are under the limits of others as well.
    pub(super) fn joined(&self, group: &str, also: &[&Self]) -> Result<Self, ConfigError> {
        let mut joined = self.clone();
        if also.is_empty() {
            return Ok(joined);
        }
        let rates: Vec<_> = also.iter().map(|other| other.rate.clone()).collect();
        joined.rate = joined.rate.joined(&rates).ok_or_else(|| {
            let problem = "the rates of these groups count in different stores";
            ConfigError::at(format!("groups.{group}.also"), problem)
        })?;
        let permits: Vec<_> = also.iter().map(|other| other.concurrency.clone()).collect();
        joined.concurrency = joined.concurrency.joined(&permits);
        for other in also {
            joined.strictness = joined.strictness.or(other.strictness);
            #[cfg(feature = "axum")]
            joined.explained.extend(other.explained.iter().cloned());
        }
        Ok(joined)
    }

    pub(super) fn apply(&self, update: GroupUpdate) {
        if update.resumes.0 {
            set_policies(&self.limiter, update.policies);
        }
        if let (Some(limiter), Some(quota)) = (&self.bad_credentials, update.bad_credentials) {
            set_policies(limiter, vec![quota]);
        }
        let limiter = self.concurrency.limiter();
        self.rate.notify_attached();
        // The layers are applied to each request anew, and the first one may be nested already.
        self.limiter.expect_nested_services();
        self.rate.limiter().expect_nested_services();
        limiter.expect_nested_services();
        limiter.set_reclaim_after(update.reclaim_after);
        limiter.set_suspended(!update.is_on);
        if update.resumes.1 {
            limiter.set_limit(update.concurrency);
            for (place, limit) in update.concurrency_per_key.into_iter().enumerate() {
                limiter.set_limit_per_key(place, limit);
            }
        }
    }
}

/// Changes a limiter to policies of which it was asked before whether it takes them.
fn set_policies(limiter: &RateLimiter, policies: Vec<Policy>) {
    if limiter.current_policies() != policies {
        let _ = limiter.set_policies(policies);
    }
}

/// The limiter of rejected credentials: the one from before, if it can go on, since a reload must not
/// forget them.
fn bad_credentials(quota: Policy, before: Option<&RunningGroup>) -> RateLimiter {
    let before = before.and_then(|before| before.bad_credentials.as_ref());
    let quotas = [quota];
    match before.filter(|limiter| limiter.accepts_policies(&quotas)) {
        Some(limiter) => limiter.clone(),
        None => {
            let [quota] = quotas;
            RateLimiter::with_limits(quota, &MemoryStore::new(), &Limits::new())
        }
    }
}

/// The rate layer, which may go on with a limit that was there before.
fn rate(
    config: &Config,
    settings: &Group,
    key: &GroupKey,
    policies: &Policies,
    stores: &Stores,
    limits: &Limits,
    resumed: Option<RateLimiter>,
) -> RateLimitLayer<GroupKey> {
    let ip = || GroupKey::new(config.clients.ip());
    // What is charged is opened once, where it is to be counted; `open` says with what.
    let layer = |open: &dyn Fn(RateLimitLayer<GroupKey>) -> RateLimitLayer<GroupKey>| match (
        policies.by_key.clone(),
        policies.by_ip.clone(),
    ) {
        (None, None) => RateLimitLayer::by(key.clone(), Quota::off()),
        (Some(by_key), None) => open(RateLimitLayer::by(key.clone(), by_key)),
        (None, Some(by_ip)) => open(RateLimitLayer::by(ip(), by_ip)),
        (Some(by_key), Some(by_ip)) => {
            open(RateLimitLayer::by(key.clone(), by_key).and_by(ip(), by_ip))
        }
    };
    if let Some(limiter) = resumed {
        return layer(&|layer| layer.resumed(limiter.clone()));
    }
    layer(&|layer| stores.rate(settings.on_failure, layer).limits(limits))
}

/// The concurrency layer, and whether it goes on with the limit that was there before.
fn concurrency(
    config: &Config,
    settings: &Group,
    key: GroupKey,
    name: &str,
    stores: &Stores,
    limits: &Limits,
    before: Option<&RunningGroup>,
) -> (ConcurrencyLimitLayer, bool) {
    let ip = GroupKey::new(config.clients.ip());
    let [per_key, per_ip] = settings.concurrency_per_key();
    let limiter = before.map(|before| before.concurrency.limiter());
    let limiter = limiter.unwrap_or_else(|| {
        let layer = ConcurrencyLimitLayer::new(settings.concurrency)
            .name(name)
            .per_key(key.clone(), per_key)
            .per_key(ip.clone(), per_ip);
        let layer = stores.concurrency(settings.on_failure, layer);
        layer.limits(limits).limiter()
    });
    // Addresses are charged only while they are limited: what is off costs nothing.
    let keys = iter::once(key).chain((per_ip > 0).then_some(ip));
    let layer = ConcurrencyLimitLayer::resumed(limiter, keys);
    (layer, before.is_some())
}
