//! The descriptions of limiters and tiers that replicas write down for tools.

use serde::{Deserialize, Serialize};

use super::Limits;
use crate::capacity::Capacity;
use crate::limit::Limit;
use crate::policy::{Policy, PolicyShape};
use crate::quota::Quota;

/// A limiter that counts in a store, or a tier, as it is written there for tools that are none of its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "sort", rename_all = "lowercase")]
pub(crate) enum Description {
    Rate(Rates),
    Concurrency(Slots),
    Lease(Slots),
    /// A tier that an override can name.
    Tier {
        name: String,
    },
    /// The name of a limit that an override can have parts for, also of one that counts in memory.
    Name {
        name: String,
    },
    /// A service looks its requests up on the lists of these limits.
    Lists,
    /// The [check value](crate::Secret::check_value) of the services' secret.
    Secret {
        check: String,
    },
    /// How many overrides a replica keeps that the store has lost. A tool sees the store alone.
    Lost {
        replica: String,
        overrides: u64,
    },
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
    /// The most of a key in each tier that names this limiter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tiers: Vec<SlotsTier>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotsTier {
    name: String,
    /// `None` for no limit.
    limit: Option<u64>,
}

impl DescribedQuota {
    /// One that its bucket or window could have been opened with.
    fn opened(&self) -> Option<Quota> {
        let quota = self.quota.parse().ok()?;
        let any = Quota::per_second(1).sliding();
        Some(if self.sliding { any } else { quota })
    }
}

impl Slots {
    /// What the tiers of some limits have for the limiter of a name.
    pub(crate) fn tiers(limits: &Limits, name: &str) -> Vec<SlotsTier> {
        let declared = limits.declared();
        let tiers = declared.iter().filter_map(|tier| {
            Some(SlotsTier {
                name: tier.name.to_string(),
                limit: tier.limit.concurrency(name)?.at_most(),
            })
        });
        tiers.collect()
    }

    /// What a key may have that is in a tier; `None` for the default.
    pub(crate) fn in_tier(&self, name: &str) -> Option<Capacity> {
        let tier = self.tiers.iter().find(|tier| tier.name == name)?;
        Some(match tier.limit {
            Some(limit) => Capacity::AtMost(usize::try_from(limit).unwrap_or(usize::MAX)),
            None => Capacity::Unlimited,
        })
    }
}

impl Description {
    /// What tells it from the others.
    pub(crate) fn field(&self) -> String {
        match self {
            Self::Rate(rates) => format!("rate {}", rates.place),
            Self::Concurrency(slots) => format!("concurrency {}", slots.name),
            Self::Lease(slots) => format!("lease {}", slots.name),
            Self::Tier { name } => format!("tier {name}"),
            Self::Name { name } => format!("name {name}"),
            Self::Lists => "lists".to_owned(),
            // Of each, so that services that change to another secret do not hide each other's.
            Self::Secret { check } => format!("secret {check}"),
            // Known for minutes and not for a day, by this word: see limiters_publish.lua.
            Self::Lost { replica, .. } => format!("lost {replica}"),
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
    /// Of policies as they are now with the shapes that their buckets were opened with, and of their tiers.
    pub(crate) fn new<'a>(
        place: &str,
        policies: impl Iterator<Item = (&'a Policy, &'a PolicyShape)>,
        tiers: impl Iterator<Item = (usize, &'a str, Policy, &'a PolicyShape)>,
    ) -> Self {
        let described = |policy: &Policy, shape: &PolicyShape| {
            let quotas = policy.quotas().iter().enumerate();
            let quotas = quotas.map(|(at, quota)| DescribedQuota {
                name: quota.name().to_owned(),
                quota: quota.quota().to_string(),
                sliding: quota.quota().rate().is_none() && shape.is_sliding(at),
            });
            quotas.collect()
        };
        Self {
            place: place.to_owned(),
            policies: policies
                .map(|(policy, shape)| described(policy, shape))
                .collect(),
            tiers: tiers
                .map(|(policy, name, quotas, shape)| DescribedTier {
                    policy,
                    name: name.to_owned(),
                    quotas: described(&quotas, shape),
                })
                .collect(),
        }
    }

    /// `None` for what is no policy of this crate.
    pub(crate) fn policies(&self) -> Option<Vec<Policy>> {
        let quota = |quota: &DescribedQuota| quota.quota.parse().ok();
        self.read(quota, quota)
    }

    /// Policies that the buckets could have been opened with.
    pub(crate) fn opened(&self) -> Option<Vec<Policy>> {
        self.read(DescribedQuota::opened, DescribedQuota::opened)
    }

    /// The same without defaults, to open the buckets of tiers with: they keep the algorithms that they have, and the
    /// default may have another by now.
    pub(crate) fn opened_tiers(&self) -> Option<Vec<Policy>> {
        self.read(|_| Some(Quota::off()), DescribedQuota::opened)
    }

    fn read(
        &self,
        default: impl Fn(&DescribedQuota) -> Option<Quota>,
        quota: impl Fn(&DescribedQuota) -> Option<Quota>,
    ) -> Option<Vec<Policy>> {
        let policies = self.policies.iter().enumerate();
        policies
            .map(|(at, quotas)| {
                let mut tiers = self.tiers.iter().filter(|tier| tier.policy == at);
                tiers.try_fold(policy(quotas, &default)?, |all, tier| {
                    let quotas = policy(&tier.quotas, &quota)?;
                    let named = quotas.quotas().iter();
                    let named = named.map(|named| (named.name(), named.quota()));
                    all.try_tier(&tier.name, Limit::from_quotas(named).ok()?)
                        .ok()
                })
            })
            .collect()
    }
}

fn policy(
    quotas: &[DescribedQuota],
    quota: impl Fn(&DescribedQuota) -> Option<Quota>,
) -> Option<Policy> {
    quotas
        .iter()
        .try_fold(Policy::empty(), |policy, described| {
            policy.try_and(&described.name, quota(described)?).ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_is_written() {
        let burst = Policy::new("burst", Quota::per_second(10).burst(3));
        let daily = Policy::new("per day", Quota::per_day(100).sliding());
        let burst = burst
            .and("denied", Quota::deny_all())
            .and("off", Quota::off());
        let burst = burst.tier("pro", "burst=9/s, denied=deny all, off=10/s");
        let policies = vec![burst, daily];
        let shapes: Vec<_> = policies.iter().map(Policy::shape).collect();
        let described = |policies: &[Policy]| {
            let tier = policies[0].in_tier("pro");
            let tier = (0, "pro", tier, &shapes[0]);
            let rates = Rates::new(
                "app:rate:burst",
                policies.iter().zip(&shapes),
                std::iter::once(tier),
            );
            let described = Description::Rate(rates);
            assert_eq!(described.field(), "rate app:rate:burst");
            match Description::from_text(&described.to_text()) {
                Some(Description::Rate(rates)) => rates,
                _ => panic!("{}", described.to_text()),
            }
        };
        let in_tier = |policies: Option<Vec<Policy>>| policies.unwrap()[0].in_tier("pro");
        let rates = described(&policies);
        let read = rates.policies().unwrap();
        assert_eq!(read[0].quotas(), policies[0].quotas());
        assert_eq!(read[1], policies[1]);
        assert_eq!(in_tier(rates.policies()), policies[0].in_tier("pro"));
        let read_shapes = |rates: &Rates| {
            let policies = rates.opened().unwrap();
            policies.iter().map(Policy::shape).collect::<Vec<_>>()
        };
        assert_eq!(read_shapes(&rates), shapes);
        // One that denies everything for now is still of its sort.
        let denied = policies.iter().map(|p| p.map_quotas(|_| Quota::deny_all()));
        let denied: Vec<_> = denied.collect();
        let rates = described(&denied);
        assert_eq!(rates.policies().unwrap()[1], denied[1]);
        assert_eq!(read_shapes(&rates), shapes);

        let slots = Slots {
            name: "jobs".to_owned(),
            place: "{app:lease:jobs}:total".to_owned(),
            total: None,
            per_key: vec![Some(5), None],
            tiers: Slots::tiers(&Limits::new().tier("pro", "jobs=7 concurrent"), "jobs"),
        };
        assert_eq!(slots.in_tier("pro"), Some(Capacity::AtMost(7)));
        assert_eq!(slots.in_tier("other"), None);
        for described in [
            Description::Concurrency(slots.clone()),
            Description::Lease(slots),
            Description::Tier {
                name: "pro".to_owned(),
            },
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

    #[test]
    fn what_a_later_version_writes_is_left_out() {
        let name = Description::Name {
            name: "jobs".to_owned(),
        };
        assert_eq!(name.to_text(), r#"{"sort":"name","name":"jobs"}"#);
        assert_eq!(Description::from_text(&name.to_text()), Some(name));
        let text = r#"{"sort":"colour","name":"red"}"#;
        assert_eq!(Description::from_text(text), None);
    }
}
