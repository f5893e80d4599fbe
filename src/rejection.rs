//! Why a request is rejected, before it is an answer in any protocol.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::decision::Decision;

/// When to ask again if the store that counts cannot be reached.
pub(crate) const UNAVAILABLE_FOR: Duration = Duration::from_secs(1);

/// Why a request is not admitted.
///
/// Layers turn it into a response with a [`Responder`](crate::respond::Responder); a limiter that
/// is used by hand returns it as an error.
#[derive(Clone, Debug)]
pub struct Rejection {
    reason: Reason,
    limiter: Cow<'static, str>,
    retry_after: Option<Duration>,
    // Boxed: rejections are returned as errors, and should not make results large.
    numbers: Option<Box<Numbers>>,
}

/// Of quotas. Most rejections are by one.
type Names = SmallVec<[Arc<str>; 1]>;

#[derive(Clone, Debug)]
enum Numbers {
    Decision {
        decision: Decision,
        /// The quotas that the request did not fit.
        violated: Names,
    },
    Occupancy(Occupancy),
}

/// How far a limit on what is at work is used up: the tenant's own when it is told with
/// [`Reason::KeyAtCapacity`], else that of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Occupancy {
    /// How many are at work.
    pub used: u64,
    /// How many may be.
    pub allowed: u64,
}

/// What a [`Rejection`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The service handles as many requests as it may. Not the caller's doing: 503.
    AtCapacity,
    /// The caller has as many requests in flight as it may: 429.
    KeyAtCapacity,
    /// The caller used up a quota: 429.
    QuotaExceeded,
    /// The request costs more than the quota ever grants at once: 429, and no use in retrying.
    CostExceedsQuota,
    /// The limit of this caller admits nothing, as with `deny all`: 403, and no use in retrying.
    Denied,
    /// The caller's key, its address or a network that it is in is on a [deny list](crate::access): 403, and no use
    /// in retrying before the ban ends, if it has an end.
    Banned,
    /// Too many requests with credentials that were not accepted came from this address: 429.
    AbnormalUsage,
    /// The store that counts cannot be reached, and the limit is set to refuse then. Not the
    /// caller's doing: 503.
    Unavailable,
}

impl Reason {
    /// Whether the caller's own limit was reached, rather than something of the service's.
    #[must_use]
    pub fn is_callers(self) -> bool {
        !matches!(self, Self::AtCapacity | Self::Unavailable)
    }

    /// Whether the same request can fit later, without a change of limits.
    pub(crate) fn is_retryable(self) -> bool {
        !matches!(self, Self::CostExceedsQuota | Self::Denied | Self::Banned)
    }

    /// A word for logs and metric labels.
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
    /// A rejection by the limiter of this name; an empty name reads `The service`.
    #[must_use]
    pub fn new(reason: Reason, limiter: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            limiter: limiter.into(),
            retry_after: None,
            numbers: None,
        }
    }

    /// Sets how long the caller has to wait. Default: unknown.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Takes over a decision's numbers, and the names of the quotas that refused the request.
    pub(crate) fn decided(mut self, decision: Decision, violated: Names) -> Self {
        self.retry_after = match self.reason {
            Reason::Unavailable => Some(UNAVAILABLE_FOR),
            _ => decision.retry_after(),
        };
        self.numbers = Some(Box::new(Numbers::Decision { decision, violated }));
        self
    }

    /// Tells how many are at work.
    pub(crate) fn occupied(mut self, used: u64, allowed: u64) -> Self {
        let occupancy = Occupancy { used, allowed };
        self.numbers = Some(Box::new(Numbers::Occupancy(occupancy)));
        self
    }

    /// What the rejection is for.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The name of the limiter that refused the request; may be empty.
    #[must_use]
    pub fn limiter(&self) -> &str {
        &self.limiter
    }

    /// How long the caller has to wait, if that is known or was configured.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// [`retry_after`](Self::retry_after) in whole seconds, as the field `Retry-After` has it
    /// (RFC 9110 §10.2.3): rounded up, and at least 1.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(whole_seconds)
    }

    /// The names of the quotas that the request did not fit.
    pub fn violated_policies(&self) -> impl ExactSizeIterator<Item = &str> {
        self.violated().iter().map(|name| &**name)
    }

    fn violated(&self) -> &[Arc<str>] {
        match self.numbers.as_deref() {
            Some(Numbers::Decision { violated, .. }) => violated,
            _ => &[],
        }
    }

    /// The first of the quotas that the request did not fit; empty where there is none.
    pub(crate) fn policy(&self) -> &str {
        self.violated().first().map_or("", |name| name)
    }

    /// How many are at work and how many may be, in a refusal by [`Leases`](crate::Leases).
    #[must_use]
    pub fn occupancy(&self) -> Option<Occupancy> {
        match self.numbers.as_deref() {
            Some(Numbers::Occupancy(occupancy)) => Some(*occupancy),
            _ => None,
        }
    }

    /// What a person reads, where it has no name and no number in it: printable ASCII without quotes and
    /// backslashes.
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

    /// The decision behind a refusal by a rate limit.
    #[must_use]
    pub fn decision(&self) -> Option<&Decision> {
        match self.numbers.as_deref() {
            Some(Numbers::Decision { decision, .. }) => Some(decision),
            _ => None,
        }
    }
}

// Here and not with the type: decisions know nothing of rejections.
impl Decision {
    /// Turns a decision that rejects into a [`Rejection`], with its reason and its numbers.
    ///
    /// With feature `axum` that is a response, so that a handler needs a question mark:
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
    /// The rejection has no limiter name, and names no quotas: a decision has numbers only.
    ///
    /// # Errors
    ///
    /// When the decision does not admit.
    pub fn into_result(self) -> Result<Self, Rejection> {
        let Some(reason) = self.rejection_reason() else {
            return Ok(self);
        };
        Err(Rejection::new(reason, "").decided(self, Default::default()))
    }

    /// Why the request does not fit; `None` when it is admitted.
    pub(crate) fn rejection_reason(&self) -> Option<Reason> {
        let mut rejecting = self.usages().iter().filter(|usage| !usage.fits());
        Some(match () {
            () if self.is_admitted() => return None,
            () if self.is_unavailable() => Reason::Unavailable,
            // No bucket holds nothing: that is a quota which denies all.
            () if rejecting.any(|usage| usage.limit() == 0) => Reason::Denied,
            () if self.is_hopeless() => Reason::CostExceedsQuota,
            () => Reason::QuotaExceeded,
        })
    }
}

/// Seconds for a header: rounded up, so that waiting them is enough, and at least 1.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs()
        .saturating_add(u64::from(wait.subsec_nanos() > 0))
        .max(1)
}

/// What a person reads.
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
    fn seconds_are_never_too_few() {
        for (millis, seconds) in [(0, 1), (200, 1), (1000, 1), (1001, 2), (3900, 4)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn capacity_is_said_as_it_always_was() {
        let rejection = Rejection::new(Reason::AtCapacity, "AI Bridge");
        assert_eq!(
            rejection.to_string(),
            "AI Bridge is currently at capacity. Please try again later."
        );
    }
}
