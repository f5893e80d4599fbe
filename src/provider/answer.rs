//! Answers a request before both layers.

use bytes::Bytes;
use http::Response;

use crate::concurrency::{PermitBody, ResponseFuture};

/// The response of a [`ConcurrencyLimit`](crate::ConcurrencyLimit) to a request that was rejected before it. The future
/// keeps the body of the request for [`DrainRejected`](crate::drain::DrainRejected).
pub fn rejected<S, B, RB>(response: Response<Bytes>, body: B) -> ResponseFuture<S, B, RB>
where
    S: tower_service::Service<http::Request<B>>,
{
    ResponseFuture::rejected(response.map(PermitBody::rejection), body)
}
