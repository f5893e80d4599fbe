//! The service: passes requests on, and lets its future read the bodies of rejected ones.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::EXPECT;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::future::{KeepsRejectedBody, ResponseFuture};
use super::layer::DrainBounds;

/// A limited service that reads the rest of a rejected request's body. Made by
/// [`DrainRejectedLayer`](super::DrainRejectedLayer).
#[derive(Clone, Debug)]
pub struct DrainRejected<S> {
    inner: S,
    bounds: Arc<DrainBounds>,
}

impl<S> DrainRejected<S> {
    pub(super) fn new(inner: S, bounds: Arc<DrainBounds>) -> Self {
        Self { inner, bounds }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B, RB> Service<Request<B>> for DrainRejected<S>
where
    S: Service<Request<B>, Response = Response<RB>, Future: KeepsRejectedBody<B>>,
    B: Body,
{
    type Response = Response<RB>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B, Response<RB>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // With `Expect`, the client waits for the answer before it sends the body.
        let waits = request.headers().contains_key(EXPECT);
        let bounds = (!waits).then(|| self.bounds.clone());
        ResponseFuture::new(self.inner.call(request), bounds)
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for DrainRejected<S> {
    const NAME: &'static str = S::NAME;
}
