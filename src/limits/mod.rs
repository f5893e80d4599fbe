//! Overrides of keys, changeable at run time, and tiers.

#[cfg(feature = "redis")]
mod description;
mod error;
mod limited;
#[cfg(feature = "redis")]
mod publish;
#[cfg(feature = "redis")]
mod replica;
mod state;
mod tiers;

use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

#[cfg(feature = "redis")]
pub(crate) use self::description::{Description, Rates, Slots};
pub use self::error::LimitsError;
pub use self::limited::LimitUsage;
pub(crate) use self::limited::{BoxFuture, LimitTarget};
use self::state::{Own, State};
use crate::key::{Key, KeyMap, KeyName};
use crate::limit::Limit;
use crate::policy::Tier;
use crate::sync::{Mutex, lock};

/// Overrides per key, changeable at run time, and the tiers of a service. Clones share them.
///
/// One value serves all limiters of a service: give it to
/// [rate layers](crate::RateLimitLayer::limits), [concurrency layers](crate::ConcurrencyLimitLayer::limits)
/// and [leases](crate::Leases::limits). An override is a [`Limit`], which names the limits that it is
/// about.
///
/// ```
/// use tower_admission::{Key, Limits, Quota, RateLimiter, store::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limits = Limits::new().tier("pro", "100/min, jobs=20 concurrent");
/// let calls = RateLimiter::with_limits(Quota::per_minute(10), &MemoryStore::new(), &limits);
/// let acme = Key::id("org", "acme");
/// assert_eq!(calls.check(&acme).await.remaining(), Some(9));
///
/// limits.set(&"org:acme".parse()?, "1000/min".parse()?).await?;
/// // One request stays spent.
/// assert_eq!(calls.check(&acme).await.remaining(), Some(998));
///
/// limits.set(&"org:acme".parse()?, "tier=pro".parse()?).await?;
/// // Each tier counts apart.
/// assert_eq!(calls.check(&acme).await.remaining(), Some(99));
///
/// limits.delete(&"org:acme".parse()?).await?;
/// assert_eq!(calls.check(&acme).await.remaining(), Some(7));
/// # Ok(())
/// # }
/// ```
///
/// # Which numbers apply
///
/// For each limit: the key's override, else the tier that is stored for the key (`tier=pro`), else the tier that
/// `tier_by` of a layer selects, else the default. One tier counts: that of the key takes the place of the one that
/// `tier_by` selects, also for limits that it does not name. A limit that the tier does not name keeps its default. A
/// tier that is not declared is the default, and is logged.
///
/// # What a change does to what is used
///
/// It stays used, in requests: a raise gives only the room that it adds.
/// A [sliding](crate::Quota::sliding) window goes on counting what it counted. A bucket that is lowered lacks in
/// memory no more than an empty one. In Redis, where replicas may go by different limits for a moment, it
/// lacks what it lacked until a request is admitted again, and regains at the old rate until then: so no client
/// waits longer than the old bucket takes to be full. What is in flight goes on, and nothing new is admitted until
/// there is room.
///
/// # What it costs
///
/// A decision looks its key up in a table that readers take no lock for; while no key has an override, it looks at a
/// counter. Up to [`MOST`](Self::MOST) keys can have one, of about 400 bytes each.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    /// For decisions.
    by_key: KeyMap<Own>,
    tiers: ArcSwap<Vec<Tier>>,
    /// Tiers of requests that are not declared here, to log each once.
    unknown: Mutex<Vec<Box<str>>>,
    /// For people, and for the order of changes.
    state: Mutex<State>,
    /// Where replicas keep them together.
    #[cfg(feature = "redis")]
    replica: Option<replica::Replica>,
}

impl Limits {
    /// How many keys can have an override.
    pub const MOST: usize = 250_000;

    /// How many distinct rates all overrides together can have. A bucket stores a number for its rate, and there
    /// are only so many numbers.
    pub const MAX_RATES: usize = 30_000;

    /// No overrides and no tiers yet, in this process's memory.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            by_key: KeyMap::default(),
            tiers: ArcSwap::default(),
            unknown: Mutex::default(),
            state: Mutex::default(),
            #[cfg(feature = "redis")]
            replica: None,
        }))
    }

    /// The override of a key, whatever name of it was used to set it.
    #[must_use]
    pub fn get(&self, key: &KeyName) -> Option<Limit> {
        self.find(&key.key(), Limit::clone)
    }

    /// Everything that is set, in the order of the names.
    #[must_use]
    pub fn list(&self) -> Vec<(KeyName, Limit)> {
        let state = lock(&self.0.state);
        let entries = state.entries.iter();
        entries
            .map(|(key, limit)| (key.clone(), Limit::clone(limit)))
            .collect()
    }

    /// What is set for the next keys, at most `count` of them, in the order of the names: those after
    /// a name, which need not be set itself, or the first. For pages of a list that may be long.
    ///
    /// ```
    /// # use tower_admission::Limits;
    /// # fn show(limits: &Limits) {
    /// let mut after = None;
    /// loop {
    ///     let page = limits.list_after(after.as_ref(), 100);
    ///     for (key, limit) in &page {
    ///         println!("{key}: {limit}");
    ///     }
    ///     match page.last() {
    ///         Some((key, _)) => after = Some(key.clone()),
    ///         None => break,
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn list_after(&self, after: Option<&KeyName>, count: usize) -> Vec<(KeyName, Limit)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = lock(&self.0.state);
        let entries = state.entries.range::<KeyName, _>((from, Bound::Unbounded));
        entries
            .take(count)
            .map(|(key, limit)| (key.clone(), Limit::clone(limit)))
            .collect()
    }

    /// How many keys have an override.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.0.state).entries.len()
    }

    /// Whether no key has an override.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets the override of a key, and returns the one before.
    ///
    /// A key has one entry, also where it has two names, as `org:acme` and the fingerprint that logs show of
    /// it: the entry keeps the name that can be read.
    ///
    /// # Errors
    ///
    /// - [`LimitsError::TooMany`] for a new key when [`MOST`](Self::MOST) have one.
    /// - [`LimitsError::TooManyRates`] when there would be more than [`MAX_RATES`](Self::MAX_RATES) distinct rates.
    /// - [`LimitsError::UnknownTier`] when it names a tier that is not [declared](Self::tier). Not checked in a
    ///   process that declares none.
    /// - [`LimitsError::Unavailable`] when they are kept in a store that cannot be reached, or
    ///   does not answer within two seconds: then it may have been set or not.
    pub async fn set(&self, key: &KeyName, limit: Limit) -> Result<Option<Limit>, LimitsError> {
        self.change(key, Some(limit)).await
    }

    /// Removes the override of a key, and returns it.
    ///
    /// # Errors
    ///
    /// With a store that cannot be reached, as [`set`](Self::set).
    pub async fn delete(&self, key: &KeyName) -> Result<Option<Limit>, LimitsError> {
        self.change(key, None).await
    }

    async fn change(
        &self,
        key: &KeyName,
        limit: Option<Limit>,
    ) -> Result<Option<Limit>, LimitsError> {
        if let Some(limit) = &limit {
            self.check_limit(limit)?;
        }
        let before = self.get(key);
        let (name, others) = self.names_for(key, limit.is_some());
        let changed = self.change_entry(&name, limit).await?;
        for other in &others {
            self.change_entry(other, None).await?;
        }
        Ok(changed.or(before.filter(|_| !others.is_empty())))
    }

    fn check_limit(&self, limit: &Limit) -> Result<(), LimitsError> {
        if let Some(tier) = limit.tier() {
            let tiers = self.tiers();
            if !tiers.is_empty() && !tiers.iter().any(|name| **name == *tier) {
                return Err(LimitsError::UnknownTier {
                    tier: tier.into(),
                    known: tiers,
                });
            }
        }
        if lock(&self.0.state).has_too_many_rates(limit) {
            return Err(LimitsError::TooManyRates);
        }
        Ok(())
    }

    /// Under which name a change is made, and which other entries of the key go with it.
    fn names_for(&self, key: &KeyName, sets: bool) -> (KeyName, Vec<KeyName>) {
        let state = lock(&self.0.state);
        let named = state.names.get(&key.key());
        let mut names: Vec<_> = named.into_iter().flatten().cloned().collect();
        names.sort_unstable();
        let is_readable = *key != KeyName::from(key.key());
        let name = match names.last() {
            Some(last) if !(sets && is_readable) => last.clone(),
            _ => key.clone(),
        };
        names.retain(|other| *other != name);
        (name, names)
    }

    async fn change_entry(
        &self,
        key: &KeyName,
        limit: Option<Limit>,
    ) -> Result<Option<Limit>, LimitsError> {
        #[cfg(feature = "redis")]
        if let Some(replica) = &self.0.replica {
            return replica.change(self, key, limit).await;
        }
        let mut state = lock(&self.0.state);
        let is_new = limit.is_some() && !state.entries.contains_key(key);
        if is_new && state.entries.len() >= Self::MOST {
            return Err(LimitsError::TooMany);
        }
        Ok(self.apply(&mut state, key, limit))
    }

    /// What a key is called: as it was called when it got limits of its own, if it has some, else an
    /// address or a fingerprint. For observers, which are told keys.
    #[must_use]
    pub fn name_of(&self, key: &Key) -> KeyName {
        let name = self.0.by_key.find(key, |own| own.name.clone());
        name.unwrap_or_else(|| KeyName::from(*key))
    }

    /// How far each limit is used up by a key, in the order in which the limiters were made.
    ///
    /// Of a limiter with several policies those are told of which the key has used anything, and
    /// the first.
    pub async fn usage(&self, key: &KeyName) -> Vec<LimitUsage> {
        let mut usages = Vec::new();
        for target in self.targets() {
            usages.extend(target.usage(key.key()).await);
        }
        usages
    }

    /// How far the limits are used up that are not of any one key. Not of leases in a store that answers
    /// later.
    #[must_use]
    pub fn totals(&self) -> Vec<LimitUsage> {
        let targets = self.targets();
        targets.iter().filter_map(|target| target.total()).collect()
    }

    /// What limits are called that an entry can be about.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self
            .targets()
            .iter()
            .flat_map(|target| target.names())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Limits in memory with the overrides that these have now. Their tiers are those of the limiters that they are
    /// given to.
    #[cfg(feature = "redis")]
    pub(crate) fn copied(&self) -> Self {
        let copy = Self::new();
        for (key, limit) in self.list() {
            copy.apply(&mut lock(&copy.0.state), &key, Some(limit));
        }
        copy
    }

    fn targets(&self) -> Vec<Arc<dyn LimitTarget>> {
        let mut state = lock(&self.0.state);
        state.targets.retain(|target| target.strong_count() > 0);
        state.targets.iter().filter_map(Weak::upgrade).collect()
    }

    fn apply(&self, state: &mut State, name: &KeyName, limit: Option<Limit>) -> Option<Limit> {
        let key = name.key();
        let before = state.enter(name, limit);
        let own = state.own(&key);
        let is_same = |was: &Own| own.as_ref().is_some_and(|own| own.limit == was.limit);
        let was = self.0.by_key.find(&key, is_same);
        let is_changed = was.map_or(own.is_some(), |is_same| !is_same);
        // The name may have changed as well.
        self.0.by_key.set(&key, own);
        if is_changed {
            // Decisions go by it already. What the key used before is by it from now on, too.
            for target in state.targets.iter().filter_map(Weak::upgrade) {
                target.changed(&key);
            }
        }
        before
    }

    /// Has a limiter be told what is changed from now on.
    pub(crate) fn attach(&self, target: &Arc<dyn LimitTarget>) {
        let mut state = lock(&self.0.state);
        state.targets.retain(|target| target.strong_count() > 0);
        state.targets.push(Arc::downgrade(target));
    }

    /// Does something while no override changes.
    pub(crate) fn between_changes(&self, act: impl FnOnce()) {
        let _state = lock(&self.0.state);
        act();
    }

    /// Whether no key has an override: by a look at a counter.
    #[inline]
    pub(crate) fn has_no_overrides(&self) -> bool {
        self.0.by_key.is_empty()
    }

    /// What `read` makes of a key's override.
    #[inline]
    pub(crate) fn find<R>(&self, key: &Key, read: impl FnOnce(&Limit) -> R) -> Option<R> {
        self.0.by_key.find(key, |own| read(&own.limit))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
