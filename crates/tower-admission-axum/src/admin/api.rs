//! What the endpoints do.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use tower_admission::extract::IpNet;
use tower_admission::provider::{KeyInternals, LimitsInternals, SourcedOverride, since_epoch};
use tower_admission::{KeyName, Limit, LimitError, Limits, Override, RequestHead};

use super::answer::{
    Changed, Deleted, Entry, KeyUsage, Noted, OVERRIDE, Totals, no_effect, no_limit, no_such_name,
    set_in_file, wrong,
};
use super::auth::Role;
use super::condition::{change_if, tagged};
use super::explain::written;
use super::explanation::Listed;
use super::groups::RequestGroups;
use super::now::Store;
use super::recorder::Recorder;
use super::resolve::Resolver;
use super::sign_in::{SignIns, SignedIn};
use crate::endpoint::{Failed, body, json, member, no_content, not_stored};

/// All endpoints, for programs.
pub(super) const DESCRIPTION: &str = include_str!("openapi.json");

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

pub(super) async fn admit(
    State((api, role)): State<(Arc<Api>, Role)>,
    mut request: Request,
    next: Next,
) -> Answer {
    let signed_in = api.sign_ins.admit(RequestHead::from(&request), role)?;
    request.extensions_mut().insert(signed_in);
    Ok(next.run(request).await)
}

pub(super) async fn limit(State(api): Shared, key: KeyInPath) -> Answer {
    let key = api.named(key).await?;
    let sourced = api.limits.sourced(&key).ok_or_else(no_limit)?;
    let answer = json(StatusCode::OK, &Entry::new(&key, &sourced));
    Ok(tagged(answer, &sourced.entry))
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
    Limits::check_network(&key, entry.limit())?;
    if key.key().uncharged_network().is_some() && !api.limits.are_lists_applied_anywhere().await {
        return Err(wrong(NO_LISTS));
    }
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
    let sourced = api.limits.sourced(&key);
    let sourced = sourced.unwrap_or_else(|| SourcedOverride::set(entry));
    let changed = Changed {
        entry: Entry::new(&key, &sourced),
        before: before.as_ref().map(Noted::from),
    };
    Ok(tagged(json(StatusCode::OK, &changed), &sourced.entry))
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
        Ok(before) => before,
        Err(changed) => return Ok(changed),
    };
    let in_file = api.limits.sourced(&key).filter(|now| !now.is_set);
    let Some(before) = before else {
        return in_file.map(|_| set_in_file()).ok_or_else(no_limit);
    };
    let deleted = Deleted {
        key: key.as_str(),
        source: OVERRIDE,
        before: Noted::from(&before),
        in_file: in_file.as_ref().map(|now| Noted::from(&now.entry)),
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
    let client = key.as_ref().ok().and_then(|Path(key)| written(&key.key));
    let key = api.named(key).await?;
    Ok(json(StatusCode::OK, &api.usage_of(&key, client).await))
}

/// In memory there is no other place that limits could be read from.
pub(super) async fn clear_caches(State(api): Shared) -> Answer {
    api.limits.clear_caches().await?;
    Ok(no_content())
}

/// In memory nothing is lost.
pub(super) async fn accept_loss(State(api): Shared, Extension(by): Extension<SignedIn>) -> Answer {
    by.accept_loss(&api.limits).await?;
    Ok(no_content())
}

pub(super) async fn description() -> Response {
    let mut response = http::Response::new(DESCRIPTION.into());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    not_stored(response)
}

/// A limit as operators set it. An unknown member is an error: a misspelt end would make a ban permanent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLimit {
    limit: String,
    note: Option<String>,
    /// In seconds since the Unix epoch.
    end: Option<u64>,
    for_seconds: Option<u64>,
}

/// Ten years, in seconds.
const LONGEST: u64 = 315_360_000;

/// The error for a network where nothing looks it up.
const NO_LISTS: &str = "No service has allow and deny lists for these limits (AccessLayer, or the layer of Admission), so \
                        a network has no effect.";

impl NewLimit {
    /// The time at which a limit ends, if it does.
    fn end(&self) -> Result<Option<SystemTime>, Failed> {
        let now = since_epoch().as_secs();
        let end = match (self.end, self.for_seconds) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(wrong("A limit takes `end` or `for_seconds`, not both."));
            }
            (None, Some(seconds @ 1..=LONGEST)) => since_epoch() + Duration::from_secs(seconds),
            (None, Some(_)) => {
                return Err(wrong(format!(
                    "`for_seconds` is a number from 1 to {LONGEST}."
                )));
            }
            (Some(end), None) if end <= now => {
                return Err(wrong(format!(
                    "`end` is in the past: it is a time in seconds since the Unix epoch, and it is {now} now."
                )));
            }
            // Ends are rounded up to seconds, and the end of one that was just set may be sent again.
            (Some(end), None) if end - now > LONGEST + 1 => {
                return Err(wrong(format!(
                    "`end` is more than ten years away: it is a time in seconds since the Unix epoch, and it is {now} \
                     now."
                )));
            }
            (Some(end), None) => Duration::from_secs(end),
        };
        Ok(Some(UNIX_EPOCH + end))
    }
}

impl Api {
    /// How far each limit is used up by a key, and the list that it is on, with the address that it was written as.
    pub(super) async fn usage_of(&self, key: &KeyName, client: Option<IpNet>) -> serde_json::Value {
        let usage = self.limits.usage(key).await;
        let listed = self.list_entry(key, client);
        let usage = KeyUsage {
            replica: self.recorder.replica(),
            store: self.limits.store_status().map(Store::from),
            key: key.as_str(),
            limit: self.limits.get(key).map(|limit| limit.to_string()),
            listed: listed.as_ref().map(Listed::from),
            usage: usage.iter().map(Into::into).collect(),
        };
        serde_json::to_value(usage).expect("strings and numbers serialise")
    }

    /// The key in a path.
    async fn named(&self, key: KeyInPath) -> Result<KeyName, Failed> {
        match key {
            Ok(Path(InPath { key })) => self.key(&key).await,
            Err(_) => Err(wrong("The key in the path is not percent-encoded UTF-8.")),
        }
    }

    /// The override in a body, if limiters know what it is about, and how long it lasts by the clock of the store. Its
    /// end is then by the clock of this process.
    async fn read_override(
        &self,
        request: Request,
    ) -> Result<(Override, Option<Duration>), Failed> {
        let body = body(request).await?;
        member(&body, "limit")?;
        // It is an object, as it has a limit.
        let notes: NewLimit = serde_json::from_slice(&body).map_err(|_| {
            wrong(
                "The members are `limit`, `note`, which is a text, and `end`, a time in seconds since the Unix epoch, or \
                 `for_seconds`, a number.",
            )
        })?;
        let entry = Override::new(self.read_limit(&notes.limit)?);
        let entry = match notes.note.as_deref() {
            Some(note) => entry.with_note(note),
            None => entry,
        };
        let entry = match notes.end()? {
            Some(end) => entry.with_end(end),
            None => entry,
        };
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
