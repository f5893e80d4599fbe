//! The queue of requests that wait for capacity.

use std::time::Duration;

use tokio_test::task::{self, Spawn};
use tokio_test::{assert_pending, assert_ready_ok};
use tower::{Layer, Service};
use tower_admission::concurrency::ResponseFuture;
use tower_admission::{Capacity, ConcurrencyLimit, ConcurrencyLimitLayer, Permit};

use crate::common::{Counting, SECOND, by_user, header, request, status, user};

type Waiting = Spawn<ResponseFuture<Counting, (), http_body_util::Full<bytes::Bytes>>>;

/// A limit of one, which is in use.
fn full(max_waiting: usize) -> (ConcurrencyLimitLayer, ConcurrencyLimit<Counting>, Permit) {
    let layer = ConcurrencyLimitLayer::new(1).wait(max_waiting, 60 * SECOND);
    let service = layer.layer(Counting::default());
    let permit = layer.limiter().try_acquire().unwrap();
    (layer, service, permit)
}

fn joins(service: &ConcurrencyLimit<Counting>) -> Waiting {
    let mut waiting = task::spawn(service.clone().call(request()));
    assert_pending!(waiting.poll());
    waiting
}

#[tokio::test(start_paused = true)]
async fn requests_are_served_in_order_of_arrival() {
    let (_layer, service, permit) = full(10);
    let mut line: Vec<_> = (0..3).map(|_| joins(&service)).collect();
    drop(permit);
    while !line.is_empty() {
        for later in &mut line[1..] {
            assert!(!later.is_woken());
            assert_pending!(later.poll());
        }
        let mut first = line.remove(0);
        assert!(first.is_woken());
        let response = assert_ready_ok!(first.poll());
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn no_request_overtakes_the_queue() {
    let (layer, service, permit) = full(10);
    let mut first = joins(&service);
    drop(permit);
    // The permit is already granted to the first waiter.
    assert!(layer.limiter().try_acquire().is_err());
    let mut second = joins(&service);
    drop(assert_ready_ok!(first.poll()));
    drop(assert_ready_ok!(second.poll()));
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_queued_request_reaches_the_inner_service_only_with_a_permit() {
    let inner = Counting::default();
    let layer = ConcurrencyLimitLayer::new(1).wait(1, SECOND);
    let service = layer.layer(inner.clone());
    let permit = layer.limiter().try_acquire().unwrap();
    let mut waiting = joins(&service);
    assert_eq!(inner.calls(), 0);
    drop(permit);
    drop(assert_ready_ok!(waiting.poll()));
    assert_eq!(inner.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_rejects_at_once() {
    let (_layer, service, permit) = full(2);
    let mut line = [joins(&service), joins(&service)];
    assert_eq!(status(&service, request()).await, 503);
    drop(permit);
    drop(assert_ready_ok!(line[0].poll()));
    let _third = queued_or_served(&service);
    drop(assert_ready_ok!(line[1].poll()));
}

/// Fits the queue, whether or not it is served already.
fn queued_or_served(service: &ConcurrencyLimit<Counting>) -> Waiting {
    let mut waiting = task::spawn(service.clone().call(request()));
    if let std::task::Poll::Ready(response) = waiting.poll() {
        assert_eq!(response.unwrap().status(), 200);
    }
    waiting
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_in_a_queue_of_size_0() {
    let (_layer, service, _permit) = full(0);
    assert_eq!(status(&service, request()).await, 503);
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_bounded() {
    let inner = Counting::default();
    let layer = ConcurrencyLimitLayer::new(1).wait(1, 60 * SECOND);
    let service = layer.layer(inner.clone());
    let _permit = layer.limiter().try_acquire().unwrap();
    let mut waiting = joins(&service);
    tokio::time::advance(59 * SECOND).await;
    assert_pending!(waiting.poll());
    tokio::time::advance(2 * SECOND).await;
    assert!(waiting.is_woken());
    let refused = assert_ready_ok!(waiting.poll());
    assert_eq!(refused.status(), 503);
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    assert_eq!(inner.calls(), 0);
    let _place = joins(&service);
}

#[tokio::test(start_paused = true)]
async fn a_permit_granted_in_time_counts_if_polled_late() {
    let (layer, service, permit) = full(1);
    let mut waiting = joins(&service);
    drop(permit);
    tokio::time::advance(120 * SECOND).await;
    let response = assert_ready_ok!(waiting.poll());
    assert_eq!(response.status(), 200);
    drop(response);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_waiter_frees_its_place() {
    let (_layer, service, _permit) = full(1);
    for _ in 0..100 {
        drop(joins(&service));
    }
    let _stays = joins(&service);
    assert_eq!(status(&service, request()).await, 503);
}

#[tokio::test(start_paused = true)]
async fn a_permit_granted_to_a_cancelled_waiter_is_not_lost() {
    let (layer, service, permit) = full(3);
    let (first, mut second, third) = (joins(&service), joins(&service), joins(&service));
    drop(permit);
    drop(third);
    drop(first);
    assert!(second.is_woken());
    drop(assert_ready_ok!(second.poll()));
    assert_eq!(layer.limiter().in_flight(), 0);
    assert_eq!(status(&service, request()).await, 200);
}

#[tokio::test(start_paused = true)]
async fn raising_the_limit_serves_the_queue() {
    let (layer, service, _permit) = full(3);
    let mut line: Vec<_> = (0..3).map(|_| joins(&service)).collect();
    layer.limiter().set_limit(3);
    let _one = assert_ready_ok!(line[0].poll());
    let _two = assert_ready_ok!(line[1].poll());
    assert_pending!(line[2].poll());
    layer.limiter().set_limit(Capacity::Unlimited);
    drop(assert_ready_ok!(line[2].poll()));
}

#[tokio::test(start_paused = true)]
async fn lowering_the_limit_serves_the_queue_later() {
    let layer = ConcurrencyLimitLayer::new(2).wait(1, 60 * SECOND);
    let service = layer.layer(Counting::default());
    let one = layer.limiter().try_acquire().unwrap();
    let two = layer.limiter().try_acquire().unwrap();
    let mut waiting = joins(&service);
    layer.limiter().set_limit(1);
    drop(one);
    assert_pending!(waiting.poll());
    drop(two);
    drop(assert_ready_ok!(waiting.poll()));
}

#[tokio::test(start_paused = true)]
async fn a_queued_request_counts_for_its_key() {
    let layer = ConcurrencyLimitLayer::new(1)
        .per_key(by_user, 1)
        .wait(9, 60 * SECOND);
    let mut service = layer.layer(Counting::default());
    let permit = layer.limiter().try_acquire().unwrap();
    let mut alice = task::spawn(service.call(user("alice")));
    assert_pending!(alice.poll());
    assert_eq!(status(&service, user("alice")).await, 429);
    drop(alice);
    let mut alice = task::spawn(service.call(user("alice")));
    assert_pending!(alice.poll(), "the place and the key are free again");
    drop(permit);
    drop(assert_ready_ok!(alice.poll()));
    assert_eq!(status(&service, user("alice")).await, 200);
}

#[tokio::test(start_paused = true)]
async fn many_waiters_are_all_served_or_rejected() {
    let layer = ConcurrencyLimitLayer::new(2).wait(20, 60 * SECOND);
    let service = layer.layer(tower::service_fn(|_: http::Request<()>| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, std::convert::Infallible>(crate::common::ok())
    }));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move { status(&service, request()).await })
        })
        .collect();
    let mut statuses = Vec::new();
    for task in tasks {
        statuses.push(task.await.unwrap());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 22);
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 28);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn waits_of_any_duration_work() {
    let layer = ConcurrencyLimitLayer::new(1);
    let longest = layer
        .clone()
        .wait(1, Duration::MAX)
        .layer(Counting::default());
    let shortest = layer
        .clone()
        .wait(1, Duration::ZERO)
        .layer(Counting::default());
    let permit = layer.limiter().try_acquire().unwrap();
    assert_eq!(status(&shortest, request()).await, 503);
    let mut waiting = joins(&longest);
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_pending!(waiting.poll());
    drop(permit);
    drop(assert_ready_ok!(waiting.poll()));
    assert_eq!(status(&shortest, request()).await, 200);
}

/// A request with a granted permit does not wait, even if its task has not run yet.
#[tokio::test(start_paused = true)]
async fn a_granted_permit_frees_its_place_in_the_queue() {
    let (_layer, service, permit) = full(1);
    let mut first = joins(&service);
    drop(permit);
    let mut second = joins(&service);
    let response = assert_ready_ok!(first.poll());
    assert_eq!(response.status(), 200);
    drop(response);
    assert_eq!(assert_ready_ok!(second.poll()).status(), 200);
}
