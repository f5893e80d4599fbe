//! Handlers of the admin endpoints.

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

use super::activity::StoreStatusJson;
use super::auth::Role;
use super::explain::written_address;
use super::explanation::ListEntryJson;
use super::groups::RequestGroups;
use super::precondition::{change_if_unmodified, with_entity_tag};
use super::recorder::Recorder;
use super::resolve::KeyResolver;
use super::responses::{
    AnnotatedLimitJson, ChangedOverrideJson, DeletedOverrideJson, KeyUsageJson, OVERRIDE,
    OverrideJson, TotalUsageJson, no_effect, no_override, no_such_name, set_in_file, unprocessable,
};
use super::sign_in::{SignInGuard, SignedInOperator};
use crate::endpoint::{
    EndpointError, EndpointResult, json_response, no_content, no_store, read_body, string_member,
};

/// The OpenAPI description of all endpoints.
pub(super) const DESCRIPTION: &str = include_str!("openapi.json");

/// The state of the admin endpoints.
pub(super) struct AdminState {
    pub(super) limits: Limits,
    pub(super) recorder: Recorder,
    pub(super) sign_in_guard: SignInGuard,
    pub(super) resolver: Arc<KeyResolver>,
    pub(super) groups: Option<Box<dyn RequestGroups>>,
}

/// The decoded key in a path. Extracted by name, because an outer router may have parameters too.
#[derive(Deserialize)]
pub(super) struct InPath {
    key: String,
}

type KeyInPath = Result<Path<InPath>, PathRejection>;

pub(super) async fn authorize(
    State((state, role)): State<(Arc<AdminState>, Role)>,
    mut request: Request,
    next: Next,
) -> EndpointResult {
    let signed_in = state
        .sign_in_guard
        .authorize(RequestHead::from(&request), role)?;
    request.extensions_mut().insert(signed_in);
    Ok(next.run(request).await)
}

pub(super) async fn limit(State(state): State<Arc<AdminState>>, key: KeyInPath) -> EndpointResult {
    let key = state.key_in_path(key).await?;
    let sourced = state.limits.sourced(&key).ok_or_else(no_override)?;
    let answer = json_response(StatusCode::OK, &OverrideJson::new(&key, &sourced));
    Ok(with_entity_tag(answer, &sourced.entry))
}

pub(super) async fn set(
    State(state): State<Arc<AdminState>>,
    Extension(by): Extension<SignedInOperator>,
    key: KeyInPath,
    request: Request,
) -> EndpointResult {
    let key = state.key_in_path(key).await?;
    let headers = request.headers().clone();
    let (entry, lasting) = state.read_override(request).await?;
    Limits::check_network(&key, entry.limit())?;
    if key.key().uncharged_network().is_some() && !state.limits.are_lists_applied_anywhere().await {
        return Err(unprocessable(NO_LISTS));
    }
    let edit = || {
        let edit = by.edit(&state.limits, &key);
        match lasting {
            Some(time) => edit.lasting(time),
            None => edit,
        }
    };
    let before =
        match change_if_unmodified(&state.limits, &key, &headers, Some(&entry), edit).await? {
            Ok(before) => before,
            Err(changed) => return Ok(changed),
        };
    // The stored override has an author and a time, unless another change followed.
    let sourced = state.limits.sourced(&key);
    let sourced = sourced.unwrap_or_else(|| SourcedOverride::set(entry));
    let changed = ChangedOverrideJson {
        entry: OverrideJson::new(&key, &sourced),
        before: before.as_ref().map(AnnotatedLimitJson::from),
    };
    Ok(with_entity_tag(
        json_response(StatusCode::OK, &changed),
        &sourced.entry,
    ))
}

pub(super) async fn unset(
    State(state): State<Arc<AdminState>>,
    Extension(by): Extension<SignedInOperator>,
    key: KeyInPath,
    headers: HeaderMap,
) -> EndpointResult {
    let key = state.key_in_path(key).await?;
    let edit = || by.edit(&state.limits, &key);
    let before = match change_if_unmodified(&state.limits, &key, &headers, None, edit).await? {
        Ok(before) => before,
        Err(changed) => return Ok(changed),
    };
    let in_file = state.limits.sourced(&key).filter(|now| !now.is_set);
    let Some(before) = before else {
        return in_file.map(|_| set_in_file()).ok_or_else(no_override);
    };
    let deleted = DeletedOverrideJson {
        key: key.as_str(),
        source: OVERRIDE,
        before: AnnotatedLimitJson::from(&before),
        in_file: in_file
            .as_ref()
            .map(|now| AnnotatedLimitJson::from(&now.entry)),
    };
    Ok(json_response(StatusCode::OK, &deleted))
}

pub(super) async fn totals(State(state): State<Arc<AdminState>>) -> Response {
    let totals = state.limits.totals().await;
    let totals = TotalUsageJson {
        replica: state.recorder.replica(),
        store: state.limits.store_status().map(StoreStatusJson::from),
        usage: totals.iter().map(Into::into).collect(),
    };
    json_response(StatusCode::OK, &totals)
}

pub(super) async fn usage(State(state): State<Arc<AdminState>>, key: KeyInPath) -> EndpointResult {
    let client = key
        .as_ref()
        .ok()
        .and_then(|Path(key)| written_address(&key.key));
    let key = state.key_in_path(key).await?;
    Ok(json_response(
        StatusCode::OK,
        &state.usage_of(&key, client).await,
    ))
}

/// Without a store there is nothing to read again.
pub(super) async fn clear_caches(State(state): State<Arc<AdminState>>) -> EndpointResult {
    state.limits.clear_caches().await?;
    Ok(no_content())
}

/// Without a store nothing is lost.
pub(super) async fn accept_loss(
    State(state): State<Arc<AdminState>>,
    Extension(by): Extension<SignedInOperator>,
) -> EndpointResult {
    by.accept_loss(&state.limits).await?;
    Ok(no_content())
}

pub(super) async fn description() -> Response {
    let mut response = http::Response::new(DESCRIPTION.into());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    no_store(response)
}

/// The body of a `PUT`. An unknown member is an error, because a misspelt `end` would make a ban permanent.
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
const MAX_DURATION_SECONDS: u64 = 315_360_000;

/// The error for a network that no service looks up.
const NO_LISTS: &str = "No service applies allow and deny lists of these limits, so a network has no effect. Add an \
                        AccessLayer, or the layer of an Admission.";

impl NewLimit {
    /// The time at which the override expires.
    fn end(&self) -> Result<Option<SystemTime>, EndpointError> {
        let now = since_epoch().as_secs();
        let end = match (self.end, self.for_seconds) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(unprocessable(
                    "The body has both `end` and `for_seconds`: use one of them.",
                ));
            }
            (None, Some(seconds @ 1..=MAX_DURATION_SECONDS)) => {
                since_epoch() + Duration::from_secs(seconds)
            }
            (None, Some(_)) => {
                return Err(unprocessable(format!(
                    "`for_seconds` must be a number from 1 to {MAX_DURATION_SECONDS}."
                )));
            }
            (Some(end), None) if end <= now => {
                return Err(unprocessable(format!(
                    "`end` is in the past. Use seconds since the Unix epoch; the time is now {now}."
                )));
            }
            // An end is rounded up to seconds, and a client may send it again at once.
            (Some(end), None) if end - now > MAX_DURATION_SECONDS + 1 => {
                return Err(unprocessable(format!(
                    "`end` is more than ten years away. Use seconds since the Unix epoch; the time is now {now}."
                )));
            }
            (Some(end), None) => Duration::from_secs(end),
        };
        Ok(Some(UNIX_EPOCH + end))
    }
}

impl AdminState {
    /// The usage of each limit by a key, and the list entry that applies to it, by the address that was written as the key.
    pub(super) async fn usage_of(&self, key: &KeyName, client: Option<IpNet>) -> serde_json::Value {
        let usage = self.limits.usage(key).await;
        let listed = self.list_entry(key, client);
        let usage = KeyUsageJson {
            replica: self.recorder.replica(),
            store: self.limits.store_status().map(StoreStatusJson::from),
            key: key.as_str(),
            limit: self.limits.get(key).map(|limit| limit.to_string()),
            listed: listed.as_ref().map(ListEntryJson::from),
            usage: usage.iter().map(Into::into).collect(),
        };
        serde_json::to_value(usage).expect("strings and numbers serialise")
    }

    /// The key in a path.
    async fn key_in_path(&self, key: KeyInPath) -> Result<KeyName, EndpointError> {
        match key {
            Ok(Path(InPath { key })) => self.key(&key).await,
            Err(_) => Err(unprocessable(
                "The key in the path is not valid percent-encoded UTF-8.",
            )),
        }
    }

    /// Reads the override in a body, and its duration by the clock of the store. Its end is by the clock of this process.
    /// Rejects limits that no limiter has.
    async fn read_override(
        &self,
        request: Request,
    ) -> Result<(Override, Option<Duration>), EndpointError> {
        let body = read_body(request).await?;
        string_member(&body, "limit")?;
        // It is an object, because it has the member `limit`.
        let notes: NewLimit = serde_json::from_slice(&body).map_err(|_| {
            unprocessable(
                "The body has an invalid member. The members are the strings `limit` and `note`, and `end`, in seconds since \
                 the Unix epoch, or `for_seconds`, a number.",
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

    fn read_limit(&self, text: &str) -> Result<Limit, EndpointError> {
        let limit: Limit = text.parse().map_err(|error| match error {
            LimitError::Quota(quota) => unprocessable(format!("{error}: {quota}.")),
            error => unprocessable(format!("{error}.")),
        })?;
        let names = self.limits.names();
        let is_unknown = |name: &&str| !names.iter().any(|known| **known == **name);
        if let Some(unknown) = limit.names().find(is_unknown) {
            return Err(no_such_name(unknown, &names));
        }
        // Checks each part separately. A name contains no comma.
        for part in text.split(',').map(str::trim) {
            if part.parse().is_ok_and(|part| !self.limits.applies(&part)) {
                return Err(no_effect(part, &names, |named| self.limits.applies(named)));
            }
        }
        Ok(limit)
    }
}
