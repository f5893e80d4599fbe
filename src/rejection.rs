//! The reason for a rejection, independent of the protocol.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::decision::Decision;

/// `Retry-After` when the store is unavailable.
pub(crate) const UNAVAILABLE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The reason why a request is not admitted.
///
/// Layers turn a rejection into a response with a [`Responder`](crate::respond::Responder). A
/// limiter that is used without HTTP returns it as an error.
#[derive(Clone, Debug)]
pub struct Rejection {
    reason: Reason,
    limiter: Cow<'static, str>,
    retry_after: Option<Duration>,
    // Boxed to keep `Result<_, Rejection>` small.
    details: Option<Box<RejectionDetails>>,
}

/// Most rejections violate one quota.
type PolicyNames = SmallVec<[Arc<str>; 1]>;

#[derive(Clone, Debug)]
enum RejectionDetails {
    Decision {
        decision: Decision,
        /// The quotas that the request did not fit.
        violated: PolicyNames,
    },
    Occupancy(Occupancy),
}

/// The usage of a limit on leases: that of the tenant for [`Reason::KeyAtCapacity`], else that of
/// all tenants together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Occupancy {
    /// The number of leases in use.
    pub used: u64,
    /// The maximum number of leases.
    pub allowed: u64,
}

/// The cause of a [`Rejection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The service is at its limit of concurrent requests, independent of the caller: 503.
    AtCapacity,
    /// The caller is at its limit of concurrent requests: 429.
    KeyAtCapacity,
    /// The caller has used up a quota: 429.
    QuotaExceeded,
    /// The request costs more than the quota ever admits at once: 429. Retrying does not help.
    CostExceedsQuota,
    /// The limit of this caller is `deny all`: 403. Retrying does not help.
    Denied,
    /// The caller's key, its address or its network is on a [deny list](crate::access): 403.
    /// Retrying helps only after the ban has ended.
    Banned,
    /// This address sent too many requests with invalid credentials: 429.
    AbnormalUsage,
    /// The store is unavailable, and the failure mode is to reject. Independent of the caller: 503.
    Unavailable,
}

impl Reason {
    /// Whether a limit of the caller was reached, rather than a limit of the service.
    #[must_use]
    pub fn is_caller_limit(self) -> bool {
        !matches!(self, Self::AtCapacity | Self::Unavailable)
    }

    /// Whether the same request can fit later without a change of limits.
    pub(crate) fn is_retryable(self) -> bool {
        !matches!(self, Self::CostExceedsQuota | Self::Denied | Self::Banned)
    }

    /// The reason as a word for logs and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtCapacity => "at_capacity",
            Self::KeyAtCapacity => "key_at_capacity",
            Self::QuotaExceeded => "quota_exceeded",
            Self::CostExceedsQuota => "cost_exceeds_quota",
            Self::Denied => "denied",
            Self::Banned => "banned",
            Self::AbnormalUsage => "abnormal_usage",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Rejection {
    /// Makes a rejection by the limiter `limiter`. An empty name is shown as `The service`.
    #[must_use]
    pub fn new(reason: Reason, limiter: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            limiter: limiter.into(),
            retry_after: None,
            details: None,
        }
    }

    /// Sets the time until the caller should retry. Default: unknown.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Adds the details of a decision, and the names of the quotas that rejected the request.
    pub(crate) fn with_decision(mut self, decision: Decision, violated: PolicyNames) -> Self {
        self.retry_after = match self.reason {
            Reason::Unavailable => Some(UNAVAILABLE_RETRY_AFTER),
            _ => decision.retry_after(),
        };
        self.details = Some(Box::new(RejectionDetails::Decision { decision, violated }));
        self
    }

    /// Adds the number of leases in use.
    pub(crate) fn with_occupancy(mut self, used: u64, allowed: u64) -> Self {
        let occupancy = Occupancy { used, allowed };
        self.details = Some(Box::new(RejectionDetails::Occupancy(occupancy)));
        self
    }

    /// The cause of the rejection.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The name of the limiter that rejected the request. May be empty.
    #[must_use]
    pub fn limiter(&self) -> &str {
        &self.limiter
    }

    /// The time until the caller should retry, if it is known or was configured.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// [`retry_after`](Self::retry_after) in whole seconds for the field `Retry-After` (RFC 9110
    /// §10.2.3): rounded up, and at least 1.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(whole_seconds)
    }

    /// The names of the quotas that the request did not fit.
    pub fn violated_policies(&self) -> impl ExactSizeIterator<Item = &str> {
        self.violated().iter().map(|name| &**name)
    }

    fn violated(&self) -> &[Arc<str>] {
        match self.details.as_deref() {
            Some(RejectionDetails::Decision { violated, .. }) => violated,
            _ => &[],
        }
    }

    /// The first quota that the request did not fit. Empty if there is none.
    pub(crate) fn policy(&self) -> &str {
        self.violated().first().map_or("", |name| name)
    }

    /// The number of leases in use, for a rejection by [`Leases`](crate::Leases).
    #[must_use]
    pub fn occupancy(&self) -> Option<Occupancy> {
        match self.details.as_deref() {
            Some(RejectionDetails::Occupancy(occupancy)) => Some(*occupancy),
            _ => None,
        }
    }

    /// The message for people, if it contains no name and no number. It is printable ASCII without
    /// quotes and backslashes, so it needs no escaping.
    pub(crate) fn fixed_sentence(&self) -> Option<&'static str> {
        Some(match self.reason {
            Reason::AtCapacity => return None,
            Reason::KeyAtCapacity if self.occupancy().is_some() => return None,
            Reason::KeyAtCapacity => {
                "Too many requests in progress. Please wait for one to finish."
            }
            Reason::QuotaExceeded => "Rate limit exceeded. Please try again later.",
            Reason::CostExceedsQuota => {
                "This request costs more than its rate limit ever grants at once."
            }
            Reason::Denied => "Access denied: no requests are admitted for this client.",
            Reason::Banned => "Access denied: this client is banned.",
            Reason::AbnormalUsage => {
                "Too many requests with invalid credentials. Please try again later."
            }
            Reason::Unavailable => "Limits cannot be checked right now. Please try again later.",
        })
    }

    /// The decision behind a rejection by a rate limit.
    #[must_use]
    pub fn decision(&self) -> Option<&Decision> {
        match self.details.as_deref() {
            Some(RejectionDetails::Decision { decision, .. }) => Some(decision),
            _ => None,
        }
    }
}

// Here and not in `decision`, which is a level below rejections.
impl Decision {
    /// Turns a decision that rejects into a [`Rejection`], with its reason and its details.
    ///
    /// With feature `axum` a rejection is a response, so a handler can use `?`:
    ///
    /// ```
    /// use tower_admission::{Decision, Key, Quota, RateLimiter, Reason, Rejection};
    ///
    /// fn send_mail(mails: &RateLimiter, user: &Key) -> Result<Decision, Rejection> {
    ///     let decision = mails.check_now(user).unwrap().into_result()?;
    ///     // Only mails within the limit get here.
    ///     Ok(decision)
    /// }
    ///
    /// let mails = RateLimiter::new(Quota::per_hour(1));
    /// let user = Key::id("user", "alice");
    /// assert!(send_mail(&mails, &user).is_ok());
    /// let rejection = send_mail(&mails, &user).unwrap_err();
    /// assert_eq!(rejection.reason(), Reason::QuotaExceeded);
    /// assert!(rejection.retry_after().is_some());
    /// ```
    ///
    /// The rejection names no limiter and no quotas, because a decision has only details.
    ///
    /// # Errors
    ///
    /// Returns the rejection when the request is not admitted.
    pub fn into_result(self) -> Result<Self, Rejection> {
        let Some(reason) = self.rejection_reason() else {
            return Ok(self);
        };
        Err(Rejection::new(reason, "").with_decision(self, Default::default()))
    }

    /// The reason why the request does not fit. `None` if it is admitted.
    pub(crate) fn rejection_reason(&self) -> Option<Reason> {
        let mut rejecting = self.usages().iter().filter(|usage| !usage.fits());
        Some(match () {
            () if self.is_admitted() => return None,
            () if self.is_unavailable() => Reason::Unavailable,
            // Only a quota that denies all requests has a limit of 0.
            () if rejecting.any(|usage| usage.limit() == 0) => Reason::Denied,
            () if self.can_never_fit() => Reason::CostExceedsQuota,
            () => Reason::QuotaExceeded,
        })
    }
}

/// Seconds for a header: rounded up, so that the wait is long enough, and at least 1.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs()
        .saturating_add(u64::from(wait.subsec_nanos() > 0))
        .max(1)
}

/// The message for people.
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(sentence) = self.fixed_sentence() {
            return f.write_str(sentence);
        }
        if let (Reason::KeyAtCapacity, Some(Occupancy { used, allowed })) =
            (self.reason, self.occupancy())
        {
            return write!(
                f,
                "{used} of {allowed} are in use. Please wait for one to end."
            );
        }
        let name = match &*self.limiter {
            "" => "The service",
            name => name,
        };
        write!(
            f,
            "{name} is currently at capacity. Please try again later."
        )
    }
}

impl std::error::Error for Rejection {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        for (millis, seconds) in [(0, 1), (200, 1), (1000, 1), (1001, 2), (3900, 4)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn the_message_at_capacity_is_stable() {
        let rejection = Rejection::new(Reason::AtCapacity, "AI Bridge");
        assert_eq!(
            rejection.to_string(),
            "AI Bridge is currently at capacity. Please try again later."
        );
    }
}
