//! Answers to rejected clients over HTTP.

use http::{Request, Response};
use serde_json::{Value, json};
use tonic::Code;
use tower::Layer;
use tower_admission::extract::KeyExtractor;
use tower_admission::respond::{Plain, Problem};
use tower_admission::{
    ConcurrencyLimitLayer, Decision, Key, Limits, MemoryStore, Policy, Quota, RateLimitLayer,
    RateLimiter, Reason, Rejection, RequestHead,
};

use crate::common::{
    BoxedBody, Counting, SECOND, boxed, by_user, header, request, send, status, text, user,
    with_header,
};

type Refused = Response<BoxedBody>;

async fn full(name: &str, request: Request<()>) -> Refused {
    let layer = ConcurrencyLimitLayer::deny_all().name(name);
    boxed(send(&layer.layer(Counting::default()), request).await)
}

async fn over<K: KeyExtractor>(layer: RateLimitLayer<K>) -> Refused {
    let service = layer.layer(Counting::default());
    while status(&service, user("alice")).await == 200 {}
    boxed(send(&service, user("alice")).await)
}

async fn problem<B>(refused: Response<B>) -> Value
where
    B: http_body::Body<Error: std::fmt::Debug>,
{
    assert_eq!(
        header(&refused, "content-type"),
        Some("application/problem+json")
    );
    let status = refused.status().as_u16();
    let problem: Value = serde_json::from_str(&text(refused).await).unwrap();
    assert_eq!(problem["status"], status);
    problem
}

#[tokio::test]
async fn a_rejection_at_capacity_is_a_problem() {
    let refused = full("AI Bridge", request()).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(
        problem(refused).await,
        json!({
            "type": "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            "title": "Temporarily reduced capacity",
            "status": 503,
            "detail": "AI Bridge is currently at capacity. Please try again later.",
        })
    );
    let unnamed = problem(full("", request()).await).await;
    assert_eq!(
        unnamed["detail"],
        "The service is currently at capacity. Please try again later."
    );
}

#[tokio::test]
async fn a_rejection_by_a_quota_names_the_violated_policy() {
    let policy = Policy::new("burst", Quota::per_minute(60)).and("daily", Quota::per_day(3));
    let refused = over(RateLimitLayer::by(by_user, policy)).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(
        problem(refused).await,
        json!({
            "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "title": "Quota exceeded",
            "status": 429,
            "detail": "Rate limit exceeded. Please try again later.",
            "violated-policies": ["daily"],
        })
    );
}

#[tokio::test]
async fn every_violated_policy_is_named() {
    let policy = Policy::new("one", Quota::per_hour(2))
        .and("roomy", Quota::per_hour(100))
        .and("two \"\\", Quota::per_day(2));
    let problem = problem(over(RateLimitLayer::by(by_user, policy)).await).await;
    assert_eq!(problem["violated-policies"], json!(["one", "two \"\\"]));
}

#[tokio::test]
async fn a_cost_that_never_fits_has_its_own_message() {
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(2)).cost(|_| 3);
    let refused = send(&layer.layer(Counting::default()), user("alice")).await;
    let problem = problem(refused).await;
    assert_eq!(
        problem["detail"],
        "This request costs more than its rate limit ever grants at once."
    );
    assert_eq!(problem["violated-policies"], json!(["default"]));
}

#[tokio::test]
async fn a_name_with_special_characters_is_escaped() {
    for name in [
        "\"AI\" \\ Bridge",
        "Brücke 🌉",
        "a\nb\t\u{0}",
        "</script>",
        "\u{202e}",
    ] {
        let detail = format!("{name} is currently at capacity. Please try again later.");
        let json = full(name, request()).await;
        assert_eq!(problem(json).await["detail"], detail);
        let plain = full(name, with_header("accept", "text/plain")).await;
        assert_eq!(text(plain).await, detail);
    }
}

#[tokio::test]
async fn the_answer_has_an_accepted_format() {
    let json = "application/problem+json";
    let plain = "text/plain; charset=utf-8";
    for (accept, content_type) in [
        ("text/plain", plain),
        ("text/*", plain),
        ("text/html, text/plain;q=0.5", plain),
        ("text/plain; charset=utf-8", plain),
        ("*/*", json),
        ("text/plain, */*;q=0.1", json),
        ("text/plain, application/json", json),
        ("application/problem+json", json),
        ("text/html", json),
        ("", json),
        ("text/plainer", json),
        (";;,,", json),
    ] {
        let refused = full("x", with_header("accept", accept)).await;
        assert_eq!(refused.status(), 503);
        assert_eq!(
            header(&refused, "content-type"),
            Some(content_type),
            "{accept:?}"
        );
    }
    let refused = full("x", request()).await;
    assert_eq!(header(&refused, "content-type"), Some(json));
}

#[tokio::test]
async fn media_types_are_case_insensitive() {
    // RFC 9110 §8.3.1.
    let refused = full("x", with_header("accept", "Text/Plain")).await;
    assert_eq!(
        header(&refused, "content-type"),
        Some("text/plain; charset=utf-8")
    );
}

#[tokio::test]
async fn several_accept_lines_are_one_list() {
    let request = Request::builder()
        .header("accept", "text/plain")
        .header("accept", "application/json")
        .body(())
        .unwrap();
    let refused = full("x", request).await;
    assert_eq!(
        header(&refused, "content-type"),
        Some("application/problem+json")
    );
}

#[tokio::test]
async fn a_layer_can_use_one_format() {
    let refused = over(RateLimitLayer::by(by_user, Quota::per_hour(1)).respond(Plain)).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(
        header(&refused, "content-type"),
        Some("text/plain; charset=utf-8")
    );
    let layer = ConcurrencyLimitLayer::deny_all().respond(Problem);
    let accepts_text = with_header("accept", "text/plain");
    let refused = send(&layer.layer(Counting::default()), accepts_text).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(
        header(&refused, "content-type"),
        Some("application/problem+json")
    );
}

#[tokio::test]
async fn a_weight_of_zero_excludes_a_format() {
    // RFC 9110 §12.4.2.
    for (accept, content_type) in [
        (
            "text/plain, application/json;q=0",
            "text/plain; charset=utf-8",
        ),
        ("text/plain;q=0", "application/problem+json"),
        ("text/plain; q=0.000, text/html", "application/problem+json"),
    ] {
        let refused = full("x", with_header("accept", accept)).await;
        assert_eq!(
            header(&refused, "content-type"),
            Some(content_type),
            "{accept}"
        );
    }
}

#[tokio::test]
async fn a_closure_can_return_any_body_that_converts_to_bytes() {
    async fn answered(layer: ConcurrencyLimitLayer) -> String {
        text(send(&layer.layer(Counting::default()), request()).await).await
    }
    let full = ConcurrencyLimitLayer::deny_all;
    let with_str = full().respond(|_: &Rejection, _: RequestHead<'_>| Response::new("full"));
    assert_eq!(answered(with_str).await, "full");
    let with_string = full().respond(|rejection: &Rejection, head: RequestHead<'_>| {
        Response::new(format!("{} {}", head.method, rejection.reason().as_str()))
    });
    assert_eq!(answered(with_string).await, "GET at_capacity");
    let with_bytes = full().respond(|_: &Rejection, _: RequestHead<'_>| {
        Response::new(bytes::Bytes::from_static(b"full"))
    });
    assert_eq!(answered(with_bytes).await, "full");
    let with_vec = full().respond(|_: &Rejection, _: RequestHead<'_>| Response::new(vec![b'x']));
    assert_eq!(answered(with_vec).await, "x");
}

#[test]
fn each_reason_has_one_status_and_one_grpc_code() {
    for (reason, status, code) in [
        (Reason::AtCapacity, 503, Code::Unavailable),
        (Reason::Unavailable, 503, Code::Unavailable),
        (Reason::KeyAtCapacity, 429, Code::ResourceExhausted),
        (Reason::QuotaExceeded, 429, Code::ResourceExhausted),
        (Reason::CostExceedsQuota, 429, Code::ResourceExhausted),
        (Reason::AbnormalUsage, 429, Code::ResourceExhausted),
        (Reason::Denied, 403, Code::PermissionDenied),
    ] {
        assert_eq!(reason.status(), status);
        assert_eq!(Code::from(i32::from(reason.grpc_code())), code);
    }
}

#[test]
fn a_decision_that_rejects_is_an_error_with_its_reason() {
    let key = Key::id("user", "alice");
    let limiter = RateLimiter::new(Quota::per_hour(2));
    assert!(limiter.check_now(&key).unwrap().into_result().is_ok());
    let costly = limiter
        .check_n(&key, 3)
        .now()
        .unwrap()
        .into_result()
        .unwrap_err();
    assert_eq!(costly.reason(), Reason::CostExceedsQuota);
    assert_eq!(costly.retry_after(), None);
    assert!(limiter.check_now(&key).unwrap().into_result().is_ok());
    let rejection = limiter.check_now(&key).unwrap().into_result().unwrap_err();
    assert_eq!(rejection.reason(), Reason::QuotaExceeded);
    let wait = rejection.retry_after().unwrap();
    assert!(wait > 1799 * SECOND && wait <= 1800 * SECOND, "{wait:?}");
    assert_eq!(rejection.decision().unwrap().limit(), Some(2));

    let denied = RateLimiter::new(Quota::deny_all())
        .check_now(&key)
        .unwrap()
        .into_result();
    assert_eq!(denied.unwrap_err().reason(), Reason::Denied);
    let away = Decision::unavailable().into_result().unwrap_err();
    assert_eq!(away.reason(), Reason::Unavailable);
    assert_eq!(away.retry_after(), Some(SECOND));
    let changed = RateLimiter::with_limits(
        Policy::new("mails", Quota::per_hour(9)),
        &MemoryStore::new(),
        &Limits::new(),
    );
    changed
        .set_policy(Policy::new("mails", Quota::deny_all()))
        .unwrap();
    let rejection = changed.check_now(&key).unwrap().into_result().unwrap_err();
    assert_eq!(rejection.reason(), Reason::Denied);
    // A decision has no quota names.
    assert_eq!(rejection.violated_policies().len(), 0);
}

#[tokio::test]
async fn a_rejection_is_a_response_of_a_handler() {
    let mails = RateLimiter::new(Quota::per_hour(1));
    let handler = move || async move {
        mails
            .check_now(&Key::id("user", "alice"))
            .unwrap()
            .into_result()?;
        Ok::<_, Rejection>("sent")
    };
    let app: axum::Router = axum::Router::new().route("/", axum::routing::get(handler));
    let get = || Request::new(axum::body::Body::empty());
    assert_eq!(status(&app, get()).await, 200);
    let rejected = send(&app, get()).await;
    assert_eq!(rejected.status(), 429);
    assert_eq!(header(&rejected, "retry-after"), Some("3600"));
    assert_eq!(header(&rejected, "cache-control"), Some("no-store"));
    assert_eq!(
        header(&rejected, "content-type"),
        Some("application/problem+json")
    );
    let problem: Value = serde_json::from_str(&text(rejected).await).unwrap();
    assert_eq!(problem["title"], "Quota exceeded");
}
