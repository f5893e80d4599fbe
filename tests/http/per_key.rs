//! A concurrency limit for each key, under the one in total.

use http_body_util::BodyExt;
use tower::Layer;
use tower_admission::{ConcurrencyLimitLayer, Reason};

use crate::common::{
    Counting, bodies, by_user, header, request, send, status, streamed, text, user, user_key,
};

#[tokio::test]
async fn a_key_over_its_limit_is_429_and_others_are_not_affected() {
    let layer = ConcurrencyLimitLayer::new(10).per_key(by_user, 2);
    let service = layer.layer(Counting::default());
    let _one = send(&service, user("alice")).await;
    let _two = send(&service, user("alice")).await;
    let refused = send(&service, user("alice")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    assert_eq!(header(&refused, "cache-control"), Some("no-store"));
    let problem: serde_json::Value = serde_json::from_str(&text(refused).await).unwrap();
    assert_eq!(problem["status"], 429);
    assert_eq!(
        problem["type"],
        "https://iana.org/assignments/http-problem-types#quota-exceeded"
    );
    assert_eq!(status(&service, user("bob")).await, 200);
}

#[tokio::test]
async fn the_total_is_503_whoever_asks() {
    let inner = Counting::default();
    let layer = ConcurrencyLimitLayer::new(2).per_key(by_user, 2);
    let service = layer.layer(inner.clone());
    let _alice = send(&service, user("alice")).await;
    let _bob = send(&service, user("bob")).await;
    assert_eq!(status(&service, user("alice")).await, 503);
    assert_eq!(status(&service, user("carol")).await, 503);
    assert_eq!(inner.calls(), 2);
}

#[tokio::test]
async fn a_refusal_of_a_key_takes_nothing_from_the_total() {
    let layer = ConcurrencyLimitLayer::new(2).per_key(by_user, 1);
    let service = layer.layer(Counting::default());
    let _alice = send(&service, user("alice")).await;
    for _ in 0..10 {
        assert_eq!(status(&service, user("alice")).await, 429);
        assert_eq!(layer.limiter().in_flight(), 1);
    }
    assert_eq!(status(&service, user("bob")).await, 200);
}

#[tokio::test]
async fn a_refusal_by_the_total_takes_nothing_from_the_key() {
    let layer = ConcurrencyLimitLayer::new(1).per_key(by_user, 1);
    let service = layer.layer(Counting::default());
    let alice = send(&service, user("alice")).await;
    for _ in 0..10 {
        assert_eq!(status(&service, user("bob")).await, 503);
    }
    drop(alice);
    assert_eq!(status(&service, user("bob")).await, 200);
}

#[tokio::test]
async fn a_keys_slot_comes_back_with_the_end_of_the_body() {
    let layer = ConcurrencyLimitLayer::new(10).per_key(by_user, 1);
    let (frames, body) = streamed();
    let mut streaming = send(&layer.layer(bodies([body])), user("alice")).await;
    let service = layer.layer(Counting::default());
    frames.send("some");
    assert!(streaming.frame().await.unwrap().is_ok());
    assert_eq!(status(&service, user("alice")).await, 429);
    drop(frames);
    assert!(streaming.frame().await.is_none());
    for _ in 0..3 {
        assert_eq!(status(&service, user("alice")).await, 200);
    }
}

#[tokio::test]
async fn a_cancelled_request_gives_the_keys_slot_back() {
    let layer = ConcurrencyLimitLayer::new(10).per_key(by_user, 1);
    let mut service = layer.layer(Counting::default());
    for _ in 0..3 {
        drop(tower::Service::call(&mut service, user("alice")));
    }
    assert_eq!(status(&service, user("alice")).await, 200);
}

#[tokio::test]
async fn requests_without_a_key_share_one() {
    let layer = ConcurrencyLimitLayer::new(10).per_key(by_user, 1);
    let service = layer.layer(Counting::default());
    let _held = send(&service, request()).await;
    assert_eq!(status(&service, request()).await, 429);
    assert_eq!(status(&service, user("alice")).await, 200);
}

#[tokio::test]
async fn a_limit_of_zero_turns_this_part_off() {
    let layer = ConcurrencyLimitLayer::new(3).per_key(by_user, 0);
    let service = layer.layer(Counting::default());
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(send(&service, user("alice")).await);
    }
    assert!(held.iter().all(|response| response.status() == 200));
    assert_eq!(status(&service, user("alice")).await, 503);
}

#[tokio::test]
async fn without_a_total_keys_are_limited_all_the_same() {
    let layer = ConcurrencyLimitLayer::new(0).per_key(by_user, 1);
    let service = layer.layer(Counting::default());
    let _alice = send(&service, user("alice")).await;
    assert_eq!(status(&service, user("alice")).await, 429);
    assert_eq!(status(&service, user("bob")).await, 200);
}

#[tokio::test]
async fn a_permit_taken_by_hand_counts_with_the_layers() {
    let layer = ConcurrencyLimitLayer::new(10).per_key(by_user, 1);
    let service = layer.layer(Counting::default());
    let permit = layer.limiter().try_acquire_for(&user_key("alice")).unwrap();
    assert_eq!(status(&service, user("alice")).await, 429);
    let refused = layer.limiter().try_acquire_for(&user_key("alice"));
    assert_eq!(refused.unwrap_err().reason(), Reason::KeyAtCapacity);
    drop(permit);
    assert_eq!(status(&service, user("alice")).await, 200);
}
