//! The fields of a response that report limits.

mod draft;
mod merge;
mod retry_after;
mod separate;

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use self::draft::Draft;
pub(crate) use self::retry_after::{tell_retry_after, tell_retry_after_ms};
use self::separate::Separate;
use crate::decision::Decision;
use crate::limiter::RateLimiter;
use crate::quota::Quota;

/// Selects the response fields that report rate limits.
///
/// `Retry-After` is not one of these: every rejection has it, if the wait is known.
///
/// # Fields that a response has already
///
/// A proxied service, or a layer further in, may report limits of its own. Each quota is reported
/// once, and fields are never mixed from two limits:
///
/// - With [`Draft`](Self::Draft) members of other names stay, and a member with the name of one of
///   the layer's quotas is replaced. A field that is no structured list (RFC 9651), such as
///   `limit=100, remaining=50, reset=30` of an older draft, is replaced, and so are members that are
///   no String, which the draft does not allow.
/// - With the other dialects there is one limit: the one with fewer requests remaining, and of equals
///   the one that resets later. Fields of the same names count only if all three are there once, as
///   numbers, and in the dialect's unit of time; otherwise the layer's replace them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RateLimitHeaders {
    /// `RateLimit` and `RateLimit-Policy` as in [draft-ietf-httpapi-ratelimit-headers][draft],
    /// a member for each quota. Layers on one route add to each other's.
    ///
    /// `q` is the burst and `w` the time in which an empty bucket fills, in whole seconds (the
    /// nearest; below one second it is left out), so that `r` counts down from `q` and the two
    /// stand for the rate. For a [sliding](crate::Quota::sliding) quota `q` is the count and the
    /// burst, and `w` the period, rounded up. `t` is the time until the bucket is full or the
    /// window empty, or, in a rejection, until the request fits.
    ///
    /// [draft]: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
    #[default]
    Draft,
    /// `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` (seconds until the bucket is
    /// full) of the quota with the least left, and `RateLimit-Policy` with all quotas, as in
    /// [draft 6][draft]. For clients of services that reported limits in this way.
    ///
    /// A policy of that draft needs a window in whole seconds (`100;w=60`), so a quota whose window
    /// is below one second has none.
    ///
    /// [draft]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-06
    Draft6,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` (seconds until the bucket
    /// is full) of the quota with the least left.
    Legacy,
    /// As [`Legacy`](Self::Legacy), with the time in `X-RateLimit-Reset` as a Unix epoch in seconds.
    ///
    /// Rounded up: never earlier than the bucket is full, if the clocks of both sides agree.
    LegacyEpoch,
    /// None. The one choice with which an admitted request costs no allocation.
    Off,
}

/// The fields of one layer: its dialect, and the parts that never change.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    dialect: RateLimitHeaders,
    fields: Fields,
}

#[derive(Clone, Debug)]
enum Fields {
    Draft(Draft),
    Separate(Separate),
    Off,
}

impl Headers {
    pub(crate) fn new(dialect: RateLimitHeaders, limiter: &RateLimiter) -> Self {
        let policies = limiter.policies();
        let fields = match dialect {
            RateLimitHeaders::Draft => Fields::Draft(Draft::new(policies)),
            RateLimitHeaders::Draft6 => Fields::Separate(Separate::draft_6(policies)),
            RateLimitHeaders::Legacy => Fields::Separate(Separate::legacy()),
            RateLimitHeaders::LegacyEpoch => Fields::Separate(Separate::legacy_epoch()),
            RateLimitHeaders::Off => Fields::Off,
        };
        Self { dialect, fields }
    }

    /// The same dialect for another limiter.
    pub(crate) fn of(&self, limiter: &RateLimiter) -> Self {
        Self::new(self.dialect, limiter)
    }

    pub(crate) fn are_off(&self) -> bool {
        self.dialect == RateLimitHeaders::Off
    }

    /// Adds what a decision left to the fields of a response.
    pub(crate) fn tell(&self, decision: &Decision, headers: &mut HeaderMap) {
        match &self.fields {
            Fields::Draft(draft) => draft.tell(decision, headers),
            Fields::Separate(separate) => separate.tell(decision, headers),
            Fields::Off => {}
        }
    }
}

/// A number as a field has it: digits and nothing else, where `parse` takes a plus sign as well.
fn number(value: &HeaderValue) -> Option<u64> {
    let digits = value.to_str().ok()?;
    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

fn ceil_seconds(time: Duration) -> u64 {
    time.as_secs()
        .saturating_add(u64::from(time.subsec_nanos() > 0))
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The largest integer of a structured field (RFC 9651 §3.3.1): 15 digits.
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// How many requests a full bucket or window has, and in how many whole seconds. A shorter window
/// has none.
fn limit_and_window(quota: Quota) -> (u32, Option<u128>) {
    let Some(rate) = quota.rate() else {
        return (0, None);
    };
    let window = if rate.is_sliding() {
        // Rounded up: a client that keeps to it keeps to the quota.
        rate.period().as_nanos().div_ceil(NANOS_PER_SECOND)
            * NANOS_PER_SECOND
            * u128::from(rate.period().as_secs() > 0)
    } else {
        rate.window_nanos()
    };
    let seconds = (window + NANOS_PER_SECOND / 2) / NANOS_PER_SECOND;
    let window = (window >= NANOS_PER_SECOND).then(|| seconds.min(MAX_INTEGER.into()));
    (rate.limit(), window)
}
