//! The response body that holds a permit to its last frame.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::body::RejectionText;
use crate::limiter::{Parking, Permit, Unparked};

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
        Inline { #[pin] body: B, permit: Permit, parking: Option<Parking<()>> },
        // In a box, so that the usual body stays small and quick to drop.
        Rare { rare: Box<Rare<B>> },
    }
}

enum Rare<B> {
    Boxed(Boxed<B>),
    Rejection(RejectionText),
    Reclaimed,
}

/// A body that can be dropped from elsewhere while its client does not read.
struct Boxed<B> {
    /// `None` while it is parked, and after its end.
    body: Option<Pin<Box<B>>>,
    permit: Permit,
    parking: Option<Parking<Pin<Box<B>>>>,
    /// What the body said when it was parked.
    size_hint: SizeHint,
}

/// The client did not read the response, and another request needed its permit.
///
/// It ends the response: HTTP/1 cuts the connection off, HTTP/2 resets the stream, as soon as the
/// server asks for the next frame. See
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
    pub(super) fn holding(body: B, permit: Permit) -> Self {
        match body.size_hint().exact() {
            Some(1..=INLINE_BYTES) => Self::inline(body, permit),
            size => Self::holding_other(body, size, permit),
        }
    }

    /// A body that is empty, long, or of an unknown size.
    #[inline(never)]
    fn holding_other(body: B, size: Option<u64>, mut permit: Permit) -> Self {
        if body.is_end_stream() {
            permit.release();
        } else if size != Some(0) && permit.is_reclaimable() {
            return Self::rare(Rare::Boxed(Boxed {
                body: Some(Box::pin(body)),
                permit,
                parking: None,
                size_hint: SizeHint::new(),
            }));
        }
        Self::inline(body, permit)
    }
}

impl<B> PermitBody<B> {
    #[inline]
    pub(super) fn inner(body: B) -> Self {
        Self::inline(body, Permit::none())
    }

    pub(crate) fn rejection(text: Bytes) -> Self {
        Self::rare(Rare::Rejection(RejectionText::new(text)))
    }

    fn rare(rare: Rare<B>) -> Self {
        let rare = Box::new(rare);
        Self {
            kind: Kind::Rare { rare },
        }
    }

    #[inline]
    fn inline(body: B, permit: Permit) -> Self {
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
    ) -> PolledFrame<B::Data, BoxError> {
        let polled = match self.as_mut().project().kind.project() {
            KindProj::Inline {
                body,
                permit,
                parking,
            } => poll_inline(body, permit, parking, cx),
            KindProj::Rare { rare } => match &mut **rare {
                Rare::Boxed(boxed) => boxed.poll(cx),
                Rare::Rejection(text) => return Poll::Ready(text.frame()),
                Rare::Reclaimed => return Poll::Ready(None),
            },
        };
        polled.unwrap_or_else(|ResponseStalled| {
            // Drops the body, if it could not be dropped before.
            self.set(Self::rare(Rare::Reclaimed));
            Poll::Ready(Some(Err(ResponseStalled.into())))
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inline { body, .. } => body.is_end_stream(),
            Kind::Rare { rare } => match &**rare {
                Rare::Boxed(Boxed { body, .. }) => {
                    body.as_ref().is_some_and(|body| body.is_end_stream())
                }
                Rare::Rejection(text) => text.is_end_stream(),
                Rare::Reclaimed => true,
            },
        }
    }

    #[expect(
        clippy::clone_on_copy,
        reason = "a size hint is Copy only since http-body 1.1"
    )]
    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inline { body, .. } => body.size_hint(),
            Kind::Rare { rare } => match &**rare {
                Rare::Boxed(Boxed {
                    body: Some(body), ..
                }) => body.size_hint(),
                Rare::Boxed(Boxed { size_hint, .. }) => size_hint.clone(),
                Rare::Rejection(text) => text.size_hint(),
                Rare::Reclaimed => SizeHint::with_exact(0),
            },
        }
    }
}

type PolledFrame<D, E> = Poll<Option<Result<Frame<D>, E>>>;
type Polled<D> = Result<PolledFrame<D, BoxError>, ResponseStalled>;

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
        match parking.unpark() {
            Unparked::Content((), unparked) => *permit = unparked,
            // The response waits for its handler.
            Unparked::NotParked => {}
            Unparked::Reclaimed => return Err(ResponseStalled),
        }
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
    B::Error: Into<BoxError>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled<B::Data> {
        if self.body.is_none()
            && let Some(parking) = &self.parking
        {
            match parking.unpark() {
                Unparked::Content(body, permit) => {
                    (self.body, self.permit) = (Some(body), permit);
                }
                // Only a body that panicked is in neither place.
                Unparked::NotParked | Unparked::Reclaimed => return Err(ResponseStalled),
            }
        }
        let Some(mut body) = self.body.take() else {
            // It panicked when it was polled for the first time.
            return Err(ResponseStalled);
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
fn after<B: Body>(body: &B, polled: &PolledFrame<B::Data, B::Error>) -> Next {
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
