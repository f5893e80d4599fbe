//! Answers to rejected clients over gRPC.

use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::Layer;
use tower_admission::respond::{Grpc, Negotiated};
use tower_admission::{ConcurrencyLimitLayer, Quota, RateLimitLayer};

use crate::common::{Counting, by_user, header, retry_after, send, timed};

fn grpc(content_type: &str) -> Request<()> {
    Request::post("/pkg.Service/Method")
        .header("content-type", content_type)
        .header("user", "alice")
        .body(())
        .unwrap()
}

/// Reads a rejection as a gRPC client does.
fn status_of<B: Body>(refused: &Response<B>) -> Status {
    assert_eq!(refused.status(), 200);
    assert_eq!(header(refused, "content-type"), Some("application/grpc"));
    assert!(refused.body().is_end_stream(), "trailers only");
    Status::from_header_map(refused.headers()).expect("a status in the headers")
}

#[tokio::test]
async fn a_rate_limit_is_resource_exhausted_with_retry_info() {
    let (layer, clock) = timed(by_user, Quota::per_second(2).burst(1));
    let service = layer.layer(Counting::default());
    assert_eq!(send(&service, grpc("application/grpc")).await.status(), 200);
    clock.advance(Duration::from_nanos(123_456_789));
    let refused = send(&service, grpc("application/grpc")).await;
    let status = status_of(&refused);
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        status.message(),
        "Rate limit exceeded. Please try again later."
    );
    let wait = Duration::from_nanos(500_000_000 - 123_456_789);
    let info = status.get_details_retry_info().expect("a RetryInfo");
    assert_eq!(info.retry_delay, Some(wait));
    assert_eq!(
        header(&refused, "grpc-retry-pushback-ms"),
        Some("377"),
        "rounded up"
    );
    assert_eq!(retry_after(&refused), Some(1));
    clock.advance(wait);
    let admitted = send(&service, grpc("application/grpc")).await;
    assert_eq!(header(&admitted, "grpc-status"), None);
}

#[tokio::test]
async fn the_details_are_a_google_rpc_status() {
    use prost::Message;
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let service = layer.layer(Counting::default());
    send(&service, grpc("application/grpc")).await;
    let refused = send(&service, grpc("application/grpc")).await;
    let status = status_of(&refused);
    let details = tonic_types::pb::Status::decode(status.details()).unwrap();
    assert_eq!(details.code, 8);
    assert_eq!(details.message, status.message());
    assert_eq!(details.details.len(), 1);
    let detail = &details.details[0];
    assert_eq!(detail.type_url, "type.googleapis.com/google.rpc.RetryInfo");
    let info = tonic_types::pb::RetryInfo::decode(&*detail.value).unwrap();
    let delay = info.retry_delay.unwrap();
    assert_eq!((delay.seconds, delay.nanos), (3600, 0));
}

#[tokio::test]
async fn a_service_at_capacity_is_unavailable() {
    let layer = ConcurrencyLimitLayer::deny_all().name("AI Bridge");
    let refused = send(&layer.layer(Counting::default()), grpc("application/grpc")).await;
    let status = status_of(&refused);
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.message(),
        "AI Bridge is currently at capacity. Please try again later."
    );
    let info = status.get_details_retry_info().unwrap();
    assert_eq!(info.retry_delay, Some(Duration::from_secs(1)));
    assert_eq!(header(&refused, "grpc-retry-pushback-ms"), Some("1000"));
}

#[tokio::test]
async fn a_key_at_its_concurrency_limit_is_resource_exhausted() {
    let layer = ConcurrencyLimitLayer::new(5).per_key(by_user, 1);
    let service = layer.layer(Counting::default());
    let _held = send(&service, grpc("application/grpc")).await;
    let refused = send(&service, grpc("application/grpc")).await;
    assert_eq!(status_of(&refused).code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn an_unknown_wait_sends_no_retry_info() {
    let layer = ConcurrencyLimitLayer::deny_all().retry_after(None);
    let refused = send(&layer.layer(Counting::default()), grpc("application/grpc")).await;
    assert!(status_of(&refused).get_details_retry_info().is_none());
    assert_eq!(header(&refused, "grpc-retry-pushback-ms"), None);
    assert_eq!(retry_after(&refused), None);
}

#[tokio::test]
async fn a_request_that_never_fits_forbids_a_retry() {
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(2)).cost(|_| 3);
    let refused = send(&layer.layer(Counting::default()), grpc("application/grpc")).await;
    assert_eq!(status_of(&refused).code(), Code::ResourceExhausted);
    assert_eq!(header(&refused, "grpc-retry-pushback-ms"), Some("-1"));
}

#[tokio::test]
async fn a_pushback_above_int32_is_clamped() {
    let layer = ConcurrencyLimitLayer::deny_all().retry_after(Some(Duration::MAX));
    let refused = send(&layer.layer(Counting::default()), grpc("application/grpc")).await;
    assert_eq!(status_of(&refused).code(), Code::Unavailable);
    assert_eq!(
        header(&refused, "grpc-retry-pushback-ms"),
        Some("2147483647")
    );
}

#[tokio::test]
async fn the_message_is_percent_encoded() {
    for name in ["Brücke 🌉", "100 % \"sure\"", "a\r\nb\u{0}\u{7f}"] {
        let layer = ConcurrencyLimitLayer::deny_all().name(name);
        let refused = send(&layer.layer(Counting::default()), grpc("application/grpc")).await;
        let sent = header(&refused, "grpc-message").unwrap();
        assert!(sent.bytes().all(|b| (b' '..=b'~').contains(&b)), "{sent}");
        assert_eq!(sent.contains("100 %25"), name.contains("100 %"));
        assert_eq!(
            status_of(&refused).message(),
            format!("{name} is currently at capacity. Please try again later.")
        );
    }
}

#[tokio::test]
async fn a_request_that_is_not_grpc_is_answered_in_http() {
    let service = ConcurrencyLimitLayer::deny_all().layer(Counting::default());
    for content_type in [
        "application/grpc+proto",
        "application/grpc;x=y",
        "APPLICATION/GRPC",
    ] {
        status_of(&send(&service, grpc(content_type)).await);
    }
    for content_type in [
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/grpcs",
        "application/json",
    ] {
        let refused = send(&service, grpc(content_type)).await;
        assert_eq!(refused.status(), 503, "{content_type}");
        assert_eq!(header(&refused, "grpc-status"), None);
    }
}

#[tokio::test]
async fn grpc_codes_are_configurable() {
    let codes = Grpc::default()
        .caller_code(Code::Unavailable as u8)
        .capacity_code(Code::ResourceExhausted as u8);
    let rate = RateLimitLayer::by(by_user, Quota::per_hour(2)).cost(|_| 3);
    let rate = rate.respond(codes).layer(Counting::default());
    let refused = send(&rate, grpc("application/grpc")).await;
    assert_eq!(status_of(&refused).code(), Code::Unavailable);
    let full = ConcurrencyLimitLayer::deny_all().respond(Negotiated::default().grpc(codes));
    let service = full.layer(Counting::default());
    let refused = send(&service, grpc("application/grpc")).await;
    let status = status_of(&refused);
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(send(&service, Request::new(())).await.status(), 503);
}
