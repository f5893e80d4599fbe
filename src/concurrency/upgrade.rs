//! The permit of a request that becomes a connection.

use std::sync::Arc;

use http::{Method, Request, header};

use crate::limiter::Permit;

/// The permit of a request that asks for an upgrade (a WebSocket, a `CONNECT`).
///
/// Such a request's response has no body that would last as long as the connection, so its
/// permit is handed to the handler as a request extension. The request counts for as long as
/// the handler, or the task that it gives the connection to, keeps a clone.
///
/// With feature `axum` it is an extractor, which always succeeds: without a
/// [`ConcurrencyLimitLayer`](super::ConcurrencyLimitLayer), and for requests that ask for no
/// upgrade, it holds nothing.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::extract::Request;
/// use axum::response::Response;
/// use tower_admission::UpgradePermit;
///
/// async fn handler(permit: UpgradePermit, mut request: Request) {
///     tokio::spawn(async move {
///         let _permit = permit; // counts until this task is done with the connection
///         let upgraded = hyper::upgrade::on(&mut request).await;
///         // ...
///     });
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "dropping the last clone gives the permit back"]
pub struct UpgradePermit {
    /// One for each layer around the handler.
    permits: Vec<Arc<Permit>>,
}

impl UpgradePermit {
    /// Hands a permit to the handler of a request, next to those of layers further out.
    pub(super) fn hand_over<B>(permit: Arc<Permit>, request: &mut Request<B>) {
        let mut handed: Self = request.extensions_mut().remove().unwrap_or_default();
        handed.permits.push(permit);
        request.extensions_mut().insert(handed);
    }

    /// Whether there is a permit in it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.permits.is_empty()
    }
}

/// Whether a request wants its connection for something else than HTTP (RFC 9110 §7.8, §9.3.6).
#[inline]
pub(super) fn asks_for_upgrade<B>(request: &Request<B>) -> bool {
    // A look at the names of what few headers there are, not a look-up by hash: the request's
    // address stays out of calls, so that the compiler can pass it on with a copy less.
    let mut names = request.headers().keys();
    names.any(|name| *name == header::UPGRADE) || request.method() == Method::CONNECT
}

#[cfg(feature = "axum")]
impl<S: Sync> axum_core::extract::FromRequestParts<S> for UpgradePermit {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}
