//! The key extractor of a layer, with its fallback keys.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Once};

use http::HeaderName;

use super::{ByToken, ClientIp, Extracted, KeyExtractor, RequestHead, bearer, peer};
use crate::key::Key;

/// The key extractor of a layer, with its fallback keys.
#[derive(Clone)]
pub struct Extractor {
    extractor: Arc<dyn KeyExtractor>,
    inlined: InlinedExtractor,
}

/// Common extractors that are inlined into the layer, without a dynamic call.
#[derive(Clone)]
enum InlinedExtractor {
    Bearer,
    Peer { v6_prefix: u8 },
    None,
}

impl Extractor {
    /// Wraps the extractor of a layer.
    #[must_use]
    pub fn new(extractor: impl KeyExtractor) -> Self {
        let any: &dyn Any = &extractor;
        let inlined = if let Some(by_token) = any.downcast_ref::<ByToken>()
            && by_token.takes_bearer()
        {
            InlinedExtractor::Bearer
        } else if let Some(v6_prefix) = any.downcast_ref().and_then(ClientIp::peer_prefix) {
            InlinedExtractor::Peer { v6_prefix }
        } else {
            InlinedExtractor::None
        };
        Self {
            extractor: Arc::new(extractor),
            inlined,
        }
    }

    /// Runs a common extractor inline. Any result but a key means that
    /// [`known_key`](Self::known_key) must be called.
    #[inline(always)]
    pub(crate) fn find_inlined(&self, head: RequestHead<'_>) -> Extracted {
        match self.inlined {
            InlinedExtractor::Bearer => bearer::key(head.headers),
            InlinedExtractor::Peer { v6_prefix } => match peer::peer_ip(head.extensions) {
                Some(ip) => Extracted::Key(Key::ip_network(ip, v6_prefix)),
                None => Extracted::Absent,
            },
            InlinedExtractor::None => Extracted::Absent,
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

    /// The key to charge. `None` if the extractor finds no key, and for an unusable credential if no
    /// address is known either.
    #[inline]
    #[must_use]
    pub fn known_key(&self, head: RequestHead<'_>) -> Option<Key> {
        match self.extractor.extract(head) {
            Extracted::Key(key) => Some(key),
            missing => self.fallback(missing, head).key(),
        }
    }

    /// The key to charge in place of an absent or unusable credential.
    #[cold]
    pub(crate) fn fallback(&self, missing: Extracted, head: RequestHead<'_>) -> Extracted {
        let address = || {
            let address = self.extractor.client_address(head);
            address.or_else(|| ClientIp::peer().extract(head).key())
        };
        let charged = missing.or_address(address);
        if charged.as_key().is_none() {
            warn_once(head);
        }
        charged
    }
}

impl fmt::Debug for Extractor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extractor")
    }
}

/// Warns once per process and cause: all requests without a key have one of two causes.
#[cold]
fn warn_once(head: RequestHead<'_>) {
    static NO_KEY: Once = Once::new();
    static NO_ADDRESS: Once = Once::new();
    if peer::peer_ip(head.extensions).is_some() {
        NO_KEY.call_once(|| {
            tracing::warn!(
                "the extractor found no key, so the request shares one bucket with all such requests, \
                 although its client address is known. If the extractor reads the request's \
                 extensions, authentication must be outside the limit: with `Router::layer` add it \
                 after the limit. To charge the address, end the extractor with \
                 `.or(ClientIp::peer())`"
            );
        });
    } else {
        NO_ADDRESS.call_once(|| {
            tracing::warn!(
                "a request has no key and no client address, so it shares one bucket with all such \
                 requests, and no guard counts it: for axum serve the router with \
                 `into_make_service_with_connect_info::<SocketAddr>()`; for tonic enable the feature \
                 `tonic`; for another server set `PeerAddr`; for a proxy on a Unix socket set \
                 `UnixPeer` and call `trust_unix_socket`"
            );
        });
    }
}
