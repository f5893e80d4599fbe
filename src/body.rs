//! The response body of a layer: the inner service's body, or the body of a rejection.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// A response body: the inner service's body, or the body of a rejection.
    ///
    /// Data, trailers, errors, the size hint and the end of the stream are forwarded.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: BodyKind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    #[derive(Debug)]
    enum BodyKind<B> {
        Inner { #[pin] body: B },
        Rejection { text: RejectionText },
    }
}

/// The body of a rejection: at most one frame.
#[derive(Debug)]
pub(crate) struct RejectionText(Option<Bytes>);

impl RejectionText {
    pub(crate) fn new(text: Bytes) -> Self {
        Self(Some(text).filter(|text| !text.is_empty()))
    }

    pub(crate) fn frame<D: From<Bytes>, E>(&mut self) -> Option<Result<Frame<D>, E>> {
        let text = self.0.take()?;
        Some(Ok(Frame::data(text.into())))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |text| text.len() as u64))
    }
}

impl<B> ResponseBody<B> {
    #[inline]
    pub(crate) fn inner(body: B) -> Self {
        Self {
            kind: BodyKind::Inner { body },
        }
    }

    pub(crate) fn rejection(text: Bytes) -> Self {
        Self {
            kind: BodyKind::Rejection {
                text: RejectionText::new(text),
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
            KindProj::Inner { body } => body.poll_frame(cx),
            KindProj::Rejection { text } => Poll::Ready(text.frame()),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Inner { body } => body.is_end_stream(),
            BodyKind::Rejection { text } => text.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Inner { body } => body.size_hint(),
            BodyKind::Rejection { text } => text.size_hint(),
        }
    }
}

/// An empty body.
impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}
