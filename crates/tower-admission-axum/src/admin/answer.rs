//! What the endpoints answer.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use tower_admission::provider::SourcedOverride;
use tower_admission::{KeyName, Limit, LimitUsage, LimitsError, Override};

use super::explanation::Listed;
use super::now::Store;
use super::replica::Replica;
use crate::endpoint::{Failed, problem};

/// A page of what single keys have.
#[derive(Serialize)]
pub(super) struct List<'a> {
    pub(super) limits: Vec<Entry<'a>>,
    /// What limits are called that an entry can be about.
    pub(super) names: Vec<&'a str>,
    /// The tiers that a key can be assigned to.
    pub(super) tiers: Vec<&'a str>,
    /// How many keys have a limit of their own, found or not.
    pub(super) total: usize,
    /// After what to ask for the next page; nothing on the last.
    pub(super) next: Option<&'a str>,
    /// The key that the text of a search means, where that is a credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct Entry<'a> {
    key: &'a str,
    #[serde(flatten)]
    noted: Noted<'a>,
    source: &'static str,
    /// What the configuration has for the key under an override.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_file: Option<Noted<'a>>,
}

/// An override with what is noted about it. Times are in seconds since the Unix epoch.
#[derive(Serialize)]
pub(super) struct Noted<'a> {
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
pub(super) struct Changed<'a> {
    #[serde(flatten)]
    pub(super) entry: Entry<'a>,
    pub(super) before: Option<Noted<'a>>,
}

#[derive(Serialize)]
pub(super) struct Deleted<'a> {
    pub(super) key: &'a str,
    pub(super) source: &'static str,
    pub(super) before: Noted<'a>,
    /// What the configuration has for the key, which applies now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_file: Option<Noted<'a>>,
}

/// The source of what was set at run time.
pub(super) const OVERRIDE: &str = "override";

/// The source of what the configuration has.
const FILE: &str = "file";

#[derive(Serialize)]
pub(super) struct Totals<'a> {
    pub(super) replica: &'a Replica,
    pub(super) store: Option<Store>,
    pub(super) usage: Vec<Total<'a>>,
}

/// How far a limit is used up by all.
#[derive(Serialize)]
pub(super) struct Total<'a> {
    pub(super) name: &'a str,
    pub(super) sort: &'static str,
    /// Of all replicas, if a store counts.
    pub(super) used: u64,
    /// How many of them this process holds.
    pub(super) here: Option<u64>,
    pub(super) counted_in: &'static str,
    pub(super) limit: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct KeyUsage<'a> {
    pub(super) replica: &'a Replica,
    pub(super) store: Option<Store>,
    pub(super) key: &'a str,
    pub(super) limit: Option<String>,
    /// The entry of a list that decides about the key, before any limit.
    pub(super) listed: Option<Listed<'a>>,
    pub(super) usage: Vec<Used<'a>>,
}

/// How far a limit is used up by a key.
#[derive(Serialize)]
pub(super) struct Used<'a> {
    #[serde(flatten)]
    total: Total<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'a str>,
    is_override: bool,
}

impl<'a> Entry<'a> {
    pub(super) fn new(key: &'a KeyName, sourced: &'a SourcedOverride) -> Self {
        Self {
            key: key.as_str(),
            noted: (&sourced.entry).into(),
            source: if sourced.is_set { OVERRIDE } else { FILE },
            in_file: sourced.configured.as_ref().map(Noted::from),
        }
    }
}

impl<'a> From<&'a Override> for Noted<'a> {
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

impl Noted<'_> {
    /// Omits its author and time, which the change has as well.
    pub(super) fn of_change(self) -> Self {
        Self {
            author: None,
            changed_at: None,
            ..self
        }
    }
}

impl<'a> From<&'a LimitUsage> for Total<'a> {
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

impl<'a> From<&'a LimitUsage> for Used<'a> {
    fn from(usage: &'a LimitUsage) -> Self {
        Self {
            total: usage.into(),
            tier: usage.tier.as_deref(),
            is_override: usage.is_override,
        }
    }
}

/// The syntax is right, and a value is wrong.
pub(super) fn wrong(detail: impl Into<Cow<'static, str>>) -> Failed {
    Failed::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

pub(super) fn no_limit() -> Failed {
    Failed::new(StatusCode::NOT_FOUND, "The key has no limit of its own.")
}

/// The answer to a deletion of what the configuration has.
pub(super) fn set_in_file() -> Response {
    #[derive(Serialize)]
    struct Code {
        code: &'static str,
    }
    let detail = "The limit of this key is set in the configuration of the service and can only be deleted there. To \
                  replace it now, set another limit, such as `unlimited`.";
    let code = Code {
        code: "set_in_file",
    };
    problem(StatusCode::CONFLICT, detail, &code)
}

pub(super) fn no_such_name(name: &str, names: &[Arc<str>]) -> Failed {
    let known = match names {
        [] => "this service has no named limits".to_owned(),
        names => format!("the names are {}", names.join(", ")),
    };
    wrong(format!("There is no limit named {name}: {known}."))
}

/// No limiter goes by a part of a limit.
pub(super) fn no_effect(
    part: &str,
    names: &[Arc<str>],
    applies: impl Fn(&Limit) -> bool,
) -> Failed {
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
    wrong(format!("{part} changes no limit of this service{instead}."))
}

impl From<LimitsError> for Failed {
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
    fn too_many_is_a_conflict() {
        let answer = Failed::from(LimitsError::TooMany).into_response();
        assert_eq!(answer.status(), StatusCode::CONFLICT);
        assert!(!answer.headers().contains_key("retry-after"));
    }
}
