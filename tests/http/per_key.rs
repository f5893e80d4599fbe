//! Concurrency limits per key, below the total limit.

use http_body_util::BodyExt;
use tower::Layer;
use tower_admission::store::FailureMode;
use tower_admission::{
    ByToken, Capacity, ClientIp, ConcurrencyLimitLayer, Key, MemoryStore, Reason,
};

use crate::common::{
    Away, Counting, bodies, by_user, header, peer, request, send, status, streamed, text, user,
    user_key,
};

#[tokio::test]
async fn a_key_above_its_limit_is_answered_429_and_others_are_not_affected() {
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
async fn the_total_limit_is_answered_503_for_every_key() {
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
async fn a_rejection_of_a_key_takes_nothing_from_the_total() {
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
async fn a_rejection_by_the_total_takes_nothing_from_the_key() {
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
async fn the_slot_of_a_key_is_released_at_the_end_of_the_body() {
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
async fn a_cancelled_request_releases_the_slot_of_its_key() {
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
async fn keys_are_limited_without_a_total() {
    let layer = ConcurrencyLimitLayer::new(0).per_key(by_user, 1);
    let service = layer.layer(Counting::default());
    let _alice = send(&service, user("alice")).await;
    assert_eq!(status(&service, user("alice")).await, 429);
    assert_eq!(status(&service, user("bob")).await, 200);
}

#[tokio::test]
async fn a_permit_from_the_limiter_counts_with_those_of_the_layer() {
    let layer = ConcurrencyLimitLayer::new(10).per_key(by_user, 1);
    let service = layer.layer(Counting::default());
    let permit = layer.limiter().try_acquire_for(&user_key("alice")).unwrap();
    assert_eq!(status(&service, user("alice")).await, 429);
    let refused = layer.limiter().try_acquire_for(&user_key("alice"));
    assert_eq!(refused.unwrap_err().reason(), Reason::KeyAtCapacity);
    drop(permit);
    assert_eq!(status(&service, user("alice")).await, 200);
}

/// A request of a user's, from an address.
fn user_at(user: &str, address: &str) -> http::Request<()> {
    let mut request = crate::common::user(user);
    request.extensions_mut().insert(peer(address));
    request
}

fn bearer_at(token: &str, address: &str) -> http::Request<()> {
    let mut request = crate::common::bearer(token);
    request.extensions_mut().insert(peer(address));
    request
}

fn address_key(address: &str) -> Key {
    Key::ip(address.parse().unwrap())
}

#[tokio::test]
async fn made_up_tokens_take_at_most_the_limit_of_their_address() {
    let layer = ConcurrencyLimitLayer::new(64)
        .per_key(ByToken::default(), 16)
        .per_key(ClientIp::peer(), 32);
    for layer in [
        layer.clone(),
        layer.name("stored").store(MemoryStore::new()),
    ] {
        let service = layer.layer(Counting::default());
        let mut held = Vec::new();
        let mut rejected = 0;
        for n in 0..200 {
            let request = bearer_at(&format!("made-up-{n}"), "192.0.2.1");
            let response = send(&service, request).await;
            match response.status().as_u16() {
                200 => held.push(response),
                429 => rejected += 1,
                status => panic!("{status}"),
            }
        }
        assert_eq!((held.len(), rejected), (32, 168));
        assert_eq!(layer.limiter().in_flight(), 32);
        let other = send(&service, bearer_at("known", "192.0.2.2")).await;
        assert_eq!(other.status(), 200);
        drop(held);
        assert_eq!(status(&service, bearer_at("a", "192.0.2.1")).await, 200);
    }
}

#[tokio::test]
async fn each_per_key_limit_applies_to_its_key() {
    let layer = ConcurrencyLimitLayer::new(10)
        .per_key(by_user, 2)
        .per_key(ClientIp::peer(), 3);
    let service = layer.layer(Counting::default());
    let one = send(&service, user_at("alice", "192.0.2.1")).await;
    let _two = send(&service, user_at("alice", "192.0.2.1")).await;
    assert_eq!(status(&service, user_at("alice", "192.0.2.9")).await, 429);
    let _three = send(&service, user_at("bob", "192.0.2.1")).await;
    assert_eq!(status(&service, user_at("carol", "192.0.2.1")).await, 429);
    assert_eq!(status(&service, user_at("carol", "192.0.2.2")).await, 200);
    assert_eq!(layer.limiter().in_flight(), 3);
    drop(one);
    let again = send(&service, user_at("alice", "192.0.2.9")).await;
    assert_eq!(again.status(), 200, "its slot of the user is back");
    let last = send(&service, user_at("carol", "192.0.2.1")).await;
    assert_eq!(last.status(), 200, "its slot of the address is back");
}

/// A request without a token is charged to its address twice: in place of the token, and as an
/// address.
#[tokio::test]
async fn an_address_in_place_of_a_token_counts_separately() {
    let layer = ConcurrencyLimitLayer::new(0)
        .per_key(ByToken::default(), 1)
        .per_key(ClientIp::peer(), 3);
    let service = layer.layer(Counting::default());
    let mut held = Vec::new();
    for token in ["a", "b"] {
        held.push(send(&service, bearer_at(token, "192.0.2.1")).await);
    }
    let anonymous = || crate::common::from_peer("192.0.2.1");
    held.push(send(&service, anonymous()).await);
    assert!(held.iter().all(|response| response.status() == 200));
    assert_eq!(status(&service, anonymous()).await, 429);
    assert_eq!(status(&service, bearer_at("c", "192.0.2.1")).await, 429);
}

/// If a slot were taken and released because another key is full, its key would be full in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_key_takes_nothing_from_the_other_key_or_the_total_for_any_moment() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let layer = ConcurrencyLimitLayer::new(2)
        .per_key(by_user, 1)
        .per_key(ClientIp::peer(), 1);
    let limiter = layer.limiter();
    let [alice, bob] = ["alice", "bob"].map(user_key);
    let [full, free] = ["192.0.2.1", "192.0.2.2"].map(address_key);
    let held = limiter.try_acquire_for_all(&[bob, full]).unwrap();
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (limiter, done) = (limiter.clone(), done.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let rejected = limiter.try_acquire_for_all(&[alice, full]).unwrap_err();
                    assert_eq!(rejected.reason(), Reason::KeyAtCapacity);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut admitted = 0;
    for _ in 0..20_000 {
        admitted += usize::from(limiter.try_acquire_for_all(&[alice, free]).is_ok());
    }
    done.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(admitted, 20_000);
    drop(held);
    assert_eq!(limiter.in_flight(), 0);
    drop(limiter.try_acquire_for_all(&[bob, full]).unwrap());
}

#[tokio::test]
async fn each_per_key_limit_changes_at_run_time() {
    let layer = ConcurrencyLimitLayer::new(0)
        .per_key(by_user, 1)
        .per_key(ClientIp::peer(), 1);
    let service = layer.layer(Counting::default());
    let limiter = layer.limiter();
    let held = send(&service, user_at("alice", "192.0.2.1")).await;
    assert_eq!(status(&service, user_at("bob", "192.0.2.1")).await, 429);
    limiter.set_limit_per_key(1, 2);
    assert_eq!(status(&service, user_at("bob", "192.0.2.1")).await, 200);
    assert_eq!(status(&service, user_at("alice", "192.0.2.1")).await, 429);
    limiter.set_limit_per_key(0, Capacity::Unlimited);
    assert_eq!(status(&service, user_at("alice", "192.0.2.1")).await, 200);
    limiter.set_limit_per_key(1, 0);
    let denied = send(&service, user_at("bob", "192.0.2.3")).await;
    assert_eq!(
        (denied.status().as_u16(), header(&denied, "retry-after")),
        (403, None)
    );
    limiter.set_limit_per_key(1, Capacity::Unlimited);
    // There is no such per-key limit.
    limiter.set_limit_per_key(2, 0);
    let more = send(&service, user_at("alice", "192.0.2.1")).await;
    assert_eq!(more.status(), 200);
    limiter.set_limit_per_key(0, 2);
    assert_eq!(status(&service, user_at("alice", "192.0.2.9")).await, 429);
    drop((held, more));
}

#[tokio::test]
async fn a_permit_for_several_keys_is_one_permit() {
    let layer = ConcurrencyLimitLayer::new(10)
        .per_key(by_user, 1)
        .per_key(ClientIp::peer(), 1);
    let service = layer.layer(Counting::default());
    let limiter = layer.limiter();
    let keys = [user_key("alice"), address_key("192.0.2.1")];
    let permit = limiter.acquire_for(&keys).await.unwrap();
    assert_eq!(limiter.in_flight(), 1);
    assert_eq!(status(&service, user_at("alice", "192.0.2.2")).await, 429);
    assert_eq!(status(&service, user_at("bob", "192.0.2.1")).await, 429);
    drop(permit);
    assert!(limiter.acquire_for(&keys).await.is_ok());
    // With fewer keys than limits, the first limits are those that are charged.
    let of_alice = limiter.try_acquire_for(&keys[0]).unwrap();
    assert_eq!(status(&service, user_at("bob", "192.0.2.1")).await, 200);
    assert_eq!(status(&service, user_at("alice", "192.0.2.1")).await, 429);
    drop(of_alice);
}

#[tokio::test]
async fn the_local_share_limits_each_key_while_the_store_is_unavailable() {
    let layer = ConcurrencyLimitLayer::new(20)
        .per_key(by_user, 4)
        .per_key(ClientIp::peer(), 6)
        .store(Away(FailureMode::LocalShare { replicas: 2 }));
    let service = layer.layer(Counting::default());
    let mut held = Vec::new();
    for user in ["alice", "alice", "bob"] {
        held.push(send(&service, user_at(user, "192.0.2.1")).await);
    }
    assert!(held.iter().all(|response| response.status() == 200));
    assert_eq!(status(&service, user_at("alice", "192.0.2.2")).await, 429);
    assert_eq!(status(&service, user_at("carol", "192.0.2.1")).await, 429);
    assert_eq!(status(&service, user_at("carol", "192.0.2.2")).await, 200);
    assert_eq!(layer.limiter().in_flight(), 3);
}
