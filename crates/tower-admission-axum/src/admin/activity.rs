//! Recent decisions and requests in flight, for the page, which polls each second.
//!
//! The page polls, because a stream would occupy one of the six connections of a browser to a host over HTTP/1.1. Behind
//! a load balancer all replicas answer in turn, and each response names its replica.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tower_admission::provider::LimitsInternals;
use tower_admission::store::StoreStatus;
use tower_admission::{CountedIn, KeyName};

use super::handlers::AdminState;
use super::recorder::{LimiterCounts, PermitUsage, SECONDS};
use super::replica::Replica;
use super::responses::{LimitUsageJson, unprocessable};
use crate::endpoint::{EndpointResult, json_response};

/// The seconds that the page already has.
#[derive(Deserialize)]
pub(super) struct SeenQuery {
    seen: Option<String>,
}

#[derive(Serialize)]
struct ActivityJson<'a> {
    replica: &'a Replica,
    store: Option<StoreStatusJson>,
    /// A number that changes with each change of an override.
    revision: u64,
    /// The overrides that this replica keeps although the store has lost them.
    lost_overrides: usize,
    /// The last complete second; -1 if there is none. The last count of each list belongs to it.
    second: i64,
    limiters: Vec<LimiterHistoryJson<'a>>,
    in_flight: Vec<LimitUsageJson<'a>>,
    rejected_keys: Vec<RejectedKeyJson>,
}

/// The decisions of a limiter in each requested second.
#[derive(Serialize)]
struct LimiterHistoryJson<'a> {
    name: &'a str,
    limit_type: &'static str,
    admitted: &'a [u32],
    rejected: &'a [u32],
    would_reject: &'a [u32],
}

/// A key, and the limit that rejected it.
#[derive(Serialize)]
struct RejectedKeyJson {
    #[serde(serialize_with = "as_text")]
    key: KeyName,
    name: Box<str>,
    limit_type: &'static str,
    policy: Box<str>,
    count: u64,
}

/// The status of the store that replicas share.
#[derive(Serialize)]
pub(super) struct StoreStatusJson {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_mode: Option<&'static str>,
    /// In seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

impl From<StoreStatus> for StoreStatusJson {
    fn from(status: StoreStatus) -> Self {
        let word = status.as_str();
        let failure = match status {
            StoreStatus::Failing(failure) => Some(failure),
            _ => None,
        };
        let since = failure.as_ref().map(|failure| {
            let since = failure.since.duration_since(UNIX_EPOCH);
            since.unwrap_or_default().as_secs()
        });
        Self {
            status: word,
            failure_mode: failure
                .as_ref()
                .map(|failure| failure.failure_mode.as_str()),
            since,
            cause: failure.map(|failure| failure.cause.to_string()),
        }
    }
}

/// The maximum number of rejected keys in a response.
const MAX_REJECTED_KEYS: usize = 10;

/// The error for an invalid query.
const QUERY: &str = "`seen` must be `replica:second`, separated by commas.";

pub(super) async fn activity(
    State(state): State<Arc<AdminState>>,
    seen: Result<Query<SeenQuery>, QueryRejection>,
) -> EndpointResult {
    let Query(seen) = seen.map_err(|_| unprocessable(QUERY))?;
    let recorder = &state.recorder;
    let running = recorder.second();
    let all = running.saturating_sub(SECONDS - 1);
    let first = match seen.of(&recorder.replica().id) {
        Ok(seen) => seen.map_or(all, |seen| seen.saturating_add(1).clamp(all, running)),
        Err(()) => return Err(unprocessable(QUERY)),
    };
    let counted = recorder.counted(first..running);
    let totals = state.limits.totals().await;
    let held = recorder.in_flight();
    // Only the recorder knows limiters without `Limits`.
    let is_told = |held: &&PermitUsage| !totals.iter().any(|total| *total.name == *held.limiter);
    let others = held.iter().filter(is_told).map(|held| LimitUsageJson {
        name: &held.limiter,
        sort: "concurrency",
        used: held.used,
        here: Some(held.used),
        counted_in: CountedIn::Process.as_str(),
        limit: held.limit,
    });
    let now = ActivityJson {
        replica: recorder.replica(),
        store: state.limits.store_status().map(StoreStatusJson::from),
        revision: state.limits.revision(),
        lost_overrides: state.limits.lost(),
        second: i64::from(running) - 1,
        limiters: counted.iter().map(LimiterHistoryJson::from).collect(),
        in_flight: totals
            .iter()
            .map(LimitUsageJson::from)
            .chain(others)
            .collect(),
        rejected_keys: most_rejected_keys(&state),
    };
    Ok(json_response(StatusCode::OK, &now))
}

impl<'a> From<&'a LimiterCounts> for LimiterHistoryJson<'a> {
    fn from(counted: &'a LimiterCounts) -> Self {
        Self {
            name: &counted.limiter,
            limit_type: counted.limit_type,
            admitted: &counted.admitted,
            rejected: &counted.rejected,
            would_reject: &counted.would_reject,
        }
    }
}

fn as_text<S: serde::Serializer>(key: &KeyName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key.as_str())
}

fn most_rejected_keys(state: &AdminState) -> Vec<RejectedKeyJson> {
    let rejected = state
        .recorder
        .most_rejected_keys(MAX_REJECTED_KEYS)
        .into_iter();
    let told = rejected.map(|rejected| RejectedKeyJson {
        key: state.limits.name_of(&rejected.key),
        name: rejected.source.limiter.clone(),
        limit_type: rejected.source.limit_type,
        policy: rejected.source.policy.clone(),
        count: rejected.count,
    });
    told.collect()
}

impl SeenQuery {
    /// The last second that the page has of a replica.
    fn of(&self, id: &str) -> Result<Option<u32>, ()> {
        let mut found = None;
        let seen = self.seen.iter().flat_map(|seen| seen.split(','));
        for one in seen.filter(|one| !one.is_empty()) {
            let (replica, second) = one.split_once(':').ok_or(())?;
            let second: i64 = second.parse().map_err(|_| ())?;
            if replica == id {
                // A negative second means that the page has none.
                found = u32::try_from(second).ok();
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_has_the_last_second_of_each_replica() {
        let of = |seen: &str| {
            let seen = Some(seen.to_owned());
            SeenQuery { seen }.of("a1")
        };
        assert_eq!(of("a1:7"), Ok(Some(7)));
        assert_eq!(of("b2:9,a1:7,c3:1"), Ok(Some(7)));
        for none in ["", "b2:9", "a1:-1", "a12:3"] {
            assert_eq!(of(none), Ok(None), "{none}");
        }
        for wrong in ["a1", "a1:", "a1:x", "a1:1:2", "b2:9,x"] {
            assert_eq!(of(wrong), Err(()), "{wrong}");
        }
    }
}
