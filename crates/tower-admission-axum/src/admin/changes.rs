//! The audit trail: the last changes of overrides, with authors and origins.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tower_admission::{KeyName, LimitChange, LimitEdit, Limits, LimitsError, Override};

use super::handlers::AdminState;
use super::responses::{AnnotatedLimitJson, unprocessable};
use super::sign_in::SignedInOperator;
use crate::endpoint::{EndpointResult, json_response};

/// The default number of changes in a response.
const DEFAULT_COUNT: usize = 100;

#[derive(Deserialize)]
pub(super) struct ChangesQuery {
    count: Option<String>,
}

#[derive(Serialize)]
struct ChangesJson<'a> {
    changes: Vec<ChangeJson<'a>>,
}

#[derive(Serialize)]
struct ChangeJson<'a> {
    /// In seconds since the Unix epoch.
    at: u64,
    /// `None` for the acceptance of lost overrides.
    key: Option<&'a str>,
    before: Option<AnnotatedLimitJson<'a>>,
    after: Option<AnnotatedLimitJson<'a>>,
    author: Option<&'a str>,
    origin: Option<&'a str>,
    has_ended: bool,
    /// Whether this version cannot read the override before or after the change.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_unreadable: bool,
}

impl<'a> From<&'a LimitChange> for ChangeJson<'a> {
    fn from(change: &'a LimitChange) -> Self {
        let noted = |entry: &'a Option<Override>| {
            Some(AnnotatedLimitJson::from(entry.as_ref()?).of_change())
        };
        Self {
            at: seconds(change.at),
            key: change.key.as_ref().map(KeyName::as_str),
            before: noted(&change.before),
            after: noted(&change.after),
            author: change.author.as_deref(),
            origin: change.origin.as_deref(),
            has_ended: change.has_ended,
            is_unreadable: change.is_unreadable,
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl SignedInOperator {
    /// Begins a change by this operator.
    pub(super) fn edit<'a>(&self, limits: &'a Limits, key: &'a KeyName) -> LimitEdit<'a> {
        let edit = limits.edit(key).author(self.operator.name());
        match &self.address {
            Some(address) => edit.origin(address.as_str()),
            None => edit,
        }
    }
}

impl SignedInOperator {
    /// Accepts the loss of overrides in the store.
    pub(super) async fn accept_loss(&self, limits: &Limits) -> Result<(), LimitsError> {
        let origin = self.address.as_ref().map(KeyName::as_str);
        let author = Some(self.operator.name());
        limits.accept_loss_by(author, origin).await
    }
}

pub(super) async fn changes(
    State(state): State<Arc<AdminState>>,
    which: Result<Query<ChangesQuery>, QueryRejection>,
) -> EndpointResult {
    const QUERY: &str = "`count` must be a number from 1 to 1000.";

    let Query(which) = which.map_err(|_| unprocessable(QUERY))?;
    let count = which.count.map_or(Ok(DEFAULT_COUNT), |count| count.parse());
    let count = count.ok().filter(|n| (1..=Limits::MAX_CHANGES).contains(n));
    let count = count.ok_or_else(|| unprocessable(QUERY))?;
    let changes = state.limits.changes(count).await?;
    let changes = changes.iter().map(ChangeJson::from).collect();
    Ok(json_response(StatusCode::OK, &ChangesJson { changes }))
}
