//! Limits that replicas keep together in Redis: each has all of them, and reads what is changed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::ahead::Ahead;
use super::change::Audited;
use super::edit::EntryChange;
use super::entry::whole_seconds;
use super::lost::LostOverrides;
use super::publish::Published;
use super::seen::SeenChanges;
use super::state::Source;
use super::{Inner, LimitChange, Limits, LimitsError, Override};
use crate::key::{KeyMap, KeyName};
use crate::singleton_task::{ReleaseOnDrop, SingletonTask};
use crate::store::memory::clock::WallClock;
use crate::store::overrides::{OverrideTable, Renewal, SetOutcome, SetOverride, TableState};
use crate::store::{SharedStore, StoreError, StoreStatus};
use crate::sync::{AtomicBool, Mutex, lock};

/// How often changes are asked for, so that each is known everywhere within a second.
const EVERY: Duration = Duration::from_millis(400);

/// What is read of the store, and whether anybody does.
pub(super) struct Replica {
    pub(super) table: Arc<dyn OverrideTable>,
    follower: Arc<SingletonTask>,
    pub(super) read: Mutex<Read>,
    /// Held while it is read, so that two readers do not mix what they found.
    pub(super) reading: tokio::sync::Mutex<()>,
    pub(super) reads_all_after: Duration,
    pub(super) lost: LostOverrides,
    pub(super) seen: Mutex<SeenChanges>,
    /// Whether it was logged that not all can be read.
    pub(super) is_unsettled: AtomicBool,
}

/// How far the store was read.
#[derive(Default)]
pub(super) struct Read {
    pub(super) known: TableState,
    /// When all of it was read last.
    pub(super) all: Option<Instant>,
    /// The last version of a change that was made here in this epoch.
    pub(super) made: u64,
    /// The greatest version that was seen of this table. After a failover the store may be at an earlier one, until the
    /// next change renews the table.
    pub(super) greatest: u64,
}

/// The gauges of overrides in a store, which exist from the start.
#[cfg(feature = "metrics")]
const GAUGES: [(&str, &str); 2] = [
    (
        "admission_limits_lost",
        "Overrides that the store has lost and this process keeps.",
    ),
    (
        "admission_limits_unreadable",
        "Overrides in the store that this version cannot read.",
    ),
];

impl Limits {
    /// How long a replica goes on with what it has read before it reads all anew: 10 minutes.
    /// Changes are read within a second; this mends what nobody knows to be wrong.
    pub const DEFAULT_CACHE_TTL: Duration = Duration::from_secs(600);

    /// Limits that all replicas have together, kept in Redis under the store's prefix.
    ///
    /// Each replica holds all of them in memory, where decisions look them up, and asks
    /// for changes twice a second: one that is made anywhere is known everywhere within a second, here
    /// at once. While Redis is away what was read last goes on to count. Until they are read for
    /// the first time there are none; [`refresh`](Self::refresh), awaited at start, sees to that.
    ///
    /// They are read by a task in the runtime in which this is called, or else in that of the first
    /// of the other calls; it ends with the last clone.
    ///
    /// Names of entries lie in Redis as they are written, credentials as fingerprints. Next to them lies
    /// what limiters these limits are given to that count in Redis, with their quotas, so that tools
    /// find what is used ([`SharedLimiters`](crate::SharedLimiters)).
    #[must_use]
    pub fn in_store(store: &impl SharedStore) -> Self {
        Self::in_store_with(store, Self::DEFAULT_CACHE_TTL)
    }

    /// As [`in_store`](Self::in_store), reading all anew after `cache_ttl`, at least a second.
    #[must_use]
    pub fn in_store_with(store: &impl SharedStore, cache_ttl: Duration) -> Self {
        LimitChange::count_from_zero(true);
        #[cfg(feature = "metrics")]
        for (gauge, description) in GAUGES {
            metrics::describe_gauge!(gauge, metrics::Unit::Count, description);
            metrics::gauge!(gauge).set(0.0);
        }
        let limits = Self(Arc::new(Inner {
            by_key: KeyMap::default(),
            lists: Default::default(),
            tiers: Default::default(),
            unknown: Default::default(),
            state: Mutex::default(),
            clock: WallClock::Real,
            replica: Some(Replica {
                table: store.overrides(),
                follower: Arc::default(),
                read: Mutex::default(),
                reading: tokio::sync::Mutex::default(),
                reads_all_after: cache_ttl.max(Duration::from_secs(1)),
                lost: LostOverrides::default(),
                seen: Mutex::default(),
                is_unsettled: AtomicBool::new(false),
            }),
        }));
        limits.follow();
        limits
    }

    /// Reads what was changed, now. In memory there is nothing to read.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`]; what was read before goes on to count.
    pub async fn refresh(&self) -> Result<(), LimitsError> {
        let Some(replica) = &self.0.replica else {
            return Ok(());
        };
        self.follow();
        let read = replica.read(self).await;
        read.map_err(LimitsError::Unavailable)
    }

    /// Reads all unless that was done: whether there is room for a further rate depends on it.
    pub(super) async fn read_first(&self) -> Result<(), LimitsError> {
        let is_unread = |replica: &Replica| lock(&replica.read).all.is_none();
        if self.0.replica.as_ref().is_some_and(is_unread) {
            self.refresh().await?;
        }
        Ok(())
    }

    /// Has all replicas read everything anew, within a second. In memory there is nothing to read.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`].
    pub async fn clear_caches(&self) -> Result<(), LimitsError> {
        let Some(replica) = &self.0.replica else {
            return Ok(());
        };
        let renewed = replica
            .table
            .renew(fastrand::u64(..), Renewal::Requested)
            .await;
        renewed.map_err(LimitsError::Unavailable)?;
        self.refresh().await
    }

    /// Starts the task that reads changes, unless it runs.
    fn follow(&self) {
        let Some(replica) = &self.0.replica else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if let Some(term) = replica.follower.claim() {
            let release = ReleaseOnDrop::new(replica.follower.clone(), term);
            runtime.spawn(follow(Arc::downgrade(&self.0), release));
        }
    }
}

async fn follow(limits: Weak<Inner>, _release: ReleaseOnDrop) {
    let mut published = Published::default();
    let mut ahead = Ahead::default();
    while let Some(inner) = limits.upgrade() {
        let limits = Limits(inner);
        if let Some(replica) = &limits.0.replica {
            // What cannot be read now is read later.
            if replica.read(&limits).await.is_ok() {
                replica.delete_ended(&limits, &mut ahead).await;
                let all_read = lock(&replica.read).all;
                published.publish(&limits, &*replica.table, all_read).await;
            }
        }
        drop(limits);
        sleep(EVERY).await;
    }
}

impl Replica {
    pub(super) fn status(&self) -> StoreStatus {
        self.table.status()
    }

    pub(super) async fn change(
        &self,
        limits: &Limits,
        change: EntryChange<'_>,
    ) -> Result<Option<Override>, LimitsError> {
        limits.follow();
        let to = change.to.as_ref().map(Override::to_stored);
        let call = SetOverride {
            name: change.name.as_str(),
            text: to.as_deref(),
            lasts_seconds: change.lasting.map(whole_seconds),
            author: change.by.author.as_deref().unwrap_or_default(),
            origin: change.by.origin.as_deref().unwrap_or_default(),
            max_overrides: Limits::MAX_OVERRIDES,
            max_audited: Limits::MAX_CHANGES,
            ..SetOverride::default()
        };
        let set = self.set(limits, call, change.expected, change.name);
        match set.await.map_err(LimitsError::Unavailable)? {
            Outcome::Made { before, after } => {
                let before = before.map(|before| *before);
                let change = EntryChange {
                    to: after.map(|after| *after),
                    ..change
                };
                if let Some(made) = change.made(before.clone(), limits.0.clock.seconds()) {
                    made.report();
                }
                Ok(before)
            }
            Outcome::Changed(current) => Err(LimitsError::changed(current)),
            Outcome::Unreadable => Err(LimitsError::Unreadable),
            Outcome::Full | Outcome::NotEnded { .. } => Err(LimitsError::TooMany),
        }
    }

    /// Makes a change in the store, and then here.
    pub(super) async fn set(
        &self,
        limits: &Limits,
        mut call: SetOverride<'_>,
        expected: Option<&Option<Override>>,
        key: &KeyName,
    ) -> Result<Outcome, StoreError> {
        let known = {
            let read = lock(&self.read);
            TableState {
                version: read.greatest,
                ..read.known.clone()
            }
        };
        // What this replica has is what an operator saw: the store may have lost it.
        let local = {
            let state = lock(&limits.0.state);
            match call.ended_at {
                Some(_) => state.entry(Source::RunTime, key).map(Override::to_stored),
                None => state.get(key).map(Override::to_stored),
            }
        };
        let text = expected.map(|expected| expected.as_ref().map(Override::to_stored));
        let text = text.map(Option::unwrap_or_default);
        call.expected = text.as_deref();
        call.known = Some(&known);
        call.keeps_lost = self.lost() > 0;
        call.local = local.as_deref();
        let begun = SeenChanges::begin(&self.seen);
        call.id = begun.id;
        let mut set = self.table.set(&call).await?;
        if let (SetOutcome::Changed(Some(stored)), Some(expected)) = (&set, expected) {
            let Some(current) = Override::from_stored(stored) else {
                return Ok(Outcome::Unreadable);
            };
            // It may be written otherwise than this version of the crate writes it.
            let is_same = Some(&current) == expected.as_ref();
            // An ended override is not shown, but the store has it until a replica deletes it.
            let is_over = expected.is_none() && current.has_ended(|| limits.0.clock.seconds());
            if is_same || is_over {
                let stored = stored.clone();
                call.expected = Some(&stored);
                set = self.table.set(&call).await?;
            }
        }
        let (epoch, version, table_id, before, after) = match set {
            SetOutcome::Set {
                epoch,
                version,
                table_id,
                before,
                after,
            } => (epoch, version, table_id, before, after),
            SetOutcome::Full => return Ok(Outcome::Full),
            SetOutcome::NotEnded { now } => return Ok(Outcome::NotEnded { now }),
            SetOutcome::Changed(current) => {
                let current = current.and_then(|text| Override::from_stored(&text));
                return Ok(Outcome::Changed(current));
            }
        };
        begun.done();
        let mut state = lock(&limits.0.state);
        let mut read = lock(&self.read);
        if read.known.epoch != epoch {
            // Of data that nobody has read here yet. What is known of the table stays: another one tells of a loss.
            read.known.epoch = epoch;
            read.known.version = 0;
            read.made = 0;
            read.all = None;
            state.newer.clear();
        }
        read.made = read.made.max(version);
        read.greatest = match read.known.table_id == table_id {
            true => read.greatest.max(version),
            false => version,
        };
        if read.known.table_id.is_empty() {
            read.known.table_id = table_id;
        }
        let after = after.and_then(|text| Override::from_stored(&text));
        // Unless a later change was read already.
        let is_read = read.known.version >= version;
        drop(read);
        state.unreadable.remove(key.as_str());
        let newer = state.newer.get(key).copied().unwrap_or(0);
        if !is_read && newer < version {
            state.newer.insert(key.clone(), version);
            self.is_not_lost(key);
            limits.apply(&mut state, Source::RunTime, key, after.clone());
            // By a clock that is ahead of the store's.
            if after.as_ref().is_some_and(|entry| !state.has_effect(entry)) {
                state.ended_in_store(key.clone(), after.clone());
            }
        }
        let before = before.and_then(|text| Override::from_stored(&text));
        Ok(Outcome::Made {
            before: before.map(Box::new),
            after: after.map(Box::new),
        })
    }

    /// The last changes, the newest first.
    pub(super) async fn last_changes(&self, count: usize) -> Result<Vec<LimitChange>, LimitsError> {
        let changes = self.table.audit(count.min(Limits::MAX_CHANGES)).await;
        let changes = changes.map_err(LimitsError::Unavailable)?.into_iter();
        Ok(changes
            .filter_map(Audited::from_record)
            .map(|audited| audited.change)
            .collect())
    }
}

/// What became of a change.
pub(super) enum Outcome {
    /// It was made.
    Made {
        before: Option<Box<Override>>,
        after: Option<Box<Override>>,
    },
    /// The override is another one.
    Changed(Option<Override>),
    /// The override cannot be read, so that it is not known whether it is another one.
    Unreadable,
    /// There are as many overrides as there may be.
    Full,
    /// The override has not ended by the store's clock, in seconds since the Unix epoch.
    NotEnded { now: u64 },
}
