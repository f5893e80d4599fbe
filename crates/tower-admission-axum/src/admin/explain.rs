//! Explains which limits apply to a key, where their numbers come from, and what a request would get now.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::header::HOST;
use http::{Method, StatusCode, Uri};
use tower_admission::extract::IpNet;
use tower_admission::provider::{KeyInternals, LimitsInternals, list_entry};
use tower_admission::{
    ClientIp, Key, KeyName, LimitExplanation, Limits, ListEntry, Listing, RequestHead,
};

use super::answer::wrong;
use super::api::{Answer, Api};
use super::explanation::{Applied, Explanation, Group, Limit, Listed, Scope, now};
use super::groups::RequestGroup;
use super::now::Store;
use super::resolve::texts;
use crate::endpoint::{Failed, body, json};

pub(super) async fn explain(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let body = body(request).await?;
    let members = ["key", "address", "tier", "method", "host", "path"];
    let [named, address, tier, method, host, path] = texts(&body, members)?;
    let Some(named) = named else {
        let detail = "The body is not a JSON object with a `key`.";
        return Err(Failed::new(StatusCode::BAD_REQUEST, detail));
    };
    let key = api.key_or_credential(&named).await?;
    let key = written(&named).map_or(key, |client| api.charged(client));
    let address = address.map(|text| format!("ip:{}", text.trim().trim_start_matches("ip:")));
    let client = address.as_deref().or(Some(&named)).and_then(written);
    let address = match (address, client) {
        (Some(_), Some(client)) => Some(api.charged(client)),
        (Some(network), None) => Some(ip(&network)?),
        (None, _) => None,
    };
    let client = client.or_else(|| address.as_ref()?.key().as_network());
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
        None if address.is_some() && !api.limits.are_lists_applied() => {
            return Err(wrong(match &api.groups {
                Some(_) => "`address` needs a `path`: which limits an address has depends on it.",
                None => {
                    "This service does not say which limits are on addresses: leave `address` out."
                }
            }));
        }
        None => None,
        Some(path) => Some(api.groups_of(method.as_deref(), host.as_deref(), &path)?),
    };
    let listed = api.list_entry(&key, client);
    let mut applied = api
        .applied(&key, address.as_ref(), tier.as_deref(), groups.as_deref())
        .await;
    for applied in &mut applied {
        applied.is_skipped |= is_skipped(&applied.limit, listed.as_ref());
    }
    Ok(explanation(
        &key,
        address.as_ref(),
        &api,
        listed.as_ref(),
        groups.as_deref(),
        &applied,
    ))
}

/// Whether a request that is on a list does not get to a limit. Of one that is exempt, the capacity of the service
/// counts.
fn is_skipped(limit: &LimitExplanation, listed: Option<&ListEntry>) -> bool {
    let is_capacity = limit.is_total && limit.sort == "concurrency";
    match listed.map(|entry| entry.listing) {
        None => false,
        Some(_) if limit.sort == "lease" => false,
        Some(Listing::Denied) => true,
        Some(Listing::Exempt) => !is_capacity,
    }
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

/// The key of a client's address.
fn ip(text: &str) -> Result<KeyName, Failed> {
    text.parse().map_err(|error| wrong(format!("{error}.")))
}

/// The address that a key is written as. In IPv6 that is more than its key, which is that of the network that is
/// charged.
pub(super) fn written(key: &str) -> Option<IpNet> {
    let address = key.trim().strip_prefix("ip:")?;
    address.trim().parse::<IpAddr>().ok().map(IpNet::from)
}

fn is_address(key: &Key) -> bool {
    key.kind() == "ip"
}

impl Api {
    /// The key that a client's address is charged to.
    fn charged(&self, client: IpNet) -> KeyName {
        let address = client.address();
        let groups = self.groups.as_ref();
        let key = groups.map(|groups| groups.address_key(address));
        key.unwrap_or_else(|| Key::ip_network(address, ClientIp::DEFAULT_V6_PREFIX))
            .into()
    }

    /// The lists that requests are looked up on, also those of a file.
    fn lists(&self) -> Vec<Limits> {
        if !self.limits.are_lists_applied() {
            return Vec::new();
        }
        match &self.groups {
            Some(groups) => groups.lists(&self.limits),
            None => vec![self.limits.clone()],
        }
    }

    /// Whether any client is on a list.
    fn has_listed(&self) -> bool {
        !self.lists().iter().all(Limits::has_no_lists)
    }

    /// The entry that decides about a client.
    pub(super) fn list_entry(&self, key: &KeyName, client: Option<IpNet>) -> Option<ListEntry> {
        let lists = self.lists();
        let key = key.key();
        let is_looked_up = key.is_ip() || self.limits.are_lists_applied_to_keys();
        list_entry(&lists, Some(&key).filter(|_| is_looked_up), client)
    }

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
                    is_skipped: false,
                }),
                Some(groups) => {
                    let group = groups
                        .iter()
                        .find(|group| !group.is_excluded() && group.has(&limit, is_address));
                    applied.extend(group.map(|group| Applied {
                        limit,
                        key,
                        group: Some(group),
                        is_skipped: false,
                    }));
                }
            }
        }
        let groups = groups.into_iter().flatten();
        for group in groups.filter(|group| !group.is_excluded()) {
            let Some(address) = address else { break };
            let guards = group.explain_guard(&address.key()).await;
            applied.extend(guards.into_iter().map(|limit| Applied {
                limit,
                key: address,
                group: Some(group),
                // Without a credential there is nothing to guard against.
                is_skipped: is_address(&key.key()),
            }));
        }
        applied
    }
}

fn explanation(
    key: &KeyName,
    address: Option<&KeyName>,
    api: &Api,
    listed: Option<&ListEntry>,
    groups: Option<&[RequestGroup]>,
    applied: &[Applied<'_>],
) -> Response {
    let is_address_known = address.is_some() || is_address(&key.key());
    let address_limits = groups.into_iter().flatten();
    let address_limits = address_limits.filter(|group| !group.is_excluded() && !is_address_known);
    let address_limits = address_limits.flat_map(RequestGroup::address_limits);
    // A key that is listed goes before its address.
    let lists = !is_address_known && listed.is_none() && api.has_listed();
    let lists = lists.then_some("lists");
    let scope = match groups {
        Some(_) => Scope::Path,
        None => Scope::AllPaths,
    };
    let explanation = Explanation {
        replica: api.recorder.replica(),
        store: api.limits.store_status().map(Store::from),
        key: key.as_str(),
        address: address.map(KeyName::as_str),
        limit: api.limits.get(key).map(|limit| limit.to_string()),
        listed: listed.map(Listed::from),
        scope,
        groups: groups.map(|groups| groups.iter().map(Group::from).collect()),
        limits: applied.iter().map(Limit::from).collect(),
        address_limits: lists.into_iter().chain(address_limits).collect(),
        now: now(applied, listed, scope, api.groups.is_some()),
    };
    json(StatusCode::OK, &explanation)
}
