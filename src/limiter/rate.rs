//! Rate limits by key.

use std::fmt;
use std::slice;
use std::sync::Arc;

use super::adjusted::{Adjusted, SetPolicyError};
use crate::decision::Decision;
use crate::key::Key;
use crate::limits::Limits;
use crate::nesting::Nesting;
use crate::policy::{NamedQuota, Policy, tiers_of};
use crate::store::{MemoryStore, RateBuckets, RateStats, RateStore, Reply, SecretMissing};

/// Decides by key whether a request fits its quotas. Clones share one limit.
///
/// ```
/// use tower_admission::{Key, Quota, RateLimiter};
///
/// let messages = RateLimiter::new(Quota::per_minute(100));
/// let user = Key::id("user", "alice");
///
/// let decision = messages.check(&user);
/// assert!(decision.is_admitted());
/// assert_eq!(decision.remaining(), Some(99));
/// ```
#[derive(Clone)]
pub struct RateLimiter(Arc<Limit>);

struct Limit {
    policies: Vec<Policy>,
    /// `None` when every quota is off.
    buckets: Option<Arc<dyn RateBuckets>>,
    adjusted: Option<Arc<Adjusted>>,
    /// Which tier of the policies it is of.
    tier: Option<Arc<str>>,
    tiers: Vec<RateLimiter>,
    nesting: Arc<Nesting>,
}

impl RateLimiter {
    /// A limiter in memory, with the default bound on keys.
    #[must_use]
    pub fn new(policy: impl Into<Policy>) -> Self {
        Self::with_store(policy, &MemoryStore::new())
    }

    /// A limiter that counts in `store`.
    ///
    /// # Panics
    ///
    /// Where [`try_with_store`](Self::try_with_store) returns an error; when the policy has
    /// [tiers](Policy::tier) and the store [has none](RateBuckets::tier).
    #[must_use]
    #[track_caller]
    pub fn with_store(policy: impl Into<Policy>, store: &(impl RateStore + ?Sized)) -> Self {
        Self::try_with_store(policy, store).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`with_store`](Self::with_store), for a store that is configured from outside.
    ///
    /// # Errors
    ///
    /// When replicas share the store, and it has no [`Secret`](crate::Secret) by which they would
    /// agree on keys.
    ///
    /// # Panics
    ///
    /// When the policy has [tiers](Policy::tier) and the store [has none](RateBuckets::tier).
    pub fn try_with_store(
        policy: impl Into<Policy>,
        store: &(impl RateStore + ?Sized),
    ) -> Result<Self, SecretMissing> {
        if !store.agrees_on_fingerprints() {
            return Err(SecretMissing);
        }
        Ok(Self::with_policies(vec![policy.into()], store, None))
    }

    /// A limiter that counts in `store`, where single keys have what `limits` says.
    ///
    /// # Panics
    ///
    /// When replicas share the store, and it has no [`Secret`](crate::Secret); when the store
    /// [cannot change quotas](RateStore::open_adjustable); when the policy has
    /// [tiers](Policy::tier) and the store [has none](RateBuckets::tier).
    #[must_use]
    #[track_caller]
    pub fn with_limits(
        policy: impl Into<Policy>,
        store: &(impl RateStore + ?Sized),
        limits: &Limits,
    ) -> Self {
        assert!(store.agrees_on_fingerprints(), "{SecretMissing}");
        Self::with_policies(vec![policy.into()], store, Some(limits))
    }

    /// A limiter that limits nothing.
    pub(crate) fn off() -> Self {
        Self::with_policies(Vec::new(), &MemoryStore::new(), None)
    }

    /// A limiter that charges one key to each policy.
    #[track_caller]
    pub(crate) fn with_policies(
        policies: Vec<Policy>,
        store: &(impl RateStore + ?Sized),
        limits: Option<&Limits>,
    ) -> Self {
        let policies: Vec<_> = policies.into_iter().map(Policy::limiting).collect();
        let counts = policies.iter().flat_map(Policy::all_quotas).count() > 0;
        let (buckets, adjusted): (Option<Arc<dyn RateBuckets>>, _) = match limits {
            _ if !counts => (None, None),
            None => (Some(store.open(&policies)), None),
            Some(limits) => {
                let buckets = store
                    .open_adjustable(&policies)
                    .expect("this store can change quotas");
                let adjusted = Adjusted::new(policies.clone(), buckets.clone(), limits);
                (Some(buckets), Some(adjusted))
            }
        };
        let nesting = Arc::new(Nesting::new());
        let in_tier = |tier: Arc<str>| {
            let buckets = buckets.clone().map(|buckets| {
                let buckets = buckets.tier(&tier);
                buckets.expect("this store has no tiers")
            });
            Self(Arc::new(Limit {
                policies: policies.iter().map(|p| p.in_tier(&tier)).collect(),
                buckets,
                adjusted: adjusted.clone(),
                tier: Some(tier),
                tiers: Vec::new(),
                nesting: nesting.clone(),
            }))
        };
        Self(Arc::new(Limit {
            tiers: tiers_of(&policies).into_iter().map(in_tier).collect(),
            tier: None,
            policies,
            buckets,
            adjusted,
            nesting,
        }))
    }

    /// The same limit for requests of a [tier](Policy::tier); `None` if no policy has it.
    ///
    /// It shares what is used with this one and with those of other tiers. What it
    /// [gives back](Self::refund) is given back to all.
    #[must_use]
    pub fn tier(&self, name: &str) -> Option<&Self> {
        let mut tiers = self.0.tiers.iter();
        tiers.find(|limiter| limiter.0.tier.as_deref() == Some(name))
    }

    /// How the services of this limit are known when they are nested.
    pub(crate) fn nesting(&self) -> Arc<Nesting> {
        self.0.nesting.clone()
    }

    #[cfg(feature = "config")]
    pub(super) fn adjusted(&self) -> Option<&Adjusted> {
        self.0.adjusted.as_deref()
    }

    /// One for each tier.
    pub(crate) fn tiers(&self) -> impl Iterator<Item = (&str, &Self)> {
        let tiers = self.0.tiers.iter();
        tiers.filter_map(|limiter| Some((limiter.0.tier.as_deref()?, limiter)))
    }

    /// Changes what all keys may do that have no limits of their own, in every tier. What is used stays
    /// used.
    ///
    /// # Errors
    ///
    /// - [`SetPolicyError::Fixed`]: the limiter was made without [`Limits`], or all its quotas
    ///   were off.
    /// - [`SetPolicyError::Shape`]: the policy has not the names and tiers that the one at first had, in
    ///   their order, or one of its quotas is [sliding](crate::Quota::sliding) where that was not,
    ///   or off.
    /// - [`SetPolicyError::TooOften`]: in memory, as each change keeps a table of the keys that it saw until
    ///   they are as good as unused.
    pub fn set_policy(&self, policy: impl Into<Policy>) -> Result<(), SetPolicyError> {
        let adjusted = self.0.adjusted.as_ref().ok_or(SetPolicyError::Fixed)?;
        let mut policies = adjusted.policies();
        policies[0] = policy.into();
        adjusted.set_policies(policies)
    }

    /// The policies as they are now for keys that have no limits of their own.
    #[must_use]
    pub fn current_policies(&self) -> Vec<Policy> {
        let Some(adjusted) = &self.0.adjusted else {
            return self.0.policies.clone();
        };
        let policies = adjusted.policies();
        match &self.0.tier {
            Some(tier) => policies.iter().map(|p| p.in_tier(tier)).collect(),
            None => policies,
        }
    }

    /// Decides about a request of cost 1 and takes it from the key's buckets if it is admitted.
    ///
    /// # Panics
    ///
    /// When the store does not answer at once; the memory store does. Use
    /// [`decide`](Self::decide) with one that does not.
    #[inline]
    #[must_use = "a request that goes on in spite of a rejection is not limited"]
    pub fn check(&self, key: &Key) -> Decision {
        self.check_n(key, 1)
    }

    /// As [`check`](Self::check), for a request of any cost.
    ///
    /// A cost of 0 is admitted, takes nothing and reports what is left. A cost above the burst of
    /// a quota is refused, takes nothing and has no [`retry_after`](Decision::retry_after).
    ///
    /// # Panics
    ///
    /// As [`check`](Self::check).
    #[inline]
    #[must_use = "a request that goes on in spite of a rejection is not limited"]
    pub fn check_n(&self, key: &Key, cost: u32) -> Decision {
        now(self.decide(slice::from_ref(key), cost))
    }

    /// What [`check`](Self::check) would decide, taking nothing.
    ///
    /// # Panics
    ///
    /// As [`check`](Self::check).
    #[must_use]
    pub fn peek(&self, key: &Key) -> Decision {
        now(self.peek_all(slice::from_ref(key), 1))
    }

    /// Gives back what an admitted request took, because it turned out not to count.
    ///
    /// Never fills a bucket beyond its burst. Meant for soon after the request: what the bucket
    /// has regained by itself since then is given back once more.
    ///
    /// # Panics
    ///
    /// As [`check`](Self::check).
    pub fn refund(&self, key: &Key, cost: u32) {
        now(self.refund_all(slice::from_ref(key), cost));
    }

    /// Decides about a request with a key for each policy of a layer: its own, then those of
    /// [`and_by`](crate::RateLimitLayer::and_by). Policies without a key are left alone.
    ///
    /// The answer is there at once, or can be awaited, as the store is.
    #[inline]
    pub fn decide(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        match &self.0.buckets {
            Some(buckets) => buckets.take(keys, cost),
            None => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Takes 1 for a key if that can be done at once, and says whether it was; `false` decides
    /// nothing.
    #[inline]
    pub(crate) fn take_one(&self, key: &Key) -> bool {
        match &self.0.buckets {
            Some(buckets) => buckets.take_one(key),
            None => true,
        }
    }

    /// What [`decide`](Self::decide) would answer, taking nothing.
    pub fn peek_all(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        match &self.0.buckets {
            Some(buckets) => buckets.peek(keys, cost),
            None => Reply::Ready(Decision::unlimited()),
        }
    }

    /// As [`refund`](Self::refund), to all keys of a [`decide`](Self::decide).
    pub fn refund_all(&self, keys: &[Key], cost: u32) -> Reply<()> {
        match &self.0.buckets {
            Some(buckets) => buckets.refund(keys, cost),
            None => Reply::Ready(()),
        }
    }

    /// How many keys are held, and how many were given up at the store's bound. `None` when nothing
    /// is limited, and of a store that does not know it; the memory store does.
    ///
    /// For metrics, now and then: it may take a lock for each part of the keys.
    #[must_use]
    pub fn stats(&self) -> Option<RateStats> {
        self.0.buckets.as_ref()?.stats()
    }

    /// The policies that this limiter was made with, without the quotas that are off.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.0.policies
    }

    /// Whether this limiter limits nothing, because every quota is off.
    #[inline]
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.0.buckets.is_none()
    }

    /// The names of the quotas, in the order of a decision's usages.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let quotas = self.0.policies.iter().flat_map(Policy::quotas);
        quotas.map(NamedQuota::name)
    }
}

#[inline]
fn now<T>(reply: Reply<T>) -> T {
    match reply {
        Reply::Ready(answer) => answer,
        Reply::Pending(_) => panic!("this store answers later: await RateLimiter::decide"),
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("policies", &self.0.policies)
            .finish_non_exhaustive()
    }
}
