//! Explains the limits of a key: their numbers, the sources of the numbers, and the verdict on a request now.

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

use super::activity::StoreStatusJson;
use super::explanation::{
    AppliedLimit, ExplainedLimitJson, ExplanationJson, ExplanationScope, GroupJson, ListEntryJson,
    next_verdict,
};
use super::groups::RequestGroup;
use super::handlers::AdminState;
use super::resolve::string_members;
use super::responses::unprocessable;
use crate::endpoint::{EndpointError, EndpointResult, json_response, read_body};

pub(super) async fn explain(
    State(state): State<Arc<AdminState>>,
    request: Request,
) -> EndpointResult {
    let body = read_body(request).await?;
    let members = ["key", "address", "tier", "method", "host", "path"];
    let [named, address, tier, method, host, path] = string_members(&body, members)?;
    let Some(named) = named else {
        let detail = "The body is not a JSON object with a string `key`.";
        return Err(EndpointError::new(StatusCode::BAD_REQUEST, detail));
    };
    let key = state.key_or_credential(&named).await?;
    let key = written_address(&named).map_or(key, |client| state.charged_key(client));
    let address = address.map(|text| format!("ip:{}", text.trim().trim_start_matches("ip:")));
    let client = address
        .as_deref()
        .or(Some(&named))
        .and_then(written_address);
    let address = match (address, client) {
        (Some(_), Some(client)) => Some(state.charged_key(client)),
        (Some(network), None) => Some(ip(&network)?),
        (None, _) => None,
    };
    let client = client.or_else(|| address.as_ref()?.key().as_network());
    let tiers = state.limits.tiers();
    if let Some(tier) = &tier
        && !tiers.iter().any(|known| **known == **tier)
    {
        return Err(no_such_tier(&tiers));
    }
    let groups = match path {
        None if method.is_some() || host.is_some() => {
            return Err(unprocessable("`method` and `host` require a `path`."));
        }
        None if address.is_some() && !state.limits.are_lists_applied() => {
            return Err(unprocessable(match &state.groups {
                Some(_) => {
                    "`address` requires a `path`, because the limits on an address depend on it."
                }
                None => "This service does not know which limits are on addresses: omit `address`.",
            }));
        }
        None => None,
        Some(path) => Some(state.groups_of(method.as_deref(), host.as_deref(), &path)?),
    };
    let listed = state.list_entry(&key, client);
    let mut applied = state
        .applied(&key, address.as_ref(), tier.as_deref(), groups.as_deref())
        .await;
    for applied in &mut applied {
        applied.is_skipped |= is_skipped(&applied.limit, listed.as_ref());
    }
    Ok(explanation(
        &key,
        address.as_ref(),
        &state,
        listed.as_ref(),
        groups.as_deref(),
        &applied,
    ))
}

/// Whether a listed request does not reach a limit. An exempt request still counts in the capacity of the service.
fn is_skipped(limit: &LimitExplanation, listed: Option<&ListEntry>) -> bool {
    let is_capacity = limit.is_total && limit.sort == "concurrency";
    match listed.map(|entry| entry.listing) {
        None => false,
        Some(_) if limit.sort == "lease" => false,
        Some(Listing::Denied) => true,
        Some(Listing::Exempt) => !is_capacity,
    }
}

fn no_such_tier(tiers: &[Arc<str>]) -> EndpointError {
    match tiers {
        [] => unprocessable("The service has no tiers."),
        tiers => unprocessable(format!(
            "The tier is unknown. The tiers are {}.",
            tiers.join(", ")
        )),
    }
}

/// The key of the address of a client.
fn ip(text: &str) -> Result<KeyName, EndpointError> {
    text.parse()
        .map_err(|error| unprocessable(format!("{error}.")))
}

/// The address in the text of a key. It is more specific than the key of an IPv6 address, which is its charged network.
pub(super) fn written_address(key: &str) -> Option<IpNet> {
    let address = key.trim().strip_prefix("ip:")?;
    address.trim().parse::<IpAddr>().ok().map(IpNet::from)
}

fn is_address(key: &Key) -> bool {
    key.kind() == "ip"
}

impl AdminState {
    /// The charged key of a client address.
    fn charged_key(&self, client: IpNet) -> KeyName {
        let address = client.address();
        let groups = self.groups.as_ref();
        let key = groups.map(|groups| groups.address_key(address));
        key.unwrap_or_else(|| Key::ip_network(address, ClientIp::DEFAULT_V6_PREFIX))
            .into()
    }

    /// The limits whose lists apply, including those of a configuration.
    fn lists(&self) -> Vec<Limits> {
        if !self.limits.are_lists_applied() {
            return Vec::new();
        }
        match &self.groups {
            Some(groups) => groups.lists(&self.limits),
            None => vec![self.limits.clone()],
        }
    }

    /// Whether a list has an entry.
    fn has_listed(&self) -> bool {
        !self.lists().iter().all(Limits::has_no_lists)
    }

    /// The list entry that decides about a client.
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
    ) -> Result<Vec<RequestGroup>, EndpointError> {
        let Some(groups) = &self.groups else {
            let detail = "This service does not know the limits of a path: omit `path`.";
            return Err(unprocessable(detail));
        };
        let uri: Uri = path
            .parse()
            .ok()
            .filter(|_| path.starts_with('/'))
            .ok_or_else(|| {
                unprocessable("The path is invalid. It must begin with `/` and be percent-encoded.")
            })?;
        let mut request = http::Request::new(());
        *request.uri_mut() = uri;
        if let Some(method) = method {
            let method = Method::from_bytes(method.as_bytes());
            *request.method_mut() = method.map_err(|_| unprocessable("The method is invalid."))?;
        }
        if let Some(host) = host {
            let host = host
                .parse()
                .map_err(|_| unprocessable("The host is invalid."))?;
            request.headers_mut().insert(HOST, host);
        }
        Ok(groups.groups(RequestHead::from(&request)))
    }

    /// The limits that apply to a key and to the address of its client.
    async fn applied<'a>(
        &self,
        key: &'a KeyName,
        address: Option<&'a KeyName>,
        tier: Option<&str>,
        groups: Option<&'a [RequestGroup]>,
    ) -> Vec<AppliedLimit<'a>> {
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
                // Which limits are on addresses is unknown without groups, so the key of the request suffices.
                None if is_address => {}
                None => applied.push(AppliedLimit {
                    limit,
                    key,
                    group: None,
                    is_skipped: false,
                }),
                Some(groups) => {
                    let group = groups
                        .iter()
                        .find(|group| !group.is_excluded() && group.has(&limit, is_address));
                    applied.extend(group.map(|group| AppliedLimit {
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
            applied.extend(guards.into_iter().map(|limit| AppliedLimit {
                limit,
                key: address,
                group: Some(group),
                // The guard counts only requests with a credential.
                is_skipped: is_address(&key.key()),
            }));
        }
        applied
    }
}

fn explanation(
    key: &KeyName,
    address: Option<&KeyName>,
    state: &AdminState,
    listed: Option<&ListEntry>,
    groups: Option<&[RequestGroup]>,
    applied: &[AppliedLimit<'_>],
) -> Response {
    let is_address_known = address.is_some() || is_address(&key.key());
    let address_limits = groups.into_iter().flatten();
    let address_limits = address_limits.filter(|group| !group.is_excluded() && !is_address_known);
    let address_limits = address_limits.flat_map(RequestGroup::address_limits);
    // An entry for the key decides before an entry for the address.
    let lists = !is_address_known && listed.is_none() && state.has_listed();
    let lists = lists.then_some("lists");
    let scope = match groups {
        Some(_) => ExplanationScope::Path,
        None => ExplanationScope::AllPaths,
    };
    let explanation = ExplanationJson {
        replica: state.recorder.replica(),
        store: state.limits.store_status().map(StoreStatusJson::from),
        key: key.as_str(),
        address: address.map(KeyName::as_str),
        limit: state.limits.get(key).map(|limit| limit.to_string()),
        listed: listed.map(ListEntryJson::from),
        scope,
        groups: groups.map(|groups| groups.iter().map(GroupJson::from).collect()),
        limits: applied.iter().map(ExplainedLimitJson::from).collect(),
        address_limits: lists.into_iter().chain(address_limits).collect(),
        now: next_verdict(applied, listed, scope, state.groups.is_some()),
    };
    json_response(StatusCode::OK, &explanation)
}
