//! Stores: where limits are counted. In memory by default; implement [`RateStore`] to count elsewhere.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::decision::Decision;
use crate::key::Key;
use crate::policy::Policy;
use crate::quota::Quota;
use crate::rule::Rule;

pub(crate) mod denials;
mod error;
pub(crate) mod joined_set;
pub(crate) mod lease;
pub(crate) mod local_share;
pub mod memory;
pub mod overrides;
mod status;

pub use error::{FailureKind, StoreError};
pub use lease::{
    AcquireOutcome, FailureMode, LeaseGuard, LeaseLimits, LeaseName, LeaseSlots, LeaseStatus,
    LeaseStore, LeaseUsage, NamedAcquireOutcome, NamedLease, NamedLimits,
};
pub use memory::MemoryStore;
pub use overrides::SharedStore;
pub use status::{StoreFailure, StoreStatus};

/// Counts rate limits.
///
/// A store knows keys, rules and amounts. Limiters resolve the rules of a request before they call the store.
/// [`memory`] documents how a [sliding](crate::Quota::sliding) quota counts.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a store",
    note = "a store is `MemoryStore`, or `RedisStore` of the crate `tower-admission-redis`"
)]
pub trait RateStore: Send + Sync + 'static {
    /// Opens the buckets of one limiter: one set of buckets for each of `policies`, numbered from 0. Limiters of one
    /// store do not share buckets.
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets>;

    /// Whether all processes that use this store compute the same fingerprint of a credential. Default: true, which is
    /// right for a store of one process. A shared store needs a [`Secret`](crate::Secret) for it.
    fn agrees_on_fingerprints(&self) -> bool {
        true
    }
}

impl<S: RateStore + ?Sized> RateStore for Arc<S> {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        (**self).open(policies)
    }

    fn agrees_on_fingerprints(&self) -> bool {
        (**self).agrees_on_fingerprints()
    }
}

/// A shared store has no [`Secret`](crate::Secret), and its keys may be fingerprints: each replica would count
/// separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretMissing;

/// For crates that take a store and check its secret as the layers do.
pub(crate) mod secret {
    /// The error of a store that keys by credentials and has no secret.
    pub const SECRET_MISSING: super::SecretMissing = super::SecretMissing;
}

impl fmt::Display for SecretMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a shared store that keys by credentials needs a secret: call `.secret(..)`, or key by address",
        )
    }
}

impl std::error::Error for SecretMissing {}

/// One key that a decision charges, and the set of buckets that it charges.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Charge {
    /// The key.
    pub key: Key,
    /// The number of the set of buckets.
    pub set: usize,
    pub(crate) rules: OverrideRules,
}

/// The override of a key for the quotas of a set.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OverrideRules {
    None,
    /// The override of the only quota: the usual case, without an allocation.
    One(Rule),
    /// `None` for a quota with the default of the set.
    Several(Arc<[Option<Rule>]>),
}

impl Charge {
    /// Charges a key by the defaults of a set.
    #[inline]
    #[must_use]
    pub fn new(key: Key, set: usize) -> Self {
        Self {
            key,
            set,
            rules: OverrideRules::None,
        }
    }

    /// Sets an override: a rule for each quota of the set; `None` for a quota with the default of the set.
    #[must_use]
    pub fn with_rules(mut self, rules: &[Option<Rule>]) -> Self {
        self.rules = match rules {
            [Some(rule)] => OverrideRules::One(*rule),
            rules if rules.iter().all(Option::is_none) => OverrideRules::None,
            rules => OverrideRules::Several(rules.into()),
        };
        self
    }

    /// The override of the quota at an index.
    #[inline]
    #[must_use]
    pub fn rule(&self, at: usize) -> Option<&Rule> {
        match &self.rules {
            OverrideRules::None => None,
            OverrideRules::One(rule) => (at == 0).then_some(rule),
            OverrideRules::Several(rules) => rules.get(at)?.as_ref(),
        }
    }

    /// Whether any quota of the set has an override.
    #[must_use]
    pub fn is_overridden(&self) -> bool {
        self.rules != OverrideRules::None
    }

    /// Replaces each rule of the override.
    pub(crate) fn map_rules(&self, map: impl Fn(&Rule) -> Rule) -> Self {
        let rules = match &self.rules {
            OverrideRules::None => OverrideRules::None,
            OverrideRules::One(rule) => OverrideRules::One(map(rule)),
            OverrideRules::Several(rules) => {
                OverrideRules::Several(rules.iter().map(|rule| rule.as_ref().map(&map)).collect())
            }
        };
        Self {
            rules,
            ..self.clone()
        }
    }
}

/// The buckets of one limiter in a [`RateStore`], in numbered sets: first the sets that it was opened with, then one
/// for each [tier](Self::add_tier).
///
/// A cost of 0 is always admitted, takes nothing and reports what remains. A decision has the usages of the first
/// charge's quotas, then those of the next charge, each in the order of the policy. A quota that is off has no usage.
///
/// **Conversion.** After a change of an override or a default, a key may be charged by one rule and decided by another.
/// The same number of requests stays used. In memory, the debt of a bucket is clamped to that of an empty bucket under
/// the new rule.
pub trait RateBuckets: Any + Send + Sync {
    /// Admits a request and takes its cost, if it fits every quota of every charge; otherwise takes nothing.
    ///
    /// Addresses are decided before other keys, so that a rejected address cannot store keys that its client made up.
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision>;

    /// Takes 1 and returns true, if that is possible at once. For callers that do not need the numbers of an admitted
    /// request.
    ///
    /// `false` takes nothing and decides nothing: call [`take`](RateBuckets::take). Default: always `false`.
    fn take_one(&self, _charge: &Charge) -> bool {
        false
    }

    /// Decides like [`take`](RateBuckets::take), but takes nothing.
    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision>;

    /// Refunds the cost of an admitted request.
    ///
    /// A refund never fills a bucket or window beyond its unused state.
    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()>;

    /// Converts the usage of the keys to the rules of these charges. Called after an override was set, changed or
    /// deleted. Default: the next decision converts it.
    fn settle(&self, _charges: &[Charge]) {}

    /// Sets the defaults of a set, one for each quota, and returns true if it did. A quota keeps its algorithm: bucket
    /// or window. Default: not supported.
    fn set_quotas(&self, _set: usize, _quotas: &[Quota]) -> bool {
        false
    }

    /// Adds a set for a tier of the policy at an index, and returns its number. Default: no tiers are supported.
    fn add_tier(&self, _policy: usize, _tier: &str, _quotas: &Policy) -> Option<usize> {
        None
    }

    /// Joins these buckets with those of other limiters of the same store, so that one decision charges all or none.
    /// The sets of this limiter keep their numbers; the sets of `others[n]` are numbered from `(n + 1) << 16`,
    /// including tiers that are added later. Default: not supported.
    fn join(&self, _others: &[Arc<dyn RateBuckets>]) -> Option<Arc<dyn RateBuckets>> {
        None
    }

    /// Marks these buckets as superseded: buckets that are opened later with the same names may take their place.
    /// Default: nothing.
    fn retire(&self) {}

    /// The place of these buckets in the store, by which other processes can open them. Default: none.
    fn place(&self) -> Option<&str> {
        None
    }

    /// Whether the shared store decides; for operators, without a call. Default: the store is in this process.
    fn status(&self) -> Option<StoreStatus> {
        None
    }

    /// The number of stored and evicted keys, if the store knows it without a call. Called from time to time, for
    /// metrics. Default: unknown.
    fn stats(&self) -> Option<RateStats> {
        None
    }
}

/// Statistics of the buckets of one limiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateStats {
    /// The number of stored keys, counted once for each quota. Full buckets count until their room is needed.
    pub tracked_keys: u64,
    /// The number of evictions of buckets that were not full, for lack of other room for a new key. These keys started
    /// again with a full bucket. Never decreases.
    pub evictions: u64,
}

impl RateStats {
    /// Creates statistics from the number of stored keys and the number of evictions.
    #[must_use]
    pub fn new(tracked_keys: u64, evictions: u64) -> Self {
        Self {
            tracked_keys,
            evictions,
        }
    }
}

/// An answer that is ready, or a future of it.
///
/// A store in memory answers at once, without an allocation or an await.
#[must_use]
pub enum Reply<T> {
    /// The answer.
    Ready(T),
    /// The future of the answer.
    Pending(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Reply<T> {
    /// The answer if it is ready. [`MemoryStore`] always has it ready.
    #[inline]
    #[must_use]
    pub fn now(self) -> Option<T> {
        match self {
            Self::Ready(answer) => Some(answer),
            Self::Pending(_) => None,
        }
    }
}

impl<T: Send + 'static> IntoFuture for Reply<T> {
    type Output = T;
    type IntoFuture = ReplyFuture<T>;

    fn into_future(self) -> ReplyFuture<T> {
        ReplyFuture(Some(self))
    }
}

/// The future of a [`Reply`].
#[derive(Debug)]
pub struct ReplyFuture<T>(Option<Reply<T>>);

// Nothing in it is pinned: a pending answer is boxed.
impl<T> Unpin for ReplyFuture<T> {}

impl<T> Future for ReplyFuture<T> {
    type Output = T;

    /// # Panics
    ///
    /// When polled again after completion.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(Reply::Pending(future)) = &mut self.0 {
            return future.as_mut().poll(cx);
        }
        match self.0.take() {
            Some(Reply::Ready(answer)) => Poll::Ready(answer),
            _ => panic!("a reply is polled again after it was ready"),
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready(..)",
            Self::Pending(_) => "Pending(..)",
        })
    }
}
