//! Lists on a real axum server.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceBuilder;
use tower_admission::{
    AccessLayer, ByToken, ConcurrencyLimitLayer, Limits, Quota, RateLimitByTokenLayer,
    RateLimitStatus,
};

use crate::name;

async fn serve(limits: &Limits, listen: &str) -> SocketAddr {
    let layers = ServiceBuilder::new()
        .layer(AccessLayer::new(limits).key(ByToken::default()))
        .layer(ConcurrencyLimitLayer::new(8))
        .layer(RateLimitByTokenLayer::new(Quota::per_hour(1)));
    let handler = |_: RateLimitStatus| async { "hello" };
    let app = Router::new().route("/", get(handler)).layer(layers);
    let listener = TcpListener::bind(listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// The first line of the answer.
async fn ask(address: SocketAddr, token: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

const OK: &str = "HTTP/1.1 200 OK";
const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden";
const TOO_MANY: &str = "HTTP/1.1 429 Too Many Requests";

#[tokio::test]
async fn lists_change_while_a_server_runs() {
    // The second server sees IPv4 clients as IPv4-mapped addresses, if IPv6 is available.
    let mut addresses = Vec::new();
    let limits = Limits::new();
    addresses.push(serve(&limits, "127.0.0.1:0").await);
    if TcpListener::bind("[::]:0").await.is_ok() {
        let port = serve(&limits, "[::]:0").await.port();
        addresses.push(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    for (n, address) in addresses.into_iter().enumerate() {
        let alice = format!("alice-{n}");
        assert_eq!(ask(address, &alice).await, OK);
        assert_eq!(ask(address, &alice).await, TOO_MANY);
        let network = name("ip:127.0.0.0/8");
        let deny = "deny all".parse().unwrap();
        limits.set(&network, deny).await.unwrap();
        assert_eq!(ask(address, "made-up").await, FORBIDDEN);
        let unlimited = "unlimited".parse().unwrap();
        limits
            .set(&name(&format!("bearer:{alice}")), unlimited)
            .await
            .unwrap();
        for _ in 0..3 {
            assert_eq!(ask(address, &alice).await, OK);
        }
        assert_eq!(ask(address, "made-up").await, FORBIDDEN);
        limits.delete(&network).await.unwrap();
        assert_eq!(ask(address, &format!("made-up-{n}")).await, OK);
    }
}
