//! The address at the other end of the connection.

use std::net::{IpAddr, SocketAddr};

use http::Extensions;

/// The address at the other end of a request's connection, as a request extension.
///
/// A bare hyper service sets it when it accepts a connection. axum's `ConnectInfo` (feature
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

/// The peer's address, from whichever server put it there.
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
