//! The response body that holds a permit until its last frame.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::body::RejectionText;
use crate::limiter::{Parking, Permit, Unparked};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body of known size up to this many bytes is polled in place. Any other body is boxed, so that
/// it can be dropped when its permit is reclaimed; for such a body the box is cheap.
const INLINE_BYTES: u64 = 64 * 1024;

pin_project! {
    /// A response body: the inner service's body, which holds the permit of the request until it
    /// ends, or the body of a rejection.
    ///
    /// Data, trailers, the size hint and the end of the stream are forwarded.
    ///
    /// # Errors
    ///
    /// The errors of the inner body, and [`ResponseStalled`].
    pub struct PermitBody<B> {
        #[pin]
        kind: BodyKind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum BodyKind<B> {
        Inline { #[pin] body: B, permit: Permit, parking: Option<Parking<()>> },
        // Boxed, so that the common body stays small and fast to drop.
        Uncommon { uncommon: Box<UncommonBody<B>> },
    }
}

enum UncommonBody<B> {
    BoxedBody(BoxedBody<B>),
    Rejection(RejectionText),
    Reclaimed,
}

/// A body that another thread can drop while its client does not read.
struct BoxedBody<B> {
    /// `None` while it is parked, and after its end.
    body: Option<Pin<Box<B>>>,
    permit: Permit,
    parking: Option<Parking<Pin<Box<B>>>>,
    /// The size hint of the parked body.
    size_hint: SizeHint,
}

/// The client did not read the response, and another request needed its permit.
///
/// This error ends the response when the server polls for the next frame: HTTP/1 closes the
/// connection, HTTP/2 resets the stream. See
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

    /// Holds the permit with a body that is empty, long, or of unknown size.
    #[inline(never)]
    fn holding_other(body: B, size: Option<u64>, mut permit: Permit) -> Self {
        if body.is_end_stream() {
            permit.release();
        } else if size != Some(0) && permit.is_reclaimable() {
            return Self::uncommon(UncommonBody::BoxedBody(BoxedBody {
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
        Self::uncommon(UncommonBody::Rejection(RejectionText::new(text)))
    }

    fn uncommon(uncommon: UncommonBody<B>) -> Self {
        let uncommon = Box::new(uncommon);
        Self {
            kind: BodyKind::Uncommon { uncommon },
        }
    }

    #[inline]
    fn inline(body: B, permit: Permit) -> Self {
        Self {
            kind: BodyKind::Inline {
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
            KindProj::Uncommon { uncommon } => match &mut **uncommon {
                UncommonBody::BoxedBody(boxed) => boxed.poll(cx),
                UncommonBody::Rejection(text) => return Poll::Ready(text.frame()),
                UncommonBody::Reclaimed => return Poll::Ready(None),
            },
        };
        polled.unwrap_or_else(|ResponseStalled| {
            // Drops the body, if it was not dropped before.
            self.set(Self::uncommon(UncommonBody::Reclaimed));
            Poll::Ready(Some(Err(ResponseStalled.into())))
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Inline { body, .. } => body.is_end_stream(),
            BodyKind::Uncommon { uncommon } => match &**uncommon {
                UncommonBody::BoxedBody(BoxedBody { body, .. }) => {
                    body.as_ref().is_some_and(|body| body.is_end_stream())
                }
                UncommonBody::Rejection(text) => text.is_end_stream(),
                UncommonBody::Reclaimed => true,
            },
        }
    }

    #[expect(
        clippy::clone_on_copy,
        reason = "a size hint is Copy only since http-body 1.1"
    )]
    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Inline { body, .. } => body.size_hint(),
            BodyKind::Uncommon { uncommon } => match &**uncommon {
                UncommonBody::BoxedBody(BoxedBody {
                    body: Some(body), ..
                }) => body.size_hint(),
                UncommonBody::BoxedBody(BoxedBody { size_hint, .. }) => size_hint.clone(),
                UncommonBody::Rejection(text) => text.size_hint(),
                UncommonBody::Reclaimed => SizeHint::with_exact(0),
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
            // The response was waiting for its handler.
            Unparked::NotParked => {}
            Unparked::Reclaimed => return Err(ResponseStalled),
        }
    }
    let polled = body.as_mut().poll_frame(cx);
    match after_poll(&*body, &polled) {
        AfterPoll::Wait => {}
        AfterPoll::End => {
            permit.release();
            *parking = None;
        }
        AfterPoll::Frame => park(parking, (), permit, |()| {}),
    }
    Ok(polled.map_err(Into::into))
}

impl<B> BoxedBody<B>
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
                // Only after a panic of the body it is in neither place.
                Unparked::NotParked | Unparked::Reclaimed => return Err(ResponseStalled),
            }
        }
        let Some(mut body) = self.body.take() else {
            // The body panicked in its first poll.
            return Err(ResponseStalled);
        };
        let polled = body.as_mut().poll_frame(cx);
        match after_poll(&*body, &polled) {
            AfterPoll::Wait => self.body = Some(body),
            AfterPoll::End => {
                self.permit.release();
                self.parking = None;
                self.body = Some(body);
            }
            AfterPoll::Frame => {
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

/// What the response waits for after a poll.
enum AfterPoll {
    /// Its handler.
    Wait,
    /// The client, which must take the frame before the server polls for the next one.
    Frame,
    End,
}

#[inline]
fn after_poll<B: Body>(body: &B, polled: &PolledFrame<B::Data, B::Error>) -> AfterPoll {
    match polled {
        Poll::Pending => AfterPoll::Wait,
        Poll::Ready(Some(Ok(frame))) if !frame.is_trailers() && !body.is_end_stream() => {
            AfterPoll::Frame
        }
        Poll::Ready(_) => AfterPoll::End,
    }
}

/// Parks the content and the permit of a response. Calls `keep` with the content if it cannot be
/// parked.
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
