//! Checks and bounds the values of a request that are logged, because a client controls all of them.

use std::fmt::{self, Write};

use super::RequestHead;

/// The maximum length of a logged `X-Request-Id`: twice a UUID in hexadecimal digits.
const MAX_REQUEST_ID: usize = 64;

/// The maximum number of logged bytes of a path.
const MAX_PATH: usize = 256;

/// The trace id of a `traceparent` header (W3C Trace Context): 32 hexadecimal digits in lower case,
/// not all 0. `None` if the header is invalid.
pub(crate) fn trace_id(head: RequestHead<'_>) -> Option<&str> {
    let value = single_value(head, "traceparent")?;
    let [version, trace, parent, flags] = fields(value)?;
    let is_right = is_hex(version, 2)
        && version != "ff"
        && is_hex(trace, 32)
        && is_hex(parent, 16)
        && is_hex(flags, 2);
    let is_set = |id: &str| id.bytes().any(|digit| digit != b'0');
    (is_right && is_set(trace) && is_set(parent)).then_some(trace)
}

/// The value of `X-Request-Id`, if the header occurs once and has at most 64 letters, digits or
/// `-_.:=+/`. This covers UUIDs, ULIDs, Base64 and the ids of load balancers.
pub(crate) fn request_id(head: RequestHead<'_>) -> Option<&str> {
    let value = single_value(head, "x-request-id")?;
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:=+/".contains(&byte);
    let is_right = (1..=MAX_REQUEST_ID).contains(&value.len()) && value.bytes().all(is_known);
    is_right.then_some(value)
}

/// The method, or `_OTHER` for a non-standard method, as in OpenTelemetry.
pub(crate) fn method(head: RequestHead<'_>) -> &str {
    const KNOWN: [&str; 10] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
    ];
    let method = head.method.as_str();
    if KNOWN.contains(&method) {
        method
    } else {
        "_OTHER"
    }
}

/// A path without its query. Shows at most 256 bytes, and percent-encodes all but printable ASCII.
pub(crate) struct Path<'a>(pub(crate) &'a str);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes().take(MAX_PATH) {
            if byte.is_ascii_graphic() {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        if self.0.len() > MAX_PATH {
            f.write_str("...")?;
        }
        Ok(())
    }
}

/// The value of a header that occurs exactly once.
fn single_value<'a>(head: RequestHead<'a>, name: &str) -> Option<&'a str> {
    let mut values = head.headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok()
}

/// The first four fields. Versions above 00 may have more.
fn fields(value: &str) -> Option<[&str; 4]> {
    let mut fields = value.split('-');
    let four = [
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    ];
    (four[0] != "00" || fields.next().is_none()).then_some(four)
}

fn is_hex(text: &str, length: usize) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == length && text.bytes().all(is_digit)
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Request = http::Request<()>;

    fn with(name: &str, value: &[u8]) -> Request {
        let request = Request::builder().header(name, value);
        request.body(()).unwrap()
    }

    #[test]
    fn a_traceparent_has_a_trace_id() {
        const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        for (value, expected) in [
            ("00-{ID}-00f067aa0ba902b7-01", true),
            // A later version may have more fields.
            ("01-{ID}-00f067aa0ba902b7-01-more", true),
            ("00-{ID}-00f067aa0ba902b7-01-more", false),
            ("ff-{ID}-00f067aa0ba902b7-01", false),
            ("00-{ID}-0000000000000000-01", false),
            ("00-{ID}-00f067aa0ba902b7", false),
            ("00-{ID}0-00f067aa0ba902b7-01", false),
            (
                "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                false,
            ),
            (
                "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
                false,
            ),
            ("", false),
        ] {
            let request = with("traceparent", value.replace("{ID}", ID).as_bytes());
            let found = trace_id(RequestHead::from(&request));
            assert_eq!(found, expected.then_some(ID), "{value}");
        }
    }

    #[test]
    fn a_request_id_is_bounded_and_printable() {
        let longest = "a".repeat(MAX_REQUEST_ID);
        let longer = "a".repeat(MAX_REQUEST_ID + 1);
        for (value, is_logged) in [
            ("0192f0c1-7b1c-7cc0-9c0a-3f1d5f0c2b11", true),
            ("Root=1-67891233-abcdef012345678912345678", true),
            (&longest, true),
            (&longer, false),
            ("", false),
            ("two words", false),
            ("a\u{e4}", false),
            ("\"quoted\"", false),
        ] {
            let request = with("x-request-id", value.as_bytes());
            let found = request_id(RequestHead::from(&request));
            assert_eq!(found, is_logged.then_some(value), "{value}");
        }
        let mut twice = with("x-request-id", b"one");
        twice
            .headers_mut()
            .append("x-request-id", http::HeaderValue::from_static("two"));
        assert_eq!(request_id(RequestHead::from(&twice)), None);
    }

    #[test]
    fn a_non_standard_method_is_logged_as_other() {
        for (sent, logged) in [("GET", "GET"), ("get", "_OTHER"), ("BREW", "_OTHER")] {
            let request = Request::builder().method(sent).body(()).unwrap();
            assert_eq!(method(RequestHead::from(&request)), logged);
        }
    }

    #[test]
    fn a_path_is_truncated_and_escaped() {
        assert_eq!(Path("/api/v1").to_string(), "/api/v1");
        assert_eq!(
            Path("/a b\x1b[31m\n\u{e4}").to_string(),
            "/a%20b%1B[31m%0A%C3%A4"
        );
        let long = Path(&"/".repeat(300)).to_string();
        assert_eq!(long, "/".repeat(256) + "...");
    }

    proptest! {
        #[test]
        fn any_logged_value_is_one_short_line(
            name in prop::sample::select(vec!["traceparent", "x-request-id"]),
            value in prop::collection::vec(any::<u8>(), 0..100),
            path in ".{0,400}",
        ) {
            if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                let mut request = Request::new(());
                request.headers_mut().insert(name, value);
                let head = RequestHead::from(&request);
                for id in [trace_id(head), request_id(head)].into_iter().flatten() {
                    prop_assert!(id.len() <= MAX_REQUEST_ID);
                    prop_assert!(id.bytes().all(|byte| byte.is_ascii_graphic()));
                }
            }
            let path = Path(&path).to_string();
            prop_assert!(path.len() <= 3 * MAX_PATH + 3);
            prop_assert!(path.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
