//! The response future: awaits a slow store's answers, and adds the rate-limit fields.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::account::{Account, Keys, Refund};
use super::shared::{Asked, Shared, Verdict};
use crate::body::ResponseBody;
use crate::decision::Decision;
use crate::drain::KeepsRejectedBody;
use crate::nesting::CountedRequest;

pin_project! {
    /// The response of a [`RateLimit`](super::RateLimit) service.
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
        Calling { #[pin] future: F, told: Told },
        // A request that may meet the same limit again on its way.
        Nested { #[pin] future: F, told: Told, counted_request: CountedRequest },
        Rejected { response: Option<Box<Response<ResponseBody<RB>>>>, body: Option<Box<B>> },
        Deciding { request: Option<Box<Deciding<S, B>>> },
        Refunding { response: Option<Box<Refunding<RB>>> },
    }
}

/// What is done when the response is there: nothing, or what the account of the request says.
#[derive(Default)]
pub(super) struct Told(Option<Arc<Account>>);

/// A response that does not count, and whose refund is on its way.
struct Refunding<RB> {
    refund: Refund,
    response: Response<RB>,
    account: Arc<Account>,
}

/// A request whose decision is on its way, with the service that was made ready for it.
pub(super) struct Deciding<S, B> {
    pub(super) decision: Pin<Box<dyn Future<Output = Decision> + Send>>,
    pub(super) service: S,
    pub(super) request: Request<B>,
    pub(super) keys: Keys,
    pub(super) asked: Asked,
    pub(super) shared: Arc<Shared>,
}

impl<S, B, RB> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>>,
{
    #[inline]
    pub(super) fn calling(future: S::Future, told: Told, counted_request: CountedRequest) -> Self {
        Self {
            state: match counted_request {
                CountedRequest::NOT_LISTED => State::Calling { future, told },
                counted_request => State::Nested {
                    future,
                    told,
                    counted_request,
                },
            },
        }
    }

    /// Keeps the body of the rejected request, for [`DrainRejected`](crate::drain::DrainRejected).
    pub(super) fn rejected(response: Response<ResponseBody<RB>>, body: B) -> Self {
        Self {
            state: State::Rejected {
                response: Some(Box::new(response)),
                body: Some(Box::new(body)),
            },
        }
    }

    pub(super) fn deciding(request: Deciding<S, B>) -> Self {
        Self {
            state: State::Deciding {
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
        let StateProj::Calling { future, told } = self.as_mut().project().state.project() else {
            // Apart, so that a response which was there at once is written to its place.
            return self.poll_slowly(cx);
        };
        let polled = told.unless_it_panics(|| future.poll(cx));
        let result = ready!(polled);
        let told = std::mem::take(told);
        self.answered(told, result, cx)
    }
}

impl<S, B, RB> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body,
{
    #[inline]
    fn answered(
        self: Pin<&mut Self>,
        mut told: Told,
        result: Result<Response<RB>, S::Error>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<RB>>, S::Error>> {
        match result {
            Ok(mut response) => {
                if let Some(refund) = told.answered(&mut response) {
                    return self.refund(refund, response, cx);
                }
                Poll::Ready(Ok(response.map(ResponseBody::inner)))
            }
            Err(error) => {
                told.failed();
                Poll::Ready(Err(error))
            }
        }
    }

    /// Waits for a refund before it gives the response, which reports the numbers after it.
    #[cold]
    #[inline(never)]
    fn refund(
        mut self: Pin<&mut Self>,
        (refund, account): (Refund, Arc<Account>),
        response: Response<RB>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<RB>>, S::Error>> {
        self.as_mut().project().state.set(State::Refunding {
            response: Some(Box::new(Refunding {
                refund,
                response,
                account,
            })),
        });
        self.poll_slowly(cx)
    }

    /// Gives a rejection, waits for the store, or calls with more than an account.
    #[inline(never)]
    fn poll_slowly(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<RB>>, S::Error>> {
        match self.as_mut().project().state.project() {
            StateProj::Rejected { response, .. } => {
                let response = response.take().expect("polled again after it was ready");
                Poll::Ready(Ok(*response))
            }
            StateProj::Deciding { request } => {
                let deciding = request.as_mut().expect("polled again after it was ready");
                let decision = ready!(deciding.decision.as_mut().poll(cx));
                let request = request.take().expect("it is there two lines up");
                self.set(request.decided(decision));
                self.poll(cx)
            }
            StateProj::Refunding { response } => {
                let refunding = response.as_mut().expect("polled again after it was ready");
                ready!(refunding.refund.as_mut().poll(cx));
                let refunding = response.take().expect("it is there two lines up");
                let Refunding {
                    mut response,
                    account,
                    ..
                } = *refunding;
                account.tell(response.headers_mut());
                Poll::Ready(Ok(response.map(ResponseBody::inner)))
            }
            StateProj::Nested {
                future,
                told,
                counted_request,
            } => {
                let listed = counted_request.list();
                let polled = told.unless_it_panics(|| future.poll(cx));
                drop(listed);
                let result = ready!(polled);
                let told = std::mem::take(told);
                self.answered(told, result, cx)
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

impl<S, B> Deciding<S, B>
where
    S: Service<Request<B>>,
{
    fn decided<RB: Body>(self, decision: Decision) -> ResponseFuture<S, B, RB> {
        let Self {
            mut service,
            mut request,
            keys,
            asked,
            shared,
            ..
        } = self;
        match Shared::verdict(&shared, &mut request, &keys, asked, decision) {
            Verdict::Admitted(mut told) => {
                let mut counted_request = shared.nesting.counted_request();
                let listed = counted_request.list();
                let future = told.unless_it_panics(|| service.call(request));
                drop(listed);
                ResponseFuture::calling(future, told, counted_request)
            }
            Verdict::Rejected(response) => ResponseFuture::rejected(response, request.into_body()),
            Verdict::Later(asked, decision) => ResponseFuture::deciding(Self {
                decision,
                service,
                request,
                keys,
                asked,
                shared,
            }),
        }
    }
}

impl Told {
    #[inline]
    pub(super) fn of(account: Arc<Account>) -> Self {
        Self(Some(account))
    }

    /// Adds the rate-limit fields; unless the response does not count and its refund is to be
    /// awaited first.
    #[inline]
    fn answered<RB>(&mut self, response: &mut Response<RB>) -> Option<(Refund, Arc<Account>)> {
        let account = self.0.take()?;
        if let Some(refund) = account.answered(response) {
            return Some((refund, account));
        }
        account.tell(response.headers_mut());
        None
    }

    /// Calls or polls the inner service. Its panic is no hang-up of the client, so `self` holds nothing
    /// then that would be charged when it is dropped.
    #[inline]
    pub(super) fn unless_it_panics<T>(&mut self, inner: impl FnOnce() -> T) -> T {
        let account = self.0.take();
        let result = inner();
        self.0 = account;
        result
    }

    /// The inner service failed, which says nothing about credentials. The request counts.
    fn failed(&mut self) {
        self.0 = None;
    }
}

impl Drop for Told {
    /// A client that hangs up before the answer would otherwise guess credentials without being
    /// counted.
    #[inline]
    fn drop(&mut self) {
        if let Some(account) = &self.0 {
            account.charge_suspect();
        }
    }
}

impl<S, B, RB> fmt::Debug for ResponseFuture<S, B, RB>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
