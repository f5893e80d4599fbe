//! What replicas tell each other's tools of a limiter.

use serde::{Deserialize, Serialize};

use crate::policy::{Policy, PolicyError, Shape};
use crate::quota::Quota;

/// A limiter that counts in a store, as it is written there for tools that are none of its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "sort", rename_all = "lowercase")]
pub(crate) enum Description {
    Rate(Rates),
    Concurrency(Slots),
    Lease(Slots),
}

/// A rate limiter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rates {
    /// What its buckets are called in the store.
    pub(crate) place: String,
    /// The quotas of each policy, as those have them that have none of their own.
    policies: Vec<Vec<DescribedQuota>>,
    /// The same in each tier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tiers: Vec<DescribedTier>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DescribedTier {
    /// The place of its policy.
    policy: usize,
    name: String,
    quotas: Vec<DescribedQuota>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DescribedQuota {
    name: String,
    quota: String,
    /// Whether it is counted in a window, also while it denies everything and does not say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    sliding: bool,
}

/// A limiter of what is in flight or at work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slots {
    pub(crate) name: String,
    /// What they are called in the store.
    pub(crate) place: String,
    /// The most in all; `None` where they are only counted.
    pub(crate) total: Option<u64>,
    /// For each place at which a key is counted, the most of a key that has no limit of its own;
    /// `None` where there is none.
    pub(crate) per_key: Vec<Option<u64>>,
}

impl Description {
    /// What tells it from the others.
    pub(crate) fn field(&self) -> String {
        match self {
            Self::Rate(rates) => format!("rate {}", rates.place),
            Self::Concurrency(slots) => format!("concurrency {}", slots.name),
            Self::Lease(slots) => format!("lease {}", slots.name),
        }
    }

    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `None` for what this version of the crate cannot read.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl Rates {
    /// Of policies as they are now, with the shapes that they had at first.
    pub(crate) fn new(place: &str, policies: &[Policy], shapes: &[Shape]) -> Self {
        let mut tiers = Vec::new();
        let mut own = Vec::new();
        for (at, (policy, shape)) in policies.iter().zip(shapes).enumerate() {
            let mut quotas = policy.all_quotas().enumerate();
            let mut described = |count| {
                let quotas = quotas.by_ref().take(count);
                let quotas = quotas.map(|(at, quota)| DescribedQuota {
                    name: quota.name().to_owned(),
                    quota: quota.quota().to_string(),
                    sliding: quota.quota().denies_all() && shape.is_sliding(at),
                });
                quotas.collect::<Vec<_>>()
            };
            own.push(described(policy.quotas().len()));
            for tier in policy.tiers() {
                tiers.push(DescribedTier {
                    policy: at,
                    name: tier.to_owned(),
                    quotas: described(policy.in_tier(tier).quotas().len()),
                });
            }
        }
        Self {
            place: place.to_owned(),
            policies: own,
            tiers,
        }
    }

    /// `None` for what is no policy of this crate.
    pub(crate) fn policies(&self) -> Option<Vec<Policy>> {
        self.read(|quota| quota.quota.parse().ok())
    }

    /// What the policies were at first, as far as their shapes go.
    pub(crate) fn shapes(&self) -> Option<Vec<Shape>> {
        let quota = |described: &DescribedQuota| {
            let quota: Quota = described.quota.parse().ok()?;
            let any = Quota::per_second(1).sliding();
            Some(if described.sliding { any } else { quota })
        };
        let policies = self.read(quota)?;
        Some(policies.iter().map(Policy::shape).collect())
    }

    fn read(&self, quota: impl Fn(&DescribedQuota) -> Option<Quota>) -> Option<Vec<Policy>> {
        let policies = self.policies.iter().enumerate();
        policies
            .map(|(at, quotas)| {
                let mut tiers = self.tiers.iter().filter(|tier| tier.policy == at);
                tiers.try_fold(policy(quotas, &quota)?, |all, tier| {
                    all.try_tier(&tier.name, policy(&tier.quotas, &quota)?).ok()
                })
            })
            .collect()
    }
}

fn policy(
    quotas: &[DescribedQuota],
    quota: impl Fn(&DescribedQuota) -> Option<Quota>,
) -> Option<Policy> {
    let none = Policy::empty();
    quotas.iter().try_fold(none, |policy, described| {
        let quota = quota(described)?;
        let added: Result<_, PolicyError> = policy.try_and(&described.name, quota);
        // Off, it would be counted in no place of the store.
        added.ok().filter(|policy| {
            let last = policy.quotas().last();
            last.is_some_and(|last| !last.quota().is_off())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_is_written() {
        let burst = Policy::new("burst", Quota::per_second(10).burst(3));
        let daily = Policy::new("per day", Quota::per_day(100).sliding());
        let burst = burst.and("denied", Quota::deny_all());
        let burst = burst
            .tier("pro", Quota::per_second(9))
            .tier("staff", Policy::empty());
        let policies = vec![burst, daily.clone().tier("pro", daily)];
        let shapes: Vec<_> = policies.iter().map(Policy::shape).collect();
        let described = Description::Rate(Rates::new("app:rate:burst", &policies, &shapes));
        assert_eq!(described.field(), "rate app:rate:burst");
        let Some(Description::Rate(rates)) = Description::from_text(&described.to_text()) else {
            panic!("{}", described.to_text());
        };
        assert_eq!(rates.policies(), Some(policies.clone()));
        assert_eq!(rates.shapes(), Some(shapes.clone()));
        // One that denies everything for now is still of its sort.
        let denied = policies
            .iter()
            .map(|p| p.map_quotas(|_, _, _| Quota::deny_all()));
        let denied: Vec<_> = denied.collect();
        let rates = Rates::new("app:rate:burst", &denied, &shapes);
        assert_eq!(rates.policies(), Some(denied));
        assert_eq!(rates.shapes(), Some(shapes));

        let slots = Slots {
            name: "jobs".to_owned(),
            place: "{app:lease:jobs}:total".to_owned(),
            total: None,
            per_key: vec![Some(5), None],
        };
        for described in [
            Description::Concurrency(slots.clone()),
            Description::Lease(slots),
        ] {
            let read = Description::from_text(&described.to_text());
            assert_eq!(read, Some(described));
        }
    }

    #[test]
    fn what_is_none_is_none() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"sort":"rate"}"#,
            r#"{"sort":"weather","name":"x"}"#,
            r#"{"sort":"lease","name":"x","place":"y","total":-1,"per_key":[null]}"#,
        ] {
            assert_eq!(Description::from_text(text), None, "{text}");
        }
        for quotas in [
            r#"{"name":"a","quota":"fast"}"#,
            r#"{"name":"a","quota":"off"}"#,
            r#"{"name":"","quota":"1/s"}"#,
            r#"{"name":"a","quota":"1/s"},{"name":"a","quota":"1/s"}"#,
        ] {
            let text = format!(r#"{{"sort":"rate","place":"x","policies":[[{quotas}]]}}"#);
            let Some(Description::Rate(rates)) = Description::from_text(&text) else {
                panic!("{text}");
            };
            assert_eq!(rates.policies(), None, "{text}");
        }
    }
}
