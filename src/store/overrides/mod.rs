//! A table of overrides that replicas share.

use std::pin::Pin;
use std::sync::Arc;

use super::{LeaseStore, RateBuckets, RateStore, StoreError, StoreStatus};
use crate::policy::Policy;

mod description;

pub use self::description::{LimiterDescription, RateDescription, SlotsDescription};

/// The future of a call to an [`OverrideTable`]. These calls are rare, and no request waits for them, so each is boxed.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store that replicas share, with a table of overrides.
///
/// [`Limits::in_store`](crate::Limits::in_store) keeps overrides in it, and
/// [`SharedLimiters`](crate::SharedLimiters) reads the limiters of other processes from it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a store that replicas share",
    note = "use `RedisStore` from `tower-admission-redis`, or implement `SharedStore`"
)]
pub trait SharedStore: RateStore + LeaseStore {
    /// The table of overrides of this store.
    fn overrides(&self) -> Arc<dyn OverrideTable>;

    /// Opens the buckets of a limiter of another process by their [place](RateBuckets::place). `None` when the place
    /// does not belong to this store.
    fn open_at(&self, place: &str, policies: &[Policy]) -> Option<Arc<dyn RateBuckets>>;

    /// Calls the store once to find out why an earlier call failed that returned no error.
    fn diagnose(&self) -> StoreFuture<'_, StoreError>;
}

impl<S: SharedStore + ?Sized> SharedStore for Arc<S> {
    fn overrides(&self) -> Arc<dyn OverrideTable> {
        (**self).overrides()
    }

    fn open_at(&self, place: &str, policies: &[Policy]) -> Option<Arc<dyn RateBuckets>> {
        (**self).open_at(place, policies)
    }

    fn diagnose(&self) -> StoreFuture<'_, StoreError> {
        (**self).diagnose()
    }
}

/// The overrides in a store that replicas share.
///
/// Each replica keeps a copy of the whole table, and reads changes by their version. The table stores overrides as
/// text, and compares that text.
///
/// # What an implementation must guarantee
///
/// - Each change raises the version by one, and the change and its version become visible together.
/// - The epoch changes when replicas must read the whole table again: after [`renew`](Self::renew), and after the
///   table was lost or replaced by an older one.
/// - The table has a random id that is stored with the overrides, so that it is lost with them.
/// - Each future completes in bounded time, with an error if the store does not answer. It is awaited under a lock, so
///   one that never completes blocks all later reads and changes. The Redis store waits two seconds, or its deadline if
///   that is longer.
pub trait OverrideTable: Send + Sync {
    /// Whether the store decides, or its failure mode does. Makes no call.
    fn status(&self) -> StoreStatus;

    /// Whether this process has the secret that replicas share.
    fn has_secret(&self) -> bool;

    /// Sets or deletes one override.
    fn set<'a>(
        &'a self,
        change: &'a SetOverride<'a>,
    ) -> StoreFuture<'a, Result<SetOutcome, StoreError>>;

    /// Reads the changes since the `known` state, and the last `max_audited` records of the audit trail.
    fn changes<'a>(
        &'a self,
        known: &'a TableState,
        max_audited: usize,
    ) -> StoreFuture<'a, Result<OverrideChanges, StoreError>>;

    /// Reads a page of the whole table. The first cursor is 0.
    fn page(&self, cursor: u64) -> StoreFuture<'_, Result<OverridePage, StoreError>>;

    /// Looks up these names, and the size of the table.
    fn confirm<'a>(
        &'a self,
        names: &'a [&'a str],
    ) -> StoreFuture<'a, Result<ConfirmedOverrides, StoreError>>;

    /// Reads the last records of the audit trail, the newest first.
    fn audit(&self, count: usize) -> StoreFuture<'_, Result<Vec<AuditRecord>, StoreError>>;

    /// Makes all replicas read the whole table again. `id` is the id of this change in the audit trail.
    fn renew<'a>(&'a self, id: u64, why: Renewal<'a>) -> StoreFuture<'a, Result<(), StoreError>>;

    /// Writes the descriptions of this process's limiters, and removes `withdrawn` ones. A description that no process
    /// writes for a day expires; a [lost count](LimiterDescription::Lost) expires after three minutes.
    fn publish<'a>(
        &'a self,
        limiters: &'a [LimiterDescription],
        withdrawn: &'a [LimiterDescription],
    ) -> StoreFuture<'a, Result<(), StoreError>>;

    /// Reads the descriptions that all processes have written, in a stable order. Leaves out unreadable ones.
    fn published(&self) -> StoreFuture<'_, Result<Vec<LimiterDescription>, StoreError>>;
}

/// The state of the table, by which a replica notices that data was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableState {
    /// Changes whenever replicas must read the whole table again.
    pub epoch: Vec<u8>,
    /// The version of the last change.
    pub version: u64,
    /// The id of the table, which is lost with it; empty if there is no table.
    pub table_id: Vec<u8>,
    /// When an operator last accepted a loss, in microseconds since the Unix epoch; 0 for never.
    pub loss_accepted_at: u64,
}

/// One change of an override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChange {
    /// The name of the key.
    pub name: String,
    /// The version of the change.
    pub version: u64,
    /// The override as text; `None` if it was deleted.
    pub text: Option<String>,
}

/// The changes since a version.
#[derive(Clone, Debug, Default)]
pub struct OverrideChanges {
    /// The state of the table now.
    pub state: TableState,
    /// The readable changes; `None` when the replica must read the whole table.
    pub changes: Option<Vec<StoredChange>>,
    /// The version of the last change here, when more changes follow than fit one answer.
    pub up_to: Option<u64>,
    /// The last records of the audit trail, the newest first.
    pub audited: Vec<AuditRecord>,
}

/// A page of the whole table.
#[derive(Clone, Debug, Default)]
pub struct OverridePage {
    /// The cursor of the next page; 0 at the end.
    pub next: u64,
    /// The id of the table, if it is on this page.
    pub table_id: Option<Vec<u8>>,
    /// The name and the text of each override. A name need not be UTF-8, because other programs may write there.
    pub entries: Vec<(Vec<u8>, Option<String>)>,
}

/// The answer to [`OverrideTable::confirm`].
#[derive(Clone, Debug, Default)]
pub struct ConfirmedOverrides {
    /// The version of the last change.
    pub version: u64,
    /// The id of the table; empty if there is no table.
    pub table_id: Vec<u8>,
    /// How many overrides the table holds.
    pub len: u64,
    /// One answer for each name that was asked for.
    pub found: Vec<ConfirmedOverride>,
}

/// What the table holds under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfirmedOverride {
    /// The override as text; `None` if there is none.
    pub text: Option<String>,
    /// The version of its last change, if that is known.
    pub version: Option<u64>,
}

/// A change to be made.
#[derive(Clone, Debug, Default)]
pub struct SetOverride<'a> {
    /// The name of the key.
    pub name: &'a str,
    /// The override as text; `None` deletes it.
    pub text: Option<&'a str>,
    /// After how many seconds it ends by the store's clock. Replaces the end in `text`.
    pub lasts_seconds: Option<u64>,
    /// The text that the store must hold now: `None` for any, `Some("")` for no override.
    pub expected: Option<&'a str>,
    /// The end of the override, in seconds since the Unix epoch. The store does not delete it before.
    pub ended_at: Option<u64>,
    /// Who makes the change; empty if unknown.
    pub author: &'a str,
    /// From where the change is made; empty if unknown.
    pub origin: &'a str,
    /// The state of the table that the caller has read, with the greatest version that it has seen.
    pub known: Option<&'a TableState>,
    /// Whether the caller keeps overrides that the store has lost.
    pub keeps_lost: bool,
    /// The override that the caller has for this name, as text.
    pub local: Option<&'a str>,
    /// The id of the change.
    pub id: u64,
    /// How many overrides the table may hold.
    pub max_overrides: usize,
    /// How many records the audit trail keeps.
    pub max_audited: usize,
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetOutcome {
    /// The change was made.
    Set {
        /// The epoch of the table.
        epoch: Vec<u8>,
        /// The version of this change.
        version: u64,
        /// The id of the table.
        table_id: Vec<u8>,
        /// The override before, as text.
        before: Option<String>,
        /// The override now, as text.
        after: Option<String>,
    },
    /// The table holds the maximum number of overrides.
    Full,
    /// The override differs from the expected one. Holds the current text.
    Changed(Option<String>),
    /// The override has not ended by the store's clock.
    NotEnded {
        /// The store's clock, in seconds since the Unix epoch.
        now: u64,
    },
}

/// Why all replicas must read the whole table again.
#[derive(Clone, Copy, Debug)]
pub enum Renewal<'a> {
    /// An operator asked for it.
    Requested,
    /// An operator accepted the loss of overrides: replicas drop those that the store does not hold.
    LossAccepted {
        /// The last acceptance that the caller knows: see [`TableState::loss_accepted_at`].
        known: u64,
        /// Who accepted it; empty if unknown.
        author: &'a str,
        /// From where it was accepted; empty if unknown.
        origin: &'a str,
        /// How many records the audit trail keeps.
        max_audited: usize,
    },
}

/// One record of the audit trail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditRecord {
    /// The id of the change, if it is readable.
    pub id: Option<u64>,
    /// The version of the change.
    pub version: u64,
    /// When it was made by the store's clock, in seconds since the Unix epoch.
    pub at: u64,
    /// The name of the key; empty when a loss was accepted.
    pub key: String,
    /// The override before, as text; empty if there was none.
    pub before: String,
    /// The override after, as text; empty if it was deleted.
    pub after: String,
    /// Who made the change; empty if unknown.
    pub author: String,
    /// From where it was made; empty if unknown.
    pub origin: String,
    /// Whether the override ended, so that no operator made the change.
    pub has_ended: bool,
    /// Whether an operator accepted the loss of overrides.
    pub is_loss_accepted: bool,
}
