//! What the rates of a group and its tiers charge.

use std::collections::BTreeMap;

use tower_admission::provider::{NAME_RULES, PolicyInternals, is_addressable};
use tower_admission::{Limit, NamedQuota, Policy, Quota};

use super::error::ConfigError;
use super::model::{Group, Tier};

/// What each key and each address is charged.
pub(super) struct Policies {
    pub(super) by_key: Option<Policy>,
    pub(super) by_ip: Option<Policy>,
}

impl Policies {
    pub(super) fn list(&self) -> Vec<Policy> {
        self.by_key.iter().chain(&self.by_ip).cloned().collect()
    }

    /// Whether any of them limits by default.
    pub(super) fn limit(&self) -> bool {
        let mut limiting = self.list().into_iter().map(Policy::without_off_quotas);
        limiting.any(|policy| !policy.quotas().is_empty())
    }
}

impl Group {
    /// What each key and each address is charged.
    pub(super) fn policies(&self, group: &str) -> Result<Policies, ConfigError> {
        let at = |field: &str| format!("groups.{group}.{field}");
        let name = self.name(group);
        let mut by_key = policy(name, &at(""), self.rate, &self.rates)?;
        let mut tiers = Vec::new();
        for (tier, settings) in &self.tiers {
            let field = at(&format!("tiers.{tier}"));
            if !is_addressable(tier) {
                return Err(ConfigError::at(field, NAME_RULES));
            }
            let policy = policy(name, &format!("{field}."), settings.rate, &settings.rates)?;
            if policy.quotas().is_empty() {
                let problem = "this tier has no rate: add `rate` or `rates` (`rate = \"off\"` lifts all rates of the group), \
                        or remove the tier";
                return Err(ConfigError::at(field, problem));
            }
            if let Some(limit) = settings.for_all_rates()
                && !by_key.quotas().is_empty()
            {
                tiers.push((tier, field, limit));
                continue;
            }
            for quota in policy.quotas() {
                let has = |other: &NamedQuota| other.name() == quota.name();
                if !by_key.quotas().iter().any(has) {
                    // Of the requests without this tier it is off.
                    by_key = by_key
                        .try_and(quota.name(), Quota::off())
                        .map_err(|error| ConfigError::at(field.clone(), error))?;
                }
            }
            for quota in policy.quotas() {
                check_algorithm(&by_key, quota, &field)?;
            }
            let quotas = policy.quotas().iter();
            let limit = Policy::limit_of(quotas.map(|quota| (quota.name(), quota.quota())));
            let limit = limit.map_err(|error| ConfigError::at(field.clone(), error))?;
            tiers.push((tier, field, limit));
        }
        for (tier, field, limit) in tiers {
            let added = by_key.try_tier(tier, limit);
            by_key = added.map_err(|error| ConfigError::at(field, error))?;
        }
        let by_ip = self.rate_per_ip.map(|quota| {
            let policy = Policy::try_new(&self.name_by_ip(group), quota);
            policy.map_err(|error| ConfigError::at(at("rate_per_ip"), error))
        });
        // What is written as 0 stays, as a limit of a single key may switch it on.
        let by_key = (!by_key.quotas().is_empty()).then_some(by_key);
        Ok(Policies {
            by_key,
            by_ip: by_ip.transpose()?,
        })
    }

    /// What quotas are called that are not called as the group is, each with its field. Quotas of tiers may be
    /// called as others of the same group.
    pub(super) fn names_in(&self, group: &str) -> BTreeMap<String, String> {
        let name = self.name(group);
        let mut names = BTreeMap::new();
        for (tier, settings) in &self.tiers {
            for rate in settings.rates.keys() {
                names.insert(
                    format!("{name}.{rate}"),
                    format!("tiers.{tier}.rates.{rate}"),
                );
            }
        }
        for rate in self.rates.keys() {
            names.insert(format!("{name}.{rate}"), format!("rates.{rate}"));
        }
        names
    }

    /// What the quota of addresses is called.
    pub(super) fn name_by_ip(&self, group: &str) -> String {
        format!("{}.ip", self.name(group))
    }
}

impl Tier {
    /// What `rate` says of all rates of the group: that they are off, or that they deny everything.
    fn for_all_rates(&self) -> Option<Limit> {
        let quota = self.rate?;
        quota.period().is_none().then(|| Limit::from(quota))
    }
}

/// A tier's rate is counted as the group's is: what is written as a sliding window would be a bucket.
fn check_algorithm(group: &Policy, own: &NamedQuota, field: &str) -> Result<(), ConfigError> {
    let default = group
        .quotas()
        .iter()
        .find(|default| default.name() == own.name());
    let is_sliding = |quota: Quota| quota.period().map(|_| quota.is_sliding());
    match (
        default.and_then(|default| is_sliding(default.quota())),
        is_sliding(own.quota()),
    ) {
        (Some(group), Some(tier)) if group != tier => {
            let problem = "a rate must be sliding in the group and in the tier, or in neither";
            Err(ConfigError::at(field, problem))
        }
        _ => Ok(()),
    }
}

/// One quota called as the group is, or several.
fn policy(
    group: &str,
    at: &str,
    rate: Option<Quota>,
    rates: &BTreeMap<String, Quota>,
) -> Result<Policy, ConfigError> {
    if rate.is_some() && !rates.is_empty() {
        let problem = "use either `rate` or `rates`";
        return Err(ConfigError::at(format!("{at}rate"), problem));
    }
    let mut policy = Policy::empty();
    let mut add = |field: String, name: &str, quota| {
        if !is_addressable(name) {
            return Err(ConfigError::at(field, NAME_RULES));
        }
        policy = std::mem::replace(&mut policy, Policy::empty())
            .try_and(name, quota)
            .map_err(|error| ConfigError::at(field, error))?;
        Ok(())
    };
    if let Some(rate) = rate {
        add(format!("{at}rate"), group, rate)?;
    }
    for (rate, quota) in rates {
        add(
            format!("{at}rates.{rate}"),
            &format!("{group}.{rate}"),
            *quota,
        )?;
    }
    Ok(policy)
}
