//! Paths with dot segments count as limited.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, ServiceExt, service_fn};
use tower_admission_config::Admission;

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

/// The status of a second request, while the first one is in flight, to a service that accepts no credential.
async fn second(groups: &str, path: &str) -> u16 {
    let admission = Admission::new(&config(groups)).unwrap();
    let rejecting = service_fn(|_: Request| async {
        let response = Response::builder().status(401).body(Body::from("no"));
        Ok::<_, std::convert::Infallible>(response.unwrap())
    });
    let service = admission.layer().layer(rejecting);
    let send = || {
        let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
        let request = Request::builder()
            .uri(path)
            .header("authorization", "Bearer made-up")
            .extension(tower_admission::PeerAddr(peer));
        service
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
    };
    let _in_flight = send().await.unwrap();
    send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_group_that_rejects_nothing_never_goes_before_one_that_does() {
    for limit in [
        "rate = '1/h'",
        "rate_per_ip = '1/h'",
        "bad_credentials_per_ip = '1/h'",
        "concurrency = 1",
        "concurrency_per_key = 1",
        "concurrency_per_ip = 1",
    ] {
        for other in [
            String::new(),
            "rate = '0'\nbad_credentials_per_ip = '0'".to_owned(),
            format!("{limit}\ndry_run = true"),
            format!("{limit}\nenforce = 0"),
        ] {
            let groups = format!(
                "[groups.api]\npath = '/api'\n{limit}\n[groups.trial]\npath = '/trial'\n{other}"
            );
            assert_eq!(second(&groups, "/trial/x").await, 401, "{groups}");
            for path in ["/api/x", "/api/../trial/x", "/trial/../api/x"] {
                let status = second(&groups, path).await;
                assert!([429, 503].contains(&status), "{path}: {status}\n{groups}");
            }
        }
    }
}

/// A limit for a share of the keys rejects none of the others.
#[tokio::test]
async fn a_group_that_is_enforced_for_a_share_goes_behind_one_that_is_for_all() {
    let groups = "[groups.api]\npath = '/api'\nrate = '1/h'\n\
                  [groups.all]\npath = '/'\nrate = '1/h'\nconcurrency = 1\nenforce = 1";
    let address = serve(groups).await;
    assert_eq!(group(&answer(address, "/./api/x").await), Some("api"));
    // It goes before one that rejects nothing.
    let address = serve(&groups.replacen("'1/h'", "'1/h'\ndry_run = true", 1)).await;
    assert_eq!(group(&answer(address, "/./api/x").await), Some("all"));
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

/// Whatever of a path a server decodes, resolves, or takes for a separator.
#[tokio::test]
async fn no_reading_of_dot_segments_gets_past_a_group() {
    let address = serve(
        "[groups.login]\npath = '/x/login'\nrate = '1000/h'\n\
         [groups.top]\npath = '/top'\nrate = '1000/h'\n\
         [groups.other]\npath = '/other'\nrate = '0'",
    )
    .await;
    for path in [
        "/x/..;a/../login",
        "/x/a%2fb/../%6cogin",
        "/x/a%5cb/../%6cogin",
        "/x/%2e%2e/../login",
        "/x/..;a/..;b/login",
        "/other/../x/./login",
    ] {
        assert_eq!(group(&answer(address, path).await), Some("login"), "{path}");
    }
    for path in [
        "/x//../top",
        "//top",
        "//top//x",
        "/./top",
        "/other/..//top",
    ] {
        assert_eq!(group(&answer(address, path).await), Some("top"), "{path}");
    }
    // Of more segments than are looked at any group may be meant.
    let long = format!("/.{}", "/a".repeat(1000));
    assert_eq!(group(&answer(address, &long).await), Some("login"));
    for path in ["/x/../elsewhere", "/a//b", "/https://x//login", "/topp//x"] {
        assert_eq!(group(&answer(address, path).await), None, "{path}");
    }
}

#[tokio::test]
async fn a_path_with_empty_segments_is_never_excluded() {
    let address = serve(GROUPS).await;
    assert_eq!(group(&answer(address, "/api/status/").await), None);
    for path in ["/api//status", "//api/status", "/api/status//deep"] {
        assert_eq!(group(&answer(address, path).await), Some("api"), "{path}");
    }
}
