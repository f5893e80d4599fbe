//! Paths with dot segments count as limited.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, service_fn};
use tower_admission::config::Admission;

use crate::config;

/// The header of a response shows which group it was in.
const GROUPS: &str = "
    [groups.api]
    path = '/api'
    rate = '1000/h'
    exclude = ['/api/status', '/api/open']

    [groups.batch]
    path = '/batch'
    rate = '1000/h'
    name = 'batch'

    [groups.static]
    path = '/static'
    rate = '0'

    [groups.full]
    path = '/full'
    rate = '1000/h'
    concurrency = 9

    [groups.trial]
    path = '/trial'
    rate = '1000/h'
    dry_run = true
";

/// A server under these limits that answers any path, without a router.
async fn serve(groups: &str) -> std::net::SocketAddr {
    let admission = Admission::new(&config(groups)).unwrap();
    let any = service_fn(|_: Request| async {
        Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
    });
    let app = Router::new().fallback_service(admission.layer().layer(any));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// The raw answer to a request for this path, which no client library has made tidy.
async fn answer(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 429"));
    answer
}

/// The group whose quota is in the answer.
fn group(answer: &str) -> Option<&str> {
    let (_, policy) = answer.split_once("ratelimit-policy: \"")?;
    policy.split_once('"').map(|(name, _)| name)
}

#[tokio::test]
async fn a_path_with_dot_segments_is_never_excluded() {
    let address = serve(GROUPS).await;
    assert_eq!(group(&answer(address, "/api/status").await), None);
    assert_eq!(group(&answer(address, "/api/status/deep").await), None);
    for path in [
        "/api/status/../chat",
        "/api/status/%2e%2e/chat",
        "/api/status/%2E%2e/chat",
        "/api/status/.%2E/chat",
        "/api/status/..%2fchat",
        "/api/status/%2e%2e%2Fchat",
        "/api/status/..%5cchat",
        "/api/status\\..\\chat",
        "/api/status/..\\chat",
        "/api/status/..;/chat",
        "/api/status/./../chat",
        // Also where it ends at what is excluded: the segments say nothing about the server.
        "/api/status/.",
        "/api/status/%2e/deep",
        "/api/x/../status",
    ] {
        assert_eq!(group(&answer(address, path).await), Some("api"), "{path}");
    }
}

#[tokio::test]
async fn a_path_with_dot_segments_is_in_the_group_that_it_leads_to() {
    let address = serve(GROUPS).await;
    for (path, expected) in [
        ("/static/../api/chat", Some("api")),
        ("/static/%2e%2e/api/chat", Some("api")),
        ("/static/..%2fapi/chat", Some("api")),
        ("/static/..%5Capi\\chat", Some("api")),
        ("/./api/chat", Some("api")),
        ("/../api/chat", Some("api")),
        ("/static/../%61pi/chat", Some("api")),
        ("/batch/../api/chat", Some("api")),
        ("/api/../batch/run", Some("batch")),
        // Out of every group: the group as written.
        ("/api/../health", Some("api")),
        ("/api/..", Some("api")),
        // A group that limits nothing never goes before one that does, however the server reads it.
        ("/api/x/../../static/y", Some("api")),
        ("/api/..%2fstatic/y", Some("api")),
        ("/static/x/../../api/y", Some("api")),
        ("/api/../trial/y", Some("api")),
        // Nor does one with fewer sorts of limits.
        ("/full/x/../../api/y", Some("full")),
        ("/api/x/../../full/y", Some("full")),
        // In no group that limits, however it is read.
        ("/static/../health", None),
        ("/batches/../health", None),
        // Not a dot segment.
        ("/static/...", None),
        ("/static/..api", None),
        ("/static/%252e%252e/api/chat", None),
    ] {
        assert_eq!(group(&answer(address, path).await), expected, "{path}");
    }
}

#[tokio::test]
async fn dot_segments_do_not_get_past_a_limit() {
    let address = serve("[groups.api]\npath = '/api'\nrate = '2/h'\nexclude = '/api/status'").await;
    let mut admitted = 0;
    for number in 0..20 {
        let ways = [
            format!("/api/status/../chat/{number}"),
            format!("/{number}/%2e%2e/api/chat"),
        ];
        for path in ways {
            let answer = answer(address, &path).await;
            admitted += usize::from(answer.starts_with("HTTP/1.1 200"));
        }
    }
    assert_eq!(admitted, 2);
}
