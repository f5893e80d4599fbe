//! The response future: waits for a slow store, and adds the rate-limit fields.

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
use super::state::{DecisionContext, LayerState, Verdict};
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
    // Boxed to keep the future small for admitted requests.
    #[project = StateProj]
    enum State<S, B, RB, F> {
        Calling { #[pin] future: F, report: ResponseReport },
        // A request that may meet the same limit again in a nested service.
        Nested { #[pin] future: F, report: ResponseReport, counted_request: CountedRequest },
        Rejected { response: Option<Box<Response<ResponseBody<RB>>>>, body: Option<Box<B>> },
        Deciding { request: Option<Box<PendingDecision<S, B>>> },
        Refunding { response: Option<Box<PendingRefund<RB>>> },
    }
}

/// What to do with the response: nothing, or the changes of the request's account.
#[derive(Default)]
pub(super) struct ResponseReport(Option<Arc<Account>>);

/// A response that does not count, and its pending refund.
struct PendingRefund<RB> {
    refund: Refund,
    response: Response<RB>,
    account: Arc<Account>,
}

/// A request with a pending decision, and the service that was made ready for it.
pub(super) struct PendingDecision<S, B> {
    pub(super) decision: Pin<Box<dyn Future<Output = Decision> + Send>>,
    pub(super) service: S,
    pub(super) request: Request<B>,
    pub(super) keys: Keys,
    pub(super) context: DecisionContext,
    pub(super) shared: Arc<LayerState>,
}

impl<S, B, RB> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>>,
{
    #[inline]
    pub(super) fn calling(
        future: S::Future,
        report: ResponseReport,
        counted_request: CountedRequest,
    ) -> Self {
        Self {
            state: match counted_request {
                CountedRequest::NOT_LISTED => State::Calling { future, report },
                counted_request => State::Nested {
                    future,
                    report,
                    counted_request,
                },
            },
        }
    }

    /// Keeps the body of the rejected request for [`DrainRejected`](crate::drain::DrainRejected).
    pub(super) fn rejected(response: Response<ResponseBody<RB>>, body: B) -> Self {
        Self {
            state: State::Rejected {
                response: Some(Box::new(response)),
                body: Some(Box::new(body)),
            },
        }
    }

    pub(super) fn deciding(request: PendingDecision<S, B>) -> Self {
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
    /// Panics when polled again after completion.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let StateProj::Calling { future, report } = self.as_mut().project().state.project() else {
            // A separate function, so that an immediate response is constructed in place.
            return self.poll_slowly(cx);
        };
        let polled = report.without_charge_on_panic(|| future.poll(cx));
        let result = ready!(polled);
        let report = std::mem::take(report);
        self.answered(report, result, cx)
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
        mut report: ResponseReport,
        result: Result<Response<RB>, S::Error>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<RB>>, S::Error>> {
        match result {
            Ok(mut response) => {
                if let Some(refund) = report.answered(&mut response) {
                    return self.refund(refund, response, cx);
                }
                Poll::Ready(Ok(response.map(ResponseBody::inner)))
            }
            Err(error) => {
                report.failed();
                Poll::Ready(Err(error))
            }
        }
    }

    /// Waits for the refund before returning the response, which reports the numbers after it.
    #[cold]
    #[inline(never)]
    fn refund(
        mut self: Pin<&mut Self>,
        (refund, account): (Refund, Arc<Account>),
        response: Response<RB>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<RB>>, S::Error>> {
        self.as_mut().project().state.set(State::Refunding {
            response: Some(Box::new(PendingRefund {
                refund,
                response,
                account,
            })),
        });
        self.poll_slowly(cx)
    }

    /// Returns a rejection, waits for the store, or polls a nested call.
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
                self.set(request.apply(decision));
                self.poll(cx)
            }
            StateProj::Refunding { response } => {
                let refunding = response.as_mut().expect("polled again after it was ready");
                ready!(refunding.refund.as_mut().poll(cx));
                let refunding = response.take().expect("it is there two lines up");
                let PendingRefund {
                    mut response,
                    account,
                    ..
                } = *refunding;
                account.report(response.headers_mut());
                Poll::Ready(Ok(response.map(ResponseBody::inner)))
            }
            StateProj::Nested {
                future,
                report,
                counted_request,
            } => {
                let listed = counted_request.list();
                let polled = report.without_charge_on_panic(|| future.poll(cx));
                drop(listed);
                let result = ready!(polled);
                let report = std::mem::take(report);
                self.answered(report, result, cx)
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

impl<S, B> PendingDecision<S, B>
where
    S: Service<Request<B>>,
{
    fn apply<RB: Body>(self, decision: Decision) -> ResponseFuture<S, B, RB> {
        let Self {
            mut service,
            mut request,
            keys,
            context,
            shared,
            ..
        } = self;
        match LayerState::verdict(&shared, &mut request, &keys, context, decision) {
            Verdict::Admitted(mut report) => {
                let mut counted_request = shared.nesting.counted_request();
                let listed = counted_request.list();
                let future = report.without_charge_on_panic(|| service.call(request));
                drop(listed);
                ResponseFuture::calling(future, report, counted_request)
            }
            Verdict::Rejected(response) => ResponseFuture::rejected(response, request.into_body()),
            Verdict::Later(context, decision) => ResponseFuture::deciding(Self {
                decision,
                service,
                request,
                keys,
                context,
                shared,
            }),
        }
    }
}

impl ResponseReport {
    #[inline]
    pub(super) fn new(account: Arc<Account>) -> Self {
        Self(Some(account))
    }

    /// Adds the rate-limit fields. Returns the refund if the response does not count and must wait
    /// for it.
    #[inline]
    fn answered<RB>(&mut self, response: &mut Response<RB>) -> Option<(Refund, Arc<Account>)> {
        let account = self.0.take()?;
        if let Some(refund) = account.answered(response) {
            return Some((refund, account));
        }
        account.report(response.headers_mut());
        None
    }

    /// Calls or polls the inner service. A panic in it is not a disconnect of the client, so `self`
    /// is empty meanwhile and charges nothing when it is dropped.
    #[inline]
    pub(super) fn without_charge_on_panic<T>(&mut self, inner: impl FnOnce() -> T) -> T {
        let account = self.0.take();
        let result = inner();
        self.0 = account;
        result
    }

    /// The inner service failed, which does not show that the credentials are wrong. The request
    /// counts.
    fn failed(&mut self) {
        self.0 = None;
    }
}

impl Drop for ResponseReport {
    /// Charges the suspect of a client that disconnects before the answer; otherwise it could guess
    /// credentials without being counted.
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
