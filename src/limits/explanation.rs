//! Explains which number of a limit applies to a key, where it comes from, and what a request would get now.

use std::sync::Arc;
use std::time::Duration;

use super::{CountedIn, Limits};
use crate::capacity::Capacity;
use crate::key::{Key, KeyName};
use crate::rejection::Reason;
use crate::sync::lock;

/// One limit as it applies to a key: its number, where that comes from, and what a request would get now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitExplanation {
    /// What the limit is called: a quota's name, or a limiter's.
    pub name: Arc<str>,
    /// What sort of limit it is: `"rate"`, `"concurrency"` or `"lease"`.
    pub sort: &'static str,
    /// Whether it is on all keys together.
    pub is_total: bool,
    /// The place of the key among those that the limiter charges for a request: 0 is the layer's own, 1 the first of
    /// `and_by` or the second of `per_key`.
    pub place: usize,
    /// The number, as people write it: `100/min burst 20`, `5 concurrent`, `unlimited` or `deny all`.
    pub limit: String,
    /// Where the number comes from.
    pub source: LimitSource,
    /// The tier of the request, if the limiter has it. Rates count apart in each tier.
    pub tier: Option<Arc<str>>,
    /// Requests that are spent, or that are in flight. `None` when the store does not answer, and of a rate that is
    /// unlimited.
    pub used: Option<u64>,
    /// Where `used` is counted. `used` is `None` where a store counts and does not answer.
    pub counted_in: CountedIn,
    /// What a request of cost 1 would get now.
    pub verdict: LimitVerdict,
}

/// Where the number of a limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitSource {
    /// The key's override, which was set at run time.
    Override,
    /// The key's override in the [configuration](Limits::set_base).
    Base,
    /// The tier that is stored for the key: `tier=pro` in its override.
    StoredTier,
    /// The tier of the request, which `tier_by` of a layer selects.
    RequestTier,
    /// The default of the limiter. Also where a tier has the same number.
    Default,
}

impl LimitSource {
    /// A word for programs: `override`, `file`, `stored_tier`, `request_tier` or `default`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::Base => "file",
            Self::StoredTier => "stored_tier",
            Self::RequestTier => "request_tier",
            Self::Default => "default",
        }
    }
}

/// What a request would get now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitVerdict {
    /// It would be admitted.
    Admitted {
        /// How many more would be, after it; `None` where nothing limits.
        remaining: Option<u64>,
    },
    /// It would be rejected, or wait in line where a layer has a queue.
    Rejected {
        /// Why.
        reason: Reason,
        /// When it would fit; `None` where that cannot be known.
        retry_after: Option<Duration>,
    },
    /// The store does not answer, so the failure mode would decide.
    Unknown,
}

impl Limits {
    /// Explains each limit for a key: the number that applies, where it comes from, and what a request would get now.
    /// In the order in which the limiters were made. Charges nothing.
    ///
    /// `tier` is that of the request, which `tier_by` of a layer would select. A tier that is not declared is the
    /// default. Which limiters a request passes is up to the application, so all of them are explained. Before any of
    /// them, allow and deny lists decide: [`list_entry`](Self::list_entry).
    ///
    /// ```
    /// use tower_admission::store::MemoryStore;
    /// use tower_admission::{LimitSource, LimitVerdict, Limits, Quota, RateLimiter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let limits = Limits::new();
    /// let calls = RateLimiter::with_limits(Quota::per_minute(10), &MemoryStore::new(), &limits);
    /// limits.set(&"org:acme".parse()?, "1000/min".parse()?).await?;
    /// let explained = limits.explain(&"org:acme".parse()?, None).await;
    /// assert_eq!(explained[0].limit, "1000/min");
    /// assert_eq!(explained[0].source, LimitSource::Override);
    /// assert_eq!(explained[0].verdict, LimitVerdict::Admitted { remaining: Some(999) });
    /// # Ok(())
    /// # }
    /// ```
    pub async fn explain(&self, key: &KeyName, tier: Option<&str>) -> Vec<LimitExplanation> {
        let mut explained = Vec::new();
        for target in self.targets() {
            explained.extend(target.explain(key.key(), tier.map(Arc::from)).await);
        }
        explained.retain(LimitExplanation::applies);
        if lock(&self.0.state).own_at_run_time(&key.key()).is_none() {
            for limit in &mut explained {
                if limit.source == LimitSource::Override {
                    limit.source = LimitSource::Base;
                }
            }
        }
        explained
    }

    /// How many a limiter of this name may admit for a key, and where that comes from, with the tier that counts; `None`:
    /// the default.
    pub(crate) fn concurrency_source(
        &self,
        key: &Key,
        name: &str,
        tier: Option<&str>,
    ) -> (Option<(Capacity, LimitSource)>, Option<Arc<str>>) {
        let own = self.find(key, |limit| {
            (limit.concurrency(name), limit.tier().map(Arc::<str>::from))
        });
        let (own, stored) = own.unwrap_or_default();
        let source = match stored {
            Some(_) => LimitSource::StoredTier,
            None => LimitSource::RequestTier,
        };
        let declared = self.declared();
        let tier = stored.or(tier.map(Arc::from));
        let tier = declared
            .iter()
            .find(|known| Some(&known.name) == tier.as_ref());
        let in_tier = || Some((tier?.limit.concurrency(name)?, source));
        let own = own.map(|own| (own, LimitSource::Override));
        (own.or_else(in_tier), tier.map(|tier| tier.name.clone()))
    }
}

impl LimitExplanation {
    /// Whether it limits, or was lifted for the key. A limit that is off is none.
    pub(crate) fn applies(&self) -> bool {
        self.source != LimitSource::Default || self.limit != UNLIMITED
    }
}

/// How a limit is written that does not limit.
pub(crate) const UNLIMITED: &str = "unlimited";

/// The slots of a concurrency limiter, or of leases.
pub(crate) struct ExplainedSlots {
    pub(crate) name: Arc<str>,
    pub(crate) sort: &'static str,
    /// What a rejection for want of a slot tells the client.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) counted_in: CountedIn,
}

impl ExplainedSlots {
    /// For a key, of which the store says how many it holds.
    pub(crate) fn of_key(
        &self,
        place: usize,
        default: Option<u64>,
        own: &(Option<(Capacity, LimitSource)>, Option<Arc<str>>),
        used: Option<u64>,
    ) -> LimitExplanation {
        let (own, tier) = own;
        let (limit, source) = match own {
            Some((capacity, source)) => (capacity.at_most(), *source),
            None => (default, LimitSource::Default),
        };
        LimitExplanation {
            place,
            source,
            tier: tier.clone(),
            ..self.explain(limit, used, Reason::KeyAtCapacity)
        }
    }

    /// For all keys together.
    pub(crate) fn of_all(&self, limit: Option<u64>, used: Option<u64>) -> LimitExplanation {
        LimitExplanation {
            is_total: true,
            ..self.explain(limit, used, Reason::AtCapacity)
        }
    }

    fn explain(&self, limit: Option<u64>, used: Option<u64>, full: Reason) -> LimitExplanation {
        let verdict = match (limit, used) {
            (None, _) => LimitVerdict::Admitted { remaining: None },
            (Some(0), _) if full == Reason::KeyAtCapacity => LimitVerdict::Rejected {
                reason: Reason::Denied,
                retry_after: None,
            },
            (Some(_), None) => LimitVerdict::Unknown,
            (Some(limit), Some(used)) if used >= limit => LimitVerdict::Rejected {
                reason: full,
                retry_after: self.retry_after,
            },
            (Some(limit), Some(used)) => LimitVerdict::Admitted {
                remaining: Some(limit - used - 1),
            },
        };
        LimitExplanation {
            name: self.name.clone(),
            sort: self.sort,
            is_total: false,
            place: 0,
            limit: match limit {
                None => UNLIMITED.to_owned(),
                Some(0) => "deny all".to_owned(),
                Some(limit) => format!("{limit} concurrent"),
            },
            source: LimitSource::Default,
            tier: None,
            used,
            counted_in: self.counted_in,
            verdict,
        }
    }
}
