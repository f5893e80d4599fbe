//! The concurrency limit as a service: when it calls the inner service, and who shares a limit.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt};
use tower_admission::{Capacity, ConcurrencyLimitLayer, Reason};
use tower_test::mock;

use crate::common::{Counting, Readied, answering, bodies, ok, request, send, status, streamed};

type Req = Request<()>;
type Res = Response<Full<Bytes>>;

#[tokio::test]
async fn a_rejected_request_never_reaches_the_inner_service() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (mut service, mut inner) = mock::spawn_layer::<Req, Res, _>(layer.clone());
    assert_ready_ok!(service.poll_ready());
    let mut first = task::spawn(service.call(request()));
    assert_pending!(first.poll());
    let (_, reply) = assert_ready!(inner.poll_request()).unwrap();

    assert_ready_ok!(service.poll_ready());
    let mut second = task::spawn(service.call(request()));
    let refused = assert_ready_ok!(second.poll());
    assert_eq!(refused.status(), 503);
    assert_pending!(inner.poll_request());

    reply.send_response(ok());
    let admitted = assert_ready_ok!(first.poll());
    assert_eq!(admitted.status(), 200);
    drop(admitted);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn poll_ready_polls_the_inner_service_and_takes_no_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (mut service, mut inner) = mock::spawn_layer::<Req, Res, _>(layer.clone());
    inner.allow(0);
    assert_pending!(service.poll_ready());
    inner.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());
    assert_eq!(layer.limiter().in_flight(), 0, "ready and idle");

    let _held = layer.limiter().try_acquire().unwrap();
    assert_ready_ok!(service.poll_ready(), "ready also at capacity: it refuses");
    inner.send_error("broken");
    assert_eq!(
        assert_ready_err!(service.poll_ready()).to_string(),
        "broken"
    );
}

#[tokio::test]
async fn idle_services_that_are_ready_hold_no_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let service = layer.layer(Counting::default());
    let mut idle = vec![service; 100];
    for service in &mut idle {
        assert_ready_ok!(Service::<Req>::poll_ready(service, &mut noop()));
    }
    assert_eq!(layer.limiter().in_flight(), 0);
    assert_eq!(status(&idle[0], request()).await, 200);
}

fn noop() -> std::task::Context<'static> {
    std::task::Context::from_waker(std::task::Waker::noop())
}

#[tokio::test]
async fn an_error_of_the_inner_service_releases_the_permit() {
    #[derive(Debug, PartialEq)]
    struct Broken;
    let layer = ConcurrencyLimitLayer::new(1);
    let service = layer.layer(tower::service_fn(|_: Req| async { Err::<Res, _>(Broken) }));
    for _ in 0..3 {
        let result: Result<_, Broken> = service.clone().oneshot(request()).await;
        assert_eq!(result.unwrap_err(), Broken);
        assert_eq!(layer.limiter().in_flight(), 0);
    }
}

#[tokio::test]
async fn the_service_that_was_made_ready_is_the_one_called() {
    let layer = ConcurrencyLimitLayer::new(2);
    let mut service = layer.layer(Readied::default());
    for _ in 0..2 {
        let response = service.ready().await.unwrap().call(request()).await;
        assert_eq!(response.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_queued_request_keeps_its_ready_service() {
    let layer = ConcurrencyLimitLayer::new(1).wait(2, crate::common::PATIENCE);
    let mut service = layer.layer(Readied::default());
    let held = layer.limiter().try_acquire().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut future = task::spawn(service.ready().await.unwrap().call(request()));
        assert_pending!(future.poll());
        waiting.push(future);
    }
    drop(held);
    for mut future in waiting {
        assert_eq!(assert_ready_ok!(future.poll()).status(), 200);
    }
}

#[tokio::test]
async fn towers_own_limit_inside_is_never_called_unready() {
    // tower's service panics when a clone without its own permit is called.
    let layer = ConcurrencyLimitLayer::new(1).wait(4, crate::common::PATIENCE);
    let theirs = tower::limit::ConcurrencyLimitLayer::new(3);
    let mut service = layer.layer(theirs.layer(Counting::default()));
    let held = layer.limiter().try_acquire().unwrap();
    let ready = ServiceExt::<Req>::ready(&mut service).await.unwrap();
    let mut waiting = task::spawn(ready.call(request()));
    assert_pending!(waiting.poll());
    drop(held);
    drop(assert_ready_ok!(waiting.poll()));
    let ready = ServiceExt::<Req>::ready(&mut service).await.unwrap();
    assert_eq!(ready.call(request()).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_layer_applied_many_times_is_one_limit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (_frames, body) = streamed();
    let first = layer.layer(bodies([body]));
    let others = [
        layer.layer(Counting::default()),
        layer.clone().layer(Counting::default()),
    ];
    let streaming = send(&first, request()).await;
    for other in &others {
        assert_eq!(status(other, request()).await, 503);
    }
    drop(streaming);
    for other in &others {
        assert_eq!(status(other, request()).await, 200);
    }
}

#[tokio::test]
async fn a_setting_on_a_clone_keeps_the_shared_limit() {
    let one = ConcurrencyLimitLayer::new(1).name("one");
    let two = one.clone().name("two").retry_after(None);
    let _held = one.limiter().try_acquire().unwrap();
    assert_eq!(two.limiter().try_acquire().unwrap_err().limiter(), "two");
    assert_eq!(one.limiter().try_acquire().unwrap_err().limiter(), "one");
}

#[tokio::test]
async fn separate_layers_are_separate_limits() {
    let (one, two) = (ConcurrencyLimitLayer::new(1), ConcurrencyLimitLayer::new(1));
    let _held = one.limiter().try_acquire().unwrap();
    assert_eq!(
        status(&one.layer(Counting::default()), request()).await,
        503
    );
    assert_eq!(
        status(&two.layer(Counting::default()), request()).await,
        200
    );
}

#[tokio::test]
async fn a_limit_of_zero_is_off_and_counts() {
    let layer = ConcurrencyLimitLayer::new(0);
    let service = layer.layer(Counting::default());
    let mut held = Vec::new();
    for _ in 0..1000 {
        held.push(send(&service, request()).await);
    }
    assert!(held.iter().all(|response| response.status() == 200));
    assert_eq!(layer.limiter().limit(), Capacity::Unlimited);
    assert_eq!(layer.limiter().in_flight(), 1000);
    drop(held);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn deny_all_rejects_until_a_limit_is_set() {
    let layer = ConcurrencyLimitLayer::deny_all();
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, request()).await, 503);
    assert_eq!(layer.limiter().limit(), 0);
    layer.limiter().set_limit(1);
    assert_eq!(status(&service, request()).await, 200);
}

#[tokio::test]
async fn a_lowered_limit_retires_released_permits() {
    let layer = ConcurrencyLimitLayer::new(3);
    let service = layer.layer(Counting::default());
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(send(&service, request()).await);
    }
    layer.limiter().set_limit(1);
    assert_eq!(layer.limiter().limit(), 1);
    assert_eq!(layer.limiter().in_flight(), 3, "what is in flight stays");
    for left in [2, 1] {
        held.pop();
        assert_eq!(layer.limiter().in_flight(), left);
        assert_eq!(status(&service, request()).await, 503);
    }
    held.pop();
    assert_eq!(status(&service, request()).await, 200);
}

#[tokio::test]
async fn a_limit_can_be_raised_and_turned_off_and_on() {
    let layer = ConcurrencyLimitLayer::new(1);
    let service = layer.layer(Counting::default());
    let _one = send(&service, request()).await;
    assert_eq!(status(&service, request()).await, 503);
    layer.limiter().set_limit(2);
    let _two = send(&service, request()).await;
    assert_eq!(status(&service, request()).await, 503);
    layer.limiter().set_limit(Capacity::Unlimited);
    let _three = send(&service, request()).await;
    assert_eq!(layer.limiter().in_flight(), 3);
    for limit in [Capacity::AtMost(0), Capacity::AtMost(3)] {
        layer.limiter().set_limit(limit);
        assert_eq!(layer.limiter().limit(), limit);
        assert_eq!(status(&service, request()).await, 503, "at most {limit}");
    }
    layer.limiter().set_limit(3);
    assert_eq!(status(&service, request()).await, 503);
}

#[tokio::test]
async fn a_skipped_request_is_not_counted_and_never_rejected() {
    let layer = ConcurrencyLimitLayer::new(1).skip(|head| head.uri.path() == "/health");
    let service = layer.layer(Counting::default());
    let health = || Request::get("/health").body(()).unwrap();
    let _held = layer.limiter().try_acquire().unwrap();
    let response = send(&service, health()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(layer.limiter().in_flight(), 1);
    assert_eq!(status(&service, request()).await, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_requests_never_exceed_the_limit() {
    let layer = ConcurrencyLimitLayer::new(4);
    let limiter = layer.limiter();
    let service = layer.layer(answering(move |_: Req| {
        assert!(limiter.in_flight() <= 4);
        ok()
    }));
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move {
                let response = send(&service, request()).await;
                let admitted = response.status() == 200;
                tokio::task::yield_now().await;
                response.into_body().collect().await.unwrap();
                admitted
            })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += usize::from(task.await.unwrap());
    }
    assert!(admitted >= 4);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[test]
fn a_limiter_taken_from_a_layer_shares_its_count() {
    let layer = ConcurrencyLimitLayer::new(1).name("jobs");
    let limiter = layer.limiter();
    let permit = layer.limiter().try_acquire().unwrap();
    let rejection = limiter.try_acquire().unwrap_err();
    assert_eq!(rejection.reason(), Reason::AtCapacity);
    assert_eq!(rejection.limiter(), "jobs");
    drop(layer);
    drop(permit);
    assert_eq!(limiter.in_flight(), 0);
}

/// The buffer slot of a rejected call is free for the next one.
#[tokio::test]
async fn a_rejected_call_drops_its_ready_service() {
    let layer = ConcurrencyLimitLayer::deny_all();
    let mut kept = layer.layer(tower::buffer::Buffer::new(Counting::default(), 1));
    assert!(kept.ready().await.is_ok());
    let rejected = kept.call(request()).await.unwrap();
    assert_eq!(rejected.status(), 503);
    let mut other = kept.clone();
    let mut ready = tokio_test::task::spawn(other.ready());
    assert!(tokio_test::assert_ready!(ready.poll()).is_ok());
}
