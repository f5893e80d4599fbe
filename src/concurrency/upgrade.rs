//! The permit of a request that becomes a connection.

use std::fmt;
use std::sync::{Arc, Weak};

use http::{Extensions, Method, Request, Response, StatusCode, header};

use crate::limiter::Permit;
use crate::sync::{Mutex, lock};

/// The permit of a request whose connection is upgraded (a WebSocket, a `CONNECT`).
///
/// The response to such a request has no body that lasts as long as the connection. So its permit
/// goes to the handler: the request counts until the handler, or the task that it gives the
/// connection to, has dropped the last clone of this.
///
/// It goes to the handler when the response upgrades the connection: 101, or 2xx to a `CONNECT`.
/// With any other response, whatever `Upgrade` header the client sent, the request counts as every
/// request does, and this holds nothing.
///
/// With feature `axum` it is an extractor, which always succeeds: without a
/// [`ConcurrencyLimitLayer`](super::ConcurrencyLimitLayer), and for requests that ask for no
/// upgrade, it holds nothing. Without axum, [`of`](Self::of) takes it from a request's extensions.
/// Take it before the response is returned.
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
    claims: Vec<Arc<Claim>>,
}

/// Where a permit goes when the connection is upgraded.
#[derive(Default)]
struct Claim(Mutex<Option<Permit>>);

/// What a layer remembers of a request that asks for an upgrade.
pub(super) struct Upgrade {
    // Weak, so that the permit goes nowhere if the handler has not kept its side.
    claim: Weak<Claim>,
    is_connect: bool,
}

impl UpgradePermit {
    /// The permit of the request with these extensions. It holds nothing if the request has none.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Whether there is a permit that an upgrade of the connection hands over to this.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.claims.is_empty()
    }
}

impl Upgrade {
    /// Puts an [`UpgradePermit`] into a request that asks for an upgrade, next to those of layers
    /// further out.
    #[inline]
    pub(super) fn offer<B>(request: &mut Request<B>) -> Option<Box<Self>> {
        asks_for_upgrade(request).then(|| Self::offer_to(request))
    }

    #[cold]
    fn offer_to<B>(request: &mut Request<B>) -> Box<Self> {
        let claim = Arc::<Claim>::default();
        let upgrade = Self {
            claim: Arc::downgrade(&claim),
            is_connect: request.method() == Method::CONNECT,
        };
        let mut offered: UpgradePermit = request.extensions_mut().remove().unwrap_or_default();
        offered.claims.push(claim);
        request.extensions_mut().insert(offered);
        Box::new(upgrade)
    }

    /// Hands the permit to the handler if the response upgrades the connection, and returns it
    /// if not.
    pub(super) fn hand_over<B>(&self, permit: Permit, response: &Response<B>) -> Permit {
        let status = response.status();
        let is_upgrade =
            status == StatusCode::SWITCHING_PROTOCOLS || (self.is_connect && status.is_success());
        match self.claim.upgrade() {
            Some(claim) if is_upgrade => {
                *lock(&claim.0) = Some(permit);
                Permit::none()
            }
            _ => permit,
        }
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

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claim")
    }
}

#[cfg(feature = "axum")]
impl<S: Sync> axum_core::extract::FromRequestParts<S> for UpgradePermit {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.extensions))
    }
}
