//! Overrides in a shared store: each replica holds all of them and polls for changes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::change::Audited;
use super::delete_ended::ClockLead;
use super::edit::EntryChange;
use super::entry::whole_seconds;
use super::lost::LostOverrides;
use super::publish::PublishedLimiters;
use super::reported::ReportedChanges;
use super::state::OverrideSource;
use super::{LimitChange, Limits, LimitsError, LimitsInner, Override};
use crate::key::{KeyMap, KeyName};
use crate::singleton_task::{ReleaseOnDrop, SingletonTask};
use crate::store::memory::clock::WallClock;
use crate::store::overrides::{OverrideTable, Renewal, SetOutcome, SetOverride, TableState};
use crate::store::{SharedStore, StoreError, StoreStatus};
use crate::sync::{AtomicBool, Mutex, lock};

/// The interval between polls, so that every replica knows a change within a second.
const POLL_INTERVAL: Duration = Duration::from_millis(400);

/// The state of a replica of the shared overrides.
pub(super) struct Replica {
    pub(super) table: Arc<dyn OverrideTable>,
    follower: Arc<SingletonTask>,
    pub(super) read: Mutex<ReadProgress>,
    /// Held while the store is read, so that two readers do not mix their results.
    pub(super) reading: tokio::sync::Mutex<()>,
    pub(super) full_read_interval: Duration,
    pub(super) lost: LostOverrides,
    pub(super) seen: Mutex<ReportedChanges>,
    /// Whether it was logged that the store cannot be read completely.
    pub(super) is_unsettled: AtomicBool,
}

/// How far the store was read.
#[derive(Default)]
pub(super) struct ReadProgress {
    pub(super) known: TableState,
    /// The time of the last complete read.
    pub(super) all: Option<Instant>,
    /// The version of this process's last change in this epoch.
    pub(super) made: u64,
    /// The highest version seen in this table. After a failover the store may be at an earlier
    /// version, until the next change renews the table.
    pub(super) greatest: u64,
}

/// The gauges of shared overrides, which exist from the start.
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
    /// The default interval between complete reads: 10 minutes. Changes are read within a second; a
    /// complete read corrects undetected differences.
    pub const DEFAULT_CACHE_TTL: Duration = Duration::from_secs(600);

    /// Creates limits that all replicas share in a store, such as Redis, under the store's prefix.
    ///
    /// Each replica holds all overrides in memory, where decisions look them up. It polls for
    /// changes every 400 ms. A change applies in its own process immediately, and in every other
    /// replica within a second. While the store is unavailable, the last overrides that were read
    /// stay in force. There are none until the first read; call [`refresh`](Self::refresh) at start
    /// to wait for it.
    ///
    /// A task reads them. It runs in the runtime of this call, or else of the first later call in a
    /// runtime, and ends with the last clone.
    ///
    /// The store holds the names of entries as they are written; credentials are fingerprints. It
    /// also holds the limiters that use these limits and count in the store, with their quotas, so
    /// that tools can find usage ([`SharedLimiters`](crate::SharedLimiters)).
    #[must_use]
    pub fn in_store(store: &(impl SharedStore + ?Sized)) -> Self {
        Self::in_store_with(store, Self::DEFAULT_CACHE_TTL)
    }

    /// Like [`in_store`](Self::in_store), with a complete read every `cache_ttl`. Minimum: one
    /// second.
    #[must_use]
    pub fn in_store_with(store: &(impl SharedStore + ?Sized), cache_ttl: Duration) -> Self {
        LimitChange::count_from_zero(true);
        #[cfg(feature = "metrics")]
        for (gauge, description) in GAUGES {
            metrics::describe_gauge!(gauge, metrics::Unit::Count, description);
            metrics::gauge!(gauge).set(0.0);
        }
        let limits = Self(Arc::new(LimitsInner {
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
                full_read_interval: cache_ttl.max(Duration::from_secs(1)),
                lost: LostOverrides::default(),
                seen: Mutex::default(),
                is_unsettled: AtomicBool::new(false),
            }),
        }));
        limits.start_follower();
        limits
    }

    /// Reads changes now. In memory it does nothing.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`]; the overrides that were read before stay in force.
    pub async fn refresh(&self) -> Result<(), LimitsError> {
        let Some(replica) = &self.0.replica else {
            return Ok(());
        };
        self.start_follower();
        let read = replica.read(self).await;
        read.map_err(LimitsError::Unavailable)
    }

    /// Reads everything if that was never done, because the check of distinct rates depends on it.
    pub(super) async fn read_first(&self) -> Result<(), LimitsError> {
        let is_unread = |replica: &Replica| lock(&replica.read).all.is_none();
        if self.0.replica.as_ref().is_some_and(is_unread) {
            self.refresh().await?;
        }
        Ok(())
    }

    /// Makes all replicas read everything again, within a second. In memory it does nothing.
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

    /// Starts the task that reads changes, unless it is running.
    fn start_follower(&self) {
        let Some(replica) = &self.0.replica else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if let Some(term) = replica.follower.claim() {
            let release = ReleaseOnDrop::new(replica.follower.clone(), term);
            runtime.spawn(run_follower(Arc::downgrade(&self.0), release));
        }
    }
}

async fn run_follower(limits: Weak<LimitsInner>, _release: ReleaseOnDrop) {
    let mut published = PublishedLimiters::default();
    let mut clock_lead = ClockLead::default();
    while let Some(inner) = limits.upgrade() {
        let limits = Limits(inner);
        if let Some(replica) = &limits.0.replica {
            // What cannot be read now is read later.
            if replica.read(&limits).await.is_ok() {
                replica.delete_ended(&limits, &mut clock_lead).await;
                let all_read = lock(&replica.read).all;
                published.publish(&limits, &*replica.table, all_read).await;
            }
        }
        drop(limits);
        sleep(POLL_INTERVAL).await;
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
        limits.start_follower();
        let to = change.to.as_ref().map(Override::to_stored);
        let call = SetOverride {
            name: change.name.as_str(),
            text: to.as_deref(),
            lasts_seconds: change.lasting.map(whole_seconds),
            author: change.attribution.author.as_deref().unwrap_or_default(),
            origin: change.attribution.origin.as_deref().unwrap_or_default(),
            max_overrides: Limits::MAX_OVERRIDES,
            max_audited: Limits::MAX_CHANGES,
            ..SetOverride::default()
        };
        let set = self.set(limits, call, change.expected, change.name);
        match set.await.map_err(LimitsError::Unavailable)? {
            ChangeOutcome::Made { before, after } => {
                let before = before.map(|before| *before);
                let change = EntryChange {
                    to: after.map(|after| *after),
                    ..change
                };
                if let Some(made) = change.to_change(before.clone(), limits.0.clock.seconds()) {
                    made.report();
                }
                Ok(before)
            }
            ChangeOutcome::Changed(current) => Err(LimitsError::changed(current)),
            ChangeOutcome::Unreadable => Err(LimitsError::Unreadable),
            ChangeOutcome::Full | ChangeOutcome::NotEnded { .. } => Err(LimitsError::TooMany),
        }
    }

    /// Makes a change in the store, and then here.
    pub(super) async fn set(
        &self,
        limits: &Limits,
        mut call: SetOverride<'_>,
        expected: Option<&Option<Override>>,
        key: &KeyName,
    ) -> Result<ChangeOutcome, StoreError> {
        let known = {
            let read = lock(&self.read);
            TableState {
                version: read.greatest,
                ..read.known.clone()
            }
        };
        // An operator's condition refers to what this replica has; the store may have lost it.
        let local = {
            let state = lock(&limits.0.state);
            match call.ended_at {
                Some(_) => state
                    .entry(OverrideSource::RunTime, key)
                    .map(Override::to_stored),
                None => state.get(key).map(Override::to_stored),
            }
        };
        let text = expected.map(|expected| expected.as_ref().map(Override::to_stored));
        let text = text.map(Option::unwrap_or_default);
        call.expected = text.as_deref();
        call.known = Some(&known);
        call.keeps_lost = self.lost() > 0;
        call.local = local.as_deref();
        let begun = ReportedChanges::begin(&self.seen);
        call.id = begun.id;
        let mut set = self.table.set(&call).await?;
        if let (SetOutcome::Changed(Some(stored)), Some(expected)) = (&set, expected) {
            let Some(current) = Override::from_stored(stored) else {
                return Ok(ChangeOutcome::Unreadable);
            };
            // Another version of the crate may have written the same override differently.
            let is_same = Some(&current) == expected.as_ref();
            // An ended override is not listed, but the store keeps it until a replica deletes it.
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
            SetOutcome::Full => return Ok(ChangeOutcome::Full),
            SetOutcome::NotEnded { now } => return Ok(ChangeOutcome::NotEnded { now }),
            SetOutcome::Changed(current) => {
                let current = current.and_then(|text| Override::from_stored(&text));
                return Ok(ChangeOutcome::Changed(current));
            }
        };
        begun.complete();
        let mut state = lock(&limits.0.state);
        let mut read = lock(&self.read);
        if read.known.epoch != epoch {
            // The epoch is of data that nothing has read here yet. The known table id stays: a
            // different one indicates a loss.
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
            self.remove_lost(key);
            limits.apply(&mut state, OverrideSource::RunTime, key, after.clone());
            // The clock here is ahead of the store's.
            if after.as_ref().is_some_and(|entry| !state.has_effect(entry)) {
                state.ended_in_store(key.clone(), after.clone());
            }
        }
        let before = before.and_then(|text| Override::from_stored(&text));
        Ok(ChangeOutcome::Made {
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

/// The outcome of a change.
pub(super) enum ChangeOutcome {
    /// It was made.
    Made {
        before: Option<Box<Override>>,
        after: Option<Box<Override>>,
    },
    /// The current override differs from the condition.
    Changed(Option<Override>),
    /// The current override is unreadable, so the condition cannot be checked.
    Unreadable,
    /// The number of overrides is at its bound.
    Full,
    /// The override has not ended by the store's clock, in seconds since the Unix epoch.
    NotEnded { now: u64 },
}
