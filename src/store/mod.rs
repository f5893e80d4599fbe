//! Where the counting happens: in memory, or wherever a [`RateStore`] of your own counts.

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

/// A place where rate limits are counted.
///
/// A store knows keys, rules and amounts. Limiters resolve which rules apply to a request before they ask it. A
/// [sliding](crate::Quota::sliding) quota is counted as [`memory`] says.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a store",
    note = "a store is `MemoryStore`, or `RedisStore` of the crate `tower-admission-redis`"
)]
pub trait RateStore: Send + Sync + 'static {
    /// Opens the buckets of one limiter: a set of buckets for each of `policies`, called 0 and so on. Buckets of different
    /// limiters of one store do not touch each other.
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets>;

    /// Whether all processes that count in this store make the same fingerprints of a credential, as one
    /// process does. A store that replicas share can promise it only with a
    /// [`Secret`](crate::Secret).
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

/// A store that replicas share has no [`Secret`](crate::Secret), and its keys may be fingerprints: each replica would
/// count for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretMissing;

/// For crates that take a store, which check its secret as the layers do.
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

/// One key that a decision charges, and to what.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Charge {
    /// The key.
    pub key: Key,
    /// The number of the set of buckets.
    pub set: usize,
    pub(crate) rules: OverrideRules,
}

/// The override of a key, as far as it is about the quotas of a set.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OverrideRules {
    None,
    /// Of the only quota, the usual case, without an allocation.
    One(Rule),
    /// `None` for a quota with the set's default.
    Several(Arc<[Option<Rule>]>),
}

impl Charge {
    /// By the defaults of a set.
    #[inline]
    #[must_use]
    pub fn new(key: Key, set: usize) -> Self {
        Self {
            key,
            set,
            rules: OverrideRules::None,
        }
    }

    /// By an override: a rule for each quota of the set; `None` for a quota with the set's default.
    #[must_use]
    pub fn with_rules(mut self, rules: &[Option<Rule>]) -> Self {
        self.rules = match rules {
            [Some(rule)] => OverrideRules::One(*rule),
            rules if rules.iter().all(Option::is_none) => OverrideRules::None,
            rules => OverrideRules::Several(rules.into()),
        };
        self
    }

    /// The override of the quota at a place.
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

    /// The same with another rule in place of each of the override.
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

/// The buckets of one limiter in a [`RateStore`], in numbered sets: those that it was opened with, then one for
/// each [tier](Self::add_tier).
///
/// A cost of 0 is always admitted, takes nothing and reports what is left. The usages of a decision are those
/// of the first charge's quotas, then of the next one's, each in the order of the policy. Of a quota that is off there is
/// none.
///
/// **Conversion.** A key may be charged by one rule and decided about by another, after its override or the
/// default was changed. As many requests stay used then. In memory a bucket lacks no more than an empty one by the new
/// rule does.
pub trait RateBuckets: Any + Send + Sync {
    /// Admits a request if it fits every quota of every charge, and takes its cost from all of them;
    /// or takes nothing from any.
    ///
    /// Keys that are addresses are decided before the others, so that keys which a client can
    /// make up are not stored for an address that is rejected.
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision>;

    /// Takes 1 if that can be done at once, and returns whether it was: for a caller that has no use for the
    /// numbers of a request which is admitted.
    ///
    /// `false` takes nothing and decides nothing; [`take`](RateBuckets::take) does. That is also
    /// the answer of a store without a quicker way, which is the default.
    fn take_one(&self, _charge: &Charge) -> bool {
        false
    }

    /// What [`take`](RateBuckets::take) would decide, taking nothing.
    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision>;

    /// Gives back what a request took that was admitted and turned out not to count.
    ///
    /// Never fills a bucket (or window) beyond what it holds when it was left alone.
    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()>;

    /// Converts what the keys have used to the rules of these charges, as of now. Called after an override was set,
    /// changed or deleted. Default: the next decision converts it.
    fn settle(&self, _charges: &[Charge]) {}

    /// Sets the defaults of a set, one for each quota, and returns whether it did. A quota keeps its algorithm:
    /// bucket or window. Default: this store cannot.
    fn set_quotas(&self, _set: usize, _quotas: &[Quota]) -> bool {
        false
    }

    /// Adds a set for the requests of a tier of the policy at a place, and returns its number. Default:
    /// this store has no tiers.
    fn add_tier(&self, _policy: usize, _tier: &str, _quotas: &Policy) -> Option<usize> {
        None
    }

    /// These buckets and those of other limiters of the same store as one, so that one decision charges all or none.
    /// The sets of these keep their numbers, and those of `others[n]` are numbered from `(n + 1) << 16` on; tiers that
    /// are added later are found as well. Default: this store cannot.
    fn join(&self, _others: &[Arc<dyn RateBuckets>]) -> Option<Arc<dyn RateBuckets>> {
        None
    }

    /// Marks these buckets as superseded: others that are opened with the same names may
    /// count in their place. Default: nothing has to be done for that.
    fn retire(&self) {}

    /// What these buckets are called in a store where other processes find them. Default: none do.
    fn place(&self) -> Option<&str> {
        None
    }

    /// Whether a store that replicas share decides; asked for operators, without a call. Default: it is in this process.
    fn status(&self) -> Option<StoreStatus> {
        None
    }

    /// How many keys are held and were evicted, if the store knows that without a call; it is asked now
    /// and then, for metrics. Default: it does not.
    fn stats(&self) -> Option<RateStats> {
        None
    }
}

/// What a [`RateStore`] holds for one limiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateStats {
    /// How many keys are held, each once for every quota that it is charged to. Those whose bucket
    /// is full again count until their room is needed.
    pub tracked_keys: u64,
    /// How many buckets were evicted that were not full again, because there was no other room for
    /// a new key: their owners started anew with full ones. Never goes down.
    pub evictions: u64,
}

impl RateStats {
    /// So many keys, and so many that were evicted.
    #[must_use]
    pub fn new(tracked_keys: u64, evictions: u64) -> Self {
        Self {
            tracked_keys,
            evictions,
        }
    }
}

/// An answer that is here, or one that comes later.
///
/// A store in memory answers at once, which costs neither an allocation nor an await.
#[must_use]
pub enum Reply<T> {
    /// The answer.
    Ready(T),
    /// The answer, once the store has it.
    Pending(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Reply<T> {
    /// The answer, if it is there at once: it is from [`MemoryStore`].
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

// Nothing in it is pinned: a pending answer is in a box of its own.
impl<T> Unpin for ReplyFuture<T> {}

impl<T> Future for ReplyFuture<T> {
    type Output = T;

    /// # Panics
    ///
    /// When polled again after it was ready.
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
