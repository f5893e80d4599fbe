//! Problem details (RFC 9457).

use std::fmt::Write;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};

use super::Responder;
use super::json::{Json, ToJson};
use crate::extract::RequestHead;
use crate::rejection::{Occupancy, Reason, Rejection};

/// Answers with `application/problem+json` (RFC 9457), with the problem types of
/// draft-ietf-httpapi-ratelimit-headers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Problem;

impl Responder for Problem {
    fn respond(&self, rejection: &Rejection, _: RequestHead<'_>) -> Response<Bytes> {
        problem(rejection)
    }
}

pub(super) fn problem(rejection: &Rejection) -> Response<Bytes> {
    problem_for(rejection, rejection.reason())
}

/// Makes a problem response (RFC 9457) of the type `quota-exceeded` with status 429, also for a
/// limit on all callers together.
#[must_use]
pub fn quota_problem(rejection: &Rejection) -> Response<Bytes> {
    problem_for(rejection, Reason::KeyAtCapacity)
}

fn problem_for(rejection: &Rejection, reason: Reason) -> Response<Bytes> {
    let details = ProblemJson {
        rejection,
        reason,
        retry_after: None,
    };
    response(reason.status(), details.to_json())
}

/// Writes a problem (RFC 9457) as JSON for a protocol without headers, with the member
/// `retry-after` in seconds.
#[must_use]
pub fn problem_json(rejection: &Rejection) -> String {
    let details = ProblemJson {
        rejection,
        reason: rejection.reason(),
        retry_after: rejection.retry_after_seconds(),
    };
    details.to_json()
}

fn response(status: StatusCode, json: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(json));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    response
}

struct ProblemJson<'a> {
    rejection: &'a Rejection,
    /// The reason that determines the problem type.
    reason: Reason,
    /// In seconds, for protocols without headers.
    retry_after: Option<u64>,
}

impl ToJson for ProblemJson<'_> {
    fn write<W: Write>(&self, json: &mut Json<'_, W>) {
        let rejection = self.rejection;
        json.raw(beginning(self.reason));
        match rejection.fixed_sentence() {
            Some(sentence) => json.raw(sentence),
            None => json.display(rejection),
        }
        json.raw("\"");
        let violated = rejection.violated_policies();
        if violated.len() > 0 {
            let mut separator = r#","violated-policies":["#;
            for name in violated {
                json.raw(separator);
                json.string(name);
                separator = ",";
            }
            json.raw("]");
        }
        if let Some(Occupancy { used, allowed }) = rejection.occupancy() {
            json.raw(match rejection.reason() {
                Reason::KeyAtCapacity => r#","exceeded":"tenant","usage":"#,
                _ => r#","exceeded":"total","usage":"#,
            });
            json.number(used);
            json.raw(r#","limit":"#);
            json.number(allowed);
        }
        if let Some(seconds) = self.retry_after {
            json.raw(r#","retry-after":"#);
            json.number(seconds);
        }
        json.raw("}");
    }
}

/// The members that depend only on the reason, up to the text of `detail`.
fn beginning(reason: Reason) -> &'static str {
    macro_rules! beginning {
        ($type:literal, $title:literal, $status:literal) => {
            concat!(
                r#"{"type":""#,
                $type,
                r#"","title":""#,
                $title,
                r#"","status":"#,
                $status,
                r#","detail":""#
            )
        };
    }
    match reason {
        Reason::AtCapacity | Reason::Unavailable => beginning!(
            "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            "Temporarily reduced capacity",
            503
        ),
        Reason::AbnormalUsage => beginning!(
            "https://iana.org/assignments/http-problem-types#abnormal-usage-detected",
            "Abnormal usage detected",
            429
        ),
        // No registered type fits. RFC 9457 §4.2.1: the title of `about:blank` is that of the
        // status.
        Reason::Denied | Reason::Banned => beginning!("about:blank", "Forbidden", 403),
        Reason::KeyAtCapacity | Reason::QuotaExceeded | Reason::CostExceedsQuota => beginning!(
            "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "Quota exceeded",
            429
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::decision::{Decision, Usage};

    const REASONS: [Reason; 7] = [
        Reason::AtCapacity,
        Reason::KeyAtCapacity,
        Reason::QuotaExceeded,
        Reason::CostExceedsQuota,
        Reason::Denied,
        Reason::AbnormalUsage,
        Reason::Unavailable,
    ];

    /// Reads the problem, and checks that the length was counted correctly.
    fn read(response: &Response<Bytes>) -> Value {
        let problem: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(problem["status"], response.status().as_u16());
        problem
    }

    #[test]
    fn every_reason_has_its_status_and_its_sentence() {
        for reason in REASONS {
            for name in ["", "AI Bridge", "\"\\\n\u{1f}ä\u{2028}🌉"] {
                let rejection = Rejection::new(reason, name);
                let response = problem(&rejection);
                assert_eq!(response.status(), reason.status());
                let problem = read(&response);
                assert_eq!(problem["detail"], rejection.to_string());
                assert_eq!(problem.as_object().unwrap().len(), 4, "{problem}");
            }
        }
    }

    #[test]
    fn numbers_and_names_are_members() {
        let usage = Usage::rejected(1, 0, Duration::ZERO, Some(Duration::from_millis(1500)));
        let decision = Decision::from_usages([usage, usage]);
        let names = [r#"a "b" \"#, &"ä".repeat(10_000)].map(Arc::from);
        let rejection = Rejection::new(Reason::QuotaExceeded, "");
        let rejection = rejection.with_decision(decision, names.iter().cloned().collect());
        let mut expected = json!({
            "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "title": "Quota exceeded",
            "status": 429,
            "detail": "Rate limit exceeded. Please try again later.",
            "violated-policies": names.map(|name| name.to_string()),
        });
        assert_eq!(read(&problem(&rejection)), expected);
        let details = ProblemJson {
            rejection: &rejection,
            reason: rejection.reason(),
            retry_after: rejection.retry_after_seconds(),
        };
        expected["retry-after"] = 2.into();
        let text: Value = serde_json::from_str(&details.to_json()).unwrap();
        assert_eq!(text, expected);

        for (reason, exceeded) in [
            (Reason::KeyAtCapacity, "tenant"),
            (Reason::AtCapacity, "total"),
        ] {
            let rejection = Rejection::new(reason, "jobs").with_occupancy(u64::MAX, 0);
            let problem = read(&problem_for(&rejection, Reason::KeyAtCapacity));
            assert_eq!(problem["detail"], rejection.to_string());
            assert_eq!(problem["exceeded"], exceeded);
            assert_eq!(
                (&problem["usage"], &problem["limit"]),
                (&json!(u64::MAX), &json!(0))
            );
            assert_eq!(problem["title"], "Quota exceeded");
        }
    }
}
