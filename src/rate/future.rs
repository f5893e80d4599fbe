//! The response future: awaits a decision if the store is slow, and adds what is to be told.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::shared::{Asked, Shared, Verdict, refuses_credentials};
use crate::body::ResponseBody;
use crate::decision::Decision;
use crate::key::Key;

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
        Calling { #[pin] future: F, told: Option<Told> },
        Refused { response: Option<Box<Response<ResponseBody<RB>>>> },
        Deciding { request: Option<Box<Deciding<S, B>>> },
    }
}

/// What is done when the response is there.
pub(super) struct Told {
    /// For the headers.
    pub(super) decision: Option<Decision>,
    /// Charged if the answer says that credentials were not accepted, or if none comes. Boxed,
    /// as few layers have a guard.
    pub(super) guarded: Option<Box<Key>>,
    pub(super) shared: Arc<Shared>,
}

/// A request whose decision is on its way, with the service that was made ready for it.
pub(super) struct Deciding<S, B> {
    pub(super) decision: Pin<Box<dyn Future<Output = Decision> + Send>>,
    pub(super) service: S,
    pub(super) request: Request<B>,
    pub(super) asked: Asked,
    pub(super) shared: Arc<Shared>,
}

impl<S, B, RB> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>>,
{
    #[inline]
    pub(super) fn calling(future: S::Future, told: Option<Told>) -> Self {
        Self {
            state: State::Calling { future, told },
        }
    }

    pub(super) fn refused(response: Response<ResponseBody<RB>>) -> Self {
        Self {
            state: State::Refused {
                response: Some(Box::new(response)),
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
        match ready!(future.poll(cx)) {
            Ok(mut response) => {
                if let Some(told) = told {
                    told.tell(&mut response);
                }
                Poll::Ready(Ok(response.map(ResponseBody::inner)))
            }
            Err(error) => {
                if let Some(told) = told {
                    told.tell_nothing();
                }
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
    /// Gives a refusal, or goes on waiting for a decision.
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
            StateProj::Deciding { request } => {
                let deciding = request.as_mut().expect("polled again after it was ready");
                let decision = ready!(deciding.decision.as_mut().poll(cx));
                let request = request.take().expect("it is there two lines up");
                self.set(request.decided(decision));
                self.poll(cx)
            }
            StateProj::Calling { .. } => self.poll(cx),
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
            asked,
            shared,
            ..
        } = self;
        match Shared::verdict(&shared, &mut request, asked, decision) {
            Verdict::Admitted(told) => ResponseFuture::calling(service.call(request), told),
            Verdict::Refused(response) => ResponseFuture::refused(response),
        }
    }
}

impl Told {
    fn tell<RB>(&mut self, response: &mut Response<RB>) {
        if let Some(address) = self.guarded.take()
            && refuses_credentials(response)
        {
            self.shared.charge(&address);
        }
        if let Some(decision) = &self.decision {
            self.shared.tell(decision, response.headers_mut());
        }
    }

    /// The inner service failed, which says nothing about credentials.
    fn tell_nothing(&mut self) {
        self.guarded = None;
    }
}

impl Drop for Told {
    /// A client that goes away before the answer is charged as if it was refused: hanging up
    /// would be a way to guess on without being counted.
    fn drop(&mut self) {
        if let Some(address) = &self.guarded {
            self.shared.charge(address);
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
