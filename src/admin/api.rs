//! What the endpoints do.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;

use super::answer::{
    Changed, Deleted, Entry, KeyUsage, List, Totals, no_effect, no_limit, no_such_name, wrong,
};
use super::auth::Role;
use super::condition::{change_if, tagged};
use super::groups::RequestGroups;
use super::now::Store;
use super::recorder::Recorder;
use super::resolve::Resolver;
use super::sign_in::{SignIns, SignedIn};
use crate::endpoint::{Failed, body, json, member, no_content, not_stored};
use crate::extract::RequestHead;
use crate::key::KeyName;
use crate::limit::{Limit, LimitError};
use crate::limits::{Limits, Override};
use crate::store::memory::clock::since_epoch;

/// All endpoints, for programs.
pub(super) const DESCRIPTION: &str = include_str!("openapi.json");

/// Entries on a page, unless told otherwise.
const PAGE: usize = 1_000;

/// Entries on a page at most.
const LONGEST_PAGE: usize = 10_000;

/// What the endpoints share.
pub(super) struct Api {
    pub(super) limits: Limits,
    pub(super) recorder: Recorder,
    pub(super) sign_ins: SignIns,
    pub(super) resolver: Arc<Resolver>,
    pub(super) groups: Option<Box<dyn RequestGroups>>,
}

pub(super) type Shared = State<Arc<Api>>;

/// A key in a path, decoded. By its name: where this is nested there may be parameters before it.
#[derive(Deserialize)]
pub(super) struct InPath {
    key: String,
}

type KeyInPath = Result<Path<InPath>, PathRejection>;

pub(super) type Answer = Result<Response, Failed>;

/// Which page of a list.
#[derive(Deserialize)]
pub(super) struct Page {
    after: Option<String>,
    count: Option<String>,
    q: Option<String>,
}

pub(super) async fn admit(
    State((api, role)): State<(Arc<Api>, Role)>,
    mut request: Request,
    next: Next,
) -> Answer {
    let signed_in = api.sign_ins.admit(RequestHead::from(&request), role)?;
    request.extensions_mut().insert(signed_in);
    Ok(next.run(request).await)
}

pub(super) async fn list(State(api): Shared, page: Result<Query<Page>, QueryRejection>) -> Answer {
    let Query(page) = page.map_err(|_| wrong(QUERY))?;
    let search = page.q.as_deref().unwrap_or_default().trim().to_lowercase();
    let (after, count) = page.read()?;
    // One more, to know whether there is one more.
    let mut entries = match &*search {
        "" => api.limits.list_after(after.as_ref(), count + 1),
        search => api.search(search, after, count + 1).await,
    };
    let more = entries.len() > count;
    entries.truncate(count);
    let names = api.limits.names();
    let last = entries.last().filter(|_| more);
    let list = List {
        limits: entries
            .iter()
            .map(|(key, entry)| Entry::new(key, entry))
            .collect(),
        names: names.iter().map(|name| &**name).collect(),
        total: api.limits.count(),
        next: last.map(|(key, _)| key.as_str()),
    };
    Ok(json(StatusCode::OK, &list))
}

pub(super) async fn limit(State(api): Shared, key: KeyInPath) -> Answer {
    let key = api.named(key).await?;
    let entry = api.limits.get_override(&key).ok_or_else(no_limit)?;
    let answer = json(StatusCode::OK, &Entry::new(&key, &entry));
    Ok(tagged(answer, &entry))
}

pub(super) async fn set(
    State(api): Shared,
    Extension(by): Extension<SignedIn>,
    key: KeyInPath,
    request: Request,
) -> Answer {
    let key = api.named(key).await?;
    let headers = request.headers().clone();
    let (entry, lasting) = api.read_override(request).await?;
    let edit = || {
        let edit = by.edit(&api.limits, &key);
        match lasting {
            Some(time) => edit.lasting(time),
            None => edit,
        }
    };
    let before = match change_if(&api.limits, &key, &headers, Some(&entry), edit).await? {
        Ok(before) => before,
        Err(changed) => return Ok(changed),
    };
    // With its author and time, unless another change came since.
    let entry = api.limits.get_override(&key).unwrap_or(entry);
    let changed = Changed {
        entry: Entry::new(&key, &entry),
        before: before.map(|before| before.limit().to_string()),
    };
    Ok(tagged(json(StatusCode::OK, &changed), &entry))
}

pub(super) async fn unset(
    State(api): Shared,
    Extension(by): Extension<SignedIn>,
    key: KeyInPath,
    headers: HeaderMap,
) -> Answer {
    let key = api.named(key).await?;
    let edit = || by.edit(&api.limits, &key);
    let before = match change_if(&api.limits, &key, &headers, None, edit).await? {
        Ok(before) => before.ok_or_else(no_limit)?,
        Err(changed) => return Ok(changed),
    };
    let deleted = Deleted {
        key: key.as_str(),
        before: before.limit().to_string(),
    };
    Ok(json(StatusCode::OK, &deleted))
}

pub(super) async fn totals(State(api): Shared) -> Response {
    let totals = api.limits.totals().await;
    let totals = Totals {
        replica: api.recorder.replica(),
        store: api.limits.store_status().map(Store::from),
        usage: totals.iter().map(Into::into).collect(),
    };
    json(StatusCode::OK, &totals)
}

pub(super) async fn usage(State(api): Shared, key: KeyInPath) -> Answer {
    let key = api.named(key).await?;
    Ok(json(StatusCode::OK, &api.usage_of(&key).await))
}

/// In memory there is no other place that limits could be read from.
pub(super) async fn clear_caches(State(api): Shared) -> Answer {
    #[cfg(feature = "redis")]
    api.limits.clear_caches().await?;
    let _ = api;
    Ok(no_content())
}

/// In memory nothing is lost.
pub(super) async fn accept_loss(State(api): Shared, Extension(by): Extension<SignedIn>) -> Answer {
    #[cfg(feature = "redis")]
    by.accept_loss(&api.limits).await?;
    let _ = (api, by);
    Ok(no_content())
}

pub(super) async fn description() -> Response {
    let mut response = http::Response::new(DESCRIPTION.into());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    not_stored(response)
}

/// What a change says besides the limit.
#[derive(Deserialize)]
struct Notes {
    note: Option<String>,
    /// In seconds since the Unix epoch.
    end: Option<u64>,
    for_seconds: Option<u64>,
}

/// The error for a wrong note or end.
const NOTES: &str = "`note` is a text; `end` is a time in seconds since the Unix epoch, or `for_seconds` a number from 1 \
                     to 315360000, and not both.";

/// Ten years, in seconds.
const LONGEST: u64 = 315_360_000;

/// What is wrong with a query.
const QUERY: &str = "`after` is a key and `count` a number from 1 to 10000.";

impl Page {
    fn read(self) -> Result<(Option<KeyName>, usize), Failed> {
        let after = self.after.map(|after| parse(&after)).transpose()?;
        let count = self.count.map_or(Ok(PAGE), |count| count.parse());
        match count {
            Ok(count) if (1..=LONGEST_PAGE).contains(&count) => Ok((after, count)),
            _ => Err(wrong(QUERY)),
        }
    }
}

impl Api {
    /// How far each limit is used up by a key.
    pub(super) async fn usage_of(&self, key: &KeyName) -> serde_json::Value {
        let usage = self.limits.usage(key).await;
        let usage = KeyUsage {
            replica: self.recorder.replica(),
            store: self.limits.store_status().map(Store::from),
            key: key.as_str(),
            limit: self.limits.get(key).map(|limit| limit.to_string()),
            usage: usage.iter().map(Into::into).collect(),
        };
        serde_json::to_value(usage).expect("strings and numbers serialise")
    }

    /// The key in a path.
    async fn named(&self, key: KeyInPath) -> Result<KeyName, Failed> {
        match key {
            Ok(Path(InPath { key })) => self.key(&key).await,
            Err(_) => Err(wrong("The key in the path is no percent-encoded UTF-8.")),
        }
    }

    /// Entries with a lower-case text in their key or limit. The runtime has other things to do between two pages.
    async fn search(
        &self,
        search: &str,
        mut after: Option<KeyName>,
        count: usize,
    ) -> Vec<(KeyName, Override)> {
        let mut found = Vec::new();
        loop {
            let page = self.limits.list_after(after.as_ref(), PAGE);
            let Some((last, _)) = page.last() else {
                return found;
            };
            after = Some(last.clone());
            let has = |text: &str| text.to_lowercase().contains(search);
            let is_found = |(key, entry): &(KeyName, Override)| {
                let mut notes = [entry.note(), entry.author()].into_iter().flatten();
                has(key.as_str()) || has(&entry.limit().to_string()) || notes.any(has)
            };
            found.extend(page.into_iter().filter(is_found));
            if found.len() >= count {
                return found;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The override in a body, if limiters know what it is about, and how long it lasts by the clock of the store. Its
    /// end is then by the clock of this process.
    async fn read_override(
        &self,
        request: Request,
    ) -> Result<(Override, Option<Duration>), Failed> {
        let body = body(request).await?;
        let entry = Override::new(self.read_limit(&member(&body, "limit")?)?);
        // It is an object, as it has a limit.
        let notes: Notes = serde_json::from_slice(&body).map_err(|_| wrong(NOTES))?;
        let entry = match notes.note {
            Some(note) => entry.with_note(&note),
            None => entry,
        };
        let after = |start, seconds| UNIX_EPOCH.checked_add(start + Duration::from_secs(seconds));
        let end = match (notes.end, notes.for_seconds) {
            (None, None) => return Ok((entry, None)),
            (Some(end), None) => after(Duration::ZERO, end),
            (None, Some(0)) | (Some(_), Some(_)) => None,
            (None, Some(seconds)) if seconds <= LONGEST => after(since_epoch(), seconds),
            (None, Some(_)) => None,
        };
        let entry = entry.with_end(end.ok_or_else(|| wrong(NOTES))?);
        Ok((entry, notes.for_seconds.map(Duration::from_secs)))
    }

    fn read_limit(&self, text: &str) -> Result<Limit, Failed> {
        let limit: Limit = text.parse().map_err(|error| match error {
            LimitError::Quota(quota) => wrong(format!("{error}: {quota}.")),
            error => wrong(format!("{error}.")),
        })?;
        let names = self.limits.names();
        let is_unknown = |name: &&str| !names.iter().any(|known| **known == **name);
        if let Some(unknown) = limit.names().find(is_unknown) {
            return Err(no_such_name(unknown, &names));
        }
        // Each part by itself, as no name has a comma in it.
        for part in text.split(',').map(str::trim) {
            if part.parse().is_ok_and(|part| !self.limits.applies(&part)) {
                return Err(no_effect(part, &names, |named| self.limits.applies(named)));
            }
        }
        Ok(limit)
    }
}

fn parse(key: &str) -> Result<KeyName, Failed> {
    key.parse().map_err(|error| wrong(format!("{error}.")))
}
