//! Lists overrides in pages, all of them or those that match a search.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use tower_admission::KeyName;
use tower_admission::provider::{LimitsInternals, SourcedOverride};

use super::handlers::AdminState;
use super::resolve::{credential, reject_credential};
use super::responses::{OverrideJson, OverridePageJson, unprocessable};
use crate::endpoint::{EndpointError, EndpointResult, json_response, read_body};

/// The default number of entries on a page.
const PAGE: usize = 1_000;

/// The maximum number of entries on a page.
const MAX_PAGE_ENTRIES: usize = 10_000;

/// The query of a page of the list. It has no search text, which may be a credential, because URLs are logged.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    after: Option<String>,
    count: Option<String>,
}

/// The body of a search.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SearchRequest {
    q: String,
    after: Option<String>,
    count: Option<usize>,
}

/// The error for an invalid query.
const QUERY: &str = "The query accepts `after`, a key, and `count`, a number from 1 to 10000. To search, use POST \
                     /search.";

/// The error for an invalid body.
const SEARCH: &str = "The body must be a JSON object with a string `q`, and optionally `after`, a key, and `count`, a number \
                      from 1 to 10000.";

pub(super) async fn list(
    State(state): State<Arc<AdminState>>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> EndpointResult {
    let Query(page) = page.map_err(|_| unprocessable(QUERY))?;
    let count = page.count.map_or(Ok(PAGE), |count| count.parse());
    let count = valid_count(count.ok()).ok_or_else(|| unprocessable(QUERY))?;
    if let Some(after) = &page.after {
        reject_credential(after)?;
    }
    let after = read_after(page.after)?;
    let entries = state.limits.sourced_after(after.as_ref(), count + 1);
    Ok(page_response(&state, entries, count, None))
}

pub(super) async fn search(
    State(state): State<Arc<AdminState>>,
    request: Request,
) -> EndpointResult {
    let search: SearchRequest = serde_json::from_slice(&read_body(request).await?)
        .map_err(|_| EndpointError::new(StatusCode::BAD_REQUEST, SEARCH))?;
    let count =
        valid_count(Some(search.count.unwrap_or(PAGE))).ok_or_else(|| unprocessable(SEARCH))?;
    let after = read_after(search.after)?;
    let credential = credential(&search.q);
    let text = match &credential {
        Some(key) => key.as_str(),
        None => search.q.trim(),
    };
    let entries = match text.to_lowercase() {
        text if text.is_empty() => state.limits.sourced_after(after.as_ref(), count + 1),
        text => state.found(&text, after, count + 1).await,
    };
    Ok(page_response(&state, entries, count, credential.as_ref()))
}

fn valid_count(count: Option<usize>) -> Option<usize> {
    count.filter(|count| (1..=MAX_PAGE_ENTRIES).contains(count))
}

fn read_after(after: Option<String>) -> Result<Option<KeyName>, EndpointError> {
    let after = after.map(|after| after.parse());
    after
        .transpose()
        .map_err(|error| unprocessable(format!("`after` is not a key: {error}.")))
}

/// Builds a page. The entries include the first of the next page, if there is one.
fn page_response(
    state: &AdminState,
    mut entries: Vec<(KeyName, SourcedOverride)>,
    count: usize,
    key: Option<&KeyName>,
) -> Response {
    let has_more = entries.len() > count;
    entries.truncate(count);
    let (names, tiers) = (state.limits.names(), state.limits.tiers());
    let last = entries.last().filter(|_| has_more);
    let list = OverridePageJson {
        limits: entries
            .iter()
            .map(|(key, sourced)| OverrideJson::new(key, sourced))
            .collect(),
        names: names.iter().map(|name| &**name).collect(),
        tiers: tiers.iter().map(|tier| &**tier).collect(),
        total: state.limits.count(),
        next: last.map(|(key, _)| key.as_str()),
        key: key.map(KeyName::as_str),
    };
    json_response(StatusCode::OK, &list)
}

impl AdminState {
    /// Finds overrides with a lower-case text in their key, limit, note or author. Yields to other tasks after each page.
    async fn found(
        &self,
        text: &str,
        mut after: Option<KeyName>,
        count: usize,
    ) -> Vec<(KeyName, SourcedOverride)> {
        let mut found = Vec::new();
        loop {
            let page = self.limits.sourced_after(after.as_ref(), PAGE);
            let Some((last, _)) = page.last() else {
                return found;
            };
            after = Some(last.clone());
            let has = |field: &str| field.to_lowercase().contains(text);
            let is_found = |(key, SourcedOverride { entry, .. }): &(KeyName, SourcedOverride)| {
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
}
