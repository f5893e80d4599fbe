//! The response future: holds the permit until the response takes it over.

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
use super::joint::JointPermits;
use super::layer::{HoldUntil, LayerState};
use super::service::Keys;
use super::upgrade::Upgrade;
use crate::drain::KeepsRejectedBody;
use crate::extract::RequestHead;
use crate::limiter::{KeyedRejection, Permit, PermitFuture};
use crate::nesting::CountedRequest;

pin_project! {
    /// The response of a [`ConcurrencyLimit`](super::ConcurrencyLimit) service.
    ///
    /// Dropping it releases the permit, or leaves the wait queue.
    pub struct ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, RB, S::Future>,
    }
}

pin_project! {
    // Boxed to keep the future small for admitted requests.
    #[project = StateProj]
    enum State<S, B, RB, F> {
        Calling { #[pin] future: F, permit: Permit, until: HoldUntil },
        // With state that few requests need.
        Extended { #[pin] future: F, admitted: Admitted },
        Rejected { response: Option<Box<Response<PermitBody<RB>>>>, body: Option<Box<B>> },
        Queued { request: Option<Box<QueuedRequest<S, B>>> },
    }
}

/// The state of an admitted request until its response takes over, if it is more than a permit.
pub(super) struct Admitted {
    pub(super) permit: Permit,
    pub(super) until: HoldUntil,
    pub(super) counted_request: CountedRequest,
    pub(super) upgrade: Option<Box<Upgrade>>,
}

/// A request that waits for a permit, and the service that was made ready for it.
pub(super) struct QueuedRequest<S, B> {
    pub(super) acquiring: PermitFuture,
    pub(super) service: S,
    pub(super) request: Request<B>,
    pub(super) keys: Keys,
    /// The time at which the decision began, if there are observers.
    pub(super) begun: Option<Instant>,
    pub(super) shared: Arc<LayerState>,
    /// The permits that it has taken, if it needs several.
    pub(super) taken: Option<JointPermits>,
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

    pub(super) fn calling_with(future: S::Future, admitted: Admitted) -> Self {
        Self {
            state: State::Extended { future, admitted },
        }
    }

    /// Keeps the body of the rejected request for [`DrainRejected`](crate::drain::DrainRejected).
    pub(crate) fn rejected(response: Response<PermitBody<RB>>, body: B) -> Self {
        Self {
            state: State::Rejected {
                response: Some(Box::new(response)),
                body: Some(Box::new(body)),
            },
        }
    }

    pub(super) fn queued(request: QueuedRequest<S, B>) -> Self {
        Self {
            state: State::Queued {
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
    /// Panics when polled again after completion.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let StateProj::Calling {
            future,
            permit,
            until,
        } = self.as_mut().project().state.project()
        else {
            // A separate function, so that an immediate response is constructed in place.
            return self.poll_slowly(cx);
        };
        match ready!(future.poll(cx)) {
            Ok(response) => {
                let permit = std::mem::replace(permit, Permit::none());
                Poll::Ready(Ok(hold(response, permit, *until)))
            }
            Err(error) => {
                // No body remains that could hold the permit.
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
    /// Returns a rejection, waits for a permit, or polls a call with more state than a permit.
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
            StateProj::Queued { request } => {
                let waiting = request.as_mut().expect("polled again after it was ready");
                let acquired = ready!(Pin::new(&mut waiting.acquiring).poll(cx));
                let request = request.take().expect("it is there two lines up");
                self.set(request.decided(acquired));
                self.poll(cx)
            }
            StateProj::Extended { future, admitted } => {
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

impl<S, B> QueuedRequest<S, B>
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
                ResponseFuture::calling_with(future, admitted)
            }
            Err(rejected) if !shared.enforces(&rejected, &mut request, &keys, begun) => {
                let mut admitted = Admitted::uncounted(shared.limiter.nesting().counted_request());
                let listed = admitted.counted_request.list();
                let future = service.call(request);
                drop(listed);
                ResponseFuture::calling_with(future, admitted)
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
    /// A request that was passed on without being counted.
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
