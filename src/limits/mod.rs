//! Overrides of keys, changeable at run time, and tiers.

mod ahead;
mod base;
mod change;
mod edit;
mod ends;
mod entry;
mod error;
mod explanation;
mod in_force;
mod limited;
mod list_entry;
mod lists;
mod lost;
mod missing;
mod publish;
mod reading;
mod replica;
mod seen;
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
use self::in_force::Owns;
pub(crate) use self::limited::{BoxFuture, LimitTarget};
pub use self::limited::{CountedIn, LimitUsage};
pub use self::list_entry::ListEntry;
pub use self::list_entry::list_entry;
pub(crate) use self::list_entry::{listed_address, listed_key};
use self::lists::ListIndex;
pub(crate) use self::lists::Listed;
pub use self::lists::Listing;
use self::state::Source;
use self::state::State;
pub use self::usage::SourcedOverride;
use crate::key::{Key, KeyMap, KeyName};
use crate::limit::Limit;
use crate::policy::Tier;
use crate::store::memory::clock::WallClock;
use crate::sync::{Mutex, lock};

/// Overrides per key, changeable at run time, and the tiers of a service. Clones share them.
///
/// One value serves all limiters of a service: give it to
/// [rate layers](crate::RateLimitLayer::limits), [concurrency layers](crate::ConcurrencyLimitLayer::limits)
/// and [leases](crate::Leases::limits). An override is a [`Limit`], which names the limits that it is
/// about. One that is wholly `deny all` or `unlimited` is also an entry of a list, see [`access`](crate::access).
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
/// counter. Up to [`MAX_OVERRIDES`](Self::MAX_OVERRIDES) keys can have one, of about 400 bytes each.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    /// For decisions.
    by_key: KeyMap<Owns>,
    /// Which of them are on a list.
    lists: ListIndex,
    tiers: ArcSwap<Vec<Tier>>,
    /// Tiers of requests that are not declared here, to log each once.
    unknown: Mutex<Vec<Box<str>>>,
    /// For people, and for the order of changes.
    state: Mutex<State>,
    /// When overrides end.
    clock: WallClock,
    /// Where replicas keep them together.
    replica: Option<replica::Replica>,
}

impl Inner {
    fn set_clock(&mut self, clock: WallClock) {
        lock(&self.state).clock = clock.clone();
        self.clock = clock;
    }
}

impl Limits {
    /// How many keys can have an override.
    pub const MAX_OVERRIDES: usize = 250_000;

    /// How many distinct rates all overrides together can have. A bucket stores a number for its rate, and there
    /// are only so many numbers.
    pub const MAX_RATES: usize = 30_000;

    /// How many changes are kept for [`changes`](Self::changes).
    pub const MAX_CHANGES: usize = 1_000;

    /// No overrides and no tiers yet, in this process's memory.
    #[must_use]
    pub fn new() -> Self {
        LimitChange::count_from_zero(false);
        Self(Arc::new(Inner {
            by_key: KeyMap::default(),
            lists: ListIndex::default(),
            tiers: ArcSwap::default(),
            unknown: Mutex::default(),
            state: Mutex::default(),
            clock: WallClock::Real,
            replica: None,
        }))
    }

    /// Takes the time at which overrides [end](Override#the-end) from a clock for tests.
    ///
    /// # Panics
    ///
    /// When there are clones of these limits already.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn clock(mut self, clock: crate::store::memory::clock::TestClock) -> Self {
        let inner = Arc::get_mut(&mut self.0).expect("the clock is set before limits are cloned");
        inner.set_clock(WallClock::Test(clock));
        self
    }

    /// The numbers of a key's override, whatever name of it was used to set it.
    #[must_use]
    pub fn get(&self, key: &KeyName) -> Option<Limit> {
        self.find(&key.key(), Limit::clone)
    }

    /// The override of a key, with what is noted about it.
    #[must_use]
    pub fn get_override(&self, key: &KeyName) -> Option<Override> {
        self.find_own(&key.key(), |own| Override::clone(&own.entry))
    }

    /// The numbers of all overrides, in the order of the names.
    #[must_use]
    pub fn list(&self) -> Vec<(KeyName, Limit)> {
        let entries = self.list_after(None, usize::MAX).into_iter();
        entries
            .map(|(key, entry)| (key, entry.limit().clone()))
            .collect()
    }

    /// The next overrides, at most `count`, in the order of the names: those after
    /// a name, which need not have one itself, or the first. For pages of a list that may be long.
    ///
    /// ```
    /// # use tower_admission::Limits;
    /// # fn show(limits: &Limits) {
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
        self.turn_ends();
        let entries = lock(&self.0.state).after(after, count).into_iter();
        entries
            .map(|(key, entry)| (key, Arc::unwrap_or_clone(entry)))
            .collect()
    }

    /// How many overrides were set at run time and have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.turn_ends();
        lock(&self.0.state).len()
    }

    /// Whether no override was set at run time.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many overrides this replica keeps although the store has lost them, as after a restart of a Redis that
    /// saves nothing. They go on to count here, and each loss is logged as an error, until an operator sets them again
    /// or accepts the loss. In memory nothing is lost.
    #[must_use]
    pub fn lost(&self) -> usize {
        if let Some(replica) = &self.0.replica {
            return replica.lost();
        }
        0
    }

    /// Sets the override of a key, and returns the numbers before. With an end, a note or an author: [`edit`](Self::edit).
    ///
    /// A key has one override, also where it has two names, as `org:acme` and the fingerprint that logs show of
    /// it: the override keeps the name that can be read.
    ///
    /// # Errors
    ///
    /// As [`LimitEdit::set`].
    pub async fn set(&self, key: &KeyName, limit: Limit) -> Result<Option<Limit>, LimitsError> {
        let before = self.edit(key).set(limit).await?;
        Ok(before.map(|before| before.limit().clone()))
    }

    /// Deletes the override of a key, and returns its numbers.
    ///
    /// # Errors
    ///
    /// As [`LimitEdit::delete`].
    pub async fn delete(&self, key: &KeyName) -> Result<Option<Limit>, LimitsError> {
        let before = self.edit(key).delete().await?;
        Ok(before.map(|before| before.limit().clone()))
    }

    /// Begins a change of a key's override by a known author, or under a condition.
    pub fn edit<'a>(&'a self, key: &'a KeyName) -> LimitEdit<'a> {
        LimitEdit::new(self, key)
    }

    fn check_tier(&self, limit: &Limit) -> Result<(), LimitsError> {
        match limit.tier() {
            Some(tier) => Self::check_tier_in(tier, self.tiers()),
            None => Ok(()),
        }
    }

    /// Whether a tier is one of those that are known, if any is.
    fn check_tier_in(tier: &str, known: Vec<Arc<str>>) -> Result<(), LimitsError> {
        if known.is_empty() || known.iter().any(|name| **name == *tier) {
            return Ok(());
        }
        Err(LimitsError::UnknownTier {
            tier: tier.into(),
            known,
        })
    }

    /// Under which name a change is made, and which other entries of the key go with it.
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

    /// What a key is called: as it was called when it got limits of its own, if it has some, else an
    /// address or a fingerprint. For observers, which are told keys.
    #[must_use]
    pub fn name_of(&self, key: &Key) -> KeyName {
        let name = self.0.by_key.find(key, |owns| owns.name().clone());
        name.unwrap_or_else(|| KeyName::from(*key))
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
    pub(crate) fn copied(&self) -> Self {
        let copy = Self::new();
        for (key, own) in self.list_after(None, usize::MAX) {
            copy.apply(&mut lock(&copy.0.state), Source::RunTime, &key, Some(own));
        }
        copy
    }

    fn targets(&self) -> Vec<Arc<dyn LimitTarget>> {
        let mut state = lock(&self.0.state);
        state.targets.retain(|target| target.strong_count() > 0);
        state.targets.iter().filter_map(Weak::upgrade).collect()
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
        self.find_own(key, |own| read(own.entry.limit()))
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
