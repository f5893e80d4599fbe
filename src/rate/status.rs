//! The rate limit of a request, for its handler.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::account::Account;
use crate::decision::{Decision, Usage};
use crate::rejection::Rejection;
use crate::store::Reply;

/// The rate-limit status of an admitted request, as a request extension. It also changes the charge
/// of the request.
///
/// A [`RateLimitLayer`](super::RateLimitLayer) adds it to a request unless its headers are off; see
/// [`status`](super::RateLimitLayer::status). With feature `axum` it is an extractor.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::post};
/// use tower_admission::{Quota, RateLimitByTokenLayer, RateLimitStatus, Rejection};
///
/// /// A prompt costs 1 for each 1,000 bytes; an answer from the cache costs nothing.
/// async fn prompt(status: RateLimitStatus, prompt: String) -> Result<String, Rejection> {
///     if prompt == "hello" {
///         status.refund(1).await;
///         return Ok("hello".into());
///     }
///     let more = prompt.len() as u32 / 1_000;
///     if let Err(rejection) = status.charge(more).await {
/// // The client will send the request again, and is charged in full then.
///         status.refund(u32::MAX).await;
///         return Err(rejection);
///     }
///     Ok(format!("{} left", status.remaining().unwrap_or(u32::MAX)))
/// }
///
/// let app: Router = Router::new()
///     .route("/", post(prompt))
///     .layer(RateLimitByTokenLayer::new(Quota::per_minute(100)));
/// # }
/// ```
///
/// For an [exempt](crate::access) request the status is unlimited, and refunds and charges have no
/// effect.
///
/// # Refunds and charges
///
/// [`refund`](Self::refund) and [`charge`](Self::charge) apply to all keys and quotas of the
/// request. The rate-limit fields of the response and [`remaining`](Self::remaining) show the
/// result. After the response has been sent, they still change the counts, but no field.
///
/// Both return a [`Reply`]. The memory store replies at once, without a runtime; await the reply of
/// other stores. A reply that is dropped before it is ready may be lost: the refund may not happen,
/// and the charge may have been counted or not.
#[derive(Clone)]
pub struct RateLimitStatus(Option<Arc<Account>>);

impl RateLimitStatus {
    /// The status of an [exempt](crate::access) request.
    pub(super) const UNLIMITED: Self = Self(None);

    pub(super) fn new(account: Arc<Account>) -> Self {
        Self(Some(account))
    }

    fn read<T>(&self, read: impl FnOnce(&Decision) -> T) -> T {
        match &self.0 {
            Some(account) => account.read(read),
            None => read(&Decision::unlimited()),
        }
    }

    /// The most requests that the tightest quota admits at once. `None` if no quota limits.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        self.read(Decision::limit)
    }

    /// The number of further requests that the tightest quota would admit, after the refunds and
    /// charges of this request. `None` if no quota limits.
    #[must_use]
    pub fn remaining(&self) -> Option<u32> {
        self.read(Decision::remaining)
    }

    /// The time until the tightest quota has fully recovered. `None` if no quota limits.
    #[must_use]
    pub fn reset(&self) -> Option<Duration> {
        self.read(Decision::reset)
    }

    /// The decision that admitted the request, with the numbers after its last refund or charge.
    /// (On a dry run the decision may reject.)
    pub fn decision(&self) -> Decision {
        self.read(Decision::clone)
    }

    /// The name and the usage of every quota that limits the request.
    pub fn usages(&self) -> impl Iterator<Item = (&str, Usage)> {
        let usages = self.read(|decision| decision.usages().to_vec());
        let limiter = self.0.as_ref().map(|account| account.limiter());
        // A quota that is off has no usage.
        let named = move |usage: Usage| Some((limiter?.quota_names().nth(usage.index())?, usage));
        usages.into_iter().filter_map(named)
    }

    /// Refunds a part of the request's charge: at most its cost, plus additional
    /// [charges](Self::charge), minus earlier refunds.
    pub fn refund(&self, cost: u32) -> Reply<()> {
        match &self.0 {
            Some(account) => account.refund(cost),
            None => Reply::Ready(()),
        }
    }

    /// Charges the request more, if it fits.
    ///
    /// A charge that does not fit is not made. The rejection then has the
    /// [decision](Rejection::decision) and the violated quotas, for the handler's response.
    ///
    /// Its [`retry_after`](Rejection::retry_after) is the wait until this charge fits. It does not
    /// include the charge for the request itself, which the client pays again when it retries.
    /// Before the handler answers with the rejection, it must therefore refund the request:
    /// [`refund(u32::MAX)`](Self::refund). Then the wait is long enough.
    ///
    /// Observers see the rejection. On a [dry run](super::RateLimitLayer::dry_run) the result is
    /// `Ok`, and observers see what would have been rejected; likewise for a key whose limit is not
    /// [enforced](super::RateLimitLayer::enforce).
    pub fn charge(&self, cost: u32) -> Reply<Result<(), Rejection>> {
        match &self.0 {
            Some(account) => account.charge(cost),
            None => Reply::Ready(Ok(())),
        }
    }
}

impl fmt::Debug for RateLimitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.usages()).finish()
    }
}

/// Fails with 500 if no layer added a status to the request.
#[cfg(feature = "axum")]
impl<S: Sync> axum_core::extract::FromRequestParts<S> for RateLimitStatus {
    type Rejection = (http::StatusCode, &'static str);

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        parts.extensions.get().cloned().ok_or((
            http::StatusCode::INTERNAL_SERVER_ERROR,
            "`RateLimitStatus` needs a `RateLimitLayer` around this handler",
        ))
    }
}
