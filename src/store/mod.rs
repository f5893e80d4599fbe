//! Where the counting happens: in memory, or wherever a [`RateStore`] of your own counts.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::decision::Decision;
use crate::key::Key;
use crate::policy::Policy;

mod lease;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "test-util")]
pub mod suite;
mod tier;

pub use lease::{
    FailureMode, Held, LeaseLimits, LeaseName, LeaseSlots, LeaseStore, LeaseUsage, Leased,
    NamedLease, NamedLeased, NamedLimits, Standing,
};
pub use memory::MemoryStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
pub(crate) use tier::{InTier, Tiered};

/// A place where rate limits are counted.
///
/// A [sliding](crate::Quota::sliding) quota is counted as [`memory`] says.
///
/// A store hands out [`RateBuckets`] for the policies of one limiter. Buckets of different
/// limiters of one store do not touch each other.
pub trait RateStore: Send + Sync + 'static {
    /// The buckets for one limiter: a decision of it charges one key to each of `policies`.
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets>;

    /// As [`open`](Self::open), with quotas that can be changed; `None`, which is the default, of a store
    /// that cannot.
    fn open_adjustable(&self, policies: &[Policy]) -> Option<Arc<dyn AdjustableBuckets>> {
        let _ = policies;
        None
    }

    /// Whether all who count in this store make the same fingerprints of a credential, as one
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

    fn open_adjustable(&self, policies: &[Policy]) -> Option<Arc<dyn AdjustableBuckets>> {
        (**self).open_adjustable(policies)
    }

    fn agrees_on_fingerprints(&self) -> bool {
        (**self).agrees_on_fingerprints()
    }
}

/// Keys that may be fingerprints are to be counted in a store that replicas share, and which has
/// no [`Secret`](crate::Secret): each replica would count its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretMissing;

impl fmt::Display for SecretMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "replicas agree on the keys of credentials only with a secret that they share: \
             give the store one, or charge addresses alone",
        )
    }
}

impl std::error::Error for SecretMissing {}

/// The buckets of one limiter in a [`RateStore`].
///
/// `keys` has a key for each policy the buckets were opened with, in their order; when it is
/// shorter, the policies behind its end are left alone. A cost of 0 is always admitted, takes
/// nothing and reports what is left. The usages of a decision are those of the first policy's
/// quotas, then of the next one's, each in their order.
///
/// Where policies have [tiers](Policy::tier), a request counts in the quotas of all of them, whether it fits
/// or not, once it is admitted by those of its own. Of tiers that are not its own nothing is told.
pub trait RateBuckets: Send + Sync + 'static {
    /// Admits a request if it fits every quota of every key, and takes its cost from all of them;
    /// or takes nothing from any.
    ///
    /// Keys that are addresses are decided before the others, so that keys which a client can
    /// make up are not stored for an address that is refused.
    fn take(&self, keys: &[Key], cost: u32) -> Reply<Decision>;

    /// Takes 1 for the key of the first policy if that can be done at once, and says whether it
    /// was: for a caller that has no use for the numbers of a request which is admitted.
    ///
    /// `false` takes nothing and decides nothing; [`take`](RateBuckets::take) does. That is also
    /// the answer of a store without a quicker way, which is the default.
    fn take_one(&self, _key: &Key) -> bool {
        false
    }

    /// What [`take`](RateBuckets::take) would decide, taking nothing.
    fn peek(&self, keys: &[Key], cost: u32) -> Reply<Decision>;

    /// Gives back what a request took that was admitted and turned out not to count.
    ///
    /// Never fills a bucket (or window) beyond what it holds when it was left alone.
    fn refund(&self, keys: &[Key], cost: u32) -> Reply<()>;

    /// These buckets as requests of a tier are charged to them: such a request has to fit the quotas that the
    /// policies have [in that tier](Policy::in_tier). `None` of a tier that no policy has, and, which is the
    /// default, of a store without tiers.
    ///
    /// Of what is given back nothing depends on the tier.
    fn tier(self: Arc<Self>, _tier: &str) -> Option<Arc<dyn RateBuckets>> {
        None
    }

    /// How many keys are held and were given up, if the store knows that by itself; it is asked now
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
    /// How many buckets were given up that were not full again, because there was no other room for
    /// a new key: their owners started anew with full ones. Never goes down.
    pub evictions: u64,
}

impl RateStats {
    /// So many keys, and so many that were given up.
    #[must_use]
    pub fn new(tracked_keys: u64, evictions: u64) -> Self {
        Self {
            tracked_keys,
            evictions,
        }
    }
}

/// Buckets whose quotas can be changed while they are in use.
///
/// What is used stays used, in requests: a key that had half of its bucket has as many requests spent
/// after the change. What is more than an empty bucket owes may be forgotten, where no other process counts in
/// the same buckets by other quotas. Decisions that are not by the policies
/// which the buckets were opened with [say so](Decision::by).
///
/// Policies that are set have the names of those at first, in their order, and quotas of
/// the same kinds: [sliding](crate::Quota::sliding) or not.
pub trait AdjustableBuckets: RateBuckets {
    /// Sets the policies of all keys that have none of their own, and says whether it did: a store may
    /// bound how often they are changed within the time that what is used counts.
    fn set_policies(&self, policies: &[Policy]) -> bool;

    /// Whether [`set_policies`](Self::set_policies) would do it now. The default says that it always does.
    fn can_set_policies(&self) -> bool {
        true
    }

    /// Sets what a key of the policy at this place has of its own in place of it; `None` makes it
    /// one of all again.
    fn set_own(&self, policy: usize, key: &Key, own: Option<&Policy>);

    /// Whoever goes on to use these buckets is of the past: others that are opened with the same names may
    /// count in their place. Default: nothing has to be done for that.
    fn retire(&self) {}

    /// What these buckets are called in the store where other processes find them. Default: none do.
    fn place(&self) -> Option<&str> {
        None
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
