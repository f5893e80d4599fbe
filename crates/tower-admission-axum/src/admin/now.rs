//! What happens at the moment, for a page that asks each second.
//!
//! It asks, as a stream would keep one of the six connections that a browser has to a host over HTTP/1.1. Behind a load balancer it hears of all replicas, because each answer names its own.

use std::time::UNIX_EPOCH;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tower_admission::provider::LimitsInternals;
use tower_admission::store::StoreStatus;
use tower_admission::{CountedIn, KeyName};

use super::answer::{Total, wrong};
use super::api::{Answer, Api, Shared};
use super::recorder::{Counted, Held, SECONDS};
use super::replica::Replica;
use crate::endpoint::json;

/// What the page knows already.
#[derive(Deserialize)]
pub(super) struct Seen {
    seen: Option<String>,
}

#[derive(Serialize)]
struct Now<'a> {
    replica: &'a Replica,
    store: Option<Store>,
    /// Another number, and an override was changed.
    revision: u64,
    /// Overrides that this replica keeps although the store has lost them.
    lost_overrides: usize,
    /// The last second that is over; -1 when none is. The last count of each list is of it.
    second: i64,
    limiters: Vec<LimiterHistory<'a>>,
    in_flight: Vec<Total<'a>>,
    refused_keys: Vec<RefusedKey>,
}

/// What a limiter decided in each of the seconds that are asked for.
#[derive(Serialize)]
struct LimiterHistory<'a> {
    name: &'a str,
    limit_type: &'static str,
    admitted: &'a [u32],
    refused: &'a [u32],
    would_refuse: &'a [u32],
}

/// A key, and the limit that refused it.
#[derive(Serialize)]
struct RefusedKey {
    #[serde(serialize_with = "as_text")]
    key: KeyName,
    name: Box<str>,
    limit_type: &'static str,
    policy: Box<str>,
    count: u64,
}

/// Whether the store decides.
#[derive(Serialize)]
pub(super) struct Store {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_mode: Option<&'static str>,
    /// In seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

impl From<StoreStatus> for Store {
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

/// Rejected keys in an answer.
const MOST_KEYS: usize = 10;

/// What is wrong with a query.
const QUERY: &str = "`seen` is written as replica:second, with commas between several.";

pub(super) async fn now(State(api): Shared, seen: Result<Query<Seen>, QueryRejection>) -> Answer {
    let Query(seen) = seen.map_err(|_| wrong(QUERY))?;
    let recorder = &api.recorder;
    let running = recorder.second();
    let all = running.saturating_sub(SECONDS - 1);
    let first = match seen.of(&recorder.replica().id) {
        Ok(seen) => seen.map_or(all, |seen| seen.saturating_add(1).clamp(all, running)),
        Err(()) => return Err(wrong(QUERY)),
    };
    let counted = recorder.counted(first..running);
    let totals = api.limits.totals().await;
    let held = recorder.in_flight();
    // Limiters without `Limits` are known to the recorder alone.
    let is_told = |held: &&Held| !totals.iter().any(|total| *total.name == *held.limiter);
    let others = held.iter().filter(is_told).map(|held| Total {
        name: &held.limiter,
        sort: "concurrency",
        used: held.used,
        here: Some(held.used),
        counted_in: CountedIn::Process.as_str(),
        limit: held.limit,
    });
    let now = Now {
        replica: recorder.replica(),
        store: api.limits.store_status().map(Store::from),
        revision: api.limits.revision(),
        lost_overrides: api.limits.lost(),
        second: i64::from(running) - 1,
        limiters: counted.iter().map(LimiterHistory::from).collect(),
        in_flight: totals.iter().map(Total::from).chain(others).collect(),
        refused_keys: refused_most(&api),
    };
    Ok(json(StatusCode::OK, &now))
}

impl<'a> From<&'a Counted> for LimiterHistory<'a> {
    fn from(counted: &'a Counted) -> Self {
        Self {
            name: &counted.limiter,
            limit_type: counted.limit_type,
            admitted: &counted.admitted,
            refused: &counted.refused,
            would_refuse: &counted.would_refuse,
        }
    }
}

fn as_text<S: serde::Serializer>(key: &KeyName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key.as_str())
}

fn refused_most(api: &Api) -> Vec<RefusedKey> {
    let refused = api.recorder.refused_most(MOST_KEYS).into_iter();
    let told = refused.map(|refused| RefusedKey {
        key: api.limits.name_of(&refused.key),
        name: refused.source.limiter.clone(),
        limit_type: refused.source.limit_type,
        policy: refused.source.policy.clone(),
        count: refused.count,
    });
    told.collect()
}

impl Seen {
    /// The last second that is known of a replica.
    fn of(&self, id: &str) -> Result<Option<u32>, ()> {
        let mut found = None;
        let seen = self.seen.iter().flat_map(|seen| seen.split(','));
        for one in seen.filter(|one| !one.is_empty()) {
            let (replica, second) = one.split_once(':').ok_or(())?;
            let second: i64 = second.parse().map_err(|_| ())?;
            if replica == id {
                // Below 0 nothing is known.
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
    fn the_second_of_this_replica_is_found() {
        let of = |seen: &str| {
            let seen = Some(seen.to_owned());
            Seen { seen }.of("a1")
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
