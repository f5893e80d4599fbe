//! The client's address, from the connection or from trusted proxies.

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
/// The server must pass on the peer's address: see [`PeerAddr`](super::PeerAddr).
///
/// # Which constructor to choose
///
/// | clients connect | use |
/// |---|---|
/// | directly | [`ClientIp::peer`] |
/// | through proxies with known addresses | [`ClientIp::forwarded_by`] |
/// | through a proxy on the same machine, over a Unix socket | [`forwarded_by`](Self::forwarded_by) and [`trust_unix_socket`](Self::trust_unix_socket) |
/// | through a known number of proxies, with no way around them | [`ClientIp::forwarded_hops`] |
/// | through a CDN that sends one address | [`forwarded_by`](Self::forwarded_by) and [`ForwardingHeader::single_address`] |
///
/// ```
/// use tower_admission::{Quota, RateLimitLayer};
/// use tower_admission::extract::{ClientIp, ForwardingHeader};
///
/// // Clients connect directly.
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
/// IPv6 clients are grouped by their /64, the inlined network of one client: counted by single
/// address, a client would have 2⁶⁴ buckets. Many providers assign a /56 or a /48 to a customer,
/// which contains 256 or 65,536 such networks. Add a second limit to bound them together:
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
/// An IPv4 client has the same key in both limits, so the second limit must be at least the first.
///
/// An IPv6 address that contains an IPv4 address counts as that address, see [`Key::ip`]. Proxies
/// are trusted by their IPv6 address: list the IPv6 network of such a proxy.
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

/// The header in which trusted proxies name the client's address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardingHeader {
    /// `X-Forwarded-For`, a list.
    XForwardedFor,
    /// `Forwarded` (RFC 7239), a list.
    Forwarded,
    /// A header that contains only the client's address: see
    /// [`single_address`](Self::single_address).
    SingleAddress(HeaderName),
}

impl ForwardingHeader {
    /// A header that contains only the client's address, such as `cf-connecting-ip` or `x-real-ip`.
    /// The proxy must replace a header that the client sends.
    ///
    /// If the header is absent, empty, repeated or not an address, the peer is charged.
    ///
    /// # Panics
    ///
    /// Panics when `name` is not a valid header name in lower case.
    #[must_use]
    pub fn single_address(name: &'static str) -> Self {
        Self::SingleAddress(HeaderName::from_static(name))
    }
}

impl ClientIp {
    /// The default number of leading bits of an IPv6 address that count.
    pub const DEFAULT_V6_PREFIX: u8 = 64;

    /// Charges the peer of the connection.
    #[must_use]
    pub fn peer() -> Self {
        Self {
            v6_prefix: Self::DEFAULT_V6_PREFIX,
            forwarding: None,
        }
    }

    /// The IPv6 prefix, if the peer itself is charged.
    pub(super) fn peer_prefix(&self) -> Option<u8> {
        self.forwarding.is_none().then_some(self.v6_prefix)
    }

    /// Charges the client that the peer forwards for, if the peer is in one of the `trusted`
    /// networks.
    ///
    /// The entries of the header are read from right to left. Entries in `trusted` are skipped, and
    /// the first other entry is the client. Entries further left come from the client and are
    /// ignored. If an entry is not an address (`unknown`, an obfuscated name, garbage), the last
    /// trusted address before it is charged.
    ///
    /// Networks of IPv4-mapped addresses (`::ffff:10.0.0.0/104`) are converted to IPv4.
    ///
    /// Only one header is read, because a proxy passes on all others as the client wrote them.
    /// Default: `X-Forwarded-For`; [`header`](Self::header) changes it.
    #[must_use]
    pub fn forwarded_by(trusted: impl IntoIterator<Item = IpNet>) -> Self {
        Self::forwarded(Proxies::Known(TrustedProxies::new(trusted)))
    }

    /// Charges the address that is `hops` hops away: 0 is the peer, 1 is the last entry of
    /// `X-Forwarded-For`, 2 is the entry to the left of it.
    ///
    /// Set `hops` to the number of proxies, each of which appends one entry. This is
    /// `trust proxy = hops` in Express, and `xff_num_trusted_hops = hops` with `use_remote_address`
    /// in Envoy.
    ///
    /// If there are fewer entries, or that entry is not an address, the request did not pass all
    /// proxies, and the peer is charged, as in Envoy. (Express uses the leftmost entry.)
    ///
    /// The address of the peer is not checked, so a client that can bypass a proxy can choose its
    /// address. Prefer [`forwarded_by`](Self::forwarded_by) if the addresses of the proxies are
    /// known.
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

    /// Also trusts peers on a Unix socket as a proxy, besides the networks of
    /// [`forwarded_by`](Self::forwarded_by). Default: off. Has no effect on the other constructors.
    ///
    /// The server must mark these requests with [`UnixPeer`](super::UnixPeer). A server that passes
    /// on no addresses does not set the mark, so its clients are not trusted by accident. Requests
    /// over the socket without the header share one bucket.
    #[must_use]
    pub fn trust_unix_socket(mut self) -> Self {
        if let Some(forwarding) = &mut self.forwarding
            && let Proxies::Known(proxies) = &forwarding.proxies
        {
            forwarding.proxies = Proxies::Known(proxies.clone().and_unix_sockets());
        }
        self
    }

    /// Sets the header that the proxies write. Default: `X-Forwarded-For`. Has no effect on
    /// [`ClientIp::peer`].
    #[must_use]
    pub fn header(mut self, header: ForwardingHeader) -> Self {
        if let Some(forwarding) = &mut self.forwarding {
            forwarding.header = header;
        }
        self
    }

    /// Sets how many leading bits of an IPv6 address count, at most 128. Default: 64.
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

    /// The client's address, not grouped by [prefix](Self::v6_prefix).
    #[must_use]
    pub fn address(&self, head: RequestHead<'_>) -> Option<IpAddr> {
        let peer = Peer::from_extensions(head.extensions);
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
        // Several header lines form one list. The nearest proxy writes the last line.
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
