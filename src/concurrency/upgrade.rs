//! The permit of a request whose connection is upgraded.

use std::fmt;
use std::sync::{Arc, Weak};

use http::{Extensions, Method, Request, Response, StatusCode, header};

use crate::limiter::Permit;
use crate::sync::{Mutex, lock};

/// The permit of a request whose connection is upgraded (a WebSocket, a `CONNECT`).
///
/// The response to such a request ends before the connection does. Its permit therefore moves to
/// the handler: the request counts until the handler, or the task that it gives the connection to,
/// has dropped the last clone of this permit.
///
/// The permit moves when the response upgrades the connection: 101, or 2xx to a `CONNECT`. With any
/// other response the request counts as usual, whatever `Upgrade` header the client sent, and this
/// value holds no permit.
/// request does, and this holds nothing.
///
/// With feature `axum` it is an extractor, which always succeeds: without a
/// [`ConcurrencyLimitLayer`](super::ConcurrencyLimitLayer), and for requests that ask for no
/// upgrade, it holds no permit. Without axum, [`of`](Self::of) reads it from a request's
/// extensions. Take it before the response is returned.
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
    /// One slot for each layer around the handler.
    slots: Vec<Arc<PermitSlot>>,
}

/// The slot for the permit of an upgraded connection.
#[derive(Default)]
struct PermitSlot(Mutex<Option<Permit>>);

/// A layer's side of a request that asks for an upgrade.
pub(super) struct Upgrade {
    // Weak, so that no permit is stored if the handler dropped its side.
    slot: Weak<PermitSlot>,
    is_connect: bool,
}

impl UpgradePermit {
    /// Returns the permit from a request's extensions. It holds no permit if the extensions have
    /// none.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Whether an upgrade of the connection would move a permit to this value.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.slots.is_empty()
    }
}

impl Upgrade {
    /// Adds an [`UpgradePermit`] to a request that asks for an upgrade. Keeps the slots of outer
    /// layers.
    #[inline]
    pub(super) fn offer<B>(request: &mut Request<B>) -> Option<Box<Self>> {
        asks_for_upgrade(request).then(|| Self::offer_to(request))
    }

    #[cold]
    fn offer_to<B>(request: &mut Request<B>) -> Box<Self> {
        let slot = Arc::<PermitSlot>::default();
        let upgrade = Self {
            slot: Arc::downgrade(&slot),
            is_connect: request.method() == Method::CONNECT,
        };
        let mut offered: UpgradePermit = request.extensions_mut().remove().unwrap_or_default();
        offered.slots.push(slot);
        request.extensions_mut().insert(offered);
        Box::new(upgrade)
    }

    /// Moves the permit to the handler if the response upgrades the connection, and otherwise
    /// returns it.
    pub(super) fn hand_over<B>(&self, permit: Permit, response: &Response<B>) -> Permit {
        let status = response.status();
        let is_upgrade =
            status == StatusCode::SWITCHING_PROTOCOLS || (self.is_connect && status.is_success());
        match self.slot.upgrade() {
            Some(slot) if is_upgrade => {
                *lock(&slot.0) = Some(permit);
                Permit::none()
            }
            _ => permit,
        }
    }
}

/// Whether a request asks to use its connection for another protocol (RFC 9110 §7.8, §9.3.6).
#[inline]
pub(super) fn asks_for_upgrade<B>(request: &Request<B>) -> bool {
    // Comparing the few header names avoids a hash lookup. It also keeps the request's address out
    // of calls, so that the compiler can pass it on with one copy less.
    let mut names = request.headers().keys();
    names.any(|name| *name == header::UPGRADE) || request.method() == Method::CONNECT
}

impl fmt::Debug for PermitSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PermitSlot")
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
