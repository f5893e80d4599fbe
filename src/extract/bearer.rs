//! The token of an `Authorization: Bearer` header.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::head::{Field, single};
use super::{Extracted, KeyExtractor, RequestHead};
use crate::key::Key;

/// Charges the token of an `Authorization: Bearer` header (RFC 6750 §2.1).
///
/// An `Authorization` header is [unusable](Extracted::Unusable) when it is repeated, has another
/// scheme, or has anything but one `b64token` after the scheme.
///
/// The token is not verified. A client can make up a token for each request, and each one has its
/// own bucket. See [`ByToken`](super::ByToken).
///
/// ```
/// use tower_admission::{Quota, RateLimitLayer};
/// use tower_admission::extract::{BearerToken, ClientIp, KeyExtractor};
///
/// let layer = RateLimitLayer::by(BearerToken.or(ClientIp::peer()), Quota::per_second(10));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct BearerToken;

impl KeyExtractor for BearerToken {
    #[inline]
    fn extract(&self, head: RequestHead<'_>) -> Extracted {
        key(head.headers)
    }
}

/// The key of the bearer token in a request's headers.
#[inline]
pub(super) fn key(headers: &HeaderMap) -> Extracted {
    match single(headers, &AUTHORIZATION).map(bearer_token) {
        Field::Once(Some(token)) => Extracted::Key(Key::new("bearer", token)),
        Field::Absent => Extracted::Absent,
        Field::Once(None) | Field::Repeated => Extracted::Unusable,
    }
}

/// The bearer token in a request's headers, if there is exactly one.
#[must_use]
pub fn token(headers: &HeaderMap) -> Option<&[u8]> {
    match single(headers, &AUTHORIZATION) {
        Field::Once(value) => bearer_token(value),
        Field::Absent | Field::Repeated => None,
    }
}

/// `credentials = "Bearer" 1*SP b64token`; the scheme is case-insensitive (RFC 9110 §11.1).
#[inline]
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8; 8] = b"bearer \0";
    /// The case bit of each letter, and all bits of the eighth byte, which belongs to the token.
    const IGNORED: u64 = u64::from_le_bytes([0x20, 0x20, 0x20, 0x20, 0x20, 0x20, 0, 0xff]);

    let scheme = u64::from_le_bytes(*value.first_chunk()?);
    if scheme | IGNORED != u64::from_le_bytes(*SCHEME) | IGNORED {
        return None;
    }
    let token = &value["bearer ".len()..];
    let token = token.trim_ascii();
    is_b64token(token).then_some(token)
}

/// `b64token = 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`
#[inline]
#[must_use]
pub fn is_b64token(token: &[u8]) -> bool {
    let mut text = token;
    while let [rest @ .., b'='] = text {
        text = rest;
    }
    // Without an early exit, so that it is done for many bytes at once.
    let is_token68 = |b: u8| {
        (b | 0x20).wrapping_sub(b'a') < 26
            || b.wrapping_sub(b'-') < 13 // - . / 0-9
            || b == b'_'
            || b == b'~'
            || b == b'+'
    };
    !text.is_empty() && text.iter().fold(true, |all, b| all & is_token68(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_rfc_6750_calls_a_token() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("BEARER   abc  ", Some("abc")),
            ("Bearer AZaz09-._~+/==", Some("AZaz09-._~+/==")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Bearer   ", None),
            ("Bearer a b", None),
            ("Bearer a,b", None),
            ("Bearer ===", None),
            ("Bearer a=b", None),
            ("Bearerabc def", None),
            ("Basic dXNlcjpwYXNz", None),
            ("", None),
        ] {
            assert_eq!(
                bearer_token(value.as_bytes()),
                token.map(str::as_bytes),
                "{value:?}"
            );
        }
        assert_eq!(bearer_token(b"Bearer \xff\xfe"), None);
    }

    #[test]
    fn every_byte_is_or_is_not_in_a_token() {
        for byte in 0..=u8::MAX {
            let expected = byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
            assert_eq!(is_b64token(&[byte]), expected, "{byte:#x}");
        }
    }
}
