//! Calls a service by hand, without a runtime.

use std::fmt::Debug;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::{Request, Response, StatusCode};
use tower::Service;

/// A service behind one virtual call per chunk of requests.
pub trait Contender: Send {
    /// Serves all requests and returns the number of answers with `status`.
    fn serve(&mut self, requests: &mut Vec<Request<()>>, status: StatusCode) -> usize;

    /// Another service with the same limit, for another thread.
    fn fork(&self) -> Box<dyn Contender>;
}

/// Any service that answers on the first poll.
#[derive(Clone)]
pub struct Driven<S>(pub S);

impl<S, B> Contender for Driven<S>
where
    S: Service<Request<()>, Response = Response<B>, Error: Debug> + Clone + Send + 'static,
{
    fn serve(&mut self, requests: &mut Vec<Request<()>>, status: StatusCode) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut as_expected = 0;
        for request in requests.drain(..) {
            let Poll::Ready(Ok(())) = self.0.poll_ready(&mut cx) else {
                panic!("a service with capacity is ready");
            };
            // Checked in place: a move would cost more for a larger response, and say nothing about
            // the call.
            let response = pin!(self.0.call(request)).poll(&mut cx);
            let Poll::Ready(Ok(response)) = black_box(&response) else {
                panic!("an immediate response");
            };
            as_expected += usize::from(response.status() == status);
        }
        as_expected
    }

    fn fork(&self) -> Box<dyn Contender> {
        Box::new(self.clone())
    }
}
