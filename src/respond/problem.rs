//! Problem details (RFC 9457).

use std::fmt;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde::{Serialize, Serializer};

use super::Responder;
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
    #[serde(flatten)]
    occupancy: Option<Occupied>,
    /// Where no header can say it.
    #[serde(rename = "retry-after", skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

/// Which limit on what is at work is reached, and how many are and may be.
#[derive(Serialize)]
struct Occupied {
    exceeded: &'static str,
    usage: u64,
    limit: u64,
}

impl Occupied {
    fn of(rejection: &Rejection) -> Option<Self> {
        let occupancy = rejection.occupancy()?;
        Some(Self {
            exceeded: match rejection.reason() {
                Reason::KeyAtCapacity => "tenant",
                _ => "total",
            },
            usage: occupancy.used,
            limit: occupancy.allowed,
        })
    }
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
        // No registered type fits. RFC 9457 §4.2.1: the title is then that of the status.
        Reason::Denied => ("about:blank", "Forbidden"),
        Reason::KeyAtCapacity | Reason::QuotaExceeded | Reason::CostExceedsQuota => (
            "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "Quota exceeded",
        ),
    }
}

impl Responder for Problem {
    fn respond(&self, rejection: &Rejection, _: RequestHead<'_>) -> Response<Bytes> {
        problem(rejection)
    }
}

pub(super) fn problem(rejection: &Rejection) -> Response<Bytes> {
    let status = rejection.reason().status();
    json(status, &details(rejection, status, rejection.reason()))
}

/// A limit on what is at work told as the caller's own, also when it is that of all: 429.
#[cfg(feature = "axum")]
pub(crate) fn over_quota(rejection: &Rejection) -> Response<Bytes> {
    let status = StatusCode::TOO_MANY_REQUESTS;
    json(status, &details(rejection, status, Reason::KeyAtCapacity))
}

/// A problem where there are no headers.
#[cfg(feature = "ws")]
pub(crate) fn problem_text(rejection: &Rejection) -> String {
    let mut details = details(rejection, rejection.reason().status(), rejection.reason());
    details.retry_after = rejection.retry_after_seconds();
    serde_json::to_string(&details).expect("strings and numbers serialise")
}

/// The details of a rejection, with the problem type of a reason.
fn details(rejection: &Rejection, status: StatusCode, reason: Reason) -> Details<'_> {
    let (r#type, title) = problem_type(reason);
    Details {
        r#type,
        title,
        status: status.as_u16(),
        detail: rejection,
        violated: Violated(rejection),
        occupancy: Occupied::of(rejection),
        retry_after: None,
    }
}

/// A problem that is no refusal of a limit's: what the status says, and a sentence about it.
#[cfg(feature = "axum")]
pub(crate) fn plain_problem(status: StatusCode, detail: &str) -> Response<Bytes> {
    #[derive(Serialize)]
    struct About<'a> {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        detail: &'a str,
    }
    let about = About {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or_default(),
        status: status.as_u16(),
        detail,
    };
    json(status, &about)
}

fn json(status: StatusCode, details: &impl Serialize) -> Response<Bytes> {
    let mut json = Vec::with_capacity(320);
    serde_json::to_writer(&mut json, details).expect("strings and numbers serialise");
    let mut response = Response::new(Bytes::from(json));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    response
}
