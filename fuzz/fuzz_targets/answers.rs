//! Any name, policy name and request head produce an answer with valid headers.
#![no_main]

use std::time::Duration;

use http::{HeaderValue, Request, StatusCode};
use libfuzzer_sys::fuzz_target;
use tower_admission::extract::RequestHead;
use tower_admission::respond::{Negotiated, Responder};
use tower_admission::{Reason, Rejection};

fuzz_target!(|input: (String, u64, u8, Vec<u8>, Vec<u8>)| {
    let (name, wait, reason, accept, content_type) = input;
    let reason = [
        Reason::AtCapacity,
        Reason::KeyAtCapacity,
        Reason::QuotaExceeded,
        Reason::CostExceedsQuota,
        Reason::AbnormalUsage,
        Reason::Denied,
    ][usize::from(reason) % 6];
    let rejection = Rejection::new(reason, name).with_retry_after(Some(Duration::from_nanos(wait)));
    let mut request = Request::new(());
    for (header, value) in [("accept", accept), ("content-type", content_type)] {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            request.headers_mut().insert(header, value);
        }
    }
    let response = Negotiated::default().respond(&rejection, RequestHead::from(&request));
    let grpc = response.headers().contains_key("grpc-status");
    assert_eq!(grpc, response.status() == StatusCode::OK);
    assert_eq!(grpc, response.body().is_empty());
    assert!(response.headers().contains_key("content-type"));
});
