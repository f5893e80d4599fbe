//! The layer that applies the limits of its group to each request.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_admission::ResponseBody;
use tower_admission::concurrency::{self, ConcurrencyLimit, PermitBody};
use tower_admission::extract::RequestHead;
use tower_admission::provider::rejected;
use tower_admission::rate::RateLimit;
use tower_layer::Layer;
use tower_service::Service;

use super::admission::Admission;

/// Applies the limits of its group to each request. Made by [`Admission::layer`] and [`Admission::layer_of`].
///
/// It answers as an [`AccessLayer`](tower_admission::AccessLayer) around a
/// [`ConcurrencyLimitLayer`](tower_admission::ConcurrencyLimitLayer) around a
/// [`RateLimitLayer`](tower_admission::RateLimitLayer); their documentation shows the answers and the source of the peer's
/// address. The lists apply to all requests, also to those of no group. The inner service is cloned for each request.
#[derive(Clone)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct AdmissionLayer {
    admission: Admission,
    group: Option<Arc<str>>,
}

/// A service with the limits of a configuration. Made by [`AdmissionLayer`].
#[derive(Clone)]
pub struct AdmissionService<S> {
    inner: S,
    admission: Admission,
    group: Option<Arc<str>>,
}

impl AdmissionLayer {
    pub(super) fn new(admission: Admission, group: Option<Arc<str>>) -> Self {
        admission.groups().gate().apply();
        Self { admission, group }
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = AdmissionService<S>;

    fn layer(&self, inner: S) -> AdmissionService<S> {
        AdmissionService {
            inner,
            admission: self.admission.clone(),
            group: self.group.clone(),
        }
    }
}

impl<S, B, RB> Service<Request<B>> for AdmissionService<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
    RB::Data: From<Bytes>,
{
    type Response = Response<PermitBody<ResponseBody<RB>>>;
    type Error = S::Error;
    type Future = concurrency::ResponseFuture<RateLimit<S>, B, ResponseBody<RB>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // Call the service that was made ready, and keep the clone.
        let next = self.inner.clone();
        let ready = mem::replace(&mut self.inner, next);
        let groups = self.admission.groups();
        let gate = groups.gate();
        let banned = (!gate.is_idle()).then(|| gate.check(&mut request));
        if let Some(response) = banned.flatten() {
            return rejected(response, request.into_body());
        }
        let group = groups.find(self.group.as_deref(), RequestHead::from(&request));
        let mut limited: ConcurrencyLimit<_> = group.concurrency.layer(group.rate.layer(ready));
        limited.call(request)
    }
}

impl fmt::Debug for AdmissionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionLayer")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl<S: fmt::Debug> fmt::Debug for AdmissionService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionService")
            .field("inner", &self.inner)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}
