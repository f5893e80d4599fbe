//! `Retry-After` in seconds, and `retry-after-ms`.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName};

use super::number;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The seconds of a response's `Retry-After`. `u64::MAX` if it has none, or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> u64 {
    let seconds = headers.get(RETRY_AFTER).and_then(number);
    seconds.unwrap_or(u64::MAX)
}

/// Adds `Retry-After` in seconds (RFC 9110 §10.2.3), unless the response already has it.
pub(crate) fn add_retry_after(seconds: Option<u64>, headers: &mut HeaderMap) {
    // `HeaderValue::from` reserves 20 digits, which costs a second allocation.
    let value = seconds.and_then(|seconds| itoa::Buffer::new().format(seconds).parse().ok());
    if let Some(value) = value {
        headers.entry(RETRY_AFTER).or_insert(value);
    }
}

/// Adds `retry-after-ms`: milliseconds, rounded up. Clients of Azure and OpenAI read it before
/// `Retry-After`.
pub(crate) fn add_retry_after_ms(wait: Option<Duration>, headers: &mut HeaderMap) {
    if let Some(wait) = wait {
        let millis = wait.as_nanos().div_ceil(1_000_000).max(1);
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        headers.insert(RETRY_AFTER_MS, millis.into());
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_existing_retry_after_stays() {
        let mut headers = HeaderMap::new();
        add_retry_after(None, &mut headers);
        assert!(headers.is_empty());
        assert_eq!(retry_after(&headers), u64::MAX);
        add_retry_after(Some(5), &mut headers);
        add_retry_after(Some(7), &mut headers);
        assert_eq!(headers[RETRY_AFTER], "5");
        assert_eq!(headers.len(), 1);
        assert_eq!(retry_after(&headers), 5);
        let date = HeaderValue::from_static("Fri, 31 Dec 1999 23:59:59 GMT");
        headers.insert(RETRY_AFTER, date);
        assert_eq!(retry_after(&headers), u64::MAX);
    }

    #[test]
    fn milliseconds_are_rounded_up_and_never_0() {
        let mut headers = HeaderMap::new();
        add_retry_after_ms(None, &mut headers);
        assert!(headers.is_empty());
        for (nanos, millis) in [
            (0, "1"),
            (1, "1"),
            (1_000_000, "1"),
            (1_000_001, "2"),
            (1_500_000_000, "1500"),
        ] {
            add_retry_after_ms(Some(Duration::from_nanos(nanos)), &mut headers);
            assert_eq!(headers[RETRY_AFTER_MS], millis);
        }
    }
}
