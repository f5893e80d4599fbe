//! The response future: the inner service's, or a rejection that is ready.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use crate::body::ResponseBody;
use crate::drain::KeepsRejectedBody;

pin_project! {
    /// The response of an [`Access`](super::Access) service.
    pub struct ResponseFuture<F, B, RB> {
        #[pin]
        state: State<F, B, RB>,
    }
}

pin_project! {
    // Boxed to keep the future small for admitted requests.
    #[project = StateProj]
    enum State<F, B, RB> {
        Calling { #[pin] future: F },
        Rejected { rejected: Box<RejectedRequest<B, RB>> },
    }
}

/// A rejection, and the request body for [`DrainRejected`](crate::drain::DrainRejected).
struct RejectedRequest<B, RB> {
    response: Option<Response<ResponseBody<RB>>>,
    body: Option<B>,
}

impl<F, B, RB> ResponseFuture<F, B, RB> {
    #[inline]
    pub(super) fn calling(future: F) -> Self {
        Self {
            state: State::Calling { future },
        }
    }

    pub(super) fn rejected(response: Response<ResponseBody<RB>>, body: B) -> Self {
        let rejected = RejectedRequest {
            response: Some(response),
            body: Some(body),
        };
        Self {
            state: State::Rejected {
                rejected: Box::new(rejected),
            },
        }
    }
}

impl<F, B, RB, E> Future for ResponseFuture<F, B, RB>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: Body,
{
    type Output = Result<Response<ResponseBody<RB>>, E>;

    /// # Panics
    ///
    /// Panics when polled again after completion.
    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match self.project().state.project() {
            StateProj::Calling { future } => ready!(future.poll(cx))?.map(ResponseBody::inner),
            StateProj::Rejected { rejected } => {
                let response = rejected.response.take();
                response.expect("polled again after it was ready")
            }
        }))
    }
}

impl<F, B, RB> KeepsRejectedBody<B> for ResponseFuture<F, B, RB> {
    fn take_rejected_body(self: Pin<&mut Self>) -> Option<B> {
        match self.project().state.project() {
            StateProj::Calling { .. } => None,
            StateProj::Rejected { rejected } => rejected.body.take(),
        }
    }
}

impl<F, B, RB> fmt::Debug for ResponseFuture<F, B, RB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
