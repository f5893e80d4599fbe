//! Servers on loopback, and clients for them.

use std::net::SocketAddr;

use axum::Router;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(crate) async fn serve(app: Router) -> SocketAddr {
    let (listener, address) = listen().await;
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

pub(crate) type HttpClient = Client<HttpConnector, Full<bytes::Bytes>>;

pub(crate) fn http1() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) fn http2() -> HttpClient {
    Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http()
}

pub(crate) async fn get(
    client: &HttpClient,
    address: SocketAddr,
    path: &str,
    token: &str,
) -> Response<Incoming> {
    let request = Request::get(format!("http://{address}{path}"))
        .header("authorization", format!("Bearer {token}"))
        .body(Full::default())
        .unwrap();
    client.request(request).await.unwrap()
}
