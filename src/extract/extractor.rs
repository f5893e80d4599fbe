//! The extractor of a layer, and the keys that it falls back to.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use http::HeaderName;

use super::{ByToken, ClientIp, Extracted, KeyExtractor, RequestHead, bearer, peer};
use crate::key::Key;

/// The extractor of a layer, and the keys it falls back to.
#[derive(Clone)]
pub struct Extractor {
    extractor: Arc<dyn KeyExtractor>,
    usual: Usual,
}

/// Extractors whose code is in the layer's own, without a call through a pointer.
#[derive(Clone)]
enum Usual {
    Bearer,
    Peer { v6_prefix: u8 },
    None,
}

impl Extractor {
    /// The extractor of a layer.
    #[must_use]
    pub fn new(extractor: impl KeyExtractor) -> Self {
        let any: &dyn Any = &extractor;
        let usual = if let Some(by_token) = any.downcast_ref::<ByToken>()
            && by_token.takes_bearer()
        {
            Usual::Bearer
        } else if let Some(v6_prefix) = any.downcast_ref().and_then(ClientIp::of_peer) {
            Usual::Peer { v6_prefix }
        } else {
            Usual::None
        };
        Self {
            extractor: Arc::new(extractor),
            usual,
        }
    }

    /// What a usual extractor finds, to be looked at where it was written. Anything but a key decides nothing.
    #[inline(always)]
    pub(crate) fn find_inlined(&self, head: RequestHead<'_>) -> Extracted {
        match self.usual {
            Usual::Bearer => bearer::key(head.headers),
            Usual::Peer { v6_prefix } => match peer::peer_ip(head.extensions) {
                Some(ip) => Extracted::Key(Key::ip_network(ip, v6_prefix)),
                None => Extracted::Absent,
            },
            Usual::None => Extracted::Absent,
        }
    }

    #[inline]
    pub(crate) fn key(&self, head: RequestHead<'_>) -> Key {
        self.known_key(head).unwrap_or(Key::UNKNOWN)
    }

    pub(crate) fn makes_fingerprints(&self) -> bool {
        self.extractor.makes_fingerprints()
    }

    pub(crate) fn credential_headers(&self) -> Vec<HeaderName> {
        self.extractor.credential_headers()
    }

    /// The key to charge, unless not even an address is known.
    #[inline]
    #[must_use]
    pub fn known_key(&self, head: RequestHead<'_>) -> Option<Key> {
        match self.extractor.extract(head) {
            Extracted::Key(key) => Some(key),
            missing => self.fallback(missing, head).key(),
        }
    }

    /// The key in place of a credential that is absent or unusable.
    #[cold]
    pub(crate) fn fallback(&self, missing: Extracted, head: RequestHead<'_>) -> Extracted {
        let address = || {
            let address = self.extractor.client_address(head);
            address.or_else(|| ClientIp::peer().extract(head).key())
        };
        let charged = missing.or_address(address);
        if charged.as_key().is_none() {
            warn_once();
        }
        charged
    }
}

impl fmt::Debug for Extractor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extractor")
    }
}

/// Warns once in the life of the process: each request without a key is another symptom of the same
/// fault.
#[cold]
fn warn_once() {
    static WARN: std::sync::Once = std::sync::Once::new();
    WARN.call_once(|| {
        tracing::warn!(
            "a request has no key and no client address, so it shares one bucket with all such \
             requests, and no guard counts it: serve the router with \
             `into_make_service_with_connect_info::<SocketAddr>()`, or set `PeerAddr`; for a proxy on \
             a Unix socket set `UnixPeer` and call `trust_unix_socket`"
        );
    });
}
