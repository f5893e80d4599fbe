//! The peer address of the connection.

use std::net::{IpAddr, SocketAddr};

use http::Extensions;

/// The peer address of a request's connection, as a request extension.
///
/// Set it in a bare hyper service when it accepts a connection. axum's `ConnectInfo` (feature
/// `axum`) and tonic's connect info (feature `tonic`) are found without it.
///
/// ```
/// # use std::net::SocketAddr;
/// use tower_admission::extract::PeerAddr;
///
/// # fn accepted(peer: SocketAddr, mut request: http::Request<()>) {
/// request.extensions_mut().insert(PeerAddr(peer));
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// Marks a request that came over a Unix socket, as a request extension.
///
/// Such a peer has no address. [`ClientIp::trust_unix_socket`](super::ClientIp::trust_unix_socket)
/// trusts it as a proxy. The mark must be explicit, because a server that passes on no addresses
/// would look the same. tonic's connect info (feature `tonic`) counts as this mark.
///
/// Set it only for services on the Unix socket. If a request also has an address, the address
/// counts.
///
/// ```no_run
/// # #[cfg(all(feature = "axum", unix))]
/// # async fn serve(app: axum::Router) -> std::io::Result<()> {
/// use axum::Extension;
/// use tower_admission::extract::UnixPeer;
///
/// let listener = tokio::net::UnixListener::bind("/run/app.sock")?;
/// axum::serve(listener, app.layer(Extension(UnixPeer))).await
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixPeer;

/// The peer of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Ip(IpAddr),
    Unix,
    /// The server did not pass on the peer.
    Unknown,
}

impl Peer {
    /// The peer of a request.
    #[inline]
    pub(super) fn from_extensions(extensions: &Extensions) -> Self {
        match peer_ip(extensions) {
            // Canonical, because trusted networks are compared with it.
            Some(ip) => Self::Ip(ip.to_canonical()),
            None if is_unix(extensions) => Self::Unix,
            None => Self::Unknown,
        }
    }

    pub(super) fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(ip),
            Self::Unix | Self::Unknown => None,
        }
    }
}

fn is_unix(extensions: &Extensions) -> bool {
    let is_unix = extensions.get::<UnixPeer>().is_some();
    #[cfg(all(feature = "tonic", unix))]
    let is_unix = is_unix || {
        use tonic::transport::server::UdsConnectInfo;
        extensions.get::<UdsConnectInfo>().is_some()
    };
    is_unix
}

#[inline]
pub(super) fn peer_ip(extensions: &Extensions) -> Option<IpAddr> {
    let peer = extensions.get::<PeerAddr>().map(|peer| peer.0);
    #[cfg(feature = "axum")]
    let peer = peer.or_else(|| {
        use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
        extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|info| info.0)
            .or_else(|| {
                extensions
                    .get::<MockConnectInfo<SocketAddr>>()
                    .map(|info| info.0)
            })
    });
    #[cfg(feature = "tonic")]
    let peer = peer.or_else(|| {
        use tonic::transport::server::TcpConnectInfo;
        extensions
            .get::<TcpConnectInfo>()
            .and_then(TcpConnectInfo::remote_addr)
    });
    peer.map(|peer| peer.ip())
}
