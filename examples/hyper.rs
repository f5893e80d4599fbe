//! Both layers on a bare hyper server, for HTTP/1.1 and HTTP/2 on one port.
//!
//! ```sh
//! cargo run --example hyper
//! curl -i http://127.0.0.1:3000/
//! curl -i --http2-prior-knowledge http://127.0.0.1:3000/
//! ```
//!
//! Both answers have `RateLimit` fields, and share one bucket: the key is the address, because there is no token.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};
use tower_admission::{ConcurrencyLimitLayer, PeerAddr, Quota, RateLimitByTokenLayer};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    // All connections share this service, so they share its limits.
    let limited = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(64))
        .layer(RateLimitByTokenLayer::new(Quota::per_second(10).burst(20)))
        .service_fn(hello);

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let Ok((connection, peer)) = listener.accept().await else {
            // The client has disconnected, or the process has no free file descriptor.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // hyper does not pass the address of the peer to the service, so add it here.
        let service = limited
            .clone()
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                request
            });
        tokio::spawn(async move {
            let served = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(connection), TowerToHyperService::new(service))
                .await;
            if let Err(error) = served {
                eprintln!("connection of {peer}: {error}");
            }
        });
    }
}

async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello\n")))
}
