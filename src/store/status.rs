//! Whether a store decides requests, or its failure mode does.

use std::sync::Arc;
use std::time::SystemTime;

use super::FailureMode;

/// Whether a shared store decides requests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreStatus {
    /// It answers, or was not called yet.
    Ok,
    /// It is unavailable, or a call failed in the last few seconds: the failure mode decides.
    Failing(StoreFailure),
}

/// Why a store does not decide, and which mode decides instead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreFailure {
    /// The mode that decides meanwhile.
    pub failure_mode: FailureMode,
    /// When the first call failed, by this process's clock.
    pub since: SystemTime,
    /// The error of the last failed call.
    pub cause: Arc<str>,
}

impl StoreFailure {
    /// Creates a failure since a time.
    #[must_use]
    pub fn new(failure_mode: FailureMode, since: SystemTime, cause: &str) -> Self {
        Self {
            failure_mode,
            since,
            cause: cause.into(),
        }
    }
}

impl StoreStatus {
    /// The word for JSON and logs: `"ok"` or `"failing"`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failing(_) => "failing",
        }
    }

    /// Combines the status of two stores: the failure that began first, if either fails.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failing(one), Self::Failing(two)) if two.since < one.since => Self::Failing(two),
            (Self::Ok, other) => other,
            (failing, _) => failing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_failure_wins() {
        let failing = |seconds| {
            let since = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            StoreStatus::Failing(StoreFailure::new(FailureMode::Open, since, "timeout"))
        };
        assert_eq!(StoreStatus::Ok.and(StoreStatus::Ok), StoreStatus::Ok);
        for (one, two) in [
            (failing(1), StoreStatus::Ok),
            (StoreStatus::Ok, failing(1)),
            (failing(1), failing(2)),
            (failing(2), failing(1)),
        ] {
            assert_eq!(one.and(two), failing(1));
        }
    }
}
