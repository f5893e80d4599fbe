//! The response body that holds a permit to its last frame.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::body::ResponseBody;
use crate::limiter::{Parking, Permit};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body of a known size up to this stays where it is and is polled in place. Any other body is
/// boxed, so that it can be dropped when its permit is reclaimed; next to it the box is cheap.
const INLINE_BYTES: u64 = 64 * 1024;

pin_project! {
    /// The body of a response: that of the inner service, which holds the permit of the request
    /// until it ends, or that of a rejection.
    ///
    /// Everything is forwarded: data, trailers, the size hint, and the end of the stream.
    ///
    /// # Errors
    ///
    /// Those of the inner body, and [`ResponseStalled`].
    pub struct PermitBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Inline { #[pin] body: ResponseBody<B>, permit: Permit, parking: Option<Parking<()>> },
        Boxed { boxed: Boxed<B> },
        Reclaimed,
    }
}

/// A body that can be dropped from elsewhere while its client does not read.
struct Boxed<B> {
    /// `None` while it is parked, and after its end.
    body: Option<Pin<Box<ResponseBody<B>>>>,
    permit: Permit,
    parking: Option<Parking<Pin<Box<ResponseBody<B>>>>>,
    /// What the body said when it was parked.
    size_hint: SizeHint,
}

/// The client did not read the response, and another request needed its permit.
///
/// It ends the response: HTTP/1 cuts the connection off, HTTP/2 resets the stream. See
/// [`ConcurrencyLimitLayer::reclaim_after`](super::ConcurrencyLimitLayer::reclaim_after).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResponseStalled;

impl fmt::Display for ResponseStalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client did not read the response, and another request needed its permit")
    }
}

impl std::error::Error for ResponseStalled {}

impl<B: Body> PermitBody<B> {
    /// Holds the permit until the body ends, which may be at once.
    #[inline]
    pub(super) fn holding(body: B, mut permit: Permit) -> Self {
        match body.size_hint().exact() {
            Some(1..=INLINE_BYTES) => {}
            _ if body.is_end_stream() => permit.release(),
            Some(0) => {}
            _ if permit.is_reclaimable() => return Self::boxed(body, permit),
            _ => {}
        }
        Self::inline(ResponseBody::inner(body), permit)
    }

    #[cold]
    fn boxed(body: B, permit: Permit) -> Self {
        let boxed = Boxed {
            body: Some(Box::pin(ResponseBody::inner(body))),
            permit,
            parking: None,
            size_hint: SizeHint::new(),
        };
        Self {
            kind: Kind::Boxed { boxed },
        }
    }
}

impl<B> PermitBody<B> {
    #[inline]
    pub(super) fn inner(body: B) -> Self {
        Self::inline(ResponseBody::inner(body), Permit::none())
    }

    pub(super) fn rejection(text: Bytes) -> Self {
        Self::inline(ResponseBody::rejection(text), Permit::none())
    }

    #[inline]
    fn inline(body: ResponseBody<B>, permit: Permit) -> Self {
        Self {
            kind: Kind::Inline {
                body,
                permit,
                parking: None,
            },
        }
    }
}

impl<B> Body for PermitBody<B>
where
    B: Body + Send + 'static,
    B::Data: From<Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let polled = match self.as_mut().project().kind.project() {
            KindProj::Inline {
                body,
                permit,
                parking,
            } => poll_inline(body, permit, parking, cx),
            KindProj::Boxed { boxed } => boxed.poll(cx),
            KindProj::Reclaimed => return Poll::Ready(None),
        };
        polled.unwrap_or_else(|ResponseStalled| {
            // Drops the body, if it could not be dropped before.
            self.set(Self {
                kind: Kind::Reclaimed,
            });
            Poll::Ready(Some(Err(ResponseStalled.into())))
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inline { body, .. } => body.is_end_stream(),
            Kind::Boxed { boxed } => boxed.body.as_ref().is_some_and(|body| body.is_end_stream()),
            Kind::Reclaimed => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inline { body, .. } => body.size_hint(),
            Kind::Boxed { boxed } => match &boxed.body {
                Some(body) => body.size_hint(),
                None => boxed.size_hint.clone(),
            },
            Kind::Reclaimed => SizeHint::with_exact(0),
        }
    }
}

type Polled<D> = Result<Poll<Option<Result<Frame<D>, BoxError>>>, ResponseStalled>;

#[inline]
fn poll_inline<B>(
    mut body: Pin<&mut B>,
    permit: &mut Permit,
    parking: &mut Option<Parking<()>>,
    cx: &mut Context<'_>,
) -> Polled<B::Data>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    if let Some(parking) = parking {
        let ((), unparked) = parking.unpark().ok_or(ResponseStalled)?;
        *permit = unparked;
    }
    let polled = body.as_mut().poll_frame(cx);
    match after(&*body, &polled) {
        Next::Wait => {}
        Next::End => {
            permit.release();
            *parking = None;
        }
        Next::Frame => park(parking, (), permit, |()| {}),
    }
    Ok(polled.map_err(Into::into))
}

impl<B> Boxed<B>
where
    B: Body + Send + 'static,
    B::Data: From<Bytes>,
    B::Error: Into<BoxError>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled<B::Data> {
        if self.body.is_none()
            && let Some(parking) = &self.parking
        {
            let (body, permit) = parking.unpark().ok_or(ResponseStalled)?;
            (self.body, self.permit) = (Some(body), permit);
        }
        let Some(mut body) = self.body.take() else {
            return Ok(Poll::Ready(None));
        };
        let polled = body.as_mut().poll_frame(cx);
        match after(&*body, &polled) {
            Next::Wait => self.body = Some(body),
            Next::End => {
                self.permit.release();
                self.parking = None;
                self.body = Some(body);
            }
            Next::Frame => {
                self.size_hint = body.size_hint();
                let kept = &mut self.body;
                park(&mut self.parking, body, &mut self.permit, |body| {
                    *kept = Some(body);
                });
            }
        }
        Ok(polled.map_err(Into::into))
    }
}

/// What a response waits for after it was polled.
enum Next {
    /// Its handler.
    Wait,
    /// Its client, which has to take a frame before the next one is asked for.
    Frame,
    End,
}

#[inline]
fn after<B: Body>(body: &B, polled: &Poll<Option<Result<Frame<B::Data>, B::Error>>>) -> Next {
    match polled {
        Poll::Pending => Next::Wait,
        Poll::Ready(Some(Ok(frame))) if !frame.is_trailers() && !body.is_end_stream() => {
            Next::Frame
        }
        Poll::Ready(_) => Next::End,
    }
}

/// Parks what a response holds; `keep` gets the content back if it cannot be parked.
#[cold]
fn park<T: Send + 'static>(
    parking: &mut Option<Parking<T>>,
    content: T,
    permit: &mut Permit,
    keep: impl FnOnce(T),
) {
    let taken = std::mem::replace(permit, Permit::none());
    match parking {
        Some(parking) => parking.park(content, taken),
        None => match Parking::new(content, taken) {
            Ok(parked) => *parking = Some(parked),
            Err((content, taken)) => {
                *permit = taken;
                keep(content);
            }
        },
    }
}

/// An empty body.
impl<B: Default> Default for PermitBody<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}

impl<B> fmt::Debug for PermitBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PermitBody").finish_non_exhaustive()
    }
}
