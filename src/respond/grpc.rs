//! gRPC answers: trailers-only, with RetryInfo.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::Responder;
use super::details::status_with_retry_info;
use crate::extract::RequestHead;
use crate::key::percent;
use crate::rejection::{Reason, Rejection};

/// Answers in gRPC: HTTP 200 with the status in the headers and without a body ("trailers-only").
///
/// Default code: that of the [reason](Reason::grpc_code). If the wait is known,
/// `grpc-status-details-bin` contains a `google.rpc.RetryInfo`, without which OTLP clients do not
/// retry RESOURCE_EXHAUSTED, and `grpc-retry-pushback-ms` contains the wait in milliseconds. If
/// retrying cannot succeed, `grpc-retry-pushback-ms` is -1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc {
    caller: Option<u8>,
    capacity: Option<u8>,
}

impl Grpc {
    /// Sets the status code for a limit of the caller. Default: RESOURCE_EXHAUSTED (8). A request
    /// that is [denied](Reason::Denied) or [banned](Reason::Banned) keeps PERMISSION_DENIED (7).
    #[must_use]
    pub fn caller_code(mut self, code: u8) -> Self {
        self.caller = Some(code);
        self
    }

    /// Sets the status code for a limit of the service. Default: UNAVAILABLE (14).
    #[must_use]
    pub fn capacity_code(mut self, code: u8) -> Self {
        self.capacity = Some(code);
        self
    }

    fn code(&self, reason: Reason) -> u8 {
        let code = match reason {
            // Clients retry the other codes.
            Reason::Denied | Reason::Banned => None,
            reason if reason.is_caller_limit() => self.caller,
            _ => self.capacity,
        };
        code.unwrap_or(reason.grpc_code())
    }
}

static STATUS: HeaderName = HeaderName::from_static("grpc-status");
static MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
static PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

impl Responder for Grpc {
    fn respond(&self, rejection: &Rejection, _: RequestHead<'_>) -> Response<Bytes> {
        let code = self.code(rejection.reason());
        let message = rejection.to_string();
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(&STATUS, u16::from(code).into());
        insert(headers, &MESSAGE, percent::encode(&message, is_safe).into());
        if let Some(wait) = rejection.retry_after() {
            let details = status_with_retry_info(code, &message, wait);
            insert(headers, &DETAILS, details);
            let millis = wait.as_nanos().div_ceil(1_000_000);
            let millis = i32::try_from(millis).unwrap_or(i32::MAX);
            headers.insert(&PUSHBACK, millis.into());
        } else if !rejection.reason().is_retryable() {
            headers.insert(&PUSHBACK, HeaderValue::from_static("-1"));
        }
        response
    }
}

fn insert(headers: &mut HeaderMap, name: &HeaderName, value: Vec<u8>) {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        headers.insert(name, value);
    }
}

/// Accepts `application/grpc`, alone or followed by `+` or `;`. `application/grpc-web` is another
/// protocol.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let prefix = b"application/grpc";
    let Some((start, rest)) = content_type.as_bytes().split_at_checked(prefix.len()) else {
        return false;
    };
    start.eq_ignore_ascii_case(prefix) && matches!(rest.first(), None | Some(b'+' | b';'))
}

/// Characters that `grpc-message` does not percent-encode: printable ASCII except the percent sign.
fn is_safe(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'%'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_distinguished_from_similar_content_types() {
        for (content_type, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("Application/GRPC", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            assert_eq!(is_grpc(&headers), grpc, "{content_type:?}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
