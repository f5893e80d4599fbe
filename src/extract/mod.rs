//! Finds the key that a request is charged to, from its head.

mod api_key;
pub(crate) mod bearer;
mod by_token;
mod client_ip;
pub(crate) mod extractor;
mod forwarded;
mod head;
#[cfg(feature = "tracing")]
pub(crate) mod logged;
mod peer;
mod proxies;
mod trusted_header;

pub use crate::key::{IpNet, IpNetError};
pub use api_key::ApiKey;
pub use bearer::BearerToken;
pub use by_token::ByToken;
pub use client_ip::{ClientIp, ForwardingHeader};
pub(crate) use extractor::Extractor;
pub use head::{RequestHead, ResponseHead};
pub use peer::{PeerAddr, UnixPeer};
pub use trusted_header::TrustedHeader;

use http::HeaderName;

use crate::key::Key;

/// The result of a [`KeyExtractor`].
///
/// An *unusable* credential is not the same as an *absent* one. If an unusable credential led to
/// the next header, a client could send one on purpose and choose a new key for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Extracted {
    /// The key to charge.
    Key(Key),
    /// The request has no credential that this extractor reads. The [next
    /// extractor](KeyExtractor::or) may find a key.
    Absent,
    /// The request has a credential that cannot be read as exactly one key: it is malformed,
    /// repeated, or has another scheme. The client address is charged.
    Unusable,
}

impl Extracted {
    /// The key, if there is one.
    #[must_use]
    pub fn key(self) -> Option<Key> {
        match self {
            Self::Key(key) => Some(key),
            Self::Absent | Self::Unusable => None,
        }
    }

    #[inline]
    pub(crate) fn as_key(&self) -> Option<&Key> {
        match self {
            Self::Key(key) => Some(key),
            Self::Absent | Self::Unusable => None,
        }
    }

    /// Replaces an unusable credential with the client address, if the address is known.
    fn or_address(self, address: impl FnOnce() -> Option<Key>) -> Self {
        match self {
            Self::Unusable => address().map_or(self, Self::Key),
            Self::Key(_) | Self::Absent => self,
        }
    }
}

/// `None` is [`Absent`](Extracted::Absent).
impl From<Option<Key>> for Extracted {
    fn from(key: Option<Key>) -> Self {
        key.map_or(Self::Absent, Self::Key)
    }
}

/// Finds the key that a request is charged to.
///
/// A closure is an extractor too. It returns [`Extracted`], or `Option<Key>` where `None` means
/// that the credential is absent.
///
/// The request is charged as follows:
///
/// | the extractor returns | charged |
/// |---|---|
/// | [`Extracted::Key`] | that key |
/// | [`Extracted::Absent`] | what the [next extractor](Self::or) finds, else the shared [`Key::UNKNOWN`] |
/// | [`Extracted::Unusable`] | the [client address](Self::client_address) of the chain, else the peer's address, else [`Key::UNKNOWN`] |
///
/// ```
/// use tower_admission::{Key, Quota, RateLimitLayer};
/// use tower_admission::extract::{ClientIp, KeyExtractor, RequestHead};
///
/// #[derive(Clone)]
/// struct UserId(String); // an outer authentication layer adds it to the extensions
///
/// let by_user = |head: RequestHead<'_>| {
///     head.extensions.get::<UserId>().map(|user| Key::id("user", &user.0))
/// };
/// let layer = RateLimitLayer::by(by_user.or(ClientIp::peer()), Quota::per_minute(60));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not extract a key from a request",
    note = "an extractor is a type of `tower_admission::extract`, or a closure `|head: RequestHead<'_>| -> Option<Key>`"
)]
pub trait KeyExtractor: Send + Sync + 'static {
    /// Extracts the key of a request.
    fn extract(&self, head: RequestHead<'_>) -> Extracted;

    /// The client address that this extractor would charge for a request whose credential is
    /// [unusable](Extracted::Unusable). Default: none. [`ClientIp`] and [`ByToken`] have one.
    fn client_address(&self, head: RequestHead<'_>) -> Option<Key> {
        let _ = head;
        None
    }

    /// The request headers, besides `Authorization`, that hold a credential for this extractor.
    /// Default: none.
    ///
    /// [`guard_by_ip`](crate::RateLimitLayer::guard_by_ip) counts requests with one of them.
    fn credential_headers(&self) -> Vec<HeaderName> {
        Vec::new()
    }

    /// Whether keys may be fingerprints. Replicas agree on fingerprints only if they share a
    /// [`Secret`](crate::Secret). Default: yes.
    fn makes_fingerprints(&self) -> bool {
        true
    }

    /// Uses `other` when the credential of this extractor is [absent](Extracted::Absent).
    ///
    /// An [unusable](Extracted::Unusable) credential never leads to `other`. The request is then
    /// charged to the client address, which any extractor of the chain may provide.
    fn or<E: KeyExtractor>(self, other: E) -> Or<Self, E>
    where
        Self: Sized,
    {
        Or(self, other)
    }
}

impl<F, R> KeyExtractor for F
where
    F: Fn(RequestHead<'_>) -> R + Send + Sync + 'static,
    R: Into<Extracted>,
{
    fn extract(&self, head: RequestHead<'_>) -> Extracted {
        self(head).into()
    }
}

/// One extractor, else another. Made by [`KeyExtractor::or`].
#[derive(Clone, Copy, Debug)]
pub struct Or<A, B>(A, B);

impl<A: KeyExtractor, B: KeyExtractor> KeyExtractor for Or<A, B> {
    fn extract(&self, head: RequestHead<'_>) -> Extracted {
        let extracted = match self.0.extract(head) {
            Extracted::Absent => self.1.extract(head),
            extracted => extracted,
        };
        extracted.or_address(|| self.client_address(head))
    }

    fn client_address(&self, head: RequestHead<'_>) -> Option<Key> {
        let first = self.0.client_address(head);
        first.or_else(|| self.1.client_address(head))
    }

    fn credential_headers(&self) -> Vec<HeaderName> {
        let mut headers = self.0.credential_headers();
        headers.extend(self.1.credential_headers());
        headers
    }

    fn makes_fingerprints(&self) -> bool {
        self.0.makes_fingerprints() || self.1.makes_fingerprints()
    }
}

/// Uses one key for all requests.
///
/// ```
/// use tower_admission::{Quota, RateLimitLayer};
/// use tower_admission::extract::Shared;
///
/// // A thousand requests per second in total.
/// let layer = RateLimitLayer::by(Shared, Quota::per_second(1000));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared;

impl KeyExtractor for Shared {
    fn extract(&self, _: RequestHead<'_>) -> Extracted {
        Extracted::Key(Key::SHARED)
    }

    fn makes_fingerprints(&self) -> bool {
        false
    }
}
