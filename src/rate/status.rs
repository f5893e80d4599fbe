//! The rate limit of a request, for its handler.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::account::Account;
use crate::decision::{Decision, Usage};
use crate::rejection::Rejection;
use crate::store::Reply;

/// What is left to the caller of an admitted request, as a request extension. It also changes what
/// the request is charged.
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
///         // The client will send the request again, and is charged all of it then.
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
/// Of a request that is [exempt](crate::access) nothing limits, and refunds and charges change nothing.
///
/// # Refunds and charges
///
/// [`refund`](Self::refund) and [`charge`](Self::charge) apply to all keys and quotas of the
/// request. The response's rate-limit fields show the result, and so does
/// [`remaining`](Self::remaining). After the response is sent they still change what is counted,
/// but no field.
///
/// Both return a [`Reply`]. The memory store answers at once, without a runtime; await the reply
/// where the store may answer later. A reply that is dropped before it is ready may have changed
/// nothing: then a refund is lost, and the request stays charged. A charge may have been counted.
#[derive(Clone)]
pub struct RateLimitStatus(Option<Arc<Account>>);

impl RateLimitStatus {
    /// Of a request that is [exempt](crate::access).
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

    /// How many requests a full bucket of the tightest quota holds; `None` when nothing limits.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        self.read(Decision::limit)
    }

    /// How many more requests the tightest quota would admit, after the refunds and charges of
    /// this request; `None` when nothing limits.
    #[must_use]
    pub fn remaining(&self) -> Option<u32> {
        self.read(Decision::remaining)
    }

    /// The time until the tightest quota is as good as unused; `None` when nothing limits.
    #[must_use]
    pub fn reset(&self) -> Option<Duration> {
        self.read(Decision::reset)
    }

    /// The decision that admitted the request, with the numbers after its last refund or charge.
    /// (On a dry run it may be one that rejects.)
    pub fn decision(&self) -> Decision {
        self.read(Decision::clone)
    }

    /// Every quota that limits the request, by name, and how far it is used up.
    pub fn usages(&self) -> impl Iterator<Item = (&str, Usage)> {
        let usages = self.read(|decision| decision.usages().to_vec());
        let limiter = self.0.as_ref().map(|account| account.limiter());
        // A quota that is off has no usage.
        let named = move |usage: Usage| Some((limiter?.quota_names().nth(usage.index())?, usage));
        usages.into_iter().filter_map(named)
    }

    /// Gives back a part of what the request was charged.
    ///
    /// Gives back at most what the request was charged and still has: its cost, and what
    /// [`charge`](Self::charge) added.
    pub fn refund(&self, cost: u32) -> Reply<()> {
        match &self.0 {
            Some(account) => account.refund(cost),
            None => Reply::Ready(()),
        }
    }

    /// Charges the request more, if it fits.
    ///
    /// Takes nothing when it does not fit. The rejection then has the
    /// [decision](Rejection::decision) and the quotas that reject, for the handler's response.
    ///
    /// Its [`retry_after`](Rejection::retry_after) is the wait until this charge fits. A client that sends
    /// the request again is charged for the request again, so for the client that wait is too short by
    /// what the request is charged already. Before the handler answers with the rejection it has to give
    /// that back: [`refund(u32::MAX)`](Self::refund). Then the wait is enough.
    ///
    /// Observers see the rejection. On a [dry run](super::RateLimitLayer::dry_run) the result is `Ok`, and
    /// observers see what would have been rejected; likewise for a key for which the limit is not
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

/// Fails with 500 where no layer adds a status to the request.
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
