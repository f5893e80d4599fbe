//! gRPC: trailers-only, with RetryInfo.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::encoding::{bytes as pb_bytes, int32, int64, string};

use super::Responder;
use crate::extract::RequestHead;
use crate::rejection::{Reason, Rejection};

/// Answers in gRPC: HTTP 200 with the status in the header and no body ("trailers-only").
///
/// The code is that of the [reason](Reason::grpc_code), unless it is set here. When the wait is
/// known, a `google.rpc.RetryInfo` is in `grpc-status-details-bin`, without which OTLP clients do not
/// retry RESOURCE_EXHAUSTED, and the wait in milliseconds in `grpc-retry-pushback-ms`. When waiting
/// is no use, `grpc-retry-pushback-ms` is -1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc {
    callers: Option<u8>,
    capacity: Option<u8>,
}

impl Grpc {
    /// Sets the status code for a limit of the caller's. Default: RESOURCE_EXHAUSTED (8). A request
    /// that is [denied](Reason::Denied) keeps PERMISSION_DENIED (7).
    #[must_use]
    pub fn callers_code(mut self, code: u8) -> Self {
        self.callers = Some(code);
        self
    }

    /// Sets the status code for capacity. Default: UNAVAILABLE (14).
    #[must_use]
    pub fn capacity_code(mut self, code: u8) -> Self {
        self.capacity = Some(code);
        self
    }

    fn code(&self, reason: Reason) -> u8 {
        let code = match reason {
            // Clients retry other codes.
            Reason::Denied => None,
            reason if reason.is_callers() => self.callers,
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
        insert(
            headers,
            &MESSAGE,
            utf8_percent_encode(&message, UNSAFE).to_string(),
        );
        if let Some(wait) = rejection.retry_after() {
            let details = status_with_retry_info(code, &message, wait);
            insert(headers, &DETAILS, STANDARD_NO_PAD.encode(details));
            let millis = wait.as_nanos().div_ceil(1_000_000);
            let millis = i32::try_from(millis).unwrap_or(i32::MAX);
            headers.insert(&PUSHBACK, millis.into());
        } else if !rejection.reason().is_retryable() {
            headers.insert(&PUSHBACK, HeaderValue::from_static("-1"));
        }
        response
    }
}

fn insert(headers: &mut HeaderMap, name: &HeaderName, value: String) {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        headers.insert(name, value);
    }
}

/// `application/grpc` followed by nothing, `+` or `;`. `application/grpc-web` is another protocol.
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

/// What `grpc-message` percent-encodes: all but printable ASCII, and the percent sign.
const UNSAFE: &AsciiSet = &CONTROLS.add(b'%');

/// A `google.rpc.Status` with one detail, a `google.rpc.RetryInfo`.
fn status_with_retry_info(code: u8, message: &str, wait: Duration) -> Vec<u8> {
    let mut duration = Vec::with_capacity(16);
    // The longest google.protobuf.Duration: 10,000 years.
    let seconds = wait.as_secs().min(315_576_000_000) as i64;
    int64::encode(1, &seconds, &mut duration);
    // Below a thousand million, so it fits.
    int32::encode(2, &(wait.subsec_nanos() as i32), &mut duration);

    let mut retry_info = Vec::with_capacity(duration.len() + 2);
    pb_bytes::encode(1, &duration, &mut retry_info);

    let mut any = Vec::with_capacity(retry_info.len() + 48);
    string::encode(
        1,
        &"type.googleapis.com/google.rpc.RetryInfo".to_owned(),
        &mut any,
    );
    pb_bytes::encode(2, &retry_info, &mut any);

    let mut status = Vec::with_capacity(any.len() + message.len() + 8);
    int32::encode(1, &i32::from(code), &mut status);
    string::encode(2, &message.to_owned(), &mut status);
    pb_bytes::encode(3, &any, &mut status);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_from_its_neighbours() {
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
