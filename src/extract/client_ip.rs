//! The client's address, also behind proxies that are trusted.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderName;
use http::header::FORWARDED;
use ipnet::{IpNet, Ipv4Net};

use super::peer::peer_ip;
use super::{Extracted, KeyExtractor, RequestHead, forwarded};
use crate::key::Key;

/// Charges the client's address.
///
/// IPv6 clients are grouped by their /64, which is what one client usually has: by single
/// addresses it could have 2⁶⁴ buckets.
///
/// Cannot tell when the server does not pass the peer's address on: see
/// [`PeerAddr`](super::PeerAddr).
///
/// ```
/// use tower_admission::{Quota, RateLimitLayer};
/// use tower_admission::extract::{ClientIp, ForwardingHeader};
///
/// // Direct clients.
/// let layer = RateLimitLayer::by(ClientIp::peer(), Quota::per_second(50));
///
/// // Behind load balancers in 10.0.0.0/8 that append to X-Forwarded-For.
/// let client = ClientIp::forwarded_by(["10.0.0.0/8".parse().unwrap()]);
/// let layer = RateLimitLayer::by(client, Quota::per_second(50));
/// ```
#[derive(Clone, Debug)]
pub struct ClientIp {
    v6_prefix: u8,
    proxies: Option<Proxies>,
}

#[derive(Clone, Debug)]
struct Proxies {
    trusted: Arc<[IpNet]>,
    header: ForwardingHeader,
}

/// The header in which trusted proxies say where a request came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardingHeader {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ForwardingHeader {
    fn name(&self) -> &HeaderName {
        static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
        match self {
            Self::XForwardedFor => &X_FORWARDED_FOR,
            Self::Forwarded => &FORWARDED,
        }
    }
}

impl ClientIp {
    /// How many leading bits of an IPv6 address count, unless said otherwise.
    pub const DEFAULT_V6_PREFIX: u8 = 64;

    /// The address at the other end of the connection.
    #[must_use]
    pub fn peer() -> Self {
        Self {
            v6_prefix: Self::DEFAULT_V6_PREFIX,
            proxies: None,
        }
    }

    /// The address that the connection's peer forwards for, if the peer is one of `trusted`.
    ///
    /// The header's entries are read from the right, past those that are `trusted`; the first
    /// that is not is the client. Entries further left were written by the client and are never
    /// looked at. At an entry that is not an address (`unknown`, an obfuscated name, junk) the
    /// walk ends and the last trusted address before it is charged.
    ///
    /// Networks of IPv4-mapped addresses (`::ffff:10.0.0.0/104`) are those of IPv4.
    ///
    /// Only one header is read, `X-Forwarded-For` unless [`header`](Self::header) says
    /// otherwise: a proxy passes on the others as the client wrote them.
    #[must_use]
    pub fn forwarded_by(trusted: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            proxies: Some(Proxies {
                trusted: trusted.into_iter().map(unmapped).collect(),
                header: ForwardingHeader::XForwardedFor,
            }),
            ..Self::peer()
        }
    }

    /// Which header trusted proxies write. No effect on [`ClientIp::peer`].
    #[must_use]
    pub fn header(mut self, header: ForwardingHeader) -> Self {
        if let Some(proxies) = &mut self.proxies {
            proxies.header = header;
        }
        self
    }

    /// How many leading bits of an IPv6 address count, at most 128. Default: 64.
    #[must_use]
    pub fn v6_prefix(mut self, bits: u8) -> Self {
        self.v6_prefix = bits;
        self
    }

    fn address(&self, head: RequestHead<'_>) -> Option<IpAddr> {
        let peer = peer_ip(head.extensions)?.to_canonical();
        Some(match &self.proxies {
            Some(proxies) => proxies.client(peer, head),
            None => peer,
        })
    }
}

impl Proxies {
    fn client(&self, peer: IpAddr, head: RequestHead<'_>) -> IpAddr {
        let mut client = peer;
        let values = head.headers.get_all(self.header.name());
        // Several lines are one list; the last line is the nearest proxy's.
        let mut hops = values.iter().rev().flat_map(|line| match self.header {
            ForwardingHeader::XForwardedFor => forwarded::x_forwarded_for(line.as_bytes()),
            ForwardingHeader::Forwarded => forwarded::forwarded(line.as_bytes()),
        });
        while self.is_trusted(client) {
            match hops.next() {
                Some(Some(hop)) => client = hop.to_canonical(),
                Some(None) | None => break,
            }
        }
        client
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&address))
    }
}

/// A network as the addresses are that it is compared with, which are canonical.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else {
        return network;
    };
    let address = mapped.addr().to_ipv4_mapped();
    let length = mapped.prefix_len().checked_sub(96);
    let unmapped = address.zip(length);
    let unmapped = unmapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    unmapped.map_or(network, IpNet::V4)
}

/// [`ClientIp::peer`].
impl Default for ClientIp {
    fn default() -> Self {
        Self::peer()
    }
}

impl KeyExtractor for ClientIp {
    #[inline]
    fn extract(&self, head: RequestHead<'_>) -> Extracted {
        self.client_address(head).into()
    }

    #[inline]
    fn client_address(&self, head: RequestHead<'_>) -> Option<Key> {
        let address = self.address(head)?;
        Some(Key::ip_network(address, self.v6_prefix))
    }

    fn makes_fingerprints(&self) -> bool {
        false
    }
}
