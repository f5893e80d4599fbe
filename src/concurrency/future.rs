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

use super::body::PermitBody;
use super::joint::Taken;
use super::layer::{HoldUntil, Shared};
use super::service::Keys;
use super::upgrade::Upgrade;
use crate::drain::KeepsRejectedBody;
use crate::extract::RequestHead;
use crate::limiter::{KeyedRejection, Permit, PermitFuture};
use crate::nesting::CountedRequest;

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
        // With what few requests need.
        Watching { #[pin] future: F, admitted: Admitted },
        Rejected { response: Option<Box<Response<PermitBody<RB>>>>, body: Option<Box<B>> },
        InLine { request: Option<Box<InLine<S, B>>> },
    }
}

/// What an admitted request holds until its response takes over, where that is more than a permit.
pub(super) struct Admitted {
    pub(super) permit: Permit,
    pub(super) until: HoldUntil,
    pub(super) counted_request: CountedRequest,
    pub(super) upgrade: Option<Box<Upgrade>>,
}

/// A request that waits for a permit, with the service that was made ready for it.
pub(super) struct InLine<S, B> {
    pub(super) acquiring: PermitFuture,
    pub(super) service: S,
    pub(super) request: Request<B>,
    pub(super) keys: Keys,
    /// When it came, if observers are to be told how long the decision took.
    pub(super) begun: Option<Instant>,
    pub(super) shared: Arc<Shared>,
    /// What it has of several limits.
    pub(super) taken: Option<Taken>,
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

    pub(super) fn watching(future: S::Future, admitted: Admitted) -> Self {
        Self {
            state: State::Watching { future, admitted },
        }
    }

    /// Keeps the body of the rejected request, for [`DrainRejected`](crate::drain::DrainRejected).
    pub(crate) fn rejected(response: Response<PermitBody<RB>>, body: B) -> Self {
        Self {
            state: State::Rejected {
                response: Some(Box::new(response)),
                body: Some(Box::new(body)),
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
    type Output = Result<Response<PermitBody<RB>>, S::Error>;

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
    /// Answers with a rejection, waits for a permit, or calls with more than a permit.
    #[inline(never)]
    fn poll_slowly(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<PermitBody<RB>>, S::Error>> {
        match self.as_mut().project().state.project() {
            StateProj::Rejected { response, .. } => {
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
            StateProj::Watching { future, admitted } => {
                let listed = admitted.counted_request.list();
                let polled = future.poll(cx);
                drop(listed);
                Poll::Ready(match ready!(polled) {
                    Ok(response) => Ok(admitted.hold(response)),
                    Err(error) => {
                        admitted.permit.release();
                        Err(error)
                    }
                })
            }
            StateProj::Calling { .. } => self.poll(cx),
        }
    }
}

impl<S, B, RB> KeepsRejectedBody<B> for ResponseFuture<S, B, RB>
where
    S: Service<Request<B>>,
{
    fn take_rejected_body(self: Pin<&mut Self>) -> Option<B> {
        match self.project().state.project() {
            StateProj::Rejected { body, .. } => body.take().map(|body| *body),
            _ => None,
        }
    }
}

impl<S, B> InLine<S, B>
where
    S: Service<Request<B>>,
{
    fn decided<RB: Body>(
        mut self,
        acquired: Result<Permit, KeyedRejection>,
    ) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>>,
    {
        if let Some(taken) = self.taken.take() {
            return self.decided_jointly(taken, acquired);
        }
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
                let mut admitted = shared.admit(&mut request, permit, keys.first(), begun);
                let listed = admitted.counted_request.list();
                let future = service.call(request);
                drop(listed);
                ResponseFuture::watching(future, admitted)
            }
            Err(rejected) if !shared.enforces(&rejected, &mut request, &keys, begun) => {
                let mut admitted = Admitted::uncounted(shared.limiter.nesting().counted_request());
                let listed = admitted.counted_request.list();
                let future = service.call(request);
                drop(listed);
                ResponseFuture::watching(future, admitted)
            }
            Err(rejected) => {
                let head = RequestHead::from(&request);
                let response = shared.reject(&rejected, head, &keys, begun);
                ResponseFuture::rejected(response, request.into_body())
            }
        }
    }
}

impl Admitted {
    /// A request that was let through without being counted.
    pub(super) fn uncounted(counted_request: CountedRequest) -> Self {
        Self {
            permit: Permit::none(),
            until: HoldUntil::Headers,
            counted_request,
            upgrade: None,
        }
    }

    fn hold<RB: Body>(&mut self, response: Response<RB>) -> Response<PermitBody<RB>> {
        let mut permit = std::mem::replace(&mut self.permit, Permit::none());
        if let Some(upgrade) = &self.upgrade {
            permit = upgrade.hand_over(permit, &response);
        }
        hold(response, permit, self.until)
    }
}

#[inline]
fn hold<RB: Body>(
    response: Response<RB>,
    permit: Permit,
    until: HoldUntil,
) -> Response<PermitBody<RB>> {
    response.map(|body| match until {
        HoldUntil::BodyEnd => PermitBody::holding(body, permit),
        HoldUntil::Headers => PermitBody::inner(body),
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
