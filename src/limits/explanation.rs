//! Explains which limit applies to a key, where it comes from, and what a request would get.

use std::sync::Arc;
use std::time::Duration;

use super::{CountedIn, Limits};
use crate::capacity::Capacity;
use crate::key::{Key, KeyName};
use crate::rejection::Reason;
use crate::sync::lock;

/// One limit as it applies to a key: its value, its source, and what a request would get now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitExplanation {
    /// The name of the limit: that of a quota or of a limiter.
    pub name: Arc<str>,
    /// The kind of the limit: `"rate"`, `"concurrency"` or `"lease"`.
    pub sort: &'static str,
    /// Whether the limit applies to all keys in total.
    pub is_total: bool,
    /// The position of the key among the keys that the limiter charges: 0 is the layer's own, 1 the
    /// first of `and_by` or the second of `per_key`.
    pub place: usize,
    /// The limit as text: `100/min burst 20`, `5 concurrent`, `unlimited` or `deny all`.
    pub limit: String,
    /// The source of the limit.
    pub source: LimitSource,
    /// The tier of the request, if the limiter has it. Rates count separately in each tier.
    pub tier: Option<Arc<str>>,
    /// The used requests, or the requests in flight. `None` if the store does not answer, and for
    /// an unlimited rate.
    pub used: Option<u64>,
    /// Where `used` is counted. This process, also while a store does not answer.
    pub counted_in: CountedIn,
    /// What a request of cost 1 would get now.
    pub verdict: LimitVerdict,
}

/// The source of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitSource {
    /// The key's override, set at run time.
    Override,
    /// The key's override in the [configuration](Limits::set_base).
    Base,
    /// The tier that is stored for the key: `tier=pro` in its override.
    StoredTier,
    /// The tier of the request, which `tier_by` of a layer selects.
    RequestTier,
    /// The default of the limiter. Also if a tier has the same value.
    Default,
}

impl LimitSource {
    /// The name for programs: `override`, `file`, `stored_tier`, `request_tier` or `default`.
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
        /// How many more requests would be admitted after it; `None` if there is no limit.
        remaining: Option<u64>,
    },
    /// It would be rejected, or wait if a layer has a wait queue.
    Rejected {
        /// The reason.
        reason: Reason,
        /// When it would fit; `None` if that is unknown.
        retry_after: Option<Duration>,
    },
    /// The store does not answer, so the failure mode would decide.
    Unknown,
}

impl Limits {
    /// Explains each limit for a key: its value, its source, and what a request would get now. The
    /// order is that in which the limiters were built. Charges nothing.
    ///
    /// `tier` is the tier of the request, as `tier_by` of a layer would select it. An undeclared
    /// tier gets the defaults. The application decides which limiters a request passes, so all of
    /// them are explained. Allow and deny lists decide before any limiter: see
    /// [`list_entry`](Self::list_entry).
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
        if lock(&self.0.state).run_time_override(&key.key()).is_none() {
            for limit in &mut explained {
                if limit.source == LimitSource::Override {
                    limit.source = LimitSource::Base;
                }
            }
        }
        explained
    }

    /// The concurrency limit of a key for a limiter of this name, with its source and tier. `None`:
    /// the default.
    pub(crate) fn concurrency_source(
        &self,
        key: &Key,
        name: &str,
        tier: Option<&str>,
    ) -> (Option<(Capacity, LimitSource)>, Option<Arc<str>>) {
        let override_limit = self.find(key, |limit| {
            (limit.concurrency(name), limit.tier().map(Arc::<str>::from))
        });
        let (override_limit, stored) = override_limit.unwrap_or_default();
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
        let override_limit =
            override_limit.map(|override_limit| (override_limit, LimitSource::Override));
        (
            override_limit.or_else(in_tier),
            tier.map(|tier| tier.name.clone()),
        )
    }
}

impl LimitExplanation {
    /// Whether it limits the key, or was changed for it. A limit that is off does not count.
    pub(crate) fn applies(&self) -> bool {
        self.source != LimitSource::Default || self.limit != UNLIMITED
    }
}

/// The text of a limit that is off.
pub(crate) const UNLIMITED: &str = "unlimited";

/// The slots of a concurrency limiter or of leases.
pub(crate) struct ExplainedSlots {
    pub(crate) name: Arc<str>,
    pub(crate) sort: &'static str,
    /// The retry time of a rejection at capacity.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) counted_in: CountedIn,
}

impl ExplainedSlots {
    /// Explains the limit of a key, given its used slots.
    pub(crate) fn explain_key(
        &self,
        place: usize,
        default: Option<u64>,
        override_limit: &(Option<(Capacity, LimitSource)>, Option<Arc<str>>),
        used: Option<u64>,
    ) -> LimitExplanation {
        let (override_limit, tier) = override_limit;
        let (limit, source) = match override_limit {
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

    /// Explains the total limit.
    pub(crate) fn explain_total(&self, limit: Option<u64>, used: Option<u64>) -> LimitExplanation {
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
