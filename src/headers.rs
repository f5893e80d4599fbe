//! What a response's header says about limits.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::decision::{Decision, Usage};
use crate::limiter::RateLimiter;
use crate::policy::{NamedQuota, Policy};
use crate::rejection::whole_seconds;

/// Which headers tell clients about rate limits.
///
/// `Retry-After` is not one of these: every refusal has it, if it can be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RateLimitHeaders {
    /// `RateLimit` and `RateLimit-Policy` as in [draft-ietf-httpapi-ratelimit-headers][draft],
    /// a member for each quota. Layers on one route add to each other's.
    ///
    /// `q` is the burst and `w` the time in which an empty bucket fills, in whole seconds (the
    /// nearest; below one second it is left out), so that `r` counts down from `q` and the two
    /// stand for the rate. Of a [sliding](crate::Quota::sliding) quota `q` is the count and the
    /// burst, and `w` the period, rounded up. `t` is the time until the bucket is full or the
    /// window empty, or, in a refusal, until the request fits.
    ///
    /// [draft]: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
    #[default]
    Draft,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds until the bucket is full) of the
    /// quota with the least left. Of several layers on one route the tightest is told.
    Legacy,
    /// None. The one choice with which an admitted request costs no allocation.
    Off,
}

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The headers of one layer: its dialect, and what of them never changes.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    dialect: RateLimitHeaders,
    policy: Option<HeaderValue>,
    /// What begins each quota's member of `RateLimit`: its name and `;r=`.
    members: Vec<String>,
}

impl Headers {
    pub(crate) fn new(dialect: RateLimitHeaders, limiter: &RateLimiter) -> Self {
        let quotas = || limiter.policies().iter().flat_map(Policy::quotas);
        Self {
            dialect,
            policy: policy_field(quotas()),
            members: quotas()
                .map(|quota| sf_string(quota.name()) + ";r=")
                .collect(),
        }
    }

    /// The same dialect for another limiter.
    pub(crate) fn of(&self, limiter: &RateLimiter) -> Self {
        Self::new(self.dialect, limiter)
    }

    pub(crate) fn are_off(&self) -> bool {
        self.dialect == RateLimitHeaders::Off
    }

    /// Tells what a decision left.
    pub(crate) fn tell(&self, decision: &Decision, headers: &mut HeaderMap) {
        match self.dialect {
            RateLimitHeaders::Draft => self.tell_draft(decision, headers),
            RateLimitHeaders::Legacy => tell_legacy(decision, headers),
            RateLimitHeaders::Off => {}
        }
    }

    fn tell_draft(&self, decision: &Decision, headers: &mut HeaderMap) {
        let Some(policy) = &self.policy else {
            return;
        };
        if decision.usages().is_empty() {
            // Admitted without being counted: nothing is known that could be told.
            return;
        }
        let retry_after = retry_after(headers);
        let own = decision.policies();
        let own = own.and_then(|own| policy_field(own.iter().flat_map(Policy::quotas)));
        headers.append(RATELIMIT_POLICY, own.unwrap_or_else(|| policy.clone()));
        let mut field = String::new();
        let (mut r, mut t) = (itoa::Buffer::new(), itoa::Buffer::new());
        for (member, usage) in self.members.iter().zip(decision.usages()) {
            let comma = if field.is_empty() { "" } else { ", " };
            let r = r.format(usage.remaining());
            // Not above a `Retry-After`, which may be that of a layer further in.
            let reset = reset(decision, usage).filter(|reset| *reset <= retry_after);
            let (parameter, t) = match reset {
                Some(reset) => (";t=", t.format(reset.min(MAX_INTEGER))),
                None => ("", ""),
            };
            let parts = [comma, member, r, parameter, t];
            // No more than that, so that the string becomes the value without a copy.
            field.reserve_exact(parts.iter().map(|part| part.len()).sum());
            parts.iter().for_each(|part| field.push_str(part));
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(field)) {
            headers.append(RATELIMIT, value);
        }
    }
}

/// The seconds of a response's `Retry-After`; no bound if it has none, or a date.
fn retry_after(headers: &HeaderMap) -> u64 {
    let value = headers.get(RETRY_AFTER);
    let seconds = value.and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.unwrap_or(u64::MAX)
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3), unless a response has one already.
pub(crate) fn tell_retry_after(seconds: Option<u64>, headers: &mut HeaderMap) {
    if let Some(seconds) = seconds {
        headers
            .entry(RETRY_AFTER)
            .or_insert_with(|| HeaderValue::from(seconds));
    }
}

/// The field `retry-after-ms`, as clients of Azure and OpenAI read it: milliseconds, rounded up.
pub(crate) fn tell_retry_after_ms(wait: Option<Duration>, headers: &mut HeaderMap) {
    let millis = wait.map(|wait| wait.as_nanos().div_ceil(1_000_000).max(1));
    if let Some(millis) = millis {
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        headers.insert(RETRY_AFTER_MS, millis.into());
    }
}

/// `t`: in a refusal only of quotas that refuse, because no other says when to come back and
/// `Retry-After` must not be below any `t`.
fn reset(decision: &Decision, usage: &Usage) -> Option<u64> {
    if decision.is_admitted() {
        Some(ceil_seconds(usage.reset()))
    } else {
        usage.retry_after().map(whole_seconds)
    }
}

fn tell_legacy(decision: &Decision, headers: &mut HeaderMap) {
    let (Some(limit), Some(remaining), Some(reset)) =
        (decision.limit(), decision.remaining(), decision.reset())
    else {
        return;
    };
    // These are no lists. A tighter limit further in was told already.
    let told = headers
        .get(REMAINING)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if told.is_some_and(|told: u32| told <= remaining) {
        return;
    }
    headers.insert(LIMIT, limit.into());
    headers.insert(REMAINING, remaining.into());
    headers.insert(RESET, ceil_seconds(reset).into());
}

fn ceil_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The largest integer of a structured field (RFC 9651 §3.3.1): 15 digits.
const MAX_INTEGER: u64 = 999_999_999_999_999;

fn policy_field<'a>(quotas: impl Iterator<Item = &'a NamedQuota>) -> Option<HeaderValue> {
    let mut field = String::new();
    for quota in quotas {
        member(&mut field, &sf_string(quota.name()));
        let Some(rate) = quota.quota().rate() else {
            field.push_str(";q=0");
            continue;
        };
        let _ = write!(field, ";q={}", rate.limit());
        // Whole seconds above 0; a shorter window has none.
        let window = if rate.is_sliding() {
            // Rounded up: who keeps to it keeps to the quota.
            rate.period().as_nanos().div_ceil(NANOS_PER_SECOND)
                * NANOS_PER_SECOND
                * u128::from(rate.period().as_secs() > 0)
        } else {
            rate.window_nanos()
        };
        if window >= NANOS_PER_SECOND {
            let seconds = (window + NANOS_PER_SECOND / 2) / NANOS_PER_SECOND;
            let _ = write!(field, ";w={seconds}");
        }
    }
    if field.is_empty() {
        return None;
    }
    HeaderValue::from_maybe_shared(Bytes::from(field)).ok()
}

/// Begins a list member (RFC 9651 §3.1).
fn member(field: &mut String, name: &str) {
    if !field.is_empty() {
        field.push_str(", ");
    }
    field.push_str(name);
}

/// A String (RFC 9651 §3.3.3). Policies' names are printable ASCII.
fn sf_string(text: &str) -> String {
    let mut string = String::with_capacity(text.len() + 2);
    string.push('"');
    for char in text.chars() {
        if matches!(char, '"' | '\\') {
            string.push('\\');
        }
        string.push(char);
    }
    string.push('"');
    string
}
