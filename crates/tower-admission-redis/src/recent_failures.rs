//! The last failures of a store, for its status.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::call_error::CallError;
use super::sync::lock;
use std::sync::Mutex;
use tower_admission::provider::since_epoch;
use tower_admission::store::{FailureMode, StoreFailure, StoreStatus};

/// How long the status stays `failing` after the last failure. A store that answers some calls and fails others (out of
/// memory, too slow) has no outage with an end.
const RECENT: Duration = Duration::from_secs(5);

/// The failures of a store, from the first to the last of a series.
///
/// Written only after a failure. A writer that finds it locked skips it, because the other writer records the same.
#[derive(Default)]
pub(super) struct RecentFailures(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    series: Option<Series>,
    cause: Option<Arc<str>>,
}

struct Series {
    since: Instant,
    last: Instant,
}

impl RecentFailures {
    /// Records that a call failed, or that the failure mode decided a request.
    pub(super) fn note(&self, error: Option<&CallError>) {
        let Ok(mut noted) = self.0.try_lock() else {
            return;
        };
        let now = Instant::now();
        match &mut noted.series {
            Some(series) if now.duration_since(series.last) < RECENT => series.last = now,
            series => {
                *series = Some(Series {
                    since: now,
                    last: now,
                });
            }
        }
        if let Some(error) = error {
            let cause = match error.detail() {
                Some(detail) => format!("{}: {detail}", error.kind().as_str()),
                None => error.kind().as_str().to_owned(),
            };
            if noted.cause.as_deref() != Some(&*cause) {
                noted.cause = Some(cause.into());
            }
        }
    }

    /// The status of a store, given the start of its outage, if there is one.
    pub(super) fn status(&self, outage: Option<Instant>, failure_mode: FailureMode) -> StoreStatus {
        let now = Instant::now();
        let noted = lock(&self.0);
        let recent = noted.series.as_ref();
        let recent = recent.filter(|series| now.duration_since(series.last) < RECENT);
        let recent = recent.map(|series| series.since);
        let Some(since) = recent.into_iter().chain(outage).min() else {
            return StoreStatus::Ok;
        };
        let ago = now.duration_since(since);
        let since = SystemTime::UNIX_EPOCH + since_epoch().saturating_sub(ago);
        let cause = noted.cause.as_deref().unwrap_or("disconnected");
        StoreStatus::Failing(StoreFailure::new(failure_mode, since, cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_admission::store::FailureKind;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_shown_until_no_other_follows_for_five_seconds() {
        let recent_failures = RecentFailures::default();
        let failure = |outage| match recent_failures.status(outage, FailureMode::Closed) {
            StoreStatus::Failing(failure) => Some(failure),
            _ => None,
        };
        assert_eq!(failure(None), None);
        recent_failures.note(Some(&CallError::because(FailureKind::Timeout, "no answer")));
        let first = failure(None).unwrap();
        assert_eq!(first.failure_mode, FailureMode::Closed);
        assert_eq!(&*first.cause, "timeout: no answer");
        tokio::time::advance(RECENT - Duration::from_millis(1)).await;
        recent_failures.note(None);
        tokio::time::advance(RECENT - Duration::from_millis(1)).await;
        let series = failure(None).unwrap();
        assert_eq!(series.cause, first.cause);
        // An outage continues without calls.
        let outage = Some(Instant::now());
        tokio::time::advance(RECENT).await;
        assert_eq!(failure(None), None);
        assert!(failure(outage).is_some());
    }
}
