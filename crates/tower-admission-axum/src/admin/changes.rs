//! The audit trail: who changed which override, and from where.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tower_admission::{KeyName, LimitChange, LimitEdit, Limits, LimitsError, Override};

use super::answer::{Noted, wrong};
use super::api::{Answer, Api};
use super::sign_in::SignedIn;
use crate::endpoint::json;

/// Changes in an answer, unless asked otherwise.
const COUNT: usize = 100;

#[derive(Deserialize)]
pub(super) struct Which {
    count: Option<String>,
}

#[derive(Serialize)]
struct Changes<'a> {
    changes: Vec<Change<'a>>,
}

#[derive(Serialize)]
struct Change<'a> {
    /// In seconds since the Unix epoch, as all times here.
    at: u64,
    /// `None` when an operator accepted that overrides were lost.
    key: Option<&'a str>,
    before: Option<Noted<'a>>,
    after: Option<Noted<'a>>,
    author: Option<&'a str>,
    origin: Option<&'a str>,
    has_ended: bool,
    /// Whether there was or is an override that this version cannot read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_unreadable: bool,
}

impl<'a> From<&'a LimitChange> for Change<'a> {
    fn from(change: &'a LimitChange) -> Self {
        let noted = |entry: &'a Option<Override>| Some(Noted::from(entry.as_ref()?).of_change());
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

impl SignedIn {
    /// A change that this operator makes.
    pub(super) fn edit<'a>(&self, limits: &'a Limits, key: &'a KeyName) -> LimitEdit<'a> {
        let edit = limits.edit(key).author(self.operator.name());
        match &self.address {
            Some(address) => edit.origin(address.as_str()),
            None => edit,
        }
    }
}

impl SignedIn {
    /// Accepts that the store lost overrides.
    pub(super) async fn accept_loss(&self, limits: &Limits) -> Result<(), LimitsError> {
        let origin = self.address.as_ref().map(KeyName::as_str);
        let author = Some(self.operator.name());
        limits.accept_loss_by(author, origin).await
    }
}

pub(super) async fn changes(
    State(api): State<Arc<Api>>,
    which: Result<Query<Which>, QueryRejection>,
) -> Answer {
    const QUERY: &str = "`count` is a number from 1 to 1000.";

    let Query(which) = which.map_err(|_| wrong(QUERY))?;
    let count = which.count.map_or(Ok(COUNT), |count| count.parse());
    let count = count.ok().filter(|n| (1..=Limits::MAX_CHANGES).contains(n));
    let count = count.ok_or_else(|| wrong(QUERY))?;
    let changes = api.limits.changes(count).await?;
    let changes = changes.iter().map(Change::from).collect();
    Ok(json(StatusCode::OK, &Changes { changes }))
}
