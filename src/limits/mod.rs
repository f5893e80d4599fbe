//! Limits of single keys, changed at run time.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use crate::key::{Key, KeyMap, KeyName};
use crate::limit::Limit;
use crate::sync::{Mutex, lock};

#[cfg(feature = "redis")]
mod description;
mod error;
mod limited;
#[cfg(feature = "redis")]
mod publish;
#[cfg(feature = "redis")]
mod replica;

#[cfg(feature = "redis")]
pub(crate) use self::description::{Description, Rates, Slots};
pub use self::error::LimitsError;
pub use self::limited::LimitUsage;
pub(crate) use self::limited::{BoxFuture, Limited};

/// What single keys may do, in place of what everybody may, changed at run time. Clones share it.
///
/// One value serves all limiters of a service: give it to
/// [rate layers](crate::RateLimitLayer::limits), [concurrency layers](crate::ConcurrencyLimitLayer::limits)
/// and [leases](crate::Leases::limits). An entry is a [`Limit`], which says by name what it is
/// about where that is not everything.
///
/// ```
/// use tower_admission::{Key, Limits, Quota, RateLimiter, store::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limits = Limits::new();
/// let calls = RateLimiter::with_limits(Quota::per_minute(10), &MemoryStore::new(), &limits);
/// let acme = Key::id("org", "acme");
/// assert_eq!(calls.check(&acme).remaining(), Some(9));
///
/// limits.set(&"org:acme".parse()?, "1000/min".parse()?).await?;
/// // One request stays spent.
/// assert_eq!(calls.check(&acme).remaining(), Some(998));
///
/// limits.delete(&"org:acme".parse()?).await?;
/// assert_eq!(calls.check(&acme).remaining(), Some(7));
/// # Ok(())
/// # }
/// ```
///
/// # What a change does to what is used
///
/// It stays used, in requests: raising a limit hands out no fresh burst, only the room that it adds.
/// A [sliding](crate::Quota::sliding) window goes on counting what it counted. A bucket that is lowered owes in
/// memory no more than an empty one. In Redis, where replicas may go by different limits for a moment, it
/// owes what it owed until a request is admitted again, and regains at the old rate until then: so nobody
/// waits longer than the old bucket takes to be full. What is in flight goes on, and nobody new comes in until there is room.
///
/// What another thread decides about a key in the very moment in which it loses limits of its own may be
/// forgotten.
///
/// # What it costs
///
/// A decision looks its key up in a table that readers take no lock for; while no key has limits
/// of its own, it looks at a counter. Up to [`MOST`](Self::MOST) keys can have some; each takes about
/// 300 bytes, and 100 more in each limiter that it is about.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    /// For decisions.
    by_key: KeyMap<Own>,
    /// For people, and for the order of changes.
    state: Mutex<State>,
    /// Where replicas keep them together.
    #[cfg(feature = "redis")]
    replica: Option<replica::Replica>,
}

/// What a key has of its own.
struct Own {
    limit: Limit,
    /// What the key is called by who set it.
    name: KeyName,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<KeyName, Limit>,
    /// The names of entries by their keys: one, unless replicas gave it two at a time.
    names: HashMap<Key, SmallVec<[KeyName; 1]>>,
    /// Changes that were made here and that are newer than what was read of the store.
    #[cfg(feature = "redis")]
    newer: HashMap<KeyName, u64>,
    limited: Vec<Weak<dyn Limited>>,
}

impl State {
    fn enter(&mut self, name: &KeyName, limit: Option<Limit>) -> Option<Limit> {
        let names = self.names.entry(name.key()).or_default();
        names.retain(|other| other != name);
        let before = match limit {
            Some(limit) => {
                names.push(name.clone());
                self.entries.insert(name.clone(), limit)
            }
            None => self.entries.remove(name),
        };
        if names.is_empty() {
            self.names.remove(&name.key());
        }
        before
    }

    /// What counts for a key: of several names the last, which can be read.
    fn own(&self, key: &Key) -> Option<Own> {
        let name = self.names.get(key)?.iter().max()?;
        Some(Own {
            limit: self.entries.get(name)?.clone(),
            name: name.clone(),
        })
    }
}

impl Limits {
    /// How many keys can have limits of their own.
    pub const MOST: usize = 250_000;

    /// No limits yet, in this process's memory.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            by_key: KeyMap::default(),
            state: Mutex::default(),
            #[cfg(feature = "redis")]
            replica: None,
        }))
    }

    /// What a key has of its own, whatever name of it was used to set it.
    #[must_use]
    pub fn get(&self, key: &KeyName) -> Option<Limit> {
        self.0.by_key.find(&key.key(), |own| own.limit.clone())
    }

    /// Everything that is set, in the order of the names.
    #[must_use]
    pub fn list(&self) -> Vec<(KeyName, Limit)> {
        let state = lock(&self.0.state);
        let entries = state.entries.iter();
        entries
            .map(|(key, limit)| (key.clone(), limit.clone()))
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
            .map(|(key, limit)| (key.clone(), limit.clone()))
            .collect()
    }

    /// How many keys have limits of their own.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.0.state).entries.len()
    }

    /// Whether no key has limits of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets what a key may do, and returns what it had of its own.
    ///
    /// A key has one entry, also where it has two names, as `org:acme` and the fingerprint that logs show of
    /// it: the entry keeps the name that can be read.
    ///
    /// # Errors
    ///
    /// - [`LimitsError::TooMany`] for a new key when [`MOST`](Self::MOST) have some.
    /// - [`LimitsError::Unavailable`] when they are kept in a store that cannot be reached, or
    ///   does not answer within two seconds: then it may have been set or not.
    pub async fn set(&self, key: &KeyName, limit: Limit) -> Result<Option<Limit>, LimitsError> {
        self.change(key, Some(limit)).await
    }

    /// Makes a key one of all again, and returns what it had of its own.
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
        let before = self.get(key);
        let (name, others) = self.names_for(key, limit.is_some());
        let changed = self.change_entry(&name, limit).await?;
        for other in &others {
            self.change_entry(other, None).await?;
        }
        Ok(changed.or(before.filter(|_| !others.is_empty())))
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
        for limited in self.limited() {
            usages.extend(limited.usage(key.key()).await);
        }
        usages
    }

    /// How far the limits are used up that are not of any one key. Not of leases in a store that answers
    /// later.
    #[must_use]
    pub fn totals(&self) -> Vec<LimitUsage> {
        let limited = self.limited();
        limited
            .iter()
            .filter_map(|limited| limited.total())
            .collect()
    }

    /// What limits are called that an entry can be about.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self
            .limited()
            .iter()
            .flat_map(|limited| limited.names())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Limits in memory that are as these are now.
    #[cfg(feature = "redis")]
    pub(crate) fn copied(&self) -> Self {
        let copy = Self::new();
        for (key, limit) in self.list() {
            copy.apply(&mut lock(&copy.0.state), &key, Some(limit));
        }
        copy
    }

    fn limited(&self) -> Vec<Arc<dyn Limited>> {
        let mut state = lock(&self.0.state);
        state.limited.retain(|limited| limited.strong_count() > 0);
        state.limited.iter().filter_map(Weak::upgrade).collect()
    }

    fn apply(&self, state: &mut State, name: &KeyName, limit: Option<Limit>) -> Option<Limit> {
        let key = name.key();
        let before = state.enter(name, limit);
        let own = state.own(&key);
        let is_same = |was: &Own| own.as_ref().is_some_and(|own| own.limit == was.limit);
        let was = self.0.by_key.find(&key, is_same);
        if was == Some(true) || (was.is_none() && own.is_none()) {
            // The name may have changed.
            self.0.by_key.set(&key, own);
            return before;
        }
        // Before it counts, so that whoever looks it up finds a limiter that knows it.
        for limited in state.limited.iter().filter_map(Weak::upgrade) {
            limited.set_own(&key, own.as_ref().map(|own| &own.limit));
        }
        self.0.by_key.set(&key, own);
        before
    }

    /// Tells a limiter what is set, and from now on what is changed.
    pub(crate) fn attach(&self, limited: &Arc<dyn Limited>) {
        let mut state = lock(&self.0.state);
        state.limited.retain(|limited| limited.strong_count() > 0);
        state.limited.push(Arc::downgrade(limited));
        for key in state.names.keys() {
            let own = state.own(key);
            limited.set_own(key, own.as_ref().map(|own| &own.limit));
        }
    }

    /// Changes what all keys may do that have no limits of their own, by `change`, and then what those
    /// have that do, as it follows from both.
    pub(crate) fn changed_for_all(&self, limited: &dyn Limited, change: impl FnOnce()) {
        let state = lock(&self.0.state);
        change();
        for key in state.names.keys() {
            let own = state.own(key);
            limited.set_own(key, own.as_ref().map(|own| &own.limit));
        }
    }

    /// How many a limiter of this name may give a key, where it has a limit of its own.
    #[inline]
    pub(crate) fn concurrency(&self, key: &Key, name: &str) -> Option<u64> {
        self.0
            .by_key
            .find(key, |own| own.limit.concurrency(name).map(u64::from))
            .flatten()
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
