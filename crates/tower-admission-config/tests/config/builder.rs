//! What the application adds to a configuration: costs, and how rejections are answered.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::routing::any;
use http::{Request, Response, StatusCode};
use tower::ServiceExt;
use tower_admission::{PeerAddr, Rejection, RequestHead};
use tower_admission_config::Admission;

use crate::config;

/// What a client says that a request costs.
fn said(head: RequestHead<'_>) -> u32 {
    let cost = head.headers.get("cost").and_then(|cost| cost.to_str().ok());
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(1)
}

fn app(admission: &Admission) -> Router {
    let ok = any(|| async { "ok" });
    Router::new().route("/{*path}", ok).layer(admission.layer())
}

async fn send(app: &Router, path: &str, cost: &str) -> Response<Body> {
    let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
    let request = Request::get(path)
        .header("cost", cost)
        .extension(PeerAddr(peer));
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

/// How many requests of this cost are admitted of a fresh quota.
async fn admitted(app: &Router, path: &str, cost: &str) -> usize {
    let mut admitted = 0;
    while send(app, path, cost).await.status() == StatusCode::OK {
        admitted += 1;
    }
    admitted
}

const GROUPS: &str = "
    [groups.plain]
    path = '/plain'
    rate = '12/h'

    [groups.named]
    path = '/named'
    rate = '12/h'
    cost = 'twice'

    [groups.one]
    path = '/one'
    rate = '12/h'
    cost = 'one'
";

#[tokio::test]
async fn requests_cost_what_the_application_says() {
    let config = config(GROUPS);
    let admission = Admission::builder(&config)
        .cost(said)
        .cost_by("twice", |head| 2 * said(head))
        .build()
        .unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/plain", "3").await, 4);
    assert_eq!(admitted(&app, "/named", "3").await, 2);
    assert_eq!(admitted(&app, "/one", "3").await, 12);
    // Also after a reload.
    let raised = GROUPS.replace("12/h", "24/h");
    admission.reload(&crate::config(&raised)).unwrap();
    assert_eq!(admitted(&app, "/named", "3").await, 2);
    let unknown = GROUPS.replace("twice", "thrice");
    let error = admission.reload(&crate::config(&unknown)).unwrap_err();
    assert_eq!(error.field(), Some("groups.named.cost"));
    let expected =
        "\"thrice\" is not `one`; this program names `twice` (AdmissionBuilder::cost_by)";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn a_cost_has_a_name_of_its_own() {
    let config = config("");
    let wrong = |names: &[&str]| {
        let mut builder = Admission::builder(&config);
        for name in names {
            builder = builder.cost_by(name, |_| 1);
        }
        builder.build().unwrap_err().to_string()
    };
    assert!(wrong(&["one"]).contains("built in"));
    assert!(wrong(&["two words"]).contains("not a word"));
    assert!(wrong(&["a", "b", "a"]).contains("\"a\" occurs twice"));
}

#[tokio::test]
async fn rejections_are_answered_as_the_application_says() {
    let config = config(
        "[groups.api]\npath = '/api'\nname = 'The API'\nrate = '1/h'\n\
         [groups.full]\npath = '/full'\nconcurrency = 1",
    );
    let admission = Admission::builder(&config)
        .respond(|rejection: &Rejection, head: RequestHead<'_>| {
            let text = format!("{} at {}", rejection.limiter(), head.uri.path());
            let mut response = Response::new(text);
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response
        })
        .build()
        .unwrap();
    let app = app(&admission);
    let text = async |response: Response<Body>| {
        assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
        let text = to_bytes(response.into_body(), 1_000).await.unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    };
    assert_eq!(send(&app, "/api/x", "1").await.status(), StatusCode::OK);
    let rejected = send(&app, "/api/x", "1").await;
    // What the layer adds is there all the same.
    assert!(rejected.headers().contains_key("retry-after"));
    assert!(rejected.headers().contains_key("ratelimit"));
    assert_eq!(text(rejected).await, "The API at /api/x");
    let _held = send(&app, "/full", "1").await;
    let rejected = send(&app, "/full", "1").await;
    assert_eq!(text(rejected).await, "full at /full");
    let peer = "ip:192.0.2.1".parse().unwrap();
    let ban = "deny all".parse().unwrap();
    admission.limits().set(&peer, ban).await.unwrap();
    let banned = send(&app, "/other", "1").await;
    assert_eq!(text(banned).await, "lists at /other");
}
