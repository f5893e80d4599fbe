//! What a handler may know of the limit that its request passed.

use std::fmt;
use std::time::Duration;

use crate::decision::{Decision, Usage};
use crate::limiter::RateLimiter;

/// What is left to the caller of a request that was admitted, as a request extension.
///
/// A [`RateLimitLayer`](super::RateLimitLayer) puts it there unless its headers are off; see
/// [`status`](super::RateLimitLayer::status). With feature `axum` it is an extractor.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::get};
/// use tower_admission::{Quota, RateLimitByTokenLayer, RateLimitStatus};
///
/// async fn handler(status: RateLimitStatus) -> String {
///     format!("{} left", status.remaining().unwrap_or(u32::MAX))
/// }
///
/// let app: Router = Router::new()
///     .route("/", get(handler))
///     .layer(RateLimitByTokenLayer::new(Quota::per_second(10)));
/// # }
/// ```
#[derive(Clone)]
pub struct RateLimitStatus {
    limiter: RateLimiter,
    decision: Decision,
}

impl RateLimitStatus {
    pub(super) fn new(limiter: RateLimiter, decision: Decision) -> Self {
        Self { limiter, decision }
    }

    /// How many requests a full bucket of the tightest quota holds; `None` when nothing limits.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        self.decision.limit()
    }

    /// How many more requests the tightest quota would admit; `None` when nothing limits.
    #[must_use]
    pub fn remaining(&self) -> Option<u32> {
        self.decision.remaining()
    }

    /// The time until the tightest quota is as good as unused; `None` when nothing limits.
    #[must_use]
    pub fn reset(&self) -> Option<Duration> {
        self.decision.reset()
    }

    /// The decision that admitted the request. (On a dry run it may be one that would not have.)
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Every quota by name, and how far it is used up.
    pub fn usages(&self) -> impl Iterator<Item = (&str, &Usage)> {
        self.limiter.names().zip(self.decision.usages())
    }
}

impl fmt::Debug for RateLimitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.usages()).finish()
    }
}

/// Fails with 500 where no layer puts a status into the request.
#[cfg(feature = "axum")]
impl<S: Sync> axum_core::extract::FromRequestParts<S> for RateLimitStatus {
    type Rejection = (http::StatusCode, &'static str);

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        parts.extensions.get().cloned().ok_or((
            http::StatusCode::INTERNAL_SERVER_ERROR,
            "no RateLimitLayer tells its status to this handler",
        ))
    }
}
