//! A service without any source of addresses logs one warning, with any features.
//!
//! One test in a process of its own: the warning is logged once per process.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, ServiceExt, service_fn};
use tower_admission::{ClientIp, Quota, RateLimitByTokenLayer};

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

#[test]
fn a_service_without_addresses_logs_one_warning() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let answer = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
    });
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(2))
        .and_by(ClientIp::peer(), Quota::per_hour(100));
    let statuses = tracing::subscriber::with_default(subscriber, || {
        [(); 3].map(|()| {
            let call = layer.layer(answer).oneshot(Request::new(()));
            let response = tokio_test::block_on(call).unwrap();
            response.status().as_u16()
        })
    });
    assert_eq!(statuses, [200, 200, 429], "they share one bucket");
    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("no client address"), "{log}");
    assert!(log.contains("into_make_service_with_connect_info"), "{log}");
}
