//! When to come back, in seconds and in milliseconds.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::number;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The seconds of a response's `Retry-After`; no bound if it has none, or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> u64 {
    let seconds = headers.get(RETRY_AFTER).and_then(number);
    seconds.unwrap_or(u64::MAX)
}

/// Adds `Retry-After` in seconds (RFC 9110 §10.2.3), unless a response has one already.
pub(crate) fn tell_retry_after(seconds: Option<u64>, headers: &mut HeaderMap) {
    if let Some(seconds) = seconds {
        headers
            .entry(RETRY_AFTER)
            .or_insert_with(|| HeaderValue::from(seconds));
    }
}

/// Adds `retry-after-ms`, which clients of Azure and OpenAI read before `Retry-After`:
/// milliseconds, rounded up.
pub(crate) fn tell_retry_after_ms(wait: Option<Duration>, headers: &mut HeaderMap) {
    if let Some(wait) = wait {
        let millis = wait.as_nanos().div_ceil(1_000_000).max(1);
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        headers.insert(RETRY_AFTER_MS, millis.into());
    }
}
