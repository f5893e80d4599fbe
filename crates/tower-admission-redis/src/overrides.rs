//! Overrides in Redis, where all replicas find them.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::Inner;
use super::call_error::{CallError, OrFailure};
use super::client::Retry;
use super::script::Script;
use tower_admission::store::overrides::{
    AuditRecord, ConfirmedOverride, ConfirmedOverrides, LimiterDescription, OverrideChanges,
    OverridePage, OverrideTable, Renewal, SetOutcome, SetOverride, StoreFuture, StoredChange,
    TableState,
};
use tower_admission::store::{FailureKind, StoreError, StoreStatus};

/// The overrides under one prefix.
pub(super) struct RedisOverrides {
    store: Arc<Inner>,
    has_secret: bool,
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

/// Data from Redis. Other programs may write there, so it need not be UTF-8.
type Bytes = Vec<u8>;

/// The minimum deadline of these calls: they are rare, and no request waits for them. A longer deadline of the store
/// applies instead.
const MIN_DEADLINE: Duration = Duration::from_secs(2);

/// How many changes are kept for replicas. A replica that missed more reads the whole table.
const JOURNAL: usize = 100_000;

/// The maximum number of overrides in one answer.
const PAGE: usize = 1_000;

/// The field that holds the id of the table. No key has this name.
const TABLE_ID: &[u8] = b"#table";

impl RedisOverrides {
    pub(super) fn new(store: Arc<Inner>, has_secret: bool) -> Self {
        Self {
            has_secret,
            keys: store.names.limits(),
            limiters: [store.names.limiters()],
            store,
            publish: Script::new(include_str!("scripts/limiters_publish.lua")),
            published: Script::new(include_str!("scripts/limiters_published.lua")),
            set: Script::new(include_str!("scripts/limits_set.lua")),
            changes: Script::new(include_str!("scripts/limits_changes.lua")),
            page: Script::new(include_str!("scripts/limits_page.lua")),
            confirm: Script::new(include_str!("scripts/limits_confirm.lua")),
            epoch: Script::new(include_str!("scripts/limits_epoch.lua")),
            audit: Script::new(include_str!("scripts/limits_audit.lua")),
        }
    }
}

impl OverrideTable for RedisOverrides {
    fn status(&self) -> StoreStatus {
        self.store.status()
    }

    fn has_secret(&self) -> bool {
        self.has_secret
    }

    fn set<'a>(
        &'a self,
        change: &'a SetOverride<'a>,
    ) -> StoreFuture<'a, Result<SetOutcome, StoreError>> {
        Box::pin(async move { Ok(self.set_override(change).await?) })
    }

    fn changes<'a>(
        &'a self,
        known: &'a TableState,
        max_audited: usize,
    ) -> StoreFuture<'a, Result<OverrideChanges, StoreError>> {
        Box::pin(async move { Ok(self.read_changes(known, max_audited).await?) })
    }

    fn page(&self, cursor: u64) -> StoreFuture<'_, Result<OverridePage, StoreError>> {
        Box::pin(async move { Ok(self.read_page(cursor).await?) })
    }

    fn confirm<'a>(
        &'a self,
        names: &'a [&'a str],
    ) -> StoreFuture<'a, Result<ConfirmedOverrides, StoreError>> {
        Box::pin(async move { Ok(self.look_up(names).await?) })
    }

    fn audit(&self, count: usize) -> StoreFuture<'_, Result<Vec<AuditRecord>, StoreError>> {
        Box::pin(async move { Ok(self.read_audit(count).await?) })
    }

    fn renew<'a>(&'a self, id: u64, why: Renewal<'a>) -> StoreFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.renew_epoch(id, why).await?) })
    }

    fn publish<'a>(
        &'a self,
        limiters: &'a [LimiterDescription],
        withdrawn: &'a [LimiterDescription],
    ) -> StoreFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.write_limiters(limiters, withdrawn).await?) })
    }

    fn published(&self) -> StoreFuture<'_, Result<Vec<LimiterDescription>, StoreError>> {
        Box::pin(async move { Ok(self.read_limiters().await?) })
    }
}

impl RedisOverrides {
    async fn set_override(&self, change: &SetOverride<'_>) -> Result<SetOutcome, CallError> {
        let expected = change.expected.map(|text| format!("={text}"));
        let ended = change.ended_at.map(|end| end.to_string());
        let lasts = change.lasts_seconds.map(|seconds| seconds.to_string());
        let unknown = TableState::default();
        let known = change.known.unwrap_or(&unknown);
        let arguments = &[
            change.name.to_owned(),
            change.text.unwrap_or_default().to_owned(),
            change.max_overrides.to_string(),
            JOURNAL.to_string(),
            id_text(change.id),
            expected.unwrap_or_else(|| "*".to_owned()),
            ended.unwrap_or_default(),
            change.author.to_owned(),
            change.origin.to_owned(),
            change.max_audited.to_string(),
            u8::from(change.keeps_lost).to_string(),
            lasts.unwrap_or_default(),
            String::from_utf8_lossy(&known.epoch).into_owned(),
            known.version.to_string(),
            String::from_utf8_lossy(&known.table_id).into_owned(),
            change.local.unwrap_or_default().to_owned(),
        ][..];
        // A second call would find its own override as the one before.
        let set = self.call_with_retry(Retry::Never, &self.set, &self.keys, arguments);
        let answer: Vec<redis::Value> = set.await?;
        let bytes_at = |at: usize| {
            let value = answer
                .get(at)
                .map(redis::from_redis_value_ref::<Option<Bytes>>);
            value.transpose().or_failure().map(|bytes| bytes.flatten())
        };
        let text_at = |at| Ok::<_, CallError>(bytes_at(at)?.and_then(override_text));
        let word = bytes_at(0)?.unwrap_or_default();
        Ok(match (&word[..], &answer[..]) {
            (b"set", [_, epoch, version, table_id, _, _]) => SetOutcome::Set {
                epoch: redis::from_redis_value_ref(epoch).or_failure()?,
                version: redis::from_redis_value_ref(version).or_failure()?,
                table_id: redis::from_redis_value_ref(table_id).or_failure()?,
                before: text_at(4)?,
                after: text_at(5)?,
            },
            (b"changed", _) => SetOutcome::Changed(text_at(1)?),
            (b"early", [_, now]) => SetOutcome::NotEnded {
                now: redis::from_redis_value_ref(now).or_failure()?,
            },
            (b"full", _) => SetOutcome::Full,
            _ => {
                let words = "the script that sets an override has answered something else";
                return Err(CallError::because(FailureKind::Other, words));
            }
        })
    }

    async fn read_changes(
        &self,
        known: &TableState,
        max_audited: usize,
    ) -> Result<OverrideChanges, CallError> {
        let (since, page) = (known.version.to_string(), PAGE.to_string());
        let max_audited = max_audited.to_string();
        let arguments = &[
            &known.epoch[..],
            since.as_bytes(),
            page.as_bytes(),
            &known.table_id,
            max_audited.as_bytes(),
        ][..];
        type Names = Vec<(Bytes, Bytes, Bytes)>;
        type Answer = (Bytes, u64, u8, Names, Bytes, Bytes, Vec<Bytes>);
        let (epoch, version, all, found, table_id, accepted, audited): Answer =
            self.call(&self.changes, &self.keys, arguments).await?;
        let is_full = found.len() >= PAGE;
        let last = found.last().and_then(|(_, version, _)| whole(version));
        let changes = found.into_iter().filter_map(|(name, version, limit)| {
            Some(StoredChange {
                name: text(name)?,
                version: whole(&version)?,
                text: override_text(limit),
            })
        });
        // A replica that cannot tell where to continue reads the whole table.
        let is_readable = all == 0 && !(is_full && last.is_none());
        Ok(OverrideChanges {
            state: TableState {
                epoch,
                version,
                table_id,
                loss_accepted_at: whole(&accepted).unwrap_or(0),
            },
            changes: is_readable.then(|| changes.collect()),
            up_to: last.filter(|_| is_full),
            audited: audit_records(audited),
        })
    }

    async fn read_audit(&self, count: usize) -> Result<Vec<AuditRecord>, CallError> {
        let arguments = &[count.to_string()][..];
        let key = std::slice::from_ref(&self.keys[3]);
        let records = self.call(&self.audit, key, arguments).await?;
        Ok(audit_records(records))
    }

    async fn read_page(&self, cursor: u64) -> Result<OverridePage, CallError> {
        let arguments = &[cursor.to_string(), PAGE.to_string()][..];
        let (next, found): (u64, Vec<(Bytes, Bytes)>) =
            self.call(&self.page, &self.keys, arguments).await?;
        let mut page = OverridePage {
            next,
            ..OverridePage::default()
        };
        for (name, found) in found {
            if name == TABLE_ID {
                page.table_id = Some(found);
            } else {
                page.entries.push((name, override_text(found)));
            }
        }
        Ok(page)
    }

    async fn look_up(&self, names: &[&str]) -> Result<ConfirmedOverrides, CallError> {
        let (version, table_id, fields, found): (_, Bytes, u64, Vec<(Bytes, Bytes)>) =
            self.call(&self.confirm, &self.keys, names).await?;
        let found = found.into_iter().map(|(text, version)| ConfirmedOverride {
            text: override_text(text),
            version: whole(&version),
        });
        Ok(ConfirmedOverrides {
            version,
            // The id of the table is one of the fields.
            len: fields.saturating_sub(u64::from(!table_id.is_empty())),
            table_id,
            found: found.collect(),
        })
    }

    async fn renew_epoch(&self, id: u64, why: Renewal<'_>) -> Result<(), CallError> {
        let (why, known, author, origin, audited) = match why {
            Renewal::Requested => ("", 0, "", "", 0),
            Renewal::LossAccepted {
                known,
                author,
                origin,
                max_audited,
            } => ("accept", known, author, origin, max_audited),
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
    ) -> Result<T, CallError> {
        self.call_with_retry(Retry::Once, script, keys, arguments)
            .await
    }

    async fn call_with_retry<T: redis::FromRedisValue>(
        &self,
        retry: Retry,
        script: &Script,
        keys: &[String],
        arguments: impl redis::ToRedisArgs + Copy,
    ) -> Result<T, CallError> {
        let client = &self.store.client;
        let deadline = Instant::now() + client.patience().max(MIN_DEADLINE);
        client
            .run_apart(script, keys, arguments, deadline, retry)
            .await
    }
}

fn text(bytes: Bytes) -> Option<String> {
    String::from_utf8(bytes).ok()
}

/// An override: an empty text is a deletion. Bytes that are not UTF-8 are unreadable, but the override exists.
fn override_text(bytes: Bytes) -> Option<String> {
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// A version.
fn whole(score: &[u8]) -> Option<u64> {
    str::from_utf8(score).ok()?.parse().ok()
}

/// A change in the list `{prefix:limits}:audit`, in JSON.
#[derive(Deserialize)]
struct StoredRecord {
    /// 16 hexadecimal digits, random.
    #[serde(default)]
    id: String,
    #[serde(default)]
    version: u64,
    /// In seconds since the Unix epoch, by the server's clock.
    at: u64,
    /// Empty when a loss was accepted.
    #[serde(default)]
    key: String,
    /// The override before, or empty: the limit, then lines `end: SECONDS`, `note: ..`, `author: ..`,
    /// `changed_at: SECONDS`, if there are any.
    #[serde(default)]
    before: String,
    /// The override after; empty when it was deleted.
    #[serde(default)]
    after: String,
    #[serde(default)]
    author: String,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    ended: bool,
    #[serde(default)]
    loss_accepted: bool,
}

/// Leaves out unreadable records.
fn audit_records(texts: Vec<Bytes>) -> Vec<AuditRecord> {
    let records = texts.iter().filter_map(|text| {
        let text = String::from_utf8_lossy(text);
        let stored: StoredRecord = serde_json::from_str(&text).ok()?;
        Some(AuditRecord {
            id: u64::from_str_radix(&stored.id, 16).ok(),
            version: stored.version,
            at: stored.at,
            key: stored.key,
            before: stored.before,
            after: stored.after,
            author: stored.author,
            origin: stored.origin,
            has_ended: stored.ended,
            is_loss_accepted: stored.loss_accepted,
        })
    });
    records.collect()
}

/// An id as it is stored.
fn id_text(id: u64) -> String {
    format!("{id:016x}")
}
