//! The line of those who wait for capacity.

use std::time::Duration;

use tokio_test::task::{self, Spawn};
use tokio_test::{assert_pending, assert_ready_ok};
use tower::{Layer, Service};
use tower_admission::concurrency::ResponseFuture;
use tower_admission::{Capacity, ConcurrencyLimit, ConcurrencyLimitLayer, Permit};

use crate::common::{Counting, SECOND, by_user, header, request, status, user};

type Waiting = Spawn<ResponseFuture<Counting, (), http_body_util::Full<bytes::Bytes>>>;

/// A limit of one, which is taken.
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
async fn first_come_first_served() {
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
async fn nobody_overtakes_the_line() {
    let (layer, service, permit) = full(10);
    let mut first = joins(&service);
    drop(permit);
    // The slot is on its way to the first.
    assert!(layer.limiter().try_acquire().is_err());
    let mut second = joins(&service);
    drop(assert_ready_ok!(first.poll()));
    drop(assert_ready_ok!(second.poll()));
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_reaches_the_inner_service_only_when_it_is_served() {
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
async fn a_full_line_refuses_at_once() {
    let (_layer, service, permit) = full(2);
    let mut line = [joins(&service), joins(&service)];
    assert_eq!(status(&service, request()).await, 503);
    drop(permit);
    drop(assert_ready_ok!(line[0].poll()));
    let _third = joins_or_served(&service);
    drop(assert_ready_ok!(line[1].poll()));
}

/// Fits the line, whether or not it is served already.
fn joins_or_served(service: &ConcurrencyLimit<Counting>) -> Waiting {
    let mut waiting = task::spawn(service.clone().call(request()));
    if let std::task::Poll::Ready(response) = waiting.poll() {
        assert_eq!(response.unwrap().status(), 200);
    }
    waiting
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_in_a_line_of_none() {
    let (_layer, service, _permit) = full(0);
    assert_eq!(status(&service, request()).await, 503);
}

#[tokio::test(start_paused = true)]
async fn the_time_is_bounded() {
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
async fn a_slot_that_came_in_time_counts_when_it_is_looked_at_late() {
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
async fn a_waiter_that_goes_away_frees_its_place() {
    let (_layer, service, _permit) = full(1);
    for _ in 0..100 {
        drop(joins(&service));
    }
    let _stays = joins(&service);
    assert_eq!(status(&service, request()).await, 503);
}

#[tokio::test(start_paused = true)]
async fn a_slot_on_its_way_to_a_waiter_that_goes_away_is_not_lost() {
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
async fn raising_the_limit_serves_the_line() {
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
async fn lowering_the_limit_serves_the_line_later() {
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
async fn a_waiter_counts_for_its_key() {
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
async fn many_waiters_are_all_served_or_told() {
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
async fn the_longest_and_the_shortest_time() {
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

/// Whoever has been given a slot does not wait, even if its task has not run yet.
#[tokio::test(start_paused = true)]
async fn a_slot_on_its_way_leaves_a_place_in_the_line() {
    let (_layer, service, permit) = full(1);
    let mut first = joins(&service);
    drop(permit);
    let mut second = joins(&service);
    let response = assert_ready_ok!(first.poll());
    assert_eq!(response.status(), 200);
    drop(response);
    assert_eq!(assert_ready_ok!(second.poll()).status(), 200);
}
