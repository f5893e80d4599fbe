//! Overrides of keys, changeable at run time, and tiers.

mod base;
mod change;
mod delete_ended;
mod edit;
mod end_schedule;
mod entry;
mod error;
mod explanation;
mod in_force;
mod limit_target;
mod list_entry;
mod lists;
mod lost;
mod missing;
mod publish;
mod reading;
mod replica;
mod reported;
mod state;
mod tiers;
mod unreadable;
mod usage;

use std::fmt;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

pub use self::change::LimitChange;
pub use self::edit::LimitEdit;
pub use self::entry::Override;
pub use self::error::LimitsError;
pub(crate) use self::explanation::{ExplainedSlots, UNLIMITED};
pub use self::explanation::{LimitExplanation, LimitSource, LimitVerdict};
use self::in_force::KeyOverrides;
pub(crate) use self::limit_target::{BoxFuture, LimitTarget};
pub use self::limit_target::{CountedIn, LimitUsage};
pub use self::list_entry::{ListEntry, list_entry};
pub(crate) use self::list_entry::{listed_address, listed_key};
use self::lists::ListIndex;
pub(crate) use self::lists::Listed;
pub use self::lists::Listing;
use self::state::{LimitsState, OverrideSource};
pub use self::usage::SourcedOverride;
use crate::key::{Key, KeyMap, KeyName};
use crate::limit::Limit;
use crate::policy::Tier;
use crate::store::memory::clock::WallClock;
use crate::sync::{Mutex, lock};

/// Overrides per key, changeable at run time, and the tiers of a service. Clones share them.
///
/// One value serves all limiters of a service: pass it to [rate
/// layers](crate::RateLimitLayer::limits), [concurrency
/// layers](crate::ConcurrencyLimitLayer::limits) and [leases](crate::Leases::limits). An override
/// is a [`Limit`], which names the limits that it changes. An override that is only `deny all` or
/// `unlimited` is also an entry of a list, see [`access`](crate::access).
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
/// // One request stays used.
/// assert_eq!(calls.check(&acme).await.remaining(), Some(998));
///
/// limits.set(&"org:acme".parse()?, "tier=pro".parse()?).await?;
/// // Each tier counts separately.
/// assert_eq!(calls.check(&acme).await.remaining(), Some(99));
///
/// limits.delete(&"org:acme".parse()?).await?;
/// assert_eq!(calls.check(&acme).await.remaining(), Some(7));
/// # Ok(())
/// # }
/// ```
///
/// # Which limit applies
///
/// The first of these that exists, for each limit:
/// 1. the key's override,
/// 2. the tier that is stored for the key (`tier=pro`),
/// 3. the tier that a layer's `tier_by` selects,
/// 4. the default.
///
/// Only one tier applies. A stored tier replaces the tier that `tier_by` selects, also for limits
/// that the stored tier does not name. A limit that the tier does not name keeps its default. An
/// undeclared tier gets the defaults and is logged.
///
/// # Effect of a change on used requests
///
/// Used requests stay used: a raise adds only the difference. A [sliding](crate::Quota::sliding)
/// window keeps its counts. In memory, the debt of a lowered bucket is clamped to that of an empty
/// bucket. In Redis, replicas may apply different limits for a moment. There, the debt stays until
/// a request is admitted, and the bucket regains at the old rate until then. So no client waits
/// longer than the old bucket takes to fill. Requests in flight continue, and new ones are rejected
/// until there is room.
///
/// # Cost
///
/// A decision looks up its key in a table that readers use without a lock. While no key has an
/// override, it reads one counter. Up to [`MAX_OVERRIDES`](Self::MAX_OVERRIDES) keys can have an
/// override, which takes about 400 bytes.
#[derive(Clone)]
pub struct Limits(Arc<LimitsInner>);

struct LimitsInner {
    /// The overrides that decisions look up.
    by_key: KeyMap<KeyOverrides>,
    /// The overrides that are on a list.
    lists: ListIndex,
    tiers: ArcSwap<Vec<Tier>>,
    /// Undeclared tiers of requests; each is logged once.
    unknown: Mutex<Vec<Box<str>>>,
    /// The overrides as they were set; orders the changes.
    state: Mutex<LimitsState>,
    /// The clock that decides when overrides end.
    clock: WallClock,
    /// The shared store of the overrides, if any.
    replica: Option<replica::Replica>,
}

impl LimitsInner {
    fn set_clock(&mut self, clock: WallClock) {
        lock(&self.state).clock = clock.clone();
        self.clock = clock;
    }
}

impl Limits {
    /// The maximum number of keys with an override.
    pub const MAX_OVERRIDES: usize = 250_000;

    /// The maximum number of distinct rates of all overrides. A bucket stores a number for its
    /// rate, and the numbers are limited.
    pub const MAX_RATES: usize = 30_000;

    /// The number of changes that [`changes`](Self::changes) can return.
    pub const MAX_CHANGES: usize = 1_000;

    /// Creates limits without overrides and tiers, in this process's memory.
    #[must_use]
    pub fn new() -> Self {
        LimitChange::count_from_zero(false);
        Self(Arc::new(LimitsInner {
            by_key: KeyMap::default(),
            lists: ListIndex::default(),
            tiers: ArcSwap::default(),
            unknown: Mutex::default(),
            state: Mutex::default(),
            clock: WallClock::Real,
            replica: None,
        }))
    }

    /// Reads the time at which overrides [end](Override#the-end) from a clock for tests.
    ///
    /// # Panics
    ///
    /// Panics if these limits were cloned before.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn clock(mut self, clock: crate::store::memory::clock::TestClock) -> Self {
        let inner = Arc::get_mut(&mut self.0).expect("the clock is set before limits are cloned");
        inner.set_clock(WallClock::Test(clock));
        self
    }

    /// The limit of a key's override, by any name of the key.
    #[must_use]
    pub fn get(&self, key: &KeyName) -> Option<Limit> {
        self.find(&key.key(), Limit::clone)
    }

    /// The override of a key, with its end, note and author.
    #[must_use]
    pub fn get_override(&self, key: &KeyName) -> Option<Override> {
        self.find_override(&key.key(), |key_override| {
            Override::clone(&key_override.entry)
        })
    }

    /// All overrides, in the order of their names.
    #[must_use]
    pub fn list(&self) -> Vec<(KeyName, Limit)> {
        let entries = self.list_after(None, usize::MAX).into_iter();
        entries
            .map(|(key, entry)| (key, entry.limit().clone()))
            .collect()
    }

    /// A page of overrides in the order of their names: at most `count`, after the name `after`, or
    /// from the first. `after` need not have an override.
    ///
    /// ```
    /// # use tower_admission::Limits;
    /// # fn update_decisions(limits: &Limits) {
    /// let mut after = None;
    /// loop {
    ///     let page = limits.list_after(after.as_ref(), 100);
    ///     for (key, entry) in &page {
    ///         println!("{key}: {}", entry.limit());
    ///     }
    ///     match page.last() {
    ///         Some((key, _)) => after = Some(key.clone()),
    ///         None => break,
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn list_after(&self, after: Option<&KeyName>, count: usize) -> Vec<(KeyName, Override)> {
        self.process_ends();
        let entries = lock(&self.0.state).after(after, count).into_iter();
        entries
            .map(|(key, entry)| (key, Arc::unwrap_or_clone(entry)))
            .collect()
    }

    /// The number of overrides that were set at run time and have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.process_ends();
        lock(&self.0.state).len()
    }

    /// Whether no override was set at run time.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of overrides that this replica keeps although the store has lost them, for
    /// example after a restart of a Redis without persistence. They still apply here, and each loss
    /// is logged as an error, until an operator sets them again or accepts the loss. Always 0 in
    /// memory.
    #[must_use]
    pub fn lost(&self) -> usize {
        if let Some(replica) = &self.0.replica {
            return replica.lost();
        }
        0
    }

    /// Sets the override of a key and returns the previous limit. To add an end, a note or an
    /// author, use [`edit`](Self::edit). [`KeyName::id`] names a key whose id is in a variable.
    ///
    /// Logs a warning if the limit has a name that no limiter with these limits has. Logs none while
    /// there are no limiters.
    ///
    /// A key has one override, even if it has two names: `org:acme` and the fingerprint in logs.
    /// The override keeps the readable name.
    ///
    /// # Errors
    ///
    /// Like [`LimitEdit::set`].
    pub async fn set(&self, key: &KeyName, limit: Limit) -> Result<Option<Limit>, LimitsError> {
        let before = self.edit(key).set(limit).await?;
        Ok(before.map(|before| before.limit().clone()))
    }

    /// Deletes the override of a key and returns its limit.
    ///
    /// # Errors
    ///
    /// Like [`LimitEdit::delete`].
    pub async fn delete(&self, key: &KeyName) -> Result<Option<Limit>, LimitsError> {
        let before = self.edit(key).delete().await?;
        Ok(before.map(|before| before.limit().clone()))
    }

    /// Starts a change of a key's override, with an author or a condition.
    pub fn edit<'a>(&'a self, key: &'a KeyName) -> LimitEdit<'a> {
        LimitEdit::new(self, key)
    }

    fn check_tier(&self, limit: &Limit) -> Result<(), LimitsError> {
        match limit.tier() {
            Some(tier) => Self::check_tier_in(tier, self.tiers()),
            None => Ok(()),
        }
    }

    /// Checks that a tier is known, unless no tiers are known.
    fn check_tier_in(tier: &str, known: Vec<Arc<str>>) -> Result<(), LimitsError> {
        if known.is_empty() || known.iter().any(|name| **name == *tier) {
            return Ok(());
        }
        Err(LimitsError::UnknownTier {
            tier: tier.into(),
            known,
        })
    }

    /// The name that a change applies to, and the key's other entries that it deletes.
    fn names_for(&self, key: &KeyName, sets: bool) -> (KeyName, Vec<KeyName>) {
        let mut names = lock(&self.0.state).names_of(&key.key());
        let is_readable = *key != KeyName::from(key.key());
        let name = match names.last() {
            Some(last) if !(sets && is_readable) => last.clone(),
            _ => key.clone(),
        };
        names.retain(|other| *other != name);
        (name, names)
    }

    /// The name of a key: the one under which its override was set, else an address or a
    /// fingerprint. For observers, which get keys.
    #[must_use]
    pub fn name_of(&self, key: &Key) -> KeyName {
        let name = self
            .0
            .by_key
            .find(key, |overrides| overrides.name().clone());
        name.unwrap_or_else(|| KeyName::from(*key))
    }

    /// The names of all limits that an override can change.
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

    /// A copy in memory of the current overrides. Its tiers are those of the limiters that it is
    /// passed to.
    pub(crate) fn copied(&self) -> Self {
        let copy = Self::new();
        for (key, entry) in self.list_after(None, usize::MAX) {
            copy.apply(
                &mut lock(&copy.0.state),
                OverrideSource::RunTime,
                &key,
                Some(entry),
            );
        }
        copy
    }

    fn targets(&self) -> Vec<Arc<dyn LimitTarget>> {
        let mut state = lock(&self.0.state);
        state.targets.retain(|target| target.strong_count() > 0);
        state.targets.iter().filter_map(Weak::upgrade).collect()
    }

    /// Registers a limiter for notifications about changes.
    pub(crate) fn attach(&self, target: &Arc<dyn LimitTarget>) {
        let mut state = lock(&self.0.state);
        state.targets.retain(|target| target.strong_count() > 0);
        state.targets.push(Arc::downgrade(target));
    }

    /// Runs `action` while no override changes.
    pub(crate) fn while_unchanged(&self, act: impl FnOnce()) {
        let _state = lock(&self.0.state);
        act();
    }

    /// Whether no key has an override: reads one counter.
    #[inline]
    pub(crate) fn has_no_overrides(&self) -> bool {
        self.0.by_key.is_empty()
    }

    /// Applies `read` to a key's override.
    #[inline]
    pub(crate) fn find<R>(&self, key: &Key, read: impl FnOnce(&Limit) -> R) -> Option<R> {
        self.find_override(key, |key_override| read(key_override.entry.limit()))
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
