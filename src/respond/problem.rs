//! Problem details (RFC 9457).

use std::fmt;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use serde::{Serialize, Serializer};

use super::{Responder, status};
use crate::extract::RequestHead;
use crate::rejection::{Reason, Rejection};

/// Answers with `application/problem+json` (RFC 9457), with the problem types of
/// draft-ietf-httpapi-ratelimit-headers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Problem;

#[derive(Serialize)]
struct Details<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    #[serde(serialize_with = "display")]
    detail: &'a Rejection,
    #[serde(
        rename = "violated-policies",
        skip_serializing_if = "Violated::is_empty"
    )]
    violated: Violated<'a>,
}

struct Violated<'a>(&'a Rejection);

impl Violated<'_> {
    fn is_empty(&self) -> bool {
        self.0.violated_policies().len() == 0
    }
}

impl Serialize for Violated<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.violated_policies())
    }
}

fn display<S: Serializer>(text: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(text)
}

fn problem_type(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::AtCapacity | Reason::Unavailable => (
            "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            "Temporarily reduced capacity",
        ),
        Reason::AbnormalUsage => (
            "https://iana.org/assignments/http-problem-types#abnormal-usage-detected",
            "Abnormal usage detected",
        ),
        Reason::KeyAtCapacity | Reason::QuotaExceeded | Reason::CostExceedsQuota => (
            "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "Quota exceeded",
        ),
    }
}

impl Responder for Problem {
    fn respond(&self, rejection: &Rejection, _: RequestHead<'_>) -> Response<Bytes> {
        let status = status(rejection.reason());
        let (r#type, title) = problem_type(rejection.reason());
        let details = Details {
            r#type,
            title,
            status: status.as_u16(),
            detail: rejection,
            violated: Violated(rejection),
        };
        let mut json = Vec::with_capacity(320);
        serde_json::to_writer(&mut json, &details).expect("strings and numbers serialise");
        let mut response = Response::new(Bytes::from(json));
        *response.status_mut() = status;
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}
