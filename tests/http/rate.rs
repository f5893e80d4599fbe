//! The rate limit as a service: one quota, its costs and exceptions.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt};
use tower_admission::{
    Key, Quota, RateLimitByTokenLayer, RateLimitHeaders, RateLimitLayer, RateLimitStatus,
    Rejection, RequestHead,
};
use tower_test::mock;

use crate::common::{
    Counting, LaterStore, NANO, Ok200, Readied, SECOND, Seen, answering, bearer, by_user, header,
    ok, peer, request, retry_after, send, status, text, timed, user, user_key,
};

type Req = Request<()>;
type Res = Response<Full<Bytes>>;

#[tokio::test]
async fn a_request_is_decided_before_the_inner_service_is_called() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let (mut service, mut inner) = mock::spawn_layer::<Req, Res, _>(layer);
    inner.allow(0);
    assert_pending!(service.poll_ready());
    inner.allow(10);
    assert_ready_ok!(service.poll_ready());
    let mut first = task::spawn(service.call(user("alice")));
    assert_pending!(first.poll());
    let (_, reply) = assert_ready!(inner.poll_request()).unwrap();
    reply.send_response(ok());
    assert_eq!(assert_ready_ok!(first.poll()).status(), 200);

    assert_ready_ok!(service.poll_ready());
    let mut second = task::spawn(service.call(user("alice")));
    assert_eq!(assert_ready_ok!(second.poll()).status(), 429);
    assert_pending!(inner.poll_request());
    inner.send_error("broken");
    assert_eq!(
        assert_ready_err!(service.poll_ready()).to_string(),
        "broken"
    );
}

#[tokio::test]
async fn an_idle_service_that_is_ready_costs_nothing() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let mut idle = vec![layer.layer(Readied::default()); 10];
    for service in &mut idle {
        service.ready().await.unwrap();
    }
    let response = idle[0].call(user("alice")).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn the_service_that_was_made_ready_is_the_one_called() {
    let (layer, clock) = timed(by_user, Quota::per_hour(10));
    let mut service = layer.layer(Readied::default());
    for _ in 0..2 {
        let response = service.ready().await.unwrap().call(user("alice")).await;
        assert_eq!(response.unwrap().status(), 200);
    }

    let later = LaterStore::new(&clock);
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(10)).store(later.clone());
    let mut service = layer.layer(Readied::default());
    let mut deciding = Vec::new();
    for _ in 0..2 {
        let mut future = task::spawn(service.ready().await.unwrap().call(user("alice")));
        assert_pending!(future.poll());
        deciding.push(future);
    }
    later.answer(2);
    for mut future in deciding {
        assert_eq!(assert_ready_ok!(future.poll()).status(), 200);
    }
}

#[tokio::test]
async fn a_store_that_replies_later_decides_before_the_inner_service() {
    let inner = Counting::default();
    let (layer, clock) = timed(by_user, Quota::per_hour(1));
    let later = LaterStore::new(&clock);
    let layer = layer.store(later.clone());
    let mut service = layer.layer(inner.clone());
    let mut first = task::spawn(service.call(user("alice")));
    let mut second = task::spawn(service.call(user("alice")));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    assert_eq!(inner.calls(), 0);
    later.answer(2);
    assert!(first.is_woken());
    let admitted = assert_ready_ok!(first.poll());
    assert_eq!(admitted.status(), 200);
    assert_eq!(
        header(&admitted, "ratelimit"),
        Some("\"default\";r=0;t=3600")
    );
    let refused = assert_ready_ok!(second.poll());
    assert_eq!(refused.status(), 429);
    assert_eq!(retry_after(&refused), Some(3600));
    assert_eq!(inner.calls(), 1);
}

#[tokio::test]
async fn a_request_cancelled_before_its_decision_never_reaches_the_inner_service() {
    let inner = Counting::default();
    let (layer, clock) = timed(by_user, Quota::per_hour(1));
    let later = LaterStore::new(&clock);
    let mut service = layer.store(later.clone()).layer(inner.clone());
    let mut future = task::spawn(service.call(user("alice")));
    assert_pending!(future.poll());
    drop(future);
    later.answer(2);
    assert_eq!(status(&service, user("alice")).await, 200);
    assert_eq!(inner.calls(), 1);
}

#[tokio::test]
async fn an_error_of_the_inner_service_passes_through() {
    #[derive(Debug, PartialEq)]
    struct Broken;
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let service = layer.layer(tower::service_fn(|_: Req| async { Err::<Res, _>(Broken) }));
    let result: Result<_, Broken> = service.clone().oneshot(user("alice")).await;
    assert_eq!(result.unwrap_err(), Broken);
    assert_eq!(status(&service, user("alice")).await, 429, "it was charged");
}

#[tokio::test]
async fn a_burst_of_twenty_at_ten_per_second_is_exact() {
    let (layer, clock) = timed(by_user, Quota::per_second(10).burst(20));
    let service = layer.layer(Counting::default());
    for _ in 0..20 {
        assert_eq!(status(&service, user("alice")).await, 200);
    }
    let refused = send(&service, user("alice")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(retry_after(&refused), Some(1), "100 ms, rounded up");
    assert_eq!(status(&service, user("bob")).await, 200);

    clock.advance(SECOND);
    for _ in 0..10 {
        assert_eq!(status(&service, user("alice")).await, 200);
    }
    assert_eq!(status(&service, user("alice")).await, 429);
}

#[tokio::test]
async fn after_retry_after_the_same_request_is_admitted() {
    for quota in [
        "1/s",
        "7/min burst 3",
        "3/s burst 1",
        "1000/h",
        "1/day",
        "9/7s burst 2",
    ] {
        let (layer, clock) = timed(by_user, quota.parse::<Quota>().unwrap());
        let service = layer.layer(Counting::default());
        for round in 0..50 {
            let response = send(&service, user("alice")).await;
            if response.status() == 200 {
                clock.advance(round * 7 * NANO);
                continue;
            }
            let wait = retry_after(&response).unwrap();
            clock.advance(u32::try_from(wait).unwrap() * SECOND);
            assert_eq!(status(&service, user("alice")).await, 200, "{quota}");
        }
    }
}

#[tokio::test]
async fn the_wait_is_exact_to_the_nanosecond() {
    for quota in ["1/s", "7/min burst 3", "3/s burst 1", "1/day"] {
        let (layer, clock) = timed(by_user, quota.parse::<Quota>().unwrap());
        let service = layer.layer(Counting::default());
        while status(&service, user("alice")).await == 200 {}
        let wait = layer
            .limiter()
            .peek(&user_key("alice"))
            .now()
            .unwrap()
            .retry_after();
        clock.advance(wait.unwrap() - NANO);
        let refused = send(&service, user("alice")).await;
        assert_eq!(refused.status(), 429, "{quota}");
        assert_eq!(retry_after(&refused), Some(1), "{quota}");
        clock.advance(NANO);
        assert_eq!(status(&service, user("alice")).await, 200, "{quota}");
    }
}

#[tokio::test]
async fn a_layer_applied_many_times_is_one_limit_and_another_layer_is_another() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(2));
    let one = layer.layer(Counting::default());
    let two = layer.clone().layer(Counting::default());
    assert_eq!(status(&one, bearer("t")).await, 200);
    assert_eq!(status(&two, bearer("t")).await, 200);
    assert_eq!(status(&one, bearer("t")).await, 429);
    assert_eq!(status(&two, bearer("t")).await, 429);
    let other = RateLimitByTokenLayer::new(Quota::per_hour(2)).layer(Counting::default());
    assert_eq!(status(&other, bearer("t")).await, 200);
}

fn cost(head: RequestHead<'_>) -> u32 {
    head.headers["cost"].to_str().unwrap().parse().unwrap()
}

fn costing(cost: u32) -> Req {
    let mut request = user("alice");
    request.headers_mut().insert("cost", cost.into());
    request
}

#[tokio::test]
async fn a_request_is_charged_its_cost() {
    let (layer, clock) = timed(by_user, Quota::per_second(1).burst(10));
    let service = layer.cost(cost).layer(Counting::default());
    assert_eq!(status(&service, costing(7)).await, 200);
    let refused = send(&service, costing(5)).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(retry_after(&refused), Some(2));
    assert_eq!(
        status(&service, costing(3)).await,
        200,
        "a rejection takes nothing"
    );
    clock.advance(5 * SECOND);
    assert_eq!(status(&service, costing(6)).await, 429);
    assert_eq!(status(&service, costing(5)).await, 200);
}

#[tokio::test]
async fn a_cost_of_zero_is_admitted_and_not_charged() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let service = layer.cost(cost).layer(Counting::default());
    for _ in 0..5 {
        let free = send(&service, costing(0)).await;
        assert_eq!(free.status(), 200);
        assert_eq!(header(&free, "ratelimit"), Some("\"default\";r=1;t=0"));
    }
    assert_eq!(status(&service, costing(1)).await, 200);
    assert_eq!(status(&service, costing(1)).await, 429);
    assert_eq!(status(&service, costing(0)).await, 200);
}

#[tokio::test]
async fn a_cost_above_the_burst_can_never_fit() {
    let inner = Counting::default();
    let (layer, _clock) = timed(by_user, Quota::per_second(1).burst(10));
    let service = layer.cost(cost).layer(inner.clone());
    for cost in [11, u32::MAX] {
        let refused = send(&service, costing(cost)).await;
        assert_eq!(refused.status(), 429);
        assert_eq!(retry_after(&refused), None);
        assert_eq!(header(&refused, "ratelimit"), Some("\"default\";r=10"));
    }
    assert_eq!(inner.calls(), 0);
    assert_eq!(
        status(&service, costing(10)).await,
        200,
        "nothing was taken"
    );
}

#[tokio::test]
async fn a_skipped_request_is_not_counted() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1))
        .skip(|head| matches!(head.uri.path(), "/health" | "/metrics"));
    let service = layer.layer(Counting::default());
    let health = || Request::get("/health").body(()).unwrap();
    for _ in 0..3 {
        let response = send(&service, health()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "ratelimit"), None);
    }
    assert_eq!(status(&service, request()).await, 200);
    assert_eq!(status(&service, request()).await, 429);
    assert_eq!(status(&service, health()).await, 200);
}

#[tokio::test]
async fn a_dry_run_admits_and_informs_only_observers() {
    let (seen, _) = Seen::new();
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(1))
        .dry_run(true)
        .observe(seen.clone());
    let service = layer.layer(Counting::default());
    for _ in 0..3 {
        let response = send(&service, user("alice")).await;
        assert_eq!(response.status(), 200);
        assert!(response.headers().is_empty(), "{:?}", response.headers());
    }
    let would_reject = "would reject http quota_exceeded";
    assert_eq!(seen.take(), ["admitted http", would_reject, would_reject]);
}

#[tokio::test]
async fn a_quota_of_zero_is_off() {
    let layer = RateLimitLayer::by(by_user, Quota::per_second(0));
    assert!(layer.limiter().is_off());
    let service = layer.layer(Counting::default());
    for _ in 0..100 {
        let response = send(&service, user("alice")).await;
        assert_eq!(response.status(), 200);
        assert!(response.headers().is_empty());
    }
}

#[tokio::test]
async fn deny_all_rejects_without_a_retry_after() {
    let inner = Counting::default();
    let layer = RateLimitLayer::by(by_user, Quota::deny_all());
    let service = layer.layer(inner.clone());
    let refused = send(&service, user("alice")).await;
    assert_eq!(refused.status(), 403);
    assert_eq!(retry_after(&refused), None);
    assert_eq!(header(&refused, "ratelimit"), Some("\"default\";r=0"));
    assert_eq!(
        header(&refused, "ratelimit-policy"),
        Some("\"default\";q=0")
    );
    assert_eq!(inner.calls(), 0);
}

fn told_status(request: Req) -> Response<Full<Bytes>> {
    let status = request.extensions().get::<RateLimitStatus>();
    let told = status.map(|s| format!("{:?} of {:?}", s.remaining().unwrap(), s.limit().unwrap()));
    Response::new(Full::from(told.unwrap_or_default()))
}

#[tokio::test]
async fn handlers_find_the_status_of_their_request() {
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(5));
    let told = async |layer: &RateLimitLayer<_>| {
        text(send(&layer.layer(answering(told_status)), user("alice")).await).await
    };
    assert_eq!(told(&layer).await, "4 of 5");
    assert_eq!(told(&layer).await, "3 of 5");
    let off = layer.clone().headers(RateLimitHeaders::Off);
    assert_eq!(told(&off).await, "");
    assert_eq!(told(&off.status(true)).await, "1 of 5");
    assert_eq!(told(&layer.status(false)).await, "");
}

#[tokio::test]
async fn a_custom_responder_answers() {
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(1)).respond(
        |rejection: &Rejection, head: RequestHead<'_>| {
            let body = format!(
                "{} {}: {rejection}",
                head.method,
                rejection.reason().as_str()
            );
            let mut response = Response::new(Bytes::from(body));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response
        },
    );
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, user("alice")).await, 200);
    let refused = send(&service, user("alice")).await;
    assert_eq!(refused.status(), 418);
    assert!(retry_after(&refused).is_some());
    assert_eq!(header(&refused, "cache-control"), Some("no-store"));
    assert!(header(&refused, "ratelimit").is_some());
    assert!(
        text(refused)
            .await
            .starts_with("GET quota_exceeded: Rate limit")
    );
}

#[tokio::test]
async fn a_responder_can_set_the_layers_headers_itself() {
    let layer = RateLimitLayer::by(by_user, Quota::deny_all()).respond(
        |_: &Rejection, _: RequestHead<'_>| {
            let response = Response::builder().status(429).header("retry-after", "99");
            let response = response.header("cache-control", "private");
            response.body(Bytes::new()).unwrap()
        },
    );
    let refused = send(&layer.layer(Counting::default()), user("alice")).await;
    assert_eq!(retry_after(&refused), Some(99));
    assert_eq!(header(&refused, "cache-control"), Some("private"));
}

#[tokio::test]
async fn a_request_can_be_refunded() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(2));
    let service = layer.layer(Counting::default());
    let alice: Key = user_key("alice");
    assert_eq!(status(&service, user("alice")).await, 200);
    assert_eq!(status(&service, user("alice")).await, 200);
    assert_eq!(status(&service, user("alice")).await, 429);
    layer.limiter().refund(&alice, 1).now().unwrap();
    assert_eq!(status(&service, user("alice")).await, 200);
    assert_eq!(status(&service, user("alice")).await, 429);
    layer.limiter().refund(&alice, 1000).now().unwrap();
    assert_eq!(
        layer.limiter().peek(&alice).now().unwrap().remaining(),
        Some(2),
        "not beyond the burst"
    );
}

/// A service with one slot, which a ready clone reserves.
fn buffered()
-> impl Service<Request<()>, Response = Ok200, Error = tower::BoxError, Future: Send> + Clone {
    tower::buffer::Buffer::new(Counting::default(), 1)
}

/// The slot of a rejected call is free for the next one.
#[tokio::test]
async fn a_rejected_call_drops_its_ready_service() {
    let (layer, clock) = timed(by_user, Quota::per_hour(1));
    let later = LaterStore::new(&clock);
    later.answer(2);
    let guarded = RateLimitLayer::by(by_user, Quota::off()).guard_by_ip(Quota::deny_all());
    for (layer, is_guarded) in [
        (layer.clone(), false),
        (layer.store(later), false),
        (guarded, true),
    ] {
        let request = |name| {
            let mut request = user(name);
            if is_guarded {
                request.extensions_mut().insert(peer("192.0.2.1"));
                let bad = http::HeaderValue::from_static("Bearer bad");
                request.headers_mut().insert("authorization", bad);
            }
            request
        };
        let mut kept = layer.layer(buffered());
        if !is_guarded {
            let mut first = kept.clone();
            assert!(first.ready().await.is_ok());
            assert_eq!(first.call(request("alice")).await.unwrap().status(), 200);
        }
        assert!(kept.ready().await.is_ok());
        let rejected = kept.call(request("alice")).await.unwrap();
        assert_eq!(rejected.status(), 429);
        let mut other = kept.clone();
        let mut ready = tokio_test::task::spawn(other.ready());
        assert!(tokio_test::assert_ready!(ready.poll()).is_ok());
    }
}
