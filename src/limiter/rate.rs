//! Rate limits by key.

use std::fmt;
use std::slice;
use std::sync::Arc;

use super::joined::{Joined, LimiterSet};
use super::rules::{RateRules, SetPolicyError, TiersUnsupported};
use crate::decision::Decision;
use crate::key::Key;
use crate::limits::LimitExplanation;
use crate::limits::Limits;
use crate::nesting::Nesting;
use crate::policy::{NamedQuota, Policy};
use crate::store::{MemoryStore, RateStats, RateStore, Reply, SecretMissing};
use crate::sync::{AtomicU64, Ordering};

/// Limits the rate of requests by key. Clones share one limit.
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
/// The memory store answers immediately; other stores may answer later. [`check`](Self::check) and
/// similar methods return a [`Reply`], which can be awaited in both cases. No method panics
/// depending on the store. [`check_now`](Self::check_now) is for code that cannot await.
#[derive(Clone)]
pub struct RateLimiter {
    inner: Arc<RateLimiterInner>,
    /// The tier of the requests.
    tier: Option<Arc<str>>,
}

struct RateLimiterInner {
    /// The policies as built.
    policies: Vec<Policy>,
    /// `None` if nothing is limited and nothing can be, and for joined limiters.
    rules: Option<Arc<RateRules>>,
    joined: Option<Joined>,
    nesting: Arc<Nesting>,
    /// The evictions that [`new_evictions`](RateLimiter::new_evictions) has reported.
    evictions: AtomicU64,
}

impl RateLimiter {
    /// Creates a limiter that counts in memory, with the default bound on keys.
    #[must_use]
    pub fn new(policy: impl Into<Policy>) -> Self {
        Self::with_store(policy, &MemoryStore::new())
    }

    /// Creates a limiter that counts in `store`.
    ///
    /// # Panics
    ///
    /// Panics where [`try_with_store`](Self::try_with_store) returns an error or panics.
    #[must_use]
    #[track_caller]
    pub fn with_store(policy: impl Into<Policy>, store: &(impl RateStore + ?Sized)) -> Self {
        match Self::try_with_store(policy, store) {
            Ok(limiter) => limiter,
            Err(error) => panic!("{error}"),
        }
    }

    /// Like [`with_store`](Self::with_store), but returns an error, for a store that is configured
    /// at run time.
    ///
    /// # Errors
    ///
    /// Returns [`SecretMissing`] if replicas share the store and no [`Secret`](crate::Secret) makes
    /// their fingerprints of keys equal.
    ///
    /// # Panics
    ///
    /// Panics if the policy has [tiers](Policy::tier) and the store [does not support
    /// them](crate::store::RateBuckets::add_tier).
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

    /// Creates a limiter that counts in `store`, with the overrides and tiers of `limits`.
    ///
    /// # Panics
    ///
    /// - Panics if replicas share the store and there is no [`Secret`](crate::Secret).
    /// - Panics if there are [tiers](Policy::tier) and the store [does not support
    ///   them](crate::store::RateBuckets::add_tier).
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

    /// Creates a limiter that charges one key to each policy.
    pub(crate) fn try_with_policies(
        policies: Vec<Policy>,
        store: &(impl RateStore + ?Sized),
        limits: Option<&Limits>,
    ) -> Result<Self, TiersUnsupported> {
        let policies = match limits {
            // An override or a tier can turn on a quota that is off.
            Some(_) => policies,
            None => policies
                .into_iter()
                .map(Policy::without_off_quotas)
                .collect(),
        };
        let is_limiting = policies.iter().any(|policy| !policy.quotas().is_empty());
        let rules = is_limiting.then(|| {
            let shapes = policies.iter().map(Policy::shape).collect();
            RateRules::new(policies.clone(), shapes, store.open(&policies), limits)
        });
        let rules = rules.transpose()?;
        Ok(Self {
            inner: Arc::new(RateLimiterInner {
                policies,
                rules,
                joined: None,
                nesting: Arc::new(Nesting::new()),
                evictions: AtomicU64::new(0),
            }),
            tier: None,
        })
    }

    pub(super) fn from_joined(joined: Joined, parts: &[(Arc<RateRules>, &[Policy])]) -> Self {
        let policies = parts.iter().flat_map(|(_, policies)| *policies);
        Self {
            inner: Arc::new(RateLimiterInner {
                policies: policies.cloned().collect(),
                rules: None,
                joined: Some(joined),
                nesting: Arc::new(Nesting::new()),
                evictions: AtomicU64::new(0),
            }),
            tier: None,
        }
    }

    pub(super) fn joined(&self) -> Option<&Joined> {
        self.inner.joined.as_ref()
    }

    pub(super) fn rules_and_policies(&self) -> Option<(Arc<RateRules>, &[Policy])> {
        Some((self.inner.rules.clone()?, &self.inner.policies))
    }

    /// Returns this limiter for requests of a tier, declared in [its policy](Policy::tier) or in
    /// [its limits](Limits::tier). Returns `None` if there is no tier of this name.
    ///
    /// Each tier counts separately. A tier that is stored for a key takes precedence over this one.
    #[must_use]
    pub fn tier(&self, name: &str) -> Option<Self> {
        Some(Self {
            inner: self.inner.clone(),
            tier: Some(self.tier_name(name)?),
        })
    }

    /// The shared name of a tier, if the tier exists.
    pub(crate) fn tier_name(&self, name: &str) -> Option<Arc<str>> {
        match self.joined() {
            Some(joined) => joined.tier_name(name),
            None => self.inner.rules.as_ref()?.tier(name),
        }
    }

    /// Identifies the services of this limit when they are nested.
    pub(crate) fn nesting(&self) -> Arc<Nesting> {
        self.inner.nesting.clone()
    }

    /// Explains each quota for a key.
    pub(crate) async fn explain_key(&self, key: Key) -> Vec<LimitExplanation> {
        match self.rules() {
            Some(rules) => rules.explain_key(key, None).await,
            None => Vec::new(),
        }
    }

    pub(super) fn rules(&self) -> Option<&RateRules> {
        self.inner.rules.as_deref()
    }

    /// Replaces the default quotas, in every tier. Overrides stay. Keys keep what they have used,
    /// however often the policy changes.
    ///
    /// Takes microseconds, regardless of the number of overrides.
    ///
    /// # Errors
    ///
    /// - [`SetPolicyError::Shape`]: the names of the quotas differ from those at construction, or a
    ///   quota changes between bucket and [sliding](crate::Quota::sliding) window, also in a tier.
    /// - [`SetPolicyError::TooManyTiers`]: the policy has had [`Policy::MAX_TIERS`] tiers before.
    /// - [`SetPolicyError::Fixed`]: all quotas were off at construction and there are no
    ///   [`Limits`], or the [store](RateStore) cannot change quotas.
    pub fn set_policy(&self, policy: impl Into<Policy>) -> Result<(), SetPolicyError> {
        let rules = self.rules().ok_or(SetPolicyError::Fixed)?;
        let mut policies = rules.policies();
        policies[0] = policy.into();
        rules.set_policies(policies)
    }

    /// The policies in force, in the tier of this limiter.
    #[must_use]
    pub fn current_policies(&self) -> Vec<Policy> {
        match self.rules() {
            Some(rules) if self.tier.is_some() => rules.policies_in(self.tier.as_deref()),
            Some(rules) => rules.policies(),
            None => self.inner.policies.clone(),
        }
    }

    /// Decides a request of cost 1. If it is admitted, charges the key's buckets.
    #[inline]
    pub fn check(&self, key: &Key) -> Reply<Decision> {
        self.check_n(key, 1)
    }

    /// Decides a request of any cost.
    ///
    /// A cost of 0 is admitted, charges nothing and reports what remains. A cost above the burst of
    /// a quota is rejected, charges nothing and has no [`retry_after`](Decision::retry_after).
    #[inline]
    pub fn check_n(&self, key: &Key, cost: u32) -> Reply<Decision> {
        self.decide(slice::from_ref(key), cost)
    }

    /// Like [`check`](Self::check), for stores that answer immediately, such as the memory store.
    /// Other stores return `None` and decide nothing.
    #[inline]
    #[must_use = "a request that goes on in spite of a rejection is not limited"]
    pub fn check_now(&self, key: &Key) -> Option<Decision> {
        self.check(key).now()
    }

    /// Returns what [`check`](Self::check) would decide, without charging.
    pub fn peek(&self, key: &Key) -> Reply<Decision> {
        self.peek_all(slice::from_ref(key), 1)
    }

    /// Refunds an admitted request that turned out not to count.
    ///
    /// Never fills a bucket beyond its burst. Call it soon after the request: what the bucket has
    /// regained since then is added a second time.
    pub fn refund(&self, key: &Key, cost: u32) -> Reply<()> {
        self.refund_all(slice::from_ref(key), cost)
    }

    /// Decides a request with one key for each policy of a layer: its own policy first, then those
    /// of [`and_by`](crate::RateLimitLayer::and_by). Policies without a key are not charged.
    #[inline]
    pub fn decide(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        self.decide_in_tier(self.tier.as_deref(), keys, cost)
    }

    /// Like [`decide`](Self::decide), for a request of a tier.
    #[inline]
    pub(crate) fn decide_in_tier(
        &self,
        tier: Option<&str>,
        keys: &[Key],
        cost: u32,
    ) -> Reply<Decision> {
        let Some(rules) = &self.inner.rules else {
            return match self.joined() {
                Some(joined) => joined.decide(keys, tier, cost, LimiterSet::NONE),
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
            && decision.needs_conversion()
        {
            rules.settle(keys);
        }
        decision
    }

    /// Charges 1 to a key if the store can decide immediately, and returns whether it did. `false`
    /// decides nothing.
    #[inline]
    pub(crate) fn take_one(&self, tier: Option<&str>, key: &Key) -> bool {
        match &self.inner.rules {
            Some(rules) => rules.buckets().take_one(&rules.charge(0, key, tier)),
            None => self.is_off(),
        }
    }

    /// Returns what [`decide`](Self::decide) would decide, without charging.
    pub fn peek_all(&self, keys: &[Key], cost: u32) -> Reply<Decision> {
        let tier = self.tier.as_deref();
        match &self.inner.rules {
            Some(rules) => rules.buckets().peek(&rules.charges(keys, tier), cost),
            None => Reply::Ready(Decision::unlimited()),
        }
    }

    /// Refunds to all keys of a [`decide`](Self::decide). Otherwise like [`refund`](Self::refund).
    pub fn refund_all(&self, keys: &[Key], cost: u32) -> Reply<()> {
        let tier = self.tier.as_deref();
        match &self.inner.rules {
            Some(rules) => rules.buckets().refund(&rules.charges(keys, tier), cost),
            None => Reply::Ready(()),
        }
    }

    /// The number of tracked keys and of evictions at the store's bound. `None` if nothing is
    /// limited, or if the store does not report them; the memory store does.
    ///
    /// For occasional metrics: it may take a lock for each shard of the keys.
    #[must_use]
    pub fn stats(&self) -> Option<RateStats> {
        self.inner.rules.as_ref()?.buckets().stats()
    }

    /// The evictions since the last call, for a counter that outlives this limiter.
    pub(crate) fn new_evictions(&self) -> Option<u64> {
        let evictions = self.stats()?.evictions;
        let before = (self.inner.evictions).fetch_max(evictions, Ordering::Relaxed);
        Some(evictions.saturating_sub(before))
    }

    /// The policies at construction. Without [`Limits`], quotas that are off are omitted.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.inner.policies
    }

    /// Whether this limiter limits nothing: every quota is off and there are no [`Limits`].
    #[inline]
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.inner.rules.is_none() && self.inner.joined.is_none()
    }

    /// The names of the quotas, in the order of [`Usage`](crate::Usage) positions.
    pub(crate) fn quota_names(&self) -> impl Iterator<Item = &str> {
        let quotas = self.policies().iter().flat_map(Policy::quotas);
        quotas.map(NamedQuota::name)
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("policies", &self.inner.policies)
            .field("tier", &self.tier)
            .finish_non_exhaustive()
    }
}
