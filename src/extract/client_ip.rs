//! The client's address, also behind proxies that are trusted.

use std::net::IpAddr;

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName};

use super::forwarded::{self, Hops};
use super::head::{Field, single};
use super::peer::Peer;
use super::proxies::TrustedProxies;
use super::{Extracted, KeyExtractor, RequestHead};
use crate::key::{IpNet, Key};

/// Charges the client's address.
///
/// The server has to pass the peer's address on: see [`PeerAddr`](super::PeerAddr).
///
/// # Which constructor to choose
///
/// | clients connect | use |
/// |---|---|
/// | directly | [`ClientIp::peer`] |
/// | through proxies with known addresses | [`ClientIp::forwarded_by`] |
/// | through a proxy on the same machine, over a Unix socket | [`forwarded_by`](Self::forwarded_by) and [`trust_unix_socket`](Self::trust_unix_socket) |
/// | through a known number of proxies, and never past them | [`ClientIp::forwarded_hops`] |
/// | through a CDN that sends one address | [`forwarded_by`](Self::forwarded_by) and [`ForwardingHeader::single_address`] |
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
///
/// // Behind nginx on a Unix socket, which sets X-Real-IP.
/// let client = ClientIp::forwarded_by([])
///     .trust_unix_socket()
///     .header(ForwardingHeader::single_address("x-real-ip"));
/// let layer = RateLimitLayer::by(client, Quota::per_second(50));
/// ```
///
/// # IPv6
///
/// IPv6 clients are grouped by their /64, which is what one client usually has: by single
/// addresses it could have 2⁶⁴ buckets. Many providers give a customer a /56 or a /48, which is 256
/// or 65,536 such networks. A second limit bounds these together:
///
/// ```
/// use tower_admission::{ClientIp, Policy, Quota, RateLimitLayer};
///
/// let layer = RateLimitLayer::by(ClientIp::peer(), Policy::new("address", Quota::per_second(50)))
///     .and_by(
///         ClientIp::peer().v6_prefix(48),
///         Policy::new("network", Quota::per_second(500)),
///     );
/// ```
///
/// An IPv4 client has one address in both, so the second limit has to be at least the first.
///
/// An IPv6 address that contains an IPv4 address counts as that address, see [`Key::ip`]. The trust in
/// proxies does not look inside: list the IPv6 network of such a proxy.
#[derive(Clone, Debug)]
pub struct ClientIp {
    v6_prefix: u8,
    forwarding: Option<Forwarding>,
}

#[derive(Clone, Debug)]
struct Forwarding {
    proxies: Proxies,
    header: ForwardingHeader,
}

#[derive(Clone, Debug)]
enum Proxies {
    Known(TrustedProxies),
    Hops(u8),
}

/// The header in which trusted proxies say where a request came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardingHeader {
    /// `X-Forwarded-For`, a list.
    XForwardedFor,
    /// `Forwarded` (RFC 7239), a list.
    Forwarded,
    /// A header with the client's address and nothing else: see
    /// [`single_address`](Self::single_address).
    SingleAddress(HeaderName),
}

impl ForwardingHeader {
    /// A header with the client's address and nothing else, such as `cf-connecting-ip` or
    /// `x-real-ip`. The proxy has to replace the header that a client sends.
    ///
    /// When the header is absent, empty, repeated or not an address, the peer is charged.
    ///
    /// # Panics
    ///
    /// When `name` is not the name of a header in lower case.
    #[must_use]
    pub fn single_address(name: &'static str) -> Self {
        Self::SingleAddress(HeaderName::from_static(name))
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
            forwarding: None,
        }
    }

    /// The IPv6 prefix, if the peer itself is charged.
    pub(super) fn of_peer(&self) -> Option<u8> {
        self.forwarding.is_none().then_some(self.v6_prefix)
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
        Self::forwarded(Proxies::Known(TrustedProxies::new(trusted)))
    }

    /// The address that is `hops` hops away: 0 is the peer, 1 is the last entry of
    /// `X-Forwarded-For`, 2 is the entry to the left of it.
    ///
    /// `hops` is the number of proxies, each of which appends one entry. This is Express'
    /// `trust proxy = hops`, and Envoy's `xff_num_trusted_hops = hops` with `use_remote_address`.
    ///
    /// With fewer entries, or when that entry is not an address, the request did not come through
    /// all proxies, and the peer is charged, as Envoy has it. (Express takes the leftmost entry.)
    ///
    /// The peer's own address is not checked. A client that reaches the server past one of the proxies
    /// chooses its address. Prefer [`forwarded_by`](Self::forwarded_by) where the addresses of the
    /// proxies are known.
    #[must_use]
    pub fn forwarded_hops(hops: u8) -> Self {
        Self::forwarded(Proxies::Hops(hops))
    }

    fn forwarded(proxies: Proxies) -> Self {
        let header = ForwardingHeader::XForwardedFor;
        Self {
            forwarding: Some(Forwarding { proxies, header }),
            ..Self::peer()
        }
    }

    /// Trusts peers on a Unix socket as a proxy, next to the networks of
    /// [`forwarded_by`](Self::forwarded_by). Default: it does not. No effect on the other
    /// constructors.
    ///
    /// The server has to mark these requests with [`UnixPeer`](super::UnixPeer). A server that passes
    /// on no addresses does not set the mark, so its clients are not trusted by accident. A request
    /// over the socket whose header is missing shares one bucket with all such requests.
    #[must_use]
    pub fn trust_unix_socket(mut self) -> Self {
        if let Some(forwarding) = &mut self.forwarding
            && let Proxies::Known(proxies) = &forwarding.proxies
        {
            forwarding.proxies = Proxies::Known(proxies.clone().and_unix_sockets());
        }
        self
    }

    /// Sets which header the proxies write. Default: `X-Forwarded-For`. No effect on
    /// [`ClientIp::peer`].
    #[must_use]
    pub fn header(mut self, header: ForwardingHeader) -> Self {
        if let Some(forwarding) = &mut self.forwarding {
            forwarding.header = header;
        }
        self
    }

    /// How many leading bits of an IPv6 address count, at most 128. Default: 64.
    #[must_use]
    pub fn v6_prefix(mut self, bits: u8) -> Self {
        self.v6_prefix = bits;
        self
    }

    /// The key that a client with this address is charged to.
    #[must_use]
    pub fn key_of(&self, address: IpAddr) -> Key {
        Key::ip_network(address, self.v6_prefix)
    }

    /// The client's address, without the grouping by [prefix](Self::v6_prefix).
    #[must_use]
    pub fn address(&self, head: RequestHead<'_>) -> Option<IpAddr> {
        let peer = Peer::of(head.extensions);
        match &self.forwarding {
            Some(forwarding) => forwarding.client(peer, head.headers),
            None => peer.ip(),
        }
    }
}

impl Forwarding {
    fn client(&self, peer: Peer, headers: &HeaderMap) -> Option<IpAddr> {
        let entries: fn(&[u8]) -> Hops<'_> = match &self.header {
            ForwardingHeader::XForwardedFor => forwarded::x_forwarded_for,
            ForwardingHeader::Forwarded => forwarded::forwarded,
            ForwardingHeader::SingleAddress(name) => {
                let is_trusted = match &self.proxies {
                    Proxies::Known(proxies) => proxies.trusts(peer),
                    Proxies::Hops(hops) => *hops > 0,
                };
                let client = is_trusted.then(|| single_address(headers, name)).flatten();
                return client.or(peer.ip());
            }
        };
        // Several lines are one list; the last line is the nearest proxy's.
        let lines = headers.get_all(self.header.name()).iter().rev();
        let mut hops = lines.flat_map(|line| entries(line.as_bytes()));
        match &self.proxies {
            Proxies::Known(proxies) => first_untrusted(proxies, peer, hops),
            Proxies::Hops(0) => peer.ip(),
            Proxies::Hops(n) => hops.nth(usize::from(n - 1)).flatten().or(peer.ip()),
        }
    }
}

impl ForwardingHeader {
    fn name(&self) -> &HeaderName {
        static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
        match self {
            Self::XForwardedFor => &X_FORWARDED_FOR,
            Self::Forwarded => &FORWARDED,
            Self::SingleAddress(name) => name,
        }
    }
}

/// Walks from the peer to the first address that is not a trusted proxy.
fn first_untrusted(
    proxies: &TrustedProxies,
    peer: Peer,
    mut hops: impl Iterator<Item = Option<IpAddr>>,
) -> Option<IpAddr> {
    let mut client = peer.ip();
    let mut is_trusted = proxies.trusts(peer);
    while is_trusted && let Some(Some(hop)) = hops.next() {
        let hop = hop.to_canonical();
        client = Some(hop);
        is_trusted = proxies.trusts_address(hop);
    }
    client
}

fn single_address(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    match single(headers, name) {
        Field::Once(value) => forwarded::single_address(value),
        Field::Absent | Field::Repeated => None,
    }
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
