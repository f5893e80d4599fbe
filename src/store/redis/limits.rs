//! Overrides in Redis, where all replicas find them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::Again;
use super::failure::{FailureKind, OrFailure, StoreError};
use super::script::Script;
use super::{Inner, RedisStore};
use crate::store::StoreStatus;

/// What the scripts of limits read and write.
pub(crate) struct LimitTable {
    store: Arc<Inner>,
    /// Whether the secret of this process is that of the replicas.
    pub(crate) has_secret: bool,
    keys: [String; 4],
    pub(super) limiters: [String; 1],
    pub(super) publish: Script,
    pub(super) published: Script,
    set: Script,
    changes: Script,
    page: Script,
    confirm: Script,
    epoch: Script,
    audit: Script,
}

/// One change: whose override, as of which version, and what it is, unless it was deleted.
pub(crate) type Change = (String, u64, Option<String>);

/// What is read of Redis. Others may have written there, so it need not be text.
type Bytes = Vec<u8>;

/// What was changed since a version.
pub(crate) struct Changes {
    pub(crate) found: Found,
    /// What can be read of them; nothing when all has to be read anew.
    pub(crate) changes: Option<Vec<Change>>,
    /// Up to which version these are, when there are more than fit one answer.
    pub(crate) upto: Option<u64>,
    /// The changes of the audit trail that may be among them, the newest first, as they are stored.
    pub(crate) audited: Vec<Bytes>,
}

/// What lies under some names.
pub(crate) struct Confirmed {
    pub(crate) version: u64,
    pub(crate) table: Bytes,
    /// How many entries the table has, with its id.
    pub(crate) len: u64,
    /// The override of each name, if there is one, and the version of its last change, if that is known.
    pub(crate) found: Vec<(Option<String>, Option<u64>)>,
}

/// What tells whether data was lost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Changes whenever all has to be read anew.
    pub(crate) epoch: Bytes,
    pub(crate) version: u64,
    /// The id of the table, which is lost with it; empty if there is no table.
    pub(crate) table: Bytes,
    /// When an operator last accepted a loss, in microseconds since the Unix epoch; 0 for never.
    pub(crate) accepted: u64,
}

/// A change that is to be made.
#[derive(Clone, Debug, Default)]
pub(crate) struct SetOverride<'a> {
    pub(crate) name: &'a str,
    /// The override; `None` deletes it.
    pub(crate) to: Option<&'a str>,
    /// After how many seconds it ends by the clock of the store, in place of the end in `to`.
    pub(crate) lasting: Option<u64>,
    /// What it has to be; `None` for anything, `Some("")` for none.
    pub(crate) expected: Option<&'a str>,
    /// Its end, before which it is not deleted.
    pub(crate) ended: Option<u64>,
    pub(crate) author: &'a str,
    pub(crate) origin: &'a str,
    /// What the caller knows of the table, and up to which version.
    pub(crate) known: Option<&'a Found>,
    /// Whether the caller keeps overrides that were lost.
    pub(crate) keeps_lost: bool,
    /// What the caller has of this name.
    pub(crate) kept: Option<&'a str>,
    /// The id of the change.
    pub(crate) id: u64,
    /// How many overrides there may be, and how many changes the audit trail keeps.
    pub(crate) at_most: [usize; 2],
}

/// What became of a change.
#[derive(Debug)]
pub(crate) enum SetOutcome {
    Set {
        epoch: Bytes,
        version: u64,
        table: Bytes,
        before: Option<String>,
        /// The override as it was set.
        after: Option<String>,
    },
    /// There are as many overrides as there may be.
    Full,
    /// The override is not what it had to be.
    Changed(Option<String>),
    /// It has not ended by the clock of the store, which is this in seconds since the Unix epoch.
    Early(u64),
}

/// Why all is to be read anew.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Renewal<'a> {
    /// An operator asks for it.
    Asked,
    /// An operator accepts that overrides were lost: replicas drop what is not found.
    LossAccepted {
        /// The last acceptance that the caller knows.
        known: u64,
        author: &'a str,
        origin: &'a str,
        /// How many changes the audit trail keeps.
        audited: usize,
    },
}

/// The least that these calls wait, which are few, and which no request waits for. A store with a longer deadline waits for
/// that.
const WITHIN: Duration = Duration::from_secs(2);

/// Changes that are kept for replicas that have not seen them: one that missed more reads all anew.
const JOURNAL: usize = 100_000;

/// Limits in one answer.
const PAGE: usize = 1_000;

impl LimitTable {
    /// Whether the store that has them decides.
    pub(crate) fn status(&self) -> StoreStatus {
        self.store.status()
    }

    /// The error when all overrides cannot be read, as they are lost or renewed again and again meanwhile.
    pub(crate) fn not_settled() -> StoreError {
        let words = "the overrides were lost or renewed several times while they were read";
        StoreError::because(FailureKind::Busy, words)
    }
}

impl RedisStore {
    pub(crate) fn limit_table(&self) -> LimitTable {
        let store = self.inner().clone();
        LimitTable {
            has_secret: self.has_secret,
            keys: store.names.limits(),
            limiters: [store.names.limiters()],
            store,
            publish: Script::new(include_str!("limiters_publish.lua")),
            published: Script::new(include_str!("limiters_published.lua")),
            set: Script::new(include_str!("limits_set.lua")),
            changes: Script::new(include_str!("limits_changes.lua")),
            page: Script::new(include_str!("limits_page.lua")),
            confirm: Script::new(include_str!("limits_confirm.lua")),
            epoch: Script::new(include_str!("limits_epoch.lua")),
            audit: Script::new(include_str!("limits_audit.lua")),
        }
    }
}

impl LimitTable {
    /// The name under which the id of the table lies among the overrides. It is the name of no key.
    pub(crate) const ID: &str = "#table";

    /// Makes a change.
    pub(crate) async fn set(&self, change: SetOverride<'_>) -> Result<SetOutcome, StoreError> {
        let [overrides, audited] = change.at_most;
        let expected = change.expected.map(|text| format!("={text}"));
        let ended = change.ended.map(|end| end.to_string());
        let lasting = change.lasting.map(|seconds| seconds.to_string());
        let unknown = Found::default();
        let known = change.known.unwrap_or(&unknown);
        let arguments = &[
            change.name.to_owned(),
            change.to.unwrap_or_default().to_owned(),
            overrides.to_string(),
            JOURNAL.to_string(),
            id_text(change.id),
            expected.unwrap_or_else(|| "*".to_owned()),
            ended.unwrap_or_default(),
            change.author.to_owned(),
            change.origin.to_owned(),
            audited.to_string(),
            u8::from(change.keeps_lost).to_string(),
            lasting.unwrap_or_default(),
            String::from_utf8_lossy(&known.epoch).into_owned(),
            known.version.to_string(),
            String::from_utf8_lossy(&known.table).into_owned(),
            change.kept.unwrap_or_default().to_owned(),
        ][..];
        // A second one would find its own override as the one before.
        let set = self.call_again(Again::Never, &self.set, &self.keys, arguments);
        let answer: Vec<redis::Value> = set.await?;
        let bytes_at = |at: usize| {
            let value = answer
                .get(at)
                .map(redis::from_redis_value_ref::<Option<Bytes>>);
            value.transpose().or_failure().map(|bytes| bytes.flatten())
        };
        let text_at = |at| Ok(bytes_at(at)?.and_then(override_text));
        let word = bytes_at(0)?.unwrap_or_default();
        Ok(match (&word[..], &answer[..]) {
            (b"set", [_, epoch, version, table, _, _]) => SetOutcome::Set {
                epoch: redis::from_redis_value_ref(epoch).or_failure()?,
                version: redis::from_redis_value_ref(version).or_failure()?,
                table: redis::from_redis_value_ref(table).or_failure()?,
                before: text_at(4)?,
                after: text_at(5)?,
            },
            (b"changed", _) => SetOutcome::Changed(text_at(1)?),
            (b"early", [_, now]) => {
                SetOutcome::Early(redis::from_redis_value_ref(now).or_failure()?)
            }
            (b"full", _) => SetOutcome::Full,
            _ => {
                let words = "the script that sets an override has answered something else";
                return Err(StoreError::because(FailureKind::Other, words));
            }
        })
    }

    pub(crate) async fn changes(
        &self,
        known: &Found,
        audited: usize,
    ) -> Result<Changes, StoreError> {
        let (since, page) = (known.version.to_string(), PAGE.to_string());
        let audited = audited.to_string();
        let arguments = &[
            &known.epoch[..],
            since.as_bytes(),
            page.as_bytes(),
            &known.table,
            audited.as_bytes(),
        ][..];
        type Names = Vec<(Bytes, Bytes, Bytes)>;
        type Answer = (Bytes, u64, u8, Names, Bytes, Bytes, Vec<Bytes>);
        let (epoch, version, all, found, table, accepted, audited): Answer =
            self.call(&self.changes, &self.keys, arguments).await?;
        let is_full = found.len() >= PAGE;
        let last = found.last().and_then(|(_, version, _)| whole(version));
        let changes = found.into_iter().filter_map(|(name, version, limit)| {
            Some((text(name)?, whole(&version)?, override_text(limit)))
        });
        // A replica that cannot tell where to go on reads everything.
        let is_readable = all == 0 && !(is_full && last.is_none());
        Ok(Changes {
            found: Found {
                epoch,
                version,
                table,
                accepted: whole(&accepted).unwrap_or(0),
            },
            changes: is_readable.then(|| changes.collect()),
            upto: last.filter(|_| is_full),
            audited,
        })
    }

    /// The last changes, the newest first, as they are stored.
    pub(crate) async fn audit(&self, count: usize) -> Result<Vec<Bytes>, StoreError> {
        let arguments = &[count.to_string()][..];
        let key = std::slice::from_ref(&self.keys[3]);
        self.call(&self.audit, key, arguments).await
    }

    /// Limits, and where to go on; 0 at the beginning and the end.
    pub(crate) async fn page(
        &self,
        cursor: u64,
    ) -> Result<(u64, Vec<(Bytes, Option<String>)>), StoreError> {
        let arguments = &[cursor.to_string(), PAGE.to_string()][..];
        let (next, found): (u64, Vec<(Bytes, Bytes)>) =
            self.call(&self.page, &self.keys, arguments).await?;
        let found = found.into_iter();
        let found = found.map(|(name, found)| (name, override_text(found)));
        Ok((next, found.collect()))
    }

    /// What lies under these names now, and how large the table is.
    pub(crate) async fn confirm(&self, names: &[&str]) -> Result<Confirmed, StoreError> {
        let (version, table, len, found): (_, _, _, Vec<(Bytes, Bytes)>) =
            self.call(&self.confirm, &self.keys, names).await?;
        let found = found.into_iter();
        let found = found.map(|(text, version)| (override_text(text), whole(&version)));
        Ok(Confirmed {
            version,
            table,
            len,
            found: found.collect(),
        })
    }

    /// Has all replicas read everything anew.
    pub(crate) async fn renew(&self, id: u64, why: Renewal<'_>) -> Result<(), StoreError> {
        let (why, known, author, origin, audited) = match why {
            Renewal::Asked => ("", 0, "", "", 0),
            Renewal::LossAccepted {
                known,
                author,
                origin,
                audited,
            } => ("accept", known, author, origin, audited),
        };
        let (id, audited, known) = (id_text(id), audited.to_string(), known.to_string());
        let arguments = &[&*id, why, author, origin, &*audited, &*known][..];
        let renewed = self.call::<u8>(&self.epoch, &self.keys, arguments).await;
        renewed.map(drop)
    }

    pub(super) async fn call<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: impl redis::ToRedisArgs + Copy,
    ) -> Result<T, StoreError> {
        self.call_again(Again::Once, script, keys, arguments).await
    }

    async fn call_again<T: redis::FromRedisValue>(
        &self,
        again: Again,
        script: &Script,
        keys: &[String],
        arguments: impl redis::ToRedisArgs + Copy,
    ) -> Result<T, StoreError> {
        let client = &self.store.client;
        let deadline = Instant::now() + client.patience().max(WITHIN);
        client
            .run_apart(script, keys, arguments, deadline, again)
            .await
    }
}

fn text(bytes: Bytes) -> Option<String> {
    String::from_utf8(bytes).ok()
}

/// An override, if there is one: an empty text is a deletion. What is no text cannot be read, but is there.
fn override_text(bytes: Bytes) -> Option<String> {
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// A version, of what may be any number.
fn whole(score: &[u8]) -> Option<u64> {
    str::from_utf8(score).ok()?.parse().ok()
}

/// As ids are stored.
pub(crate) fn id_text(id: u64) -> String {
    format!("{id:016x}")
}
