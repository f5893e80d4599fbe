//! Which peers are trusted proxies.

use std::net::IpAddr;
use std::sync::Arc;

use super::peer::Peer;
use crate::key::IpNet;

/// The proxies whose headers are believed.
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
            // As the addresses are that they are compared with, which are canonical.
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

    /// Compares a canonical address.
    ///
    /// An IPv4 address inside NAT64, 6to4 or Teredo does not count here: anyone who can send a
    /// packet through a relay chooses it, and `2002:a00:1::` must not be the proxy 10.0.0.1.
    pub(super) fn trusts_address(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(address))
    }
}
