//! The response body that holds a permit to its last frame.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::limiter::Permit;

pin_project! {
    /// A response's body: the inner service's, which holds the request's permit until it ends, or
    /// that of a refusal.
    ///
    /// Everything is forwarded: data, trailers, the size hint and the end of the stream.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    #[derive(Debug)]
    enum Kind<B> {
        Inner { #[pin] body: B, permit: Permit },
        Refusal { text: Option<Bytes> },
    }
}

impl<B: Body> ResponseBody<B> {
    /// Holds the permit until the body ends, which may be at once.
    #[inline]
    pub(crate) fn holding(body: B, mut permit: Permit) -> Self {
        if body.is_end_stream() {
            permit.release();
        }
        Self {
            kind: Kind::Inner { body, permit },
        }
    }

    #[inline]
    pub(crate) fn inner(body: B) -> Self {
        Self {
            kind: Kind::Inner {
                body,
                permit: Permit::none(),
            },
        }
    }

    pub(crate) fn refusal(text: Bytes) -> Self {
        Self {
            kind: Kind::Refusal {
                text: Some(text).filter(|text| !text.is_empty()),
            },
        }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project().kind.project() {
            KindProj::Inner { mut body, permit } => {
                let polled = body.as_mut().poll_frame(cx);
                let ended = match &polled {
                    Poll::Pending => false,
                    Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || body.is_end_stream(),
                    Poll::Ready(Some(Err(_)) | None) => true,
                };
                if ended {
                    permit.release();
                }
                polled
            }
            KindProj::Refusal { text } => {
                Poll::Ready(text.take().map(|text| Ok(Frame::data(text.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body, .. } => body.is_end_stream(),
            Kind::Refusal { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body, .. } => body.size_hint(),
            Kind::Refusal { text } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}

/// Of nothing.
impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self {
            kind: Kind::Inner {
                body: B::default(),
                permit: Permit::none(),
            },
        }
    }
}
