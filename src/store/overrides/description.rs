//! The descriptions of limiters and tiers that replicas write into a shared store for tools.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::capacity::Capacity;
use crate::limit::Limit;
use crate::policy::{Policy, PolicyShape};
use crate::quota::Quota;

/// What a process writes about its limiters into a store, for tools that run elsewhere.
///
/// With feature `serde` it can be serialized; the format is part of what replicas of different versions share.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(tag = "sort", rename_all = "lowercase"))]
pub enum LimiterDescription {
    /// A rate limiter.
    Rate(RateDescription),
    /// A concurrency limiter.
    Concurrency(SlotsDescription),
    /// A limiter of leases.
    Lease(SlotsDescription),
    /// A tier that an override can name.
    Tier {
        /// The name of the tier.
        name: String,
    },
    /// The name of a limit that an override can have parts for, including limits that count in memory.
    Name {
        /// The name of the limit.
        name: String,
    },
    /// A service checks its requests against the allow and deny lists of this table.
    Lists,
    /// The check value of the services' secret.
    Secret {
        /// 32 bits, in hexadecimal digits.
        check: String,
    },
    /// How many overrides a replica keeps although the store has lost them. A tool sees only the store.
    Lost {
        /// A random name of the replica.
        replica: String,
        /// How many overrides it keeps.
        overrides: u64,
    },
}

/// A rate limiter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct RateDescription {
    /// The [place](super::RateBuckets::place) of its buckets in the store.
    pub place: String,
    /// The default quotas of each policy.
    policies: Vec<Vec<DescribedQuota>>,
    /// The quotas of each tier.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Vec::is_empty")
    )]
    tiers: Vec<DescribedTier>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
struct DescribedTier {
    /// The index of its policy.
    policy: usize,
    name: String,
    quotas: Vec<DescribedQuota>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
struct DescribedQuota {
    name: String,
    quota: String,
    /// Whether it counts in a window. `deny all` does not contain this.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "std::ops::Not::not")
    )]
    sliding: bool,
}

/// A limiter of requests in flight or of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct SlotsDescription {
    /// The name of the limiter.
    pub name: String,
    /// The [place](crate::store::LeaseSlots::place) of its slots in the store.
    pub place: String,
    /// The total limit; `None` without one.
    pub total: Option<u64>,
    /// The default limit per key, for each position at which a key is counted; `None` without one.
    pub per_key: Vec<Option<u64>>,
    /// The limit per key in each tier that names this limiter.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Vec::is_empty")
    )]
    tiers: Vec<SlotsTier>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
struct SlotsTier {
    name: String,
    /// `None` for unlimited.
    limit: Option<u64>,
}

impl DescribedQuota {
    /// A quota that opens the same bucket or window.
    fn opened(&self) -> Option<Quota> {
        let quota = self.quota.parse().ok()?;
        let any = Quota::per_second(1).sliding();
        Some(if self.sliding { any } else { quota })
    }
}

impl SlotsDescription {
    /// Describes a limiter without tiers.
    pub(crate) fn new(
        name: &str,
        place: &str,
        total: Option<u64>,
        per_key: impl IntoIterator<Item = Option<u64>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            place: place.to_owned(),
            total,
            per_key: per_key.into_iter().collect(),
            tiers: Vec::new(),
        }
    }

    /// Adds the tiers that have a limit for this limiter.
    pub(crate) fn with_tiers<'a>(
        mut self,
        tiers: impl Iterator<Item = (&'a str, &'a Limit)>,
    ) -> Self {
        let tiers = tiers.filter_map(|(name, limit)| {
            Some(SlotsTier {
                name: name.to_owned(),
                limit: limit.concurrency(&self.name)?.at_most(),
            })
        });
        self.tiers = tiers.collect();
        self
    }

    /// The limit of a key in a tier; `None` for the default.
    pub(crate) fn in_tier(&self, name: &str) -> Option<Capacity> {
        let tier = self.tiers.iter().find(|tier| tier.name == name)?;
        Some(match tier.limit {
            Some(limit) => Capacity::AtMost(usize::try_from(limit).unwrap_or(usize::MAX)),
            None => Capacity::Unlimited,
        })
    }
}

impl RateDescription {
    /// Describes the policies as they are now, with the shapes that their buckets were opened with, and their tiers.
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

    /// The policies; `None` if a quota is unreadable.
    pub(crate) fn policies(&self) -> Option<Vec<Policy>> {
        let quota = |quota: &DescribedQuota| quota.quota.parse().ok();
        self.read(quota, quota)
    }

    /// Policies that open the same buckets.
    pub(crate) fn opened(&self) -> Option<Vec<Policy>> {
        self.read(DescribedQuota::opened, DescribedQuota::opened)
    }

    /// The same without defaults, to open the buckets of tiers: they keep their algorithm, also when the default now
    /// has another one.
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

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;

    fn to_text(description: &LimiterDescription) -> String {
        serde_json::to_string(description).unwrap()
    }

    fn from_text(text: &str) -> Option<LimiterDescription> {
        serde_json::from_str(text).ok()
    }

    #[test]
    fn a_description_is_read_as_it_is_written() {
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
            let rates = RateDescription::new(
                "app:rate:burst",
                policies.iter().zip(&shapes),
                std::iter::once(tier),
            );
            let described = LimiterDescription::Rate(rates);
            match from_text(&to_text(&described)) {
                Some(LimiterDescription::Rate(rates)) => rates,
                _ => panic!("{}", to_text(&described)),
            }
        };
        let in_tier = |policies: Option<Vec<Policy>>| policies.unwrap()[0].in_tier("pro");
        let rates = described(&policies);
        let read = rates.policies().unwrap();
        assert_eq!(read[0].quotas(), policies[0].quotas());
        assert_eq!(read[1], policies[1]);
        assert_eq!(in_tier(rates.policies()), policies[0].in_tier("pro"));
        let read_shapes = |rates: &RateDescription| {
            let policies = rates.opened().unwrap();
            policies.iter().map(Policy::shape).collect::<Vec<_>>()
        };
        assert_eq!(read_shapes(&rates), shapes);
        // `deny all` keeps its algorithm.
        let denied = policies.iter().map(|p| p.map_quotas(|_| Quota::deny_all()));
        let denied: Vec<_> = denied.collect();
        let rates = described(&denied);
        assert_eq!(rates.policies().unwrap()[1], denied[1]);
        assert_eq!(read_shapes(&rates), shapes);

        let limit: Limit = "jobs=7 concurrent".parse().unwrap();
        let slots = SlotsDescription::new("jobs", "{app:lease:jobs}:total", None, [Some(5), None])
            .with_tiers(std::iter::once(("pro", &limit)));
        assert_eq!(slots.in_tier("pro"), Some(Capacity::AtMost(7)));
        assert_eq!(slots.in_tier("other"), None);
        for described in [
            LimiterDescription::Concurrency(slots.clone()),
            LimiterDescription::Lease(slots),
            LimiterDescription::Tier {
                name: "pro".to_owned(),
            },
        ] {
            let read = from_text(&to_text(&described));
            assert_eq!(read, Some(described));
        }
    }

    #[test]
    fn an_invalid_description_is_not_read() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"sort":"rate"}"#,
            r#"{"sort":"weather","name":"x"}"#,
            r#"{"sort":"lease","name":"x","place":"y","total":-1,"per_key":[null]}"#,
        ] {
            assert_eq!(from_text(text), None, "{text}");
        }
        for quotas in [
            r#"{"name":"a","quota":"fast"}"#,
            r#"{"name":"","quota":"1/s"}"#,
            r#"{"name":"a","quota":"1/s"},{"name":"a","quota":"1/s"}"#,
        ] {
            let text = format!(r#"{{"sort":"rate","place":"x","policies":[[{quotas}]]}}"#);
            let Some(LimiterDescription::Rate(rates)) = from_text(&text) else {
                panic!("{text}");
            };
            assert_eq!(rates.policies(), None, "{text}");
        }
    }

    #[test]
    fn an_unknown_sort_is_not_read() {
        let name = LimiterDescription::Name {
            name: "jobs".to_owned(),
        };
        assert_eq!(to_text(&name), r#"{"sort":"name","name":"jobs"}"#);
        assert_eq!(from_text(&to_text(&name)), Some(name));
        let text = r#"{"sort":"colour","name":"red"}"#;
        assert_eq!(from_text(text), None);
    }
}
