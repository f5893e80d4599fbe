//! The cost of making a response's permit reclaimable while its client does not read.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use axum::body::{Body, Bytes, HttpBody};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use tower::{Layer, Service};
use tower_admission::ConcurrencyLimitLayer;

use crate::Effort;
use crate::contenders::Entry;
use crate::drive::Contender;
use crate::report::{Report, table};
use crate::tables::CALLS;

/// A body with this number of frames and an unknown size.
struct Frames(u32);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = self.0.checked_sub(1).map(|left| {
            self.0 = left;
            Ok(Frame::data(Bytes::from_static(b"frame")))
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }
}

/// Answers with a body of this number of frames.
#[derive(Clone, Copy)]
struct Streaming(u32);

impl Service<Request<()>> for Streaming {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(Body::new(Frames(self.0)))))
    }
}

/// A service whose response is read to its end.
#[derive(Clone)]
struct Read<S>(S);

impl<S, B> Contender for Read<S>
where
    S: Service<Request<()>, Response = Response<B>, Error: Debug> + Clone + Send + 'static,
    B: HttpBody<Error: Debug>,
{
    fn serve(&mut self, requests: &mut Vec<Request<()>>, status: StatusCode) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut as_expected = 0;
        for request in requests.drain(..) {
            assert!(self.0.poll_ready(&mut cx).is_ready());
            let response = pin!(self.0.call(request)).poll(&mut cx);
            let Poll::Ready(Ok(response)) = response else {
                panic!("an immediate response");
            };
            as_expected += usize::from(response.status() == status);
            let mut body = pin!(response.into_body());
            while !body.is_end_stream() {
                assert!(black_box(body.as_mut().poll_frame(&mut cx)).is_ready());
            }
        }
        as_expected
    }

    fn fork(&self) -> Box<dyn Contender> {
        Box::new(self.clone())
    }
}

fn entry<S>(name: &'static str, service: S) -> Entry
where
    Read<S>: Contender + 'static,
{
    Entry {
        name,
        contender: Box::new(Read(service)),
    }
}

/// The nanoseconds that reclaiming adds to a response with this number of frames.
fn added(frames: u32, effort: Effort) -> f64 {
    let task = crate::measure::Task {
        rounds: effort.rounds / 2,
        ..CALLS
    };
    let layer = ConcurrencyLimitLayer::new(1024);
    let off = ConcurrencyLimitLayer::new(1024).reclaim_after(None);
    let inner = Streaming(frames);
    let costs = task.one_thread(&mut [
        entry("no middleware", inner),
        entry("reclaim_after off", off.layer(inner)),
        entry("reclaim_after on", layer.layer(inner)),
    ]);
    let heading = format!("Concurrency limit, a response of {frames} frames that is read");
    let costs = table(&heading, costs);
    costs[2].over - costs[1].over
}

pub fn reclaiming(effort: Effort, report: &mut Report) {
    let [one, two, ten] = [1, 2, 10].map(|frames| added(frames, effort));
    report.measured(
        "nanoseconds that reclaiming adds to a response of one frame, unknown size",
        one,
    );
    report.at_most(
        "nanoseconds that reclaiming adds to a response of two frames",
        two,
        200.0,
    );
    let further = (ten - two) / 8.0;
    report.at_most(
        "nanoseconds that reclaiming adds to each further frame",
        further,
        50.0,
    );
}
