//! What the endpoints do.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;

use super::answer::{
    Changed, Deleted, Entry, KeyUsage, List, Totals, no_limit, no_such_name, wrong,
};
use super::auth::Role;
use super::groups::RequestGroups;
use super::recorder::Recorder;
use super::resolve::Resolver;
use super::sign_in::{SignIns, SignedIn};
use crate::endpoint::{Failed, body, json, member, no_content, not_stored};
use crate::extract::RequestHead;
use crate::key::KeyName;
use crate::limit::{Limit, LimitError};
use crate::limits::Limits;

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

type Shared = State<Arc<Api>>;

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
    let (after, count) = page.read()?;
    // One more, to know whether there is one more.
    let mut entries = api.limits.list_after(after.as_ref(), count + 1);
    let more = entries.len() > count;
    entries.truncate(count);
    let names = api.limits.names();
    let last = entries.last().filter(|_| more);
    let list = List {
        limits: entries
            .iter()
            .map(|(key, entry)| Entry::new(key, entry.limit()))
            .collect(),
        names: names.iter().map(|name| &**name).collect(),
        next: last.map(|(key, _)| key.as_str()),
    };
    Ok(json(StatusCode::OK, &list))
}

pub(super) async fn limit(State(api): Shared, key: KeyInPath) -> Answer {
    let key = api.named(key).await?;
    let limit = api.limits.get(&key).ok_or_else(no_limit)?;
    Ok(json(StatusCode::OK, &Entry::new(&key, &limit)))
}

pub(super) async fn set(
    State(api): Shared,
    Extension(by): Extension<SignedIn>,
    key: KeyInPath,
    request: Request,
) -> Answer {
    let key = api.named(key).await?;
    let limit = api.read_limit(request).await?;
    let before = by.edit(&api.limits, &key).set(limit.clone()).await?;
    let changed = Changed {
        key: key.as_str(),
        limit: limit.to_string(),
        before: before.map(|before| before.limit().to_string()),
    };
    Ok(json(StatusCode::OK, &changed))
}

pub(super) async fn unset(
    State(api): Shared,
    Extension(by): Extension<SignedIn>,
    key: KeyInPath,
) -> Answer {
    let key = api.named(key).await?;
    let before = by.edit(&api.limits, &key).delete().await?;
    let before = before.ok_or_else(no_limit)?;
    let deleted = Deleted {
        key: key.as_str(),
        before: before.limit().to_string(),
    };
    Ok(json(StatusCode::OK, &deleted))
}

pub(super) async fn totals(State(api): Shared) -> Response {
    let totals = api.limits.totals();
    let usage = totals.iter().map(Into::into).collect();
    json(StatusCode::OK, &Totals { usage })
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

pub(super) async fn description() -> Response {
    let mut response = http::Response::new(DESCRIPTION.into());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    not_stored(response)
}

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

    /// The limit in a body, if limiters know what it is about.
    async fn read_limit(&self, request: Request) -> Result<Limit, Failed> {
        let text = member(&body(request).await?, "limit")?;
        let limit: Limit = text.parse().map_err(|error| match error {
            LimitError::Quota(quota) => wrong(format!("{error}: {quota}.")),
            error => wrong(format!("{error}.")),
        })?;
        let names = self.limits.names();
        let is_unknown = |name: &&str| !names.iter().any(|known| **known == **name);
        if let Some(unknown) = limit.names().find(is_unknown) {
            return Err(no_such_name(unknown, &names));
        }
        Ok(limit)
    }
}

fn parse(key: &str) -> Result<KeyName, Failed> {
    key.parse().map_err(|error| wrong(format!("{error}.")))
}
