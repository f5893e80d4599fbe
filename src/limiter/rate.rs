//! Rate limits by key.

use std::fmt;
use std::slice;
use std::sync::Arc;

use super::joined::{Joined, Parts};
use super::rules::{Rules, SetPolicyError, TiersUnsupported};
use crate::decision::Decision;
use crate::key::Key;
use crate::limits::LimitExplanation;
use crate::limits::Limits;
use crate::nesting::Nesting;
use crate::policy::{NamedQuota, Policy};
use crate::store::{MemoryStore, RateStats, RateStore, Reply, SecretMissing};
#[cfg(all(feature = "config", feature = "metrics"))]
use crate::sync::{AtomicU64, Ordering};

/// Decides by key whether a request fits its quotas. Clones share one limit.
///
/// ```
/// use tower_admission::{Key, Quota, RateLimiter};
///
/// let messages = RateLimiter::new(Quota::per_minute(100));
/// let user = Key::id("user", "alice");
///
/// let decision = messages.check_now(&user).unwrap();
/// assert!(decision.is_admitted());
/// assert_eq!(decision.remaining(), Some(99));
/// ```
///
/// # Replies
///
/// A store in memory answers at once, and another one later. [`check`](Self::check) and its like return a [`Reply`], which
/// can be awaited either way; no method panics with some stores. [`check_now`](Self::check_now) is for code that cannot
/// await.
#[derive(Clone)]
pub struct RateLimiter {
    limit: Arc<Limit>,
    /// The tier of its requests.
    tier: Option<Arc<str>>,
}

struct Limit {
    /// As it was built.
    policies: Vec<Policy>,
    /// `None` when nothing is limited and nothing can be, and where limiters are joined.
    rules: Option<Arc<Rules>>,
    joined: Option<Joined>,
    nesting: Arc<Nesting>,
    /// Those that [`new_evictions`](RateLimiter::new_evictions) has returned.
    #[cfg(all(feature = "config", feature = "metrics"))]
    evictions: AtomicU64,
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
    /// Where [`try_with_store`](Self::try_with_store) returns an error or panics.
    #[must_use]
    #[track_caller]
    pub fn with_store(policy: impl Into<Policy>, store: &(impl RateStore + ?Sized)) -> Self {
        match Self::try_with_store(policy, store) {
            Ok(limiter) => limiter,
            Err(error) => panic!("{error}"),
        }
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
    /// When the policy has [tiers](Policy::tier) and the store [has none](crate::store::RateBuckets::add_tier).
    #[track_caller]
    pub fn try_with_store(
        policy: impl Into<Policy>,
        store: &(impl RateStore + ?Sized),
    ) -> Result<Self, SecretMissing> {
        if !store.agrees_on_fingerprints() {
            return Err(SecretMissing);
        }
        Ok(Self::with_policy(policy.into(), store, None))
    }

    /// A limiter that counts in `store`, with the overrides and tiers of `limits`.
    ///
    /// # Panics
    ///
    /// When replicas share the store, and it has no [`Secret`](crate::Secret); when there are
    /// [tiers](Policy::tier) and the store [has none](crate::store::RateBuckets::add_tier).
    #[must_use]
    #[track_caller]
    pub fn with_limits(
        policy: impl Into<Policy>,
        store: &(impl RateStore + ?Sized),
        limits: &Limits,
    ) -> Self {
        assert!(store.agrees_on_fingerprints(), "{SecretMissing}");
        Self::with_policy(policy.into(), store, Some(limits))
    }

    #[track_caller]
    fn with_policy(
        policy: Policy,
        store: &(impl RateStore + ?Sized),
        limits: Option<&Limits>,
    ) -> Self {
        match Self::try_with_policies(vec![policy], store, limits) {
            Ok(limiter) => limiter,
            Err(error) => panic!("{error}"),
        }
    }

    /// A limiter that charges one key to each policy.
    pub(crate) fn try_with_policies(
        policies: Vec<Policy>,
        store: &(impl RateStore + ?Sized),
        limits: Option<&Limits>,
    ) -> Result<Self, TiersUnsupported> {
        let policies = match limits {
            // An override or a tier may switch a quota on.
            Some(_) => policies,
            None => policies.into_iter().map(Policy::limiting).collect(),
        };
        let counts = policies.iter().any(|policy| !policy.quotas().is_empty());
        let rules = counts.then(|| {
            let shapes = policies.iter().map(Policy::shape).collect();
            Rules::new(policies.clone(), shapes, store.open(&policies), limits)
        });
        let rules = rules.transpose()?;
        Ok(Self {
            limit: Arc::new(Limit {
                policies,
                rules,
                joined: None,
                nesting: Arc::new(Nesting::new()),
                #[cfg(all(feature = "config", feature = "metrics"))]
                evictions: AtomicU64::new(0),
            }),
            tier: None,
        })
    }

    #[cfg(feature = "config")]
    pub(super) fn of_joined(joined: Joined, parts: &[(Arc<Rules>, &[Policy])]) -> Self {
        let policies = parts.iter().flat_map(|(_, policies)| *policies);
        Self {
            limit: Arc::new(Limit {
                policies: policies.cloned().collect(),
                rules: None,
                joined: Some(joined),
                nesting: Arc::new(Nesting::new()),
                #[cfg(all(feature = "config", feature = "metrics"))]
                evictions: AtomicU64::new(0),
            }),
            tier: None,
        }
    }

    pub(super) fn joined(&self) -> Option<&Joined> {
        self.limit.joined.as_ref()
    }

    #[cfg(feature = "config")]
    pub(super) fn rules_and_policies(&self) -> Option<(Arc<Rules>, &[Policy])> {
        Some((self.limit.rules.clone()?, &self.limit.policies))
    }

    /// The same limit for requests of a tier of [its policy](Policy::tier) or [its limits](Limits::tier);
    /// `None` if there is no tier of this name.
    ///
    /// Each tier counts apart. A tier that is stored for a key goes before this one.
    #[must_use]
    pub fn tier(&self, name: &str) -> Option<Self> {
        Some(Self {
            limit: self.limit.clone(),
            tier: Some(self.known_tier(name)?),
        })
    }

    /// The name of a tier that there is.
    pub(crate) fn known_tier(&self, name: &str) -> Option<Arc<str>> {
        match self.joined() {
            Some(joined) => joined.known_tier(name),
            None => self.limit.rules.as_ref()?.tier(name),
        }
    }

    /// How the services of this limit are known when they are nested.
    pub(crate) fn nesting(&self) -> Arc<Nesting> {
        self.limit.nesting.clone()
    }

    /// Explains each quota for a key.
    pub(crate) async fn explained(&self, key: Key) -> Vec<LimitExplanation> {
        match self.rules() {
            Some(rules) => rules.explained(key, None).await,
            None => Vec::new(),
        }
    }

    pub(super) fn rules(&self) -> Option<&Rules> {
        self.limit.rules.as_deref()
    }

    /// Sets the quotas of keys without an override, in every tier. Usage is kept, however often the policy changes.
    ///
    /// Takes microseconds, whatever the number of overrides.
    ///
    /// # Errors
    ///
    /// - [`SetPolicyError::Shape`]: the quotas have other names than those at first, or one, also in a tier, is
    ///   [sliding](crate::Quota::sliding) where that was not.
    /// - [`SetPolicyError::TooManyTiers`]: the policy has had [`Policy::MAX_TIERS`] tiers before.
    /// - [`SetPolicyError::Fixed`]: the limiter was built with quotas that are all off and without
    ///   [`Limits`], or its [store](RateStore) cannot change quotas.
    pub fn set_policy(&self, policy: impl Into<Policy>) -> Result<(), SetPolicyError> {
        let rules = self.rules().ok_or(SetPolicyError::Fixed)?;
        let mut policies = rules.policies();
        policies[0] = policy.into();
        rules.set_policies(policies)
    }

    /// The policies as they are now, in the tier of this limiter.
    #[must_use]
    pub fn current_policies(&self) -> Vec<Policy> {
        match self.rules() {
            Some(rules) if self.tier.is_some() => rules.policies_in(self.tier.as_deref()),
            Some(rules) => rules.policies(),
            None => self.limit.policies.clone(),
        }
    }

    /// Decides about a request of cost 1, and takes it from the key's buckets if it is admitted.
    #[inline]
    pub fn check(&self, key: &Key) -> Reply<Decision> {
        self.check_n(key, 1)
    }

    /// As [`check`](Self::check), for a request of any cost.
    ///
    /// A cost of 0 is admitted, takes nothing and reports what is left. A cost above the burst of
    /// a quota is rejected, takes nothing and has no [`retry_after`](Decision::retry_after).
    #[inline]
    pub fn check_n(&self, key: &Key, cost: u32) -> Reply<Decision> {
        self.decide(slice::from_ref(key), cost)
    }

    /// As [`check`](Self::check), where the store answers at once; the memory store does. `None`: it
    /// does not, and has decided nothing.
    #[inline]
    #[must_use = "a request that goes on in spite of a rejection is not limited"]
    pub fn check_now(&self, key: &Key) -> Option<Decision> {
        self.check(key).now()
    }

    /// What [`check`](Self::check) would decide, taking nothing.
    pub fn peek(&self, key: &Key) -> Reply<Decision> {
        self.peek_all(slice::from_ref(key), 1)
    }

    /// Gives back what an admitted request took, because it turned out not to count.
    ///
    /// Never fills a bucket beyond its burst. Meant for soon after the request: what the bucket
    /// has regained since then is given back once more.
    pub fn refund(&self, key: &Key, cost: u32) -> Reply<()> {
        self.refund_all(slice::from_ref(key), cost)
    }

    /// Decides about a request with a key for each policy of a layer: its own, then those of
    /// [`and_by`](crate::RateLimitLayer::and_by). Policies without a key are left alone.
    #[inline]
    pub fn decide(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.decide_in(self.tier.as_deref(), keys, cost)
    }

    /// As [`decide`](Self::decide), for a request of a tier.
    #[inline]
    pub(crate) fn decide_in(&self, tier: Option<&str>, keys: &[Key], cost: u32) -> Reply<Decision> {
        let Some(rules) = &self.limit.rules else {
            return match self.joined() {
                Some(joined) => joined.decide(keys, tier, cost, Parts::NONE),
                None => Reply::Ready(Decision::unlimited()),
            };
        };
        let decision = match keys {
            [key] => {
                let charge = rules.charge(0, key, tier);
                rules.buckets().take(slice::from_ref(&charge), cost)
            }
            keys => rules.buckets().take(&rules.charges(keys, tier), cost),
        };
        if let Reply::Ready(decision) = &decision
            && decision.is_unsettled()
        {
            rules.settle(keys);
        }
        decision
    }

    /// Takes 1 for a key if that can be done at once, and returns whether it was; `false` decides
    /// nothing.
    #[inline]
    pub(crate) fn take_one(&self, tier: Option<&str>, key: &Key) -> bool {
        match &self.limit.rules {
            Some(rules) => rules.buckets().take_one(&rules.charge(0, key, tier)),
            None => self.is_off(),
        }
    }

    /// What [`decide`](Self::decide) would answer, taking nothing.
    pub fn peek_all(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        let tier = self.tier.as_deref();
        match &self.limit.rules {
            Some(rules) => rules.buckets().peek(&rules.charges(keys, tier), cost),
            None => Reply::Ready(Decision::unlimited()),
        }
    }

    /// As [`refund`](Self::refund), to all keys of a [`decide`](Self::decide).
    pub fn refund_all(&self, keys: &[Key], cost: u32) -> Reply<()> {
        let tier = self.tier.as_deref();
        match &self.limit.rules {
            Some(rules) => rules.buckets().refund(&rules.charges(keys, tier), cost),
            None => Reply::Ready(()),
        }
    }

    /// How many keys are held, and how many were evicted at the store's bound. `None` when nothing
    /// is limited, and of a store that does not know it; the memory store does.
    ///
    /// For metrics, now and then: it may take a lock for each part of the keys.
    #[must_use]
    pub fn stats(&self) -> Option<RateStats> {
        self.limit.rules.as_ref()?.buckets().stats()
    }

    /// How many keys were evicted since the last call, for a counter that outlives this limiter.
    #[cfg(all(feature = "config", feature = "metrics"))]
    pub(crate) fn new_evictions(&self) -> Option<u64> {
        let evictions = self.stats()?.evictions;
        let before = (self.limit.evictions).fetch_max(evictions, Ordering::Relaxed);
        Some(evictions.saturating_sub(before))
    }

    /// The policies that this limiter was built with. Without [`Limits`], quotas that are off are left out.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.limit.policies
    }

    /// Whether this limiter limits nothing, because every quota is off and there are no [`Limits`].
    #[inline]
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.limit.rules.is_none() && self.limit.joined.is_none()
    }

    /// The names of the quotas, by the place of a usage.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let quotas = self.policies().iter().flat_map(Policy::quotas);
        quotas.map(NamedQuota::name)
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("policies", &self.limit.policies)
            .field("tier", &self.tier)
            .finish_non_exhaustive()
    }
}
