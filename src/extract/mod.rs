//! Who a request is charged to, from what its head says.

mod api_key;
pub(crate) mod bearer;
mod by_token;
mod client_ip;
mod forwarded;
mod head;
mod peer;

pub use api_key::ApiKey;
pub use bearer::BearerToken;
pub use by_token::ByToken;
pub use client_ip::{ClientIp, ForwardingHeader};
pub use head::RequestHead;
pub use peer::PeerAddr;

pub use ipnet::IpNet;

use std::fmt;
use std::sync::Arc;

use crate::key::Key;

/// Finds who a request is charged to. Closures are extractors too.
///
/// `None` means that this extractor cannot tell; the [next one](KeyExtractor::or) may. When none
/// can, the request is charged to the shared [`Key::UNKNOWN`].
///
/// ```
/// use tower_admission::{Key, Quota, RateLimitLayer};
/// use tower_admission::extract::{ClientIp, KeyExtractor, RequestHead};
///
/// #[derive(Clone)]
/// struct UserId(String); // put into the extensions by authentication, further out
///
/// let by_user = |head: RequestHead<'_>| {
///     head.extensions.get::<UserId>().map(|user| Key::id("user", &user.0))
/// };
/// let layer = RateLimitLayer::by(by_user.or(ClientIp::peer()), Quota::per_minute(60));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot tell who a request is charged to",
    note = "an extractor is a type of `tower_admission::extract`, or a closure `|head: RequestHead<'_>| -> Option<Key>`"
)]
pub trait KeyExtractor: Send + Sync + 'static {
    /// The key of a request, or `None` when this extractor cannot tell.
    fn extract(&self, head: RequestHead<'_>) -> Option<Key>;

    /// Whether keys may be fingerprints, which replicas agree on only with a
    /// [`Secret`](crate::Secret) that they share. Default: yes.
    fn makes_fingerprints(&self) -> bool {
        true
    }

    /// Asks `other` when this extractor cannot tell.
    fn or<E: KeyExtractor>(self, other: E) -> Or<Self, E>
    where
        Self: Sized,
    {
        Or(self, other)
    }
}

impl<F> KeyExtractor for F
where
    F: Fn(RequestHead<'_>) -> Option<Key> + Send + Sync + 'static,
{
    fn extract(&self, head: RequestHead<'_>) -> Option<Key> {
        self(head)
    }
}

/// One extractor, else another; made by [`KeyExtractor::or`].
#[derive(Clone, Copy, Debug)]
pub struct Or<A, B>(A, B);

impl<A: KeyExtractor, B: KeyExtractor> KeyExtractor for Or<A, B> {
    fn extract(&self, head: RequestHead<'_>) -> Option<Key> {
        self.0.extract(head).or_else(|| self.1.extract(head))
    }

    fn makes_fingerprints(&self) -> bool {
        self.0.makes_fingerprints() || self.1.makes_fingerprints()
    }
}

/// One key for all requests.
///
/// ```
/// use tower_admission::{Quota, RateLimitLayer};
/// use tower_admission::extract::Shared;
///
/// // A thousand a second, whoever sends them.
/// let layer = RateLimitLayer::by(Shared, Quota::per_second(1000));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared;

impl KeyExtractor for Shared {
    fn extract(&self, _: RequestHead<'_>) -> Option<Key> {
        Some(Key::SHARED)
    }

    fn makes_fingerprints(&self) -> bool {
        false
    }
}

/// An extractor in a layer, and what happens when it cannot tell.
#[derive(Clone)]
pub(crate) struct Extractor(Arc<dyn KeyExtractor>);

impl Extractor {
    pub(crate) fn new(extractor: impl KeyExtractor) -> Self {
        Self(Arc::new(extractor))
    }

    #[inline]
    pub(crate) fn key(&self, head: RequestHead<'_>) -> Key {
        self.known_key(head).unwrap_or(Key::UNKNOWN)
    }

    /// The key, if the extractor can tell; it is nothing to warn of when it cannot.
    #[cfg(feature = "axum")]
    pub(crate) fn extract(&self, head: RequestHead<'_>) -> Option<Key> {
        self.0.extract(head)
    }

    pub(crate) fn makes_fingerprints(&self) -> bool {
        self.0.makes_fingerprints()
    }

    /// The key, if the extractor can tell.
    #[inline]
    pub(crate) fn known_key(&self, head: RequestHead<'_>) -> Option<Key> {
        let key = self.0.extract(head);
        if key.is_none() {
            warn_once();
        }
        key
    }
}

impl fmt::Debug for Extractor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extractor")
    }
}

/// One warning in the life of the process that requests have no key.
#[cold]
fn warn_once() {
    #[cfg(feature = "tracing")]
    {
        static WARN: std::sync::Once = std::sync::Once::new();
        WARN.call_once(|| {
            tracing::warn!(
                "a request has no key to be charged to; all like it share one, and no guard \
                 sees them: is the peer's address passed on (ConnectInfo, PeerAddr)?"
            );
        });
    }
}
