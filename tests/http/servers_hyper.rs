//! The layers on a bare hyper server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, Key, PeerAddr, PermitBody, Quota, RateLimitLayer,
};

use crate::common::{Counting, Seen, header, retry_after, streamed, text};
use crate::servers::{get, http1, http2, listen};

/// Accepts connections for a service, and passes on the peer address.
async fn accept<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<PermitBody<B>>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let service = service.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                service.clone().oneshot(request)
            });
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                server.serve_connection(TokioIo::new(stream), service).await
            });
        }
    });
    address
}

#[tokio::test]
async fn the_layers_work_over_http_1_and_2() {
    for client in [http1(), http2()] {
        let rate = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(2));
        let full = ConcurrencyLimitLayer::new(1);
        let inner = Counting::default();
        let service = ServiceBuilder::new()
            .layer(full.clone())
            .layer(rate.clone())
            .service(inner.clone());
        let address = accept(service).await;
        for expected in [200, 200, 429] {
            let response = get(&client, address, "/", "t").await;
            assert_eq!(response.status(), expected);
            assert!(header(&response, "ratelimit").is_some());
            assert_eq!(retry_after(&response).is_some(), expected == 429);
            let length = header(&response, "content-length").map(str::to_owned);
            let body = text(response).await;
            assert_eq!(
                length,
                Some(body.len().to_string()),
                "a body of a known length"
            );
        }
        assert_eq!(inner.calls(), 2);
        assert_eq!(full.limiter().in_flight(), 0);
        let local = Key::ip([127, 0, 0, 1].into());
        assert_eq!(
            rate.limiter().peek(&local).now().unwrap().remaining(),
            Some(0)
        );
    }
}

#[tokio::test]
async fn a_client_that_disconnects_midway_frees_its_permit() {
    for client in [http1(), http2()] {
        let (seen, mut released) = Seen::new();
        let layer = ConcurrencyLimitLayer::new(1).observe(seen);
        let (frames, body) = streamed();
        let body = Arc::new(Mutex::new(Some(body)));
        let inner = tower::service_fn(move |_: Request<Incoming>| {
            let body = body.lock().unwrap().take();
            async move { Ok::<_, Infallible>(Response::new(body.unwrap())) }
        });
        let service = ServiceBuilder::new().layer(layer.clone()).service(inner);
        let address = accept(service).await;
        let mut response = get(&client, address, "/", "t").await;
        frames.send("some");
        assert!(response.frame().await.unwrap().is_ok());
        assert_eq!(layer.limiter().in_flight(), 1);
        assert_eq!(get(&client, address, "/", "t").await.status(), 503);
        drop((response, client));
        released.one().await;
        assert_eq!(layer.limiter().in_flight(), 0);
    }
}

#[tokio::test]
async fn the_layers_work_with_hypers_adapter() {
    let layer = ConcurrencyLimitLayer::new(1);
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .service(tower::service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello")))
        }));
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
            .await
    });
    let client = http1();
    for _ in 0..3 {
        let response = get(&client, address, "/", "t").await;
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await, "hello");
        assert_eq!(layer.limiter().in_flight(), 0);
    }
}
