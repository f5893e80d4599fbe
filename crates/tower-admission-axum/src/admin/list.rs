//! Lists the limits of single keys in pages, all of them or those that are searched for.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use tower_admission::KeyName;
use tower_admission::provider::{LimitsInternals, SourcedOverride};

use super::answer::{Entry, List, wrong};
use super::api::{Answer, Api, Shared};
use super::resolve::{credential, without_credential};
use crate::endpoint::{Failed, body, json};

/// Entries on a page, unless told otherwise.
const PAGE: usize = 1_000;

/// Entries on a page at most.
const LONGEST_PAGE: usize = 10_000;

/// Which page of the list. A text to search for is no part of it, as URLs are logged and it may be a credential.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<String>,
    count: Option<String>,
}

/// Which page of the entries that have a text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Search {
    q: String,
    after: Option<String>,
    count: Option<usize>,
}

/// The error for a wrong query.
const QUERY: &str = "The query has an `after`, which is a key, and a `count`, which is a number from 1 to 10000. To \
                     search, use POST /search.";

/// The error for a wrong body.
const SEARCH: &str = "The body is a JSON object with a text `q`, and perhaps `after`, a key, and `count`, a number from \
                      1 to 10000.";

pub(super) async fn list(State(api): Shared, page: Result<Query<Page>, QueryRejection>) -> Answer {
    let Query(page) = page.map_err(|_| wrong(QUERY))?;
    let count = page.count.map_or(Ok(PAGE), |count| count.parse());
    let count = is_count(count.ok()).ok_or_else(|| wrong(QUERY))?;
    if let Some(after) = &page.after {
        without_credential(after)?;
    }
    let after = read_after(page.after)?;
    let entries = api.limits.sourced_after(after.as_ref(), count + 1);
    Ok(page_of(&api, entries, count, None))
}

pub(super) async fn search(State(api): Shared, request: Request) -> Answer {
    let search: Search = serde_json::from_slice(&body(request).await?)
        .map_err(|_| Failed::new(StatusCode::BAD_REQUEST, SEARCH))?;
    let count = is_count(Some(search.count.unwrap_or(PAGE))).ok_or_else(|| wrong(SEARCH))?;
    let after = read_after(search.after)?;
    let credential = credential(&search.q);
    let text = match &credential {
        Some(key) => key.as_str(),
        None => search.q.trim(),
    };
    let entries = match text.to_lowercase() {
        text if text.is_empty() => api.limits.sourced_after(after.as_ref(), count + 1),
        text => api.found(&text, after, count + 1).await,
    };
    Ok(page_of(&api, entries, count, credential.as_ref()))
}

fn is_count(count: Option<usize>) -> Option<usize> {
    count.filter(|count| (1..=LONGEST_PAGE).contains(count))
}

fn read_after(after: Option<String>) -> Result<Option<KeyName>, Failed> {
    let after = after.map(|after| after.parse());
    after
        .transpose()
        .map_err(|error| wrong(format!("`after` is not a key: {error}.")))
}

/// A page of entries, of which there is one more than fits if there are more.
fn page_of(
    api: &Api,
    mut entries: Vec<(KeyName, SourcedOverride)>,
    count: usize,
    key: Option<&KeyName>,
) -> Response {
    let has_more = entries.len() > count;
    entries.truncate(count);
    let (names, tiers) = (api.limits.names(), api.limits.tiers());
    let last = entries.last().filter(|_| has_more);
    let list = List {
        limits: entries
            .iter()
            .map(|(key, sourced)| Entry::new(key, sourced))
            .collect(),
        names: names.iter().map(|name| &**name).collect(),
        tiers: tiers.iter().map(|tier| &**tier).collect(),
        total: api.limits.count(),
        next: last.map(|(key, _)| key.as_str()),
        key: key.map(KeyName::as_str),
    };
    json(StatusCode::OK, &list)
}

impl Api {
    /// Entries with a lower-case text in their key, limit, note or author. It yields to other tasks between two pages.
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
