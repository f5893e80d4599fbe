//! The peers that count as trusted proxies.

use std::net::IpAddr;
use std::sync::Arc;

use super::peer::Peer;
use crate::key::IpNet;

/// The proxies whose headers are trusted.
#[derive(Clone, Debug)]
pub(super) struct TrustedProxies {
    networks: Arc<[IpNet]>,
    unix_sockets: UnixSockets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnixSockets {
    Trusted,
    Ignored,
}

impl TrustedProxies {
    pub(super) fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            // Unmapped, because they are compared with canonical addresses.
            networks: networks.into_iter().map(IpNet::unmapped).collect(),
            unix_sockets: UnixSockets::Ignored,
        }
    }

    pub(super) fn and_unix_sockets(self) -> Self {
        Self {
            unix_sockets: UnixSockets::Trusted,
            ..self
        }
    }

    pub(super) fn trusts(&self, peer: Peer) -> bool {
        match peer {
            Peer::Ip(address) => self.trusts_address(address),
            Peer::Unix => self.unix_sockets == UnixSockets::Trusted,
            Peer::Unknown => false,
        }
    }

    /// Whether a network contains this canonical address.
    ///
    /// An IPv4 address inside a NAT64, 6to4 or Teredo address does not count: any sender through a
    /// relay can choose it, and `2002:a00:1::` must not be the proxy 10.0.0.1.
    pub(super) fn trusts_address(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(address))
    }
}
