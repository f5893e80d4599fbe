//! The response future: holds the permit until the response takes over.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use super::layer::{HoldUntil, Shared};
use super::service::Keys;
use crate::body::ResponseBody;
use crate::extract::RequestHead;
use crate::limiter::{Acquiring, Permit, Rejected};

pin_project! {
    /// The response of a [`ConcurrencyLimit`](super::ConcurrencyLimit) service.
    ///
    /// Dropping it gives the permit back, or leaves the line.
    pub struct ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, RB, S::Future>,
    }
}

pin_project! {
    // What is not in the way of an admitted request is boxed, to keep the future small.
    #[project = StateProj]
    enum State<S, B, RB, F> {
        Calling { #[pin] future: F, permit: Permit, until: HoldUntil },
        Refused { response: Option<Box<Response<ResponseBody<RB>>>> },
        InLine { request: Option<Box<InLine<S, B>>> },
    }
}

/// A request that waits for a permit, with the service that was made ready for it.
pub(super) struct InLine<S, B> {
    pub(super) acquiring: Acquiring,
    pub(super) service: S,
    pub(super) request: Request<B>,
    pub(super) keys: Keys,
    /// When it came, if observers are to be told how long the decision took.
    pub(super) begun: Option<Instant>,
    pub(super) shared: Arc<Shared>,
}

impl<S, B, RB> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>>,
{
    #[inline]
    pub(super) fn calling(future: S::Future, permit: Permit, until: HoldUntil) -> Self {
        Self {
            state: State::Calling {
                future,
                permit,
                until,
            },
        }
    }

    pub(super) fn refused(response: Response<ResponseBody<RB>>) -> Self {
        Self {
            state: State::Refused {
                response: Some(Box::new(response)),
            },
        }
    }

    pub(super) fn in_line(request: InLine<S, B>) -> Self {
        Self {
            state: State::InLine {
                request: Some(Box::new(request)),
            },
        }
    }
}

impl<S, B, RB> Future for ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body,
{
    type Output = Result<Response<ResponseBody<RB>>, S::Error>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let StateProj::Calling {
            future,
            permit,
            until,
        } = self.as_mut().project().state.project()
        else {
            // Apart, so that a response which was there at once is written to its place.
            return self.poll_slowly(cx);
        };
        match ready!(future.poll(cx)) {
            Ok(response) => {
                let permit = std::mem::replace(permit, Permit::none());
                Poll::Ready(Ok(hold(response, permit, *until)))
            }
            Err(error) => {
                // Nothing is left to hold the permit.
                permit.release();
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<S, B, RB> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body,
{
    /// Gives a refusal, or goes on waiting in line.
    #[cold]
    #[inline(never)]
    fn poll_slowly(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<RB>>, S::Error>> {
        match self.as_mut().project().state.project() {
            StateProj::Refused { response } => {
                let response = response.take().expect("polled again after it was ready");
                Poll::Ready(Ok(*response))
            }
            StateProj::InLine { request } => {
                let waiting = request.as_mut().expect("polled again after it was ready");
                let acquired = ready!(Pin::new(&mut waiting.acquiring).poll(cx));
                let request = request.take().expect("it is there two lines up");
                self.set(request.decided(acquired));
                self.poll(cx)
            }
            StateProj::Calling { .. } => self.poll(cx),
        }
    }
}

impl<S, B> InLine<S, B>
where
    S: Service<Request<B>>,
{
    fn decided<RB: Body>(self, acquired: Result<Permit, Rejected>) -> ResponseFuture<S, B, RB> {
        let Self {
            mut service,
            mut request,
            keys,
            begun,
            shared,
            ..
        } = self;
        match acquired {
            Ok(permit) => {
                let permit = shared.admit(&mut request, permit, keys.first(), begun);
                ResponseFuture::calling(service.call(request), permit, shared.hold_until)
            }
            Err(rejected) => {
                let head = RequestHead::from(&request);
                ResponseFuture::refused(shared.refuse(&rejected, head, &keys, begun))
            }
        }
    }
}

#[inline]
fn hold<RB: Body>(
    response: Response<RB>,
    permit: Permit,
    until: HoldUntil,
) -> Response<ResponseBody<RB>> {
    response.map(|body| match until {
        HoldUntil::BodyEnd => ResponseBody::holding(body, permit),
        HoldUntil::Headers => ResponseBody::inner(body),
    })
}

impl<S, B, RB> fmt::Debug for ResponseFuture<S, B, RB>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
