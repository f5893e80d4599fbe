//! The service: looks up a request in `call`, then calls the inner service or rejects.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::future::ResponseFuture;
use super::gate::Gate;
use crate::body::ResponseBody;

/// A service with allow and deny lists. Made by [`AccessLayer`](super::AccessLayer).
#[derive(Clone, Debug)]
pub struct Access<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> Access<S> {
    pub(super) fn new(inner: S, gate: Arc<Gate>) -> Self {
        Self { inner, gate }
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

impl<S, B, RB> Service<Request<B>> for Access<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
{
    type Response = Response<ResponseBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B, RB>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.gate.is_idle() {
            return ResponseFuture::calling(self.inner.call(request));
        }
        self.call_checked(request)
    }
}

impl<S> Access<S> {
    #[inline(never)]
    fn call_checked<B, RB>(&mut self, mut request: Request<B>) -> ResponseFuture<S::Future, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>> + Clone,
        RB: Body,
    {
        if let Some(response) = self.gate.check(&mut request) {
            // Release what the ready service reserved, such as a buffer slot: this clone may not be
            // called again for a long time.
            self.inner = self.inner.clone();
            let response = response.map(ResponseBody::rejection);
            return ResponseFuture::rejected(response, request.into_body());
        }
        ResponseFuture::calling(self.inner.call(request))
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for Access<S> {
    const NAME: &'static str = S::NAME;
}
