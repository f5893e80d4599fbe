//! Refunds and charges by a handler for its own request.

use std::future::ready;
use std::sync::{Arc, Mutex};

use http::Request;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Layer, Service, service_fn};
use tower_admission::store::Reply;
use tower_admission::{
    ClientIp, Key, Policy, Quota, RateLimitLayer, RateLimitStatus, RateLimiter, Reason,
};

use crate::common::{
    LaterStore, Ok200, SECOND, Seen, by_user, header, ok, peer, send, timed, user, user_key,
};

fn alice() -> Request<()> {
    let mut request = user("alice");
    request.extensions_mut().insert(peer("192.0.2.1"));
    request
}

fn left(limiter: &RateLimiter) -> Vec<u32> {
    let keys = [user_key("alice"), Key::ip([192, 0, 2, 1].into())];
    let peek = limiter.peek_all(&keys, 0).into_future();
    let decision = assert_ready!(task::spawn(peek).poll());
    decision.usages().iter().map(|u| u.remaining()).collect()
}

/// A service whose handler runs this with its status.
fn handling(
    handle: impl Fn(RateLimitStatus) + Clone,
) -> impl Service<Request<()>, Response = Ok200, Error = std::convert::Infallible, Future: Send> + Clone
{
    service_fn(move |request: Request<()>| {
        handle(request.extensions().get().cloned().unwrap());
        ready(Ok(ok()))
    })
}

/// The reply of a store that replies at once.
fn now<T>(reply: Reply<T>) -> T {
    match reply {
        Reply::Ready(answer) => answer,
        Reply::Pending(_) => panic!("the memory store answers at once"),
    }
}

#[test]
fn a_refund_shows_in_the_response() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(10));
    let layer = layer.cost(|_| 3);
    let mut service = layer.layer(handling(|status| {
        assert_eq!(status.remaining(), Some(7));
        now(status.refund(2));
        assert_eq!(status.remaining(), Some(9));
        assert_eq!(status.decision().remaining(), Some(9));
        assert_eq!(status.usages().next().unwrap().1.remaining(), 9);
    }));
    // Without a runtime.
    let response = assert_ready_ok!(task::spawn(service.call(alice())).poll());
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"default\";r=9;t=360")
    );
    assert_eq!(left(&layer.limiter()), [9]);
}

#[test]
fn a_charge_shows_in_the_response() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(10));
    let layer = layer.and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(20)));
    let mut service = layer.layer(handling(|status| {
        now(status.charge(4)).unwrap();
        assert_eq!(status.remaining(), Some(5));
        now(status.charge(0)).unwrap();
        now(status.refund(1));
        now(status.charge(2)).unwrap();
    }));
    let response = assert_ready_ok!(task::spawn(service.call(alice())).poll());
    let told = "\"default\";r=4;t=2160, \"ip\";r=14;t=1080";
    assert_eq!(header(&response, "ratelimit"), Some(told));
    assert_eq!(left(&layer.limiter()), [4, 14]);
}

#[test]
fn a_charge_that_does_not_fit_is_rejected_and_not_made() {
    let (seen, _) = Seen::new();
    let (layer, _clock) = timed(by_user, Quota::per_hour(100));
    let layer = layer
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(20)))
        .name("api")
        .observe(seen.clone());
    let mut service = layer.layer(handling(|status| {
        let rejection = now(status.charge(20)).unwrap_err();
        assert_eq!(rejection.reason(), Reason::QuotaExceeded);
        assert_eq!(rejection.limiter(), "api");
        assert_eq!(rejection.violated_policies().collect::<Vec<_>>(), ["ip"]);
        assert_eq!(rejection.retry_after_seconds(), Some(180));
        let hopeless = now(status.charge(21)).unwrap_err();
        assert_eq!(hopeless.reason(), Reason::CostExceedsQuota);
        assert_eq!(status.remaining(), Some(19));
    }));
    let response = assert_ready_ok!(task::spawn(service.call(alice())).poll());
    let told = "\"default\";r=99;t=36, \"ip\";r=19;t=180";
    assert_eq!(header(&response, "ratelimit"), Some(told));
    assert_eq!(left(&layer.limiter()), [99, 19]);
    assert_eq!(
        seen.take(),
        [
            "admitted http",
            "rejected http quota_exceeded",
            "rejected http cost_exceeds_quota"
        ]
    );
}

#[test]
fn the_wait_of_a_rejected_charge_is_enough_after_a_refund() {
    let (layer, clock) = timed(by_user, Quota::per_minute(10));
    let waits = Arc::new(Mutex::new(Vec::new()));
    let seen = waits.clone();
    let mut service = layer.layer(handling(move |status| {
        let charged = now(status.charge(5));
        if charged.is_err() {
            now(status.refund(u32::MAX));
        }
        let wait = charged.err().map(|rejection| rejection.retry_after());
        seen.lock().unwrap().push(wait);
    }));
    let mut ask = || assert_ready_ok!(task::spawn(service.call(alice())).poll());
    ask();
    ask();
    // 3 remain of 5.
    let wait = waits.lock().unwrap()[1].unwrap().unwrap();
    assert_eq!(wait, 12 * SECOND);
    clock.advance(wait);
    ask();
    assert_eq!(waits.lock().unwrap()[2], None);
}

/// Otherwise a handler could refund the charges of other requests of the key.
#[test]
fn a_refund_is_at_most_what_the_request_was_charged() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(10));
    let limiter = layer.limiter();
    let _ = limiter.check_n(&user_key("alice"), 5).now().unwrap();
    let mut service = layer.layer(handling(|status| {
        now(status.charge(2)).unwrap();
        now(status.refund(u32::MAX));
        now(status.refund(1));
        assert_eq!(status.remaining(), Some(5));
    }));
    assert_ready_ok!(task::spawn(service.call(alice())).poll());
    assert_eq!(left(&limiter), [5]);
}

#[test]
fn a_dry_run_admits_a_charge_and_tells_observers() {
    let (seen, _) = Seen::new();
    let (layer, _clock) = timed(by_user, Quota::per_hour(2));
    let layer = layer.dry_run(true).observe(seen.clone());
    let mut service = layer.layer(handling(|status| now(status.charge(2)).unwrap()));
    assert_ready_ok!(task::spawn(service.call(alice())).poll());
    assert_eq!(left(&layer.limiter()), [1]);
    let expected = ["admitted http", "would reject http quota_exceeded"];
    assert_eq!(seen.take(), expected);
}

#[test]
fn a_charge_after_the_response_counts_and_changes_no_field() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(10));
    let kept = Arc::new(Mutex::new(None));
    let keeping = kept.clone();
    let mut service = layer.layer(handling(move |status| {
        *keeping.lock().unwrap() = Some(status);
    }));
    let response = assert_ready_ok!(task::spawn(service.call(alice())).poll());
    let status = kept.lock().unwrap().take().unwrap();
    now(status.charge(3)).unwrap();
    assert_eq!(status.remaining(), Some(6));
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"default\";r=9;t=360")
    );
    assert_eq!(left(&layer.limiter()), [6]);
    now(status.refund(4));
    assert_eq!(left(&layer.limiter()), [10]);
}

#[test]
fn a_response_that_does_not_count_refunds_what_its_handler_charged() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(10));
    let layer = layer.count_if(|_| false);
    let mut service = layer.layer(handling(|status| {
        now(status.charge(5)).unwrap();
        now(status.refund(1));
    }));
    let response = assert_ready_ok!(task::spawn(service.call(alice())).poll());
    assert_eq!(header(&response, "ratelimit"), Some("\"default\";r=10;t=0"));
    assert_eq!(left(&layer.limiter()), [10]);
}

#[tokio::test]
async fn a_handler_awaits_a_store_that_replies_later() {
    let (layer, clock) = timed(by_user, Quota::per_hour(10));
    let later = LaterStore::new(&clock);
    later.answer(4);
    let layer = layer.store(later);
    let service = layer.layer(service_fn(async |request: Request<()>| {
        let status: RateLimitStatus = request.extensions().get().cloned().unwrap();
        status.charge(5).await.unwrap();
        assert_eq!(status.remaining(), Some(4));
        assert!(status.charge(5).await.is_err());
        status.refund(2).await;
        assert_eq!(status.remaining(), Some(6));
        Ok::<_, std::convert::Infallible>(ok())
    }));
    let response = send(&service, alice()).await;
    assert_eq!(
        header(&response, "ratelimit"),
        Some("\"default\";r=6;t=1440")
    );
    assert_eq!(left(&layer.limiter()), [6]);
}

/// A pending refund is refunded once.
#[test]
fn two_concurrent_refunds_refund_the_charge_once() {
    let (layer, clock) = timed(by_user, Quota::per_hour(10));
    let later = LaterStore::new(&clock);
    later.answer(1);
    let layer = layer.store(later.clone());
    let mut service = layer.layer(service_fn(async |request: Request<()>| {
        let status: RateLimitStatus = request.extensions().get().cloned().unwrap();
        tokio::join!(
            status.refund(1).into_future(),
            status.refund(1).into_future()
        );
        Ok::<_, std::convert::Infallible>(ok())
    }));
    let other = layer.limiter();
    let mut charge = task::spawn(other.decide(&[user_key("alice")], 5).into_future());
    assert!(charge.poll().is_ready());
    later.answer(1);
    let mut call = task::spawn(service.call(alice()));
    assert_pending!(call.poll());
    later.answer(2);
    assert_ready_ok!(call.poll());
    assert_eq!(left(&other), [5]);
}

/// axum extracts a clone, which shares its changes with the layer.
#[tokio::test]
async fn an_extracted_status_is_shared_with_the_response() {
    use axum::{Router, body::Body, routing::get};
    use tower::ServiceExt;

    let app: Router = Router::new()
        .route(
            "/",
            get(async |status: RateLimitStatus| {
                status.refund(1).await;
            }),
        )
        .layer(RateLimitLayer::by(by_user, Quota::per_hour(10)));
    let request = Request::get("/").header("user", "alice");
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await;
    assert_eq!(
        header(&response.unwrap(), "ratelimit"),
        Some("\"default\";r=10;t=0")
    );
}
