//! Explains which limits apply to a key, where their numbers come from, and what a request would get now.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::header::HOST;
use http::{Method, StatusCode, Uri};
use serde::Serialize;

use super::answer::wrong;
use super::api::{Answer, Api};
use super::groups::RequestGroup;
use super::resolve::texts;
use crate::endpoint::{Failed, body, json};
use crate::extract::RequestHead;
use crate::key::{Key, KeyName};
use crate::limits::{LimitExplanation, LimitVerdict};

#[derive(Serialize)]
struct Explanation<'a> {
    key: &'a str,
    address: Option<&'a str>,
    limit: Option<String>,
    /// Absent where no path was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Group<'a>>>,
    limits: Vec<Limit<'a>>,
    /// Limits on the client's address, which was not given.
    address_limits: Vec<&'a str>,
    now: Now<'a>,
}

#[derive(Serialize)]
struct Group<'a> {
    name: &'a str,
    enforce: u8,
    is_excluded: bool,
}

/// One limit.
#[derive(Serialize)]
struct Limit<'a> {
    name: &'a str,
    sort: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    key: Option<&'a str>,
    limit: &'a str,
    source: &'static str,
    tier: Option<&'a str>,
    used: Option<u64>,
    #[serde(flatten)]
    verdict: Verdict,
}

#[derive(Serialize)]
struct Verdict {
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// What the next request would get.
#[derive(Serialize)]
struct Now<'a> {
    /// The limit that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    #[serde(flatten)]
    verdict: Verdict,
    /// Whether a rejection is enforced for this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    is_enforced: Option<bool>,
}

/// A limit that applies, to which key, in which group.
struct Applied<'a> {
    limit: LimitExplanation,
    key: &'a KeyName,
    group: Option<&'a RequestGroup>,
}

impl From<LimitVerdict> for Verdict {
    fn from(verdict: LimitVerdict) -> Self {
        let none = |verdict| Self {
            verdict,
            remaining: None,
            reason: None,
            retry_after_ms: None,
        };
        match verdict {
            LimitVerdict::Admitted { remaining } => Self {
                remaining,
                ..none("admitted")
            },
            LimitVerdict::Rejected {
                reason,
                retry_after,
            } => Self {
                reason: Some(reason.as_str()),
                // Rounded up, so that waiting so long is enough.
                retry_after_ms: retry_after.map(|wait| wait.as_nanos().div_ceil(1_000_000) as u64),
                ..none("rejected")
            },
            LimitVerdict::Unknown => none("unknown"),
        }
    }
}

pub(super) async fn explain(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let body = body(request).await?;
    let members = ["key", "address", "tier", "method", "host", "path"];
    let [key, address, tier, method, host, path] = texts(&body, members)?;
    let Some(key) = key else {
        let detail = "The body is not a JSON object with a `key`.";
        return Err(Failed::new(StatusCode::BAD_REQUEST, detail));
    };
    let key = api.key_or_credential(&key).await?;
    let address = address.as_deref().map(ip).transpose()?;
    let tiers = api.limits.tiers();
    if let Some(tier) = &tier
        && !tiers.iter().any(|known| **known == **tier)
    {
        return Err(no_such_tier(&tiers));
    }
    let groups = match path {
        None if method.is_some() || host.is_some() => {
            return Err(wrong("`method` and `host` need a `path`."));
        }
        None => None,
        Some(path) => Some(api.groups_of(method.as_deref(), host.as_deref(), &path)?),
    };
    let applied = api
        .applied(&key, address.as_ref(), tier.as_deref(), groups.as_deref())
        .await;
    Ok(explanation(
        &key,
        address.as_ref(),
        api.limits.get(&key).map(|limit| limit.to_string()),
        groups.as_deref(),
        &applied,
    ))
}

fn no_such_tier(tiers: &[Arc<str>]) -> Failed {
    match tiers {
        [] => wrong("There are no tiers."),
        tiers => wrong(format!(
            "There is no such tier; there are {}.",
            tiers.join(", ")
        )),
    }
}

/// The address of a client.
fn ip(text: &str) -> Result<KeyName, Failed> {
    let key = format!("ip:{}", text.trim().trim_start_matches("ip:")).parse();
    key.map_err(|error| wrong(format!("{error}.")))
}

fn is_address(key: &Key) -> bool {
    key.kind() == "ip"
}

impl Api {
    fn groups_of(
        &self,
        method: Option<&str>,
        host: Option<&str>,
        path: &str,
    ) -> Result<Vec<RequestGroup>, Failed> {
        let Some(groups) = &self.groups else {
            let detail = "This service does not tell which limits a path has: leave `path` out.";
            return Err(wrong(detail));
        };
        let uri: Uri = path
            .parse()
            .ok()
            .filter(|_| path.starts_with('/'))
            .ok_or_else(|| wrong("The path is none: it begins with `/` and is percent-encoded."))?;
        let mut request = http::Request::new(());
        *request.uri_mut() = uri;
        if let Some(method) = method {
            let method = Method::from_bytes(method.as_bytes());
            *request.method_mut() = method.map_err(|_| wrong("The method is none."))?;
        }
        if let Some(host) = host {
            let host = host.parse().map_err(|_| wrong("The host is none."))?;
            request.headers_mut().insert(HOST, host);
        }
        Ok(groups.groups(RequestHead::from(&request)))
    }

    /// The limits that apply to a key, and to an address next to it.
    async fn applied<'a>(
        &self,
        key: &'a KeyName,
        address: Option<&'a KeyName>,
        tier: Option<&str>,
        groups: Option<&'a [RequestGroup]>,
    ) -> Vec<Applied<'a>> {
        let mut explained = Vec::new();
        for limit in self.limits.explain(key, tier).await {
            explained.push((limit, key, false));
        }
        // A request without a token is charged to its address at each place.
        let address = address.or(Some(key).filter(|key| is_address(&key.key())));
        if let Some(address) = address {
            for limit in self.limits.explain(address, tier).await {
                explained.push((limit, address, true));
            }
        }
        let mut applied = Vec::new();
        for (limit, key, is_address) in explained {
            match groups {
                // Which of them are on addresses is not known, so one key is enough.
                None if is_address => {}
                None => applied.push(Applied {
                    limit,
                    key,
                    group: None,
                }),
                Some(groups) => {
                    let group = groups
                        .iter()
                        .find(|group| !group.is_excluded() && group.has(&limit, is_address));
                    applied.extend(group.map(|group| Applied {
                        limit,
                        key,
                        group: Some(group),
                    }));
                }
            }
        }
        applied
    }
}

fn explanation(
    key: &KeyName,
    address: Option<&KeyName>,
    own: Option<String>,
    groups: Option<&[RequestGroup]>,
    applied: &[Applied<'_>],
) -> Response {
    let is_address_known = address.is_some() || is_address(&key.key());
    let address_limits = groups.into_iter().flatten();
    let address_limits = address_limits.filter(|group| !group.is_excluded() && !is_address_known);
    let explanation = Explanation {
        key: key.as_str(),
        address: address.map(KeyName::as_str),
        limit: own,
        groups: groups.map(|groups| {
            let groups = groups.iter().map(|group| Group {
                name: group.name(),
                enforce: group.percent(),
                is_excluded: group.is_excluded(),
            });
            groups.collect()
        }),
        limits: applied.iter().map(limit).collect(),
        address_limits: address_limits
            .flat_map(RequestGroup::address_limits)
            .collect(),
        now: now(applied),
    };
    json(StatusCode::OK, &explanation)
}

fn limit<'a>(applied: &'a Applied<'_>) -> Limit<'a> {
    let limit = &applied.limit;
    Limit {
        name: &limit.name,
        sort: limit.sort,
        group: applied.group.map(RequestGroup::name),
        key: (!limit.is_total).then(|| applied.key.as_str()),
        limit: &limit.limit,
        source: limit.source.as_str(),
        tier: limit.tier.as_deref(),
        used: limit.used,
        verdict: limit.verdict.into(),
    }
}

/// A permit is taken before a rate is charged, and of several rates the one with the longest wait is reported.
fn now<'a>(applied: &'a [Applied<'_>]) -> Now<'a> {
    let passes = applied
        .iter()
        .filter(|applied| applied.limit.sort != "lease");
    let rejected = passes
        .clone()
        .filter_map(|applied| match applied.limit.verdict {
            LimitVerdict::Rejected { retry_after, .. } => {
                let is_permit = applied.limit.sort == "concurrency";
                // Without a time there is no use in waiting.
                Some((is_permit, retry_after.is_none(), retry_after, applied))
            }
            _ => None,
        });
    let rejected = rejected.max_by_key(|(is_permit, never, wait, _)| (*is_permit, *never, *wait));
    let unknown = passes
        .clone()
        .find(|applied| applied.limit.verdict == LimitVerdict::Unknown);
    let decides = rejected.map(|(.., applied)| applied).or(unknown);
    let least = || {
        let left = passes.filter_map(|applied| match applied.limit.verdict {
            LimitVerdict::Admitted { remaining } => Some((remaining?, applied)),
            _ => None,
        });
        left.min_by_key(|(remaining, _)| *remaining)
    };
    let decides = decides.or_else(|| least().map(|(_, applied)| applied));
    let verdict = decides.map_or(LimitVerdict::Admitted { remaining: None }, |applied| {
        applied.limit.verdict
    });
    let rejects = matches!(verdict, LimitVerdict::Rejected { .. });
    Now {
        limit: decides.map(|applied| &*applied.limit.name),
        verdict: verdict.into(),
        is_enforced: decides.filter(|_| rejects).and_then(|applied| {
            let group = applied.group?;
            Some(group.enforces(&applied.key.key()))
        }),
    }
}
