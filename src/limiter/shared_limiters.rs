//! The limiters of other processes, read from a shared store.

use std::fmt;
use std::sync::Arc;

use super::rules::RateRules;
use crate::key::{Key, KeyName};
use crate::limits::{
    CountedIn, ExplainedSlots, LimitExplanation, LimitSource, LimitUsage, LimitVerdict, Limits,
    LimitsError,
};
use crate::policy::Policy;
use crate::store::overrides::{LimiterDescription, RateDescription, SlotsDescription};
use crate::store::{LeaseSlots, SharedStore};

/// The limits that services count in a shared store, for a tool that runs elsewhere.
///
/// A service describes its limiters in the store if they count there and use [`Limits::in_store`]. A description
/// appears within a second, and expires a day after the service ended.
///
/// ```no_run
/// use tower_admission_redis::RedisStore;
/// use tower_admission::{Limits, Secret, SharedLimiters};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisStore::connect("redis://127.0.0.1")?.secret(Secret::new([7; 16]));
/// let limits = Limits::in_store(&store);
/// limits.refresh().await?;
/// let limiters = SharedLimiters::read(&limits, &store).await?;
/// for usage in limiters.usage(&"org:acme".parse()?).await? {
///     println!("{}: {} of {:?}", usage.name, usage.used, usage.limit);
/// }
/// # Ok(())
/// # }
/// ```
///
/// A tool needs the services' [`Secret`](crate::Secret). Without it, all keys but addresses and fingerprints differ,
/// and show no usage.
pub struct SharedLimiters {
    pub(super) limiters: Vec<Shared>,
    pub(super) tiers: Vec<Arc<str>>,
    pub(super) names: Vec<Arc<str>>,
    /// Check values of the services' secrets.
    pub(super) checks: Vec<String>,
    /// The maximum number of lost overrides that one service keeps.
    pub(super) lost: u64,
    pub(super) has_lists: bool,
    limits: Limits,
    store: Arc<dyn SharedStore>,
}

pub(super) enum Shared {
    Rate {
        policies: Vec<Policy>,
        rules: Arc<RateRules>,
    },
    Slots {
        sort: &'static str,
        described: SlotsDescription,
        slots: Arc<dyn LeaseSlots>,
    },
}

impl SharedLimiters {
    /// Reads the limiters of all services. `limits` has the overrides, as they are now.
    ///
    /// Descriptions that this version cannot read are left out.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`].
    pub async fn read(
        limits: &Limits,
        store: &(impl SharedStore + Clone),
    ) -> Result<Self, LimitsError> {
        let store: Arc<dyn SharedStore> = Arc::new(store.clone());
        let described = store.overrides().published().await;
        let described = described.map_err(LimitsError::Unavailable)?;
        // A copy, so that they do not count as limiters of this process.
        let limits = limits.copied();
        let (mut tiers, mut names, mut checks) = (Vec::new(), Vec::new(), Vec::new());
        let mut lost = 0;
        let mut has_lists = false;
        let limiters = described
            .into_iter()
            .filter_map(|described| match described {
                LimiterDescription::Rate(rates) => Shared::rate(&rates, &*store, &limits),
                LimiterDescription::Concurrency(slots) => {
                    Shared::slots("concurrency", slots, &*store)
                }
                LimiterDescription::Lease(slots) => Shared::slots("lease", slots, &*store),
                LimiterDescription::Tier { name } => {
                    tiers.push(name.into());
                    None
                }
                LimiterDescription::Name { name } => {
                    names.push(name.into());
                    None
                }
                LimiterDescription::Lists => {
                    has_lists = true;
                    None
                }
                LimiterDescription::Secret { check } => {
                    checks.push(check);
                    None
                }
                LimiterDescription::Lost { overrides, .. } => {
                    lost = overrides.max(lost);
                    None
                }
            });
        Ok(Self {
            limiters: limiters.collect(),
            tiers,
            names,
            checks,
            lost,
            has_lists,
            limits,
            store,
        })
    }

    /// The tiers that an override can name: those that services declare.
    #[must_use]
    pub fn tiers(&self) -> &[Arc<str>] {
        &self.tiers
    }

    /// Reports the usage of each limit by a key, like [`Limits::usage`].
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`].
    pub async fn usage(&self, key: &KeyName) -> Result<Vec<LimitUsage>, LimitsError> {
        let mut usages = Vec::new();
        for limiter in &self.limiters {
            match limiter.usage(key.key(), &self.limits).await {
                Some(found) => usages.extend(found),
                None => return Err(LimitsError::Unavailable(self.store.diagnose().await)),
            }
        }
        Ok(usages)
    }

    /// Explains each limit for a key, like [`Limits::explain`].
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`].
    pub async fn explain(
        &self,
        key: &KeyName,
        tier: Option<&str>,
    ) -> Result<Vec<LimitExplanation>, LimitsError> {
        let mut explained = Vec::new();
        for limiter in &self.limiters {
            explained.extend(limiter.explain(key.key(), tier, &self.limits).await);
        }
        if explained
            .iter()
            .any(|limit| limit.verdict == LimitVerdict::Unknown)
        {
            return Err(LimitsError::Unavailable(self.store.diagnose().await));
        }
        explained.retain(LimitExplanation::applies);
        Ok(explained)
    }

    /// Reports the usage of the total limits.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`].
    pub async fn totals(&self) -> Result<Vec<LimitUsage>, LimitsError> {
        let mut usages = Vec::new();
        for limiter in &self.limiters {
            let Shared::Slots {
                sort,
                described,
                slots,
            } = limiter
            else {
                continue;
            };
            let Some(usage) = slots.usage(None).await else {
                return Err(LimitsError::Unavailable(self.store.diagnose().await));
            };
            usages.push(LimitUsage {
                name: described.name.as_str().into(),
                tier: None,
                sort,
                used: usage.total,
                here: None,
                counted_in: CountedIn::Store,
                limit: described.total,
                is_override: false,
            });
        }
        Ok(usages)
    }

    /// The default of the limit in this usage, without an override.
    #[must_use]
    pub fn default_limit(&self, usage: &LimitUsage) -> Option<u64> {
        let mut limiters = self.limiters.iter();
        limiters.find_map(|limiter| limiter.default_limit(usage))
    }
}

impl Shared {
    fn rate(rates: &RateDescription, store: &dyn SharedStore, limits: &Limits) -> Option<Self> {
        let policies = rates.policies().filter(|policies| !policies.is_empty())?;
        // Opens them as the service did: the original quotas determine the place.
        let opened = rates.opened()?;
        let buckets = store.open_at(&rates.place, &opened)?;
        let shapes = opened.iter().map(Policy::shape).collect();
        let tiers = rates.opened_tiers()?;
        let rules = RateRules::new(tiers, shapes, buckets, Some(limits)).ok()?;
        rules.set_policies(policies.clone()).ok()?;
        Some(Self::Rate { policies, rules })
    }

    fn slots(
        sort: &'static str,
        described: SlotsDescription,
        store: &dyn SharedStore,
    ) -> Option<Self> {
        let slots = store.open_leases(&described.name);
        // Under another prefix the place differs.
        let is_there = slots.place() == Some(&described.place);
        is_there.then_some(Self::Slots {
            sort,
            described,
            slots,
        })
    }

    /// `None` when a call fails.
    async fn usage(&self, key: Key, limits: &Limits) -> Option<Vec<LimitUsage>> {
        match self {
            Self::Rate { rules, .. } => {
                let (usages, is_complete) = rules.usage_and_completeness(key).await;
                is_complete.then_some(usages)
            }
            Self::Slots {
                sort,
                described,
                slots,
            } => {
                let override_limit = limits.concurrency(&key, &described.name, None);
                let tier = limits.find(&key, |limit| limit.tier().map(Arc::<str>::from));
                let override_limit = override_limit.or_else(|| described.in_tier(&tier.flatten()?));
                let mut usages = Vec::new();
                for (place, per_key) in described.per_key.iter().enumerate() {
                    let limit = match override_limit {
                        Some(override_limit) => override_limit.at_most(),
                        None => *per_key,
                    };
                    if limit.is_none() {
                        continue;
                    }
                    let usage = slots.usage_at(Some(&key), place).await?;
                    usages.push(LimitUsage {
                        name: described.name.as_str().into(),
                        tier: None,
                        sort,
                        used: usage.key.unwrap_or(0),
                        here: None,
                        counted_in: CountedIn::Store,
                        limit,
                        is_override: limits.overrides_concurrency(&key, &described.name),
                    });
                }
                Some(LimitUsage::most_limiting(usages).into_iter().collect())
            }
        }
    }

    async fn explain(
        &self,
        key: Key,
        tier: Option<&str>,
        limits: &Limits,
    ) -> Vec<LimitExplanation> {
        let (sort, described, slots) = match self {
            Self::Rate { rules, .. } => return rules.explain_key(key, tier).await,
            Self::Slots {
                sort,
                described,
                slots,
            } => (*sort, described, slots),
        };
        let explained = ExplainedSlots {
            name: described.name.as_str().into(),
            sort,
            // The description does not contain the `Retry-After` of a service.
            retry_after: None,
            counted_in: CountedIn::Store,
        };
        let stored = limits.find(&key, |limit| limit.tier().map(Arc::<str>::from));
        let (stored, source) = match stored.flatten() {
            Some(stored) => (Some(stored), LimitSource::StoredTier),
            // A lease does not belong to a request, so it has no tier of a request.
            None => {
                let tier = tier.filter(|_| sort != "lease");
                (tier.map(Arc::from), LimitSource::RequestTier)
            }
        };
        let (override_limit, _) = limits.concurrency_source(&key, &described.name, None);
        let in_tier = stored.and_then(|tier| Some((described.in_tier(&tier)?, tier)));
        let override_limit = match (override_limit, in_tier) {
            (Some(override_limit), in_tier) => {
                (Some(override_limit), in_tier.map(|(_, tier)| tier))
            }
            (None, Some((capacity, tier))) => (Some((capacity, source)), Some(tier)),
            (None, None) => (None, None),
        };
        let mut all = Vec::new();
        for (place, per_key) in described.per_key.iter().enumerate() {
            let used = slots.usage_at(Some(&key), place).await;
            all.push(explained.explain_key(
                place,
                *per_key,
                &override_limit,
                used.and_then(|used| used.key),
            ));
        }
        let used = slots.usage(None).await;
        all.push(explained.explain_total(described.total, used.map(|used| used.total)));
        all
    }

    fn default_limit(&self, usage: &LimitUsage) -> Option<u64> {
        match self {
            Self::Rate { policies, .. } if usage.sort == "rate" => {
                // No tier has an empty name.
                let tier = usage.tier.as_deref().unwrap_or("");
                let has_tier = || {
                    policies
                        .iter()
                        .flat_map(Policy::tiers)
                        .any(|name| name == tier)
                };
                if usage.tier.is_some() && !has_tier() {
                    return None;
                }
                let policies: Vec<_> = policies.iter().map(|p| p.in_tier(tier)).collect();
                let mut quotas = policies.iter().flat_map(Policy::quotas);
                let quota = quotas.find(|quota| *quota.name() == *usage.name)?.quota();
                Some(quota.burst_size().unwrap_or(0).into()).filter(|_| !quota.is_off())
            }
            Self::Slots {
                sort, described, ..
            } if usage.sort == *sort && described.name == *usage.name => match usage.is_override {
                true => described.per_key.iter().flatten().next().copied(),
                false => usage.limit,
            },
            _ => None,
        }
    }
}

impl fmt::Debug for SharedLimiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLimiters")
            .field("limiters", &self.limiters.len())
            .finish_non_exhaustive()
    }
}
