//! Answers to denied clients: 403 in every layer, without `Retry-After`.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::{Request, Response, StatusCode};
use http_body::Body;
use serde_json::json;
use tonic::{Code, Status};
use tower::Layer;
use tower_admission::respond::{Grpc, Negotiated};
use tower_admission::{
    ConcurrencyLimitLayer, Key, Leases, Limits, Policy, Quota, RateLimitByTokenLayer,
    RateLimitLayer, Reason,
};

use crate::common::{
    Counting, Seen, boxed, by_user, header, ok, retry_after, send, status, text, user,
};

fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(ready) => ready,
        Poll::Pending => panic!("limits in memory answer at once"),
    }
}

/// Limits that deny everything to `user:eve`.
fn denying_eve() -> Limits {
    let limits = Limits::new();
    let (eve, deny_all) = ("user:eve".parse().unwrap(), "deny all".parse().unwrap());
    now(limits.set(&eve, deny_all)).unwrap();
    limits
}

fn concurrency(limits: &Limits) -> ConcurrencyLimitLayer {
    ConcurrencyLimitLayer::new(9)
        .per_key(by_user, 3)
        .limits(limits)
}

fn rate(limits: &Limits) -> RateLimitLayer<impl tower_admission::KeyExtractor> {
    let policy = Policy::new("burst", Quota::per_second(9)).and("daily", Quota::per_day(99));
    RateLimitLayer::by(by_user, policy).limits(limits)
}

/// Asserts that a response denies access, with these violated quotas.
async fn assert_denied<B: Body<Error: std::fmt::Debug>>(denied: Response<B>, violated: &[&str]) {
    assert_eq!(denied.status(), 403);
    assert_eq!(retry_after(&denied), None);
    assert_eq!(header(&denied, "cache-control"), Some("no-store"));
    assert_eq!(
        header(&denied, "content-type"),
        Some("application/problem+json")
    );
    let mut expected = json!({
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": "Access denied: no requests are admitted for this client.",
    });
    if !violated.is_empty() {
        expected["violated-policies"] = json!(violated);
    }
    let problem: serde_json::Value = serde_json::from_str(&text(denied).await).unwrap();
    assert_eq!(problem, expected);
}

#[tokio::test]
async fn a_key_with_deny_all_is_answered_403_by_a_concurrency_limit() {
    let (seen, _released) = Seen::new();
    let service = concurrency(&denying_eve())
        .observe(seen.clone())
        .layer(Counting::default());
    assert_denied(send(&service, user("eve")).await, &[]).await;
    assert_eq!(seen.take(), ["rejected concurrency denied"]);
    assert_eq!(status(&service, user("alice")).await, 200);
}

#[tokio::test]
async fn a_key_with_deny_all_is_answered_403_by_a_rate_limit() {
    let (seen, _released) = Seen::new();
    let service = rate(&denying_eve())
        .observe(seen.clone())
        .layer(Counting::default());
    let denied = send(&service, user("eve")).await;
    assert_denied(denied, &["burst", "daily"]).await;
    assert_eq!(seen.take(), ["rejected http denied"]);
    assert_eq!(status(&service, user("alice")).await, 200);
}

#[tokio::test]
async fn a_policy_that_denies_all_is_answered_403() {
    let policy = Policy::new("open", Quota::per_hour(9)).and("closed", Quota::deny_all());
    let service = RateLimitLayer::by(by_user, policy)
        .cost(|_| 99)
        .layer(Counting::default());
    // The cost never fits the first quota; that the second denies all is what counts.
    let denied = send(&service, user("alice")).await;
    assert_denied(denied, &["open", "closed"]).await;
}

#[tokio::test]
async fn a_service_without_capacity_is_unavailable_and_denies_nobody() {
    let full = ConcurrencyLimitLayer::deny_all().layer(Counting::default());
    let rejected = send(&full, user("alice")).await;
    assert_eq!(rejected.status(), 503);
    assert_eq!(retry_after(&rejected), Some(1));
}

#[tokio::test]
async fn grpc_answers_permission_denied_and_forbids_a_retry() {
    let limits = denying_eve();
    let call = || {
        Request::post("/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("user", "eve")
            .body(())
            .unwrap()
    };
    // Codes that clients retry are for limits that have room later.
    let codes = Grpc::default()
        .caller_code(Code::Unavailable as u8)
        .capacity_code(Code::Unavailable as u8);
    let responder = Negotiated::default().grpc(codes);
    let concurrency = concurrency(&limits).respond(responder.clone());
    let concurrency = concurrency.layer(Counting::default());
    let rate = rate(&limits).respond(responder).layer(Counting::default());
    for denied in [
        boxed(send(&concurrency, call()).await),
        boxed(send(&rate, call()).await),
    ] {
        assert_eq!(denied.status(), 200);
        let status = Status::from_header_map(denied.headers()).unwrap();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(
            status.message(),
            "Access denied: no requests are admitted for this client."
        );
        assert_eq!(header(&denied, "grpc-retry-pushback-ms"), Some("-1"));
        assert_eq!(header(&denied, "grpc-status-details-bin"), None);
    }
}

#[tokio::test]
async fn a_tenant_with_deny_all_is_denied_also_when_all_slots_are_taken() {
    let limits = denying_eve();
    let leases = Leases::new().per_tenant(2).total(1).limits(&limits);
    let (eve, alice) = (Key::id("user", "eve"), Key::id("user", "alice"));
    let denied = leases.acquire(&eve, "job").await.unwrap_err();
    assert_eq!(denied.reason(), Reason::Denied);
    assert_eq!(denied.retry_after(), None);
    let _held = leases.acquire(&alice, "job").await.unwrap();
    let denied = leases.acquire(&eve, "job").await.unwrap_err();
    assert_eq!(denied.reason(), Reason::Denied);
    let rejected = leases.acquire(&alice, "other").await.unwrap_err();
    assert_eq!(rejected.reason(), Reason::AtCapacity);
}

#[tokio::test]
async fn a_403_of_a_limit_is_not_charged_as_a_bad_credential() {
    let by_eve = |_: tower_admission::RequestHead<'_>| Some(Key::id("user", "eve"));
    let limits = denying_eve();
    let inner = ConcurrencyLimitLayer::new(9)
        .per_key(by_eve, 3)
        .limits(&limits)
        .layer(Counting::default());
    let guard = RateLimitByTokenLayer::new(Quota::per_hour(99)).guard_by_ip(Quota::per_hour(2));
    let service = guard.layer(inner);
    let request = || {
        let mut request = crate::common::bearer("valid");
        let peer = crate::common::peer("192.0.2.1");
        request.extensions_mut().insert(peer);
        request
    };
    for _ in 0..9 {
        assert_eq!(status(&service, request()).await, 403);
    }
    // A 403 of the application is charged.
    let application = guard.layer(crate::common::answering(|_: Request<()>| {
        let mut response = ok();
        *response.status_mut() = StatusCode::FORBIDDEN;
        response
    }));
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(status(&application, request()).await);
    }
    assert_eq!(statuses, [403, 403, 429]);
}
