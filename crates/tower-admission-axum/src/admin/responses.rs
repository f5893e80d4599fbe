//! JSON and problem responses of the admin endpoints.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use tower_admission::provider::SourcedOverride;
use tower_admission::{KeyName, Limit, LimitUsage, LimitsError, Override};

use super::activity::StoreStatusJson;
use super::explanation::ListEntryJson;
use super::replica::Replica;
use crate::endpoint::{EndpointError, problem_response};

/// A page of overrides.
#[derive(Serialize)]
pub(super) struct OverridePageJson<'a> {
    pub(super) limits: Vec<OverrideJson<'a>>,
    /// The names of limits that an override can set.
    pub(super) names: Vec<&'a str>,
    /// The tiers that an override can select.
    pub(super) tiers: Vec<&'a str>,
    /// The number of all overrides.
    pub(super) total: usize,
    /// The `after` of the next page; `None` on the last page.
    pub(super) next: Option<&'a str>,
    /// The key of the search text, if the text is a credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct OverrideJson<'a> {
    key: &'a str,
    #[serde(flatten)]
    noted: AnnotatedLimitJson<'a>,
    source: &'static str,
    /// The override of the configuration, if another one replaces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_file: Option<AnnotatedLimitJson<'a>>,
}

/// A limit with its note, author and times. Times are in seconds since the Unix epoch.
#[derive(Serialize)]
pub(super) struct AnnotatedLimitJson<'a> {
    limit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_at: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct ChangedOverrideJson<'a> {
    #[serde(flatten)]
    pub(super) entry: OverrideJson<'a>,
    pub(super) before: Option<AnnotatedLimitJson<'a>>,
}

#[derive(Serialize)]
pub(super) struct DeletedOverrideJson<'a> {
    pub(super) key: &'a str,
    pub(super) source: &'static str,
    pub(super) before: AnnotatedLimitJson<'a>,
    /// The override of the configuration, which applies now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_file: Option<AnnotatedLimitJson<'a>>,
}

/// The source of an override that was set at run time.
pub(super) const OVERRIDE: &str = "override";

/// The source of an override of the configuration.
const FILE: &str = "file";

#[derive(Serialize)]
pub(super) struct TotalUsageJson<'a> {
    pub(super) replica: &'a Replica,
    pub(super) store: Option<StoreStatusJson>,
    pub(super) usage: Vec<LimitUsageJson<'a>>,
}

/// The usage of a limit.
#[derive(Serialize)]
pub(super) struct LimitUsageJson<'a> {
    pub(super) name: &'a str,
    pub(super) sort: &'static str,
    /// Of all replicas if the store counts.
    pub(super) used: u64,
    /// The part of `used` that this process holds.
    pub(super) here: Option<u64>,
    pub(super) counted_in: &'static str,
    pub(super) limit: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct KeyUsageJson<'a> {
    pub(super) replica: &'a Replica,
    pub(super) store: Option<StoreStatusJson>,
    pub(super) key: &'a str,
    pub(super) limit: Option<String>,
    /// The list entry that decides about the key, before all limits.
    pub(super) listed: Option<ListEntryJson<'a>>,
    pub(super) usage: Vec<KeyLimitUsageJson<'a>>,
}

/// The usage of a limit by a key.
#[derive(Serialize)]
pub(super) struct KeyLimitUsageJson<'a> {
    #[serde(flatten)]
    total: LimitUsageJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'a str>,
    is_override: bool,
}

impl<'a> OverrideJson<'a> {
    pub(super) fn new(key: &'a KeyName, sourced: &'a SourcedOverride) -> Self {
        Self {
            key: key.as_str(),
            noted: (&sourced.entry).into(),
            source: if sourced.is_set { OVERRIDE } else { FILE },
            in_file: sourced.configured.as_ref().map(AnnotatedLimitJson::from),
        }
    }
}

impl<'a> From<&'a Override> for AnnotatedLimitJson<'a> {
    fn from(entry: &'a Override) -> Self {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH);
            since.unwrap_or_default().as_secs()
        };
        Self {
            limit: entry.limit().to_string(),
            end: entry.end().map(seconds),
            note: entry.note(),
            author: entry.author(),
            changed_at: entry.changed_at().map(seconds),
        }
    }
}

impl AnnotatedLimitJson<'_> {
    /// Omits author and time, which the change has too.
    pub(super) fn of_change(self) -> Self {
        Self {
            author: None,
            changed_at: None,
            ..self
        }
    }
}

impl<'a> From<&'a LimitUsage> for LimitUsageJson<'a> {
    fn from(usage: &'a LimitUsage) -> Self {
        Self {
            name: &usage.name,
            sort: usage.sort,
            used: usage.used,
            here: usage.here,
            counted_in: usage.counted_in.as_str(),
            limit: usage.limit,
        }
    }
}

impl<'a> From<&'a LimitUsage> for KeyLimitUsageJson<'a> {
    fn from(usage: &'a LimitUsage) -> Self {
        Self {
            total: usage.into(),
            tier: usage.tier.as_deref(),
            is_override: usage.is_override,
        }
    }
}

/// Status 422: the syntax is valid, and a value is not.
pub(super) fn unprocessable(detail: impl Into<Cow<'static, str>>) -> EndpointError {
    EndpointError::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

pub(super) fn no_override() -> EndpointError {
    EndpointError::new(StatusCode::NOT_FOUND, "The key has no override.")
}

/// The response to the deletion of an override of the configuration.
pub(super) fn set_in_file() -> Response {
    #[derive(Serialize)]
    struct Code {
        code: &'static str,
    }
    let detail = "The override of this key is in the configuration of the service and can only be deleted there. To \
                  replace it now, set another override, such as `unlimited`.";
    let code = Code {
        code: "set_in_file",
    };
    problem_response(StatusCode::CONFLICT, detail, &code)
}

pub(super) fn no_such_name(name: &str, names: &[Arc<str>]) -> EndpointError {
    let known = match names {
        [] => "this service has no named limits".to_owned(),
        names => format!("the names are {}", names.join(", ")),
    };
    unprocessable(format!("No limit has the name {name}: {known}."))
}

/// The error for a part of a limit that no limiter applies.
pub(super) fn no_effect(
    part: &str,
    names: &[Arc<str>],
    applies: impl Fn(&Limit) -> bool,
) -> EndpointError {
    let value = part
        .split_once('=')
        .map_or(part, |(_, value)| value.trim_start());
    let named = names.iter().map(|name| format!("{name}={value}"));
    let named: Vec<_> = named
        .filter(|named| named.parse().is_ok_and(|named| applies(&named)))
        .collect();
    let instead = match &*named {
        [] => String::new(),
        named => format!(": write {}", named.join(" or ")),
    };
    unprocessable(format!(
        "{part} has no effect on the limits of this service{instead}."
    ))
}

impl From<LimitsError> for EndpointError {
    fn from(error: LimitsError) -> Self {
        match error {
            LimitsError::TooMany | LimitsError::TooManyRates => {
                Self::new(StatusCode::CONFLICT, format!("{error}."))
            }
            LimitsError::Changed { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, format!("{error}."))
            }
            LimitsError::UnknownTier { .. }
            | LimitsError::Network { .. }
            | LimitsError::Embedded { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{error}."))
            }
            LimitsError::Unreadable => Self::new(StatusCode::CONFLICT, format!("{error}.")),
            _ => Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{error}.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn too_many_overrides_are_a_conflict() {
        let answer = EndpointError::from(LimitsError::TooMany).into_response();
        assert_eq!(answer.status(), StatusCode::CONFLICT);
        assert!(!answer.headers().contains_key("retry-after"));
    }
}
