//! An identity that a trusted proxy wrote into a header.

use http::HeaderName;

use super::head::{Field, single};
use super::peer::Peer;
use super::proxies::TrustedProxies;
use super::{Extracted, KeyExtractor, RequestHead};
use crate::key::{IpNet, Key};

/// Charges the identity that a trusted proxy wrote into a header, such as `X-User`.
///
/// Use it behind a proxy that authenticates. The header counts only when the peer of the connection
/// is a trusted proxy. From any other peer it is [absent](Extracted::Absent), because a client can
/// make it up. An empty or repeated header is [unusable](Extracted::Unusable).
///
/// The proxy must remove or replace a header that the client sends. Otherwise a client can have as
/// many keys as it likes.
///
/// The kind of the key is the name of the header, so [`Limits`](crate::Limits) name it
/// `x-user:alice`.
///
/// ```
/// use tower_admission::{ClientIp, KeyExtractor, Quota, RateLimitLayer};
/// use tower_admission::extract::{IpNet, TrustedHeader};
///
/// let proxies: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
/// let user = TrustedHeader::new("x-user", proxies).or(ClientIp::forwarded_by(proxies));
/// let layer = RateLimitLayer::by(user, Quota::per_second(10));
/// ```
#[derive(Clone, Debug)]
pub struct TrustedHeader {
    name: HeaderName,
    kind: &'static str,
    proxies: TrustedProxies,
}

impl TrustedHeader {
    /// Reads the header `name` of requests from a peer in one of the `trusted` networks.
    ///
    /// # Panics
    ///
    /// Panics when `name` is not a valid header name in lower case.
    #[must_use]
    pub fn new(name: &'static str, trusted: impl IntoIterator<Item = IpNet>) -> Self {
        Self::of_kind(name, HeaderName::from_static(name), trusted)
    }

    /// As [`new`](Self::new), with another kind for the keys.
    #[must_use]
    pub fn of_kind(
        kind: &'static str,
        name: HeaderName,
        trusted: impl IntoIterator<Item = IpNet>,
    ) -> Self {
        Self {
            name,
            kind,
            proxies: TrustedProxies::new(trusted),
        }
    }

    /// Also trusts peers on a Unix socket, which the server marks with
    /// [`UnixPeer`](super::UnixPeer). Default: off.
    #[must_use]
    pub fn trust_unix_socket(mut self) -> Self {
        self.proxies = self.proxies.and_unix_sockets();
        self
    }

    /// The key of a header value.
    pub(crate) fn key_of(&self, value: &str) -> Key {
        Key::new(self.kind, value.as_bytes())
    }

    pub(crate) fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Whether the request has the header but no trusted proxy sent it.
    pub(crate) fn is_forged(&self, head: RequestHead<'_>) -> bool {
        head.headers.contains_key(&self.name)
            && !self.proxies.trusts(Peer::from_extensions(head.extensions))
    }
}

impl KeyExtractor for TrustedHeader {
    fn extract(&self, head: RequestHead<'_>) -> Extracted {
        if !self.proxies.trusts(Peer::from_extensions(head.extensions)) {
            return Extracted::Absent;
        }
        match single(head.headers, &self.name).map(<[u8]>::trim_ascii) {
            Field::Absent => Extracted::Absent,
            Field::Once(value) if !value.is_empty() => Extracted::Key(Key::new(self.kind, value)),
            Field::Once(_) | Field::Repeated => Extracted::Unusable,
        }
    }
}
