//! The layers of one group.

use std::sync::Arc;

use super::admission::Stores;
use super::error::ConfigError;
use super::model::{Clients, Config, ForwardedHeader, Group, KeySource, OnFailure};
use super::text::Prefix;
use crate::concurrency::ConcurrencyLimitLayer;
use crate::extract::{
    ApiKey, BearerToken, ByToken, ClientIp, ForwardingHeader, KeyExtractor, RequestHead, Shared,
};
use crate::key::Key;
use crate::limits::Limits;
use crate::observe::Observer;
use crate::policy::Policy;
use crate::quota::Quota;
use crate::rate::RateLimitLayer;

/// A group at work.
#[derive(Clone)]
pub(super) struct Stack {
    pub(super) paths: Vec<Prefix>,
    name: String,
    on_failure: Option<OnFailure>,
    pub(super) concurrency: ConcurrencyLimitLayer,
    pub(super) rate: RateLimitLayer<GroupKey>,
}

/// What a changed group does with limits that go on, once all groups are known to be right.
pub(super) struct Change {
    policies: Vec<Policy>,
    concurrency: usize,
    concurrency_per_key: usize,
    resumes: (bool, bool),
}

/// Who is charged, as configured.
#[derive(Clone)]
pub(super) struct GroupKey(Arc<dyn KeyExtractor>);

impl KeyExtractor for GroupKey {
    fn extract(&self, head: RequestHead<'_>) -> Option<Key> {
        self.0.extract(head)
    }

    fn makes_fingerprints(&self) -> bool {
        self.0.makes_fingerprints()
    }
}

impl Clients {
    fn ip(&self) -> ClientIp {
        let ip = if self.trusted_proxies.is_empty() {
            ClientIp::peer()
        } else {
            ClientIp::forwarded_by(self.trusted_proxies.iter().copied()).header(
                match self.forwarded_header {
                    ForwardedHeader::XForwardedFor => ForwardingHeader::XForwardedFor,
                    ForwardedHeader::Forwarded => ForwardingHeader::Forwarded,
                },
            )
        };
        ip.v6_prefix(self.ipv6_prefix.unwrap_or(ClientIp::DEFAULT_V6_PREFIX))
    }

    fn key(&self, source: KeySource) -> GroupKey {
        let ip = self.ip();
        GroupKey(match source {
            KeySource::Token => Arc::new(ByToken::default().client_ip(ip)),
            KeySource::Bearer => Arc::new(BearerToken.or(ip)),
            KeySource::ApiKey => Arc::new(ApiKey::default().or(ip)),
            KeySource::Ip => Arc::new(ip),
            KeySource::Shared => Arc::new(Shared),
        })
    }
}

impl Group {
    pub(super) fn name<'a>(&'a self, group: &'a str) -> &'a str {
        self.name.as_deref().unwrap_or(group)
    }

    /// What quotas are called that are not called as the group is, each with its field.
    pub(super) fn names_in<'a>(
        &'a self,
        group: &'a str,
    ) -> impl Iterator<Item = (String, String)> + 'a {
        let name = self.name(group);
        let rates = self.rates.keys();
        let rates = rates.map(move |rate| (format!("rates.{rate}"), format!("{name}.{rate}")));
        let by_ip = self.rate_per_ip.iter();
        rates.chain(by_ip.map(move |_| ("rate_per_ip".to_owned(), format!("{name}.ip"))))
    }

    /// What each key and each address is charged, without what is off.
    pub(super) fn policies(&self, group: &str) -> Result<Policies, ConfigError> {
        let at = |field: &str| format!("groups.{group}.{field}");
        let name = self.name(group);
        let named = |field: &str, name: &str, quota| {
            Policy::try_new(name, quota).map_err(|error| ConfigError::at(at(field), error))
        };
        if self.rate.is_some() && !self.rates.is_empty() {
            return Err(ConfigError::at(at("rate"), "give either `rate` or `rates`"));
        }
        let mut by_key = self
            .rate
            .map(|rate| named("rate", name, rate))
            .transpose()?;
        for (rate, quota) in &self.rates {
            let (field, name) = (format!("rates.{rate}"), format!("{name}.{rate}"));
            by_key = Some(match by_key {
                None => named(&field, &name, *quota)?,
                Some(policy) => policy
                    .try_and(&name, *quota)
                    .map_err(|error| ConfigError::at(at(&field), error))?,
            });
        }
        let by_ip = self.rate_per_ip;
        let by_ip = by_ip.map(|quota| named("rate_per_ip", &format!("{name}.ip"), quota));
        let limiting = |policy: Policy| {
            let policy = policy.limiting();
            (!policy.quotas().is_empty()).then_some(policy)
        };
        Ok(Policies {
            by_key: by_key.and_then(limiting),
            by_ip: by_ip.transpose()?.and_then(limiting),
        })
    }
}

/// What each key and each address is charged.
pub(super) struct Policies {
    by_key: Option<Policy>,
    by_ip: Option<Policy>,
}

impl Policies {
    fn list(&self) -> Vec<Policy> {
        self.by_key.iter().chain(&self.by_ip).cloned().collect()
    }
}

impl Stack {
    /// Passes everything on.
    pub(super) fn off() -> Self {
        Self {
            paths: Vec::new(),
            name: String::new(),
            on_failure: None,
            concurrency: ConcurrencyLimitLayer::new(0),
            rate: RateLimitLayer::by(GroupKey(Arc::new(Shared)), Quota::off()),
        }
    }

    /// A group's layers; what goes on of those `before` is changed by [`apply`](Self::apply).
    pub(super) fn new(
        config: &Config,
        group: &str,
        stores: &Stores,
        limits: &Limits,
        observers: &[Arc<dyn Observer>],
        before: Option<&Self>,
    ) -> Result<(Self, Change), ConfigError> {
        let settings = &config.groups[group];
        let name = settings.name(group);
        let policies = settings.policies(group)?;
        let before = before.filter(|before| before.name == name);
        if before.is_some_and(|before| before.on_failure != settings.on_failure) {
            let field = format!("groups.{group}.on_failure");
            let problem = "this cannot be changed while the service runs: restart it";
            return Err(ConfigError::at(field, problem));
        }

        let (rate, rate_resumes) = rate(config, settings, &policies, stores, limits, before);
        let skip = |head: RequestHead<'_>, exclude: &[Prefix]| {
            exclude.iter().any(|path| path.covers(head.uri.path()))
        };
        let exclude = settings.exclude.clone();
        let mut rate = rate
            .name(name)
            .headers(settings.headers.into())
            .dry_run(settings.dry_run);
        let (concurrency, concurrency_resumes) =
            concurrency(config, settings, name, stores, limits, before);
        let mut concurrency = concurrency;
        if !exclude.is_empty() {
            let excluded = exclude.clone();
            rate = rate.skip(move |head| skip(head, &excluded));
            concurrency = concurrency.skip(move |head| skip(head, &exclude));
        }
        if let Some(quota) = settings.failed_logins {
            rate = rate.guard_by(config.clients.ip(), quota);
        }
        for observer in observers {
            rate = rate.observe(observer.clone());
            concurrency = concurrency.observe(observer.clone());
        }
        let change = Change {
            policies: policies.list(),
            concurrency: settings.concurrency,
            concurrency_per_key: settings.concurrency_per_key,
            resumes: (rate_resumes, concurrency_resumes),
        };
        let stack = Self {
            paths: settings.path.clone(),
            name: name.to_owned(),
            on_failure: settings.on_failure,
            concurrency,
            rate,
        };
        Ok((stack, change))
    }

    pub(super) fn apply(&self, change: Change) {
        if change.resumes.0 {
            // It was asked before whether it takes them.
            let _ = self.rate.limiter().set_policies(change.policies);
        }
        if change.resumes.1 {
            let limiter = self.concurrency.limiter();
            limiter.set_limit(change.concurrency);
            limiter.set_limit_per_key(change.concurrency_per_key);
        }
    }
}

/// The rate layer, and whether it goes on with the limit that was there before.
fn rate(
    config: &Config,
    settings: &Group,
    policies: &Policies,
    stores: &Stores,
    limits: &Limits,
    before: Option<&Stack>,
) -> (RateLimitLayer<GroupKey>, bool) {
    let key = config.clients.key(settings.key);
    let ip = || GroupKey(Arc::new(config.clients.ip()));
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
    let limiter = before.map(|before| before.rate.limiter());
    if let Some(limiter) = limiter.filter(|limiter| limiter.takes_policies(&policies.list())) {
        return (layer(&|layer| layer.resumed(limiter.clone())), true);
    }
    let open =
        |layer: RateLimitLayer<GroupKey>| stores.rate(settings.on_failure, layer).limits(limits);
    (layer(&open), false)
}

/// The concurrency layer, and whether it goes on with the limit that was there before.
fn concurrency(
    config: &Config,
    settings: &Group,
    name: &str,
    stores: &Stores,
    limits: &Limits,
    before: Option<&Stack>,
) -> (ConcurrencyLimitLayer, bool) {
    let key = config.clients.key(settings.key);
    if let Some(before) = before {
        let limiter = before.concurrency.limiter();
        return (ConcurrencyLimitLayer::resumed(limiter, key), true);
    }
    let layer = ConcurrencyLimitLayer::new(settings.concurrency)
        .name(name)
        .per_key(key, settings.concurrency_per_key);
    let layer = stores.concurrency(settings.on_failure, layer);
    (layer.limits(limits), false)
}
