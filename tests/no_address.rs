//! A service whose requests have no key logs one warning, which names the cause, with any features.
//!
//! In a process of its own: each warning is logged once per process.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_admission::extract::PeerAddr;
use tower_admission::{ClientIp, Key, Quota, RateLimitByTokenLayer, RateLimitLayer, RequestHead};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The answers of `service` to three requests like `request`, and what it logs.
fn statuses_and_log<S, B>(service: S, request: impl Fn() -> Request<()>) -> ([u16; 3], String)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let statuses = tracing::subscriber::with_default(subscriber, || {
        [(); 3].map(|()| {
            let call = service.clone().oneshot(request());
            tokio_test::block_on(call).unwrap().status().as_u16()
        })
    });
    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    (statuses, log)
}
#[test]
fn a_service_without_addresses_logs_one_warning() {
    let answer = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
    });
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(2))
        .and_by(ClientIp::peer(), Quota::per_hour(100));
    let (statuses, log) = statuses_and_log(layer.layer(answer), || Request::new(()));
    assert_eq!(statuses, [200, 200, 429], "they share one bucket");
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("no client address"), "{log}");
    assert!(log.contains("into_make_service_with_connect_info"), "{log}");
    assert!(log.contains("enable the feature `tonic`"), "{log}");
}

#[test]
fn an_extractor_without_a_key_logs_one_warning_that_the_address_is_known() {
    let answer = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
    });
    let user = |head: RequestHead<'_>| head.extensions.get::<Key>().copied();
    let layer = RateLimitLayer::by(user, Quota::per_hour(2));
    let (statuses, log) = statuses_and_log(layer.layer(answer), || {
        let mut request = Request::new(());
        let peer = PeerAddr(([192, 0, 2, 1], 4711).into());
        request.extensions_mut().insert(peer);
        request
    });
    assert_eq!(statuses, [200, 200, 429], "they share one bucket");
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("the extractor found no key"), "{log}");
    assert!(
        log.contains("authentication must be outside the limit"),
        "{log}"
    );
    assert!(!log.contains("no client address"), "{log}");
}
