//! Roles of operators, and the limit on failed sign-ins.

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_admission::extract::PeerAddr;
use tower_admission::{ClientIp, Limits, Quota, RequestHead};
use tower_admission_axum::admin::{AdminRouter, Operator, Recorder, Role, Token, Tokens};

use super::TOKEN;

/// The response to a token from an address in a header, as a proxy sends it.
struct Client<'a> {
    app: &'a Router,
    peer: Option<&'a str>,
    forwarded_for: Option<&'a str>,
}

impl Client<'_> {
    async fn send(&self, authorization: Option<&str>) -> (u16, HeaderMap, String) {
        let mut request = Request::get("/limits");
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(client) = self.forwarded_for {
            request = request.header("x-forwarded-for", client);
        }
        let mut request = request.body(Body::empty()).unwrap();
        if let Some(peer) = self.peer {
            let peer: IpAddr = peer.parse().unwrap();
            let peer = PeerAddr(SocketAddr::new(peer, 1234));
            request.extensions_mut().insert(peer);
        }
        let (head, body) = self
            .app
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.into()).unwrap();
        (head.status.as_u16(), head.headers, text)
    }

    async fn status(&self, token: &str) -> u16 {
        self.send(Some(&format!("Bearer {token}"))).await.0
    }
}

fn from<'a>(app: &'a Router, peer: &'a str) -> Client<'a> {
    Client {
        app,
        peer: Some(peer),
        forwarded_for: None,
    }
}

fn admin() -> AdminRouter {
    let token = Token::new(TOKEN).unwrap();
    AdminRouter::new(&Limits::new(), &Recorder::new(), token)
}

#[tokio::test]
async fn only_the_address_with_wrong_credentials_is_slowed_down() {
    let app: Router = admin().sign_in_failures(Quota::per_hour(3)).build();
    let guesser = from(&app, "192.0.2.1");
    assert_eq!(guesser.status(TOKEN).await, 200);
    for _ in 0..3 {
        assert_eq!(guesser.status("a-token-that-is-a-guess").await, 401);
    }
    // Neither response reveals whether a guess was right.
    for token in ["a-token-that-is-a-guess", TOKEN] {
        let (status, headers, text) = guesser.send(Some(&format!("Bearer {token}"))).await;
        assert_eq!(status, 429, "{text}");
        let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=1200).contains(&wait), "{wait}");
        assert_eq!(headers["content-type"], "application/problem+json");
    }
    // Requests without credentials are not slowed down, so the page loads and can ask for the token.
    assert_eq!(guesser.send(None).await.0, 401);
    assert_eq!(from(&app, "192.0.2.2").status(TOKEN).await, 200);
    // One IPv6 client has a whole network.
    for n in 1..=3 {
        let peer = format!("2001:db8::{n}");
        assert_eq!(
            from(&app, &peer).status("a-token-that-is-a-guess").await,
            401
        );
    }
    assert_eq!(from(&app, "2001:db8::4").status(TOKEN).await, 429);
    assert_eq!(from(&app, "2001:db8:0:1::4").status(TOKEN).await, 200);
}

#[tokio::test]
async fn behind_a_proxy_the_client_is_slowed_down() {
    let proxies = ["10.0.0.0/8".parse().unwrap()];
    let app: Router = admin()
        .sign_in_failures(Quota::per_hour(1))
        .client_ip(ClientIp::forwarded_by(proxies))
        .build();
    let client = |client| Client {
        app: &app,
        peer: Some("10.0.0.1"),
        forwarded_for: Some(client),
    };
    assert_eq!(
        client("192.0.2.1").status("a-token-that-is-a-guess").await,
        401
    );
    assert_eq!(client("192.0.2.1").status(TOKEN).await, 429);
    assert_eq!(client("192.0.2.2").status(TOKEN).await, 200);
    // Without the proxy the client chooses the header.
    let direct = Client {
        app: &app,
        peer: Some("192.0.2.3"),
        forwarded_for: Some("192.0.2.1"),
    };
    assert_eq!(direct.status(TOKEN).await, 200);
}

#[tokio::test]
async fn without_known_addresses_no_operator_is_slowed_down() {
    let app: Router = admin().sign_in_failures(Quota::per_hour(1)).build();
    let client = Client {
        app: &app,
        peer: None,
        forwarded_for: None,
    };
    for _ in 0..5 {
        assert_eq!(client.status("a-token-that-is-a-guess").await, 401);
    }
    assert_eq!(client.status(TOKEN).await, 200);
}

#[tokio::test]
async fn only_the_challenge_to_a_wrong_token_has_an_error() {
    let app: Router = admin().build();
    let client = from(&app, "192.0.2.1");
    for (authorization, challenge) in [
        (None, "Bearer realm=\"admission\""),
        (Some("Basic dTpw"), "Bearer realm=\"admission\""),
        (
            Some("Bearer the-token-of-operator"),
            "Bearer realm=\"admission\", error=\"invalid_token\"",
        ),
        (
            Some("bearer"),
            "Bearer realm=\"admission\", error=\"invalid_token\"",
        ),
    ] {
        let (status, headers, _) = client.send(authorization).await;
        assert_eq!(status, 401);
        assert_eq!(headers["www-authenticate"], challenge, "{authorization:?}");
    }
}

/// The number of log lines is bounded by addresses and minutes, and all failures are counted.
#[cfg(feature = "metrics")]
#[test]
fn failures_are_counted_and_logged_once_per_address() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let log = crate::logged::logged(|| {
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let app: Router = admin().sign_in_failures(Quota::per_hour(4)).build();
                for peer in ["192.0.2.1", "192.0.2.2"] {
                    for _ in 0..5 {
                        from(&app, peer).status("a-token-that-is-a-guess").await;
                    }
                }
            });
        });
    });
    let lines: Vec<_> = log
        .iter()
        .filter(|line| line.contains("wrong credentials"))
        .collect();
    assert_eq!(lines.len(), 2, "{log:?}");
    assert!(
        lines[0].contains("address=ip:192.0.2.1 unlogged=0"),
        "{log:?}"
    );
    assert!(
        lines[1].contains("address=ip:192.0.2.2 unlogged=3"),
        "{log:?}"
    );
    assert!(!log.concat().contains("guess"), "{log:?}");
    let counted: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .filter(|(key, ..)| key.key().name() == "admission_admin_sign_in_failures_total")
        .map(|(key, _, _, value)| {
            let label = key.key().labels().next().unwrap().value().to_owned();
            let DebugValue::Counter(count) = value else {
                panic!("{value:?}");
            };
            (label, count)
        })
        .collect();
    assert_eq!(counted.len(), 2, "{counted:?}");
    assert!(counted.contains(&("wrong".to_owned(), 8)), "{counted:?}");
    assert!(counted.contains(&("slowed".to_owned(), 2)), "{counted:?}");
}

#[tokio::test]
async fn an_operator_with_the_role_read_changes_nothing() {
    let reader = "the-token-of-the-dashboards";
    let tokens = Tokens::new([
        Token::named("anna", TOKEN).unwrap(),
        Token::named("dashboards", reader).unwrap().role(Role::Read),
    ]);
    let limits = Limits::new();
    let app: Router = AdminRouter::new(&limits, &Recorder::new(), tokens).build();
    let status = async |method: &str, path: &str, token: &str| {
        let request = Request::builder().method(method).uri(path);
        let request = request
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(Body::from(r#"{"limit":"1/h"}"#));
        let response = app.clone().oneshot(request.unwrap()).await.unwrap();
        if response.status() == StatusCode::FORBIDDEN {
            let challenge = "Bearer realm=\"admission\", error=\"insufficient_scope\"";
            assert_eq!(response.headers()["www-authenticate"], challenge);
        }
        response.status().as_u16()
    };
    for (method, path, may) in [
        ("GET", "/limits", 200),
        ("GET", "/limits/org:acme", 404),
        ("GET", "/usage", 200),
        ("GET", "/usage/org:acme", 200),
        ("GET", "/changes", 200),
        ("GET", "/openapi.json", 200),
    ] {
        assert_eq!(status(method, path, reader).await, may, "{method} {path}");
    }
    for (method, path, may) in [
        ("PUT", "/limits/org:acme", 200),
        ("DELETE", "/limits/org:acme", 200),
        ("POST", "/cache/clear", 204),
        ("POST", "/loss/accept", 204),
    ] {
        assert_eq!(status(method, path, reader).await, 403, "{method} {path}");
        assert_eq!(status(method, path, TOKEN).await, may, "{method} {path}");
    }
}

#[tokio::test]
async fn a_closure_names_its_operators() {
    let auth = |head: RequestHead<'_>| {
        let name = head.headers.get("x-operator")?.to_str().ok()?;
        let role = if name == "anna" {
            Role::Write
        } else {
            Role::Read
        };
        Some(Operator::new(name, role))
    };
    let app: Router = AdminRouter::new(&Limits::new(), &Recorder::new(), auth).build();
    for (name, expected) in [("anna", 204), ("ben", 403)] {
        let request = Request::post("/cache/clear").header("x-operator", name);
        let request = request.body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{name}");
    }
}

/// A client may also guess credentials for a closure.
#[tokio::test]
async fn wrong_credentials_in_a_named_header_count() {
    let auth = |head: RequestHead<'_>| {
        let key = head.headers.get("x-admin-key");
        key.is_some_and(|key| key == TOKEN)
    };
    let key = http::HeaderName::from_static("x-admin-key");
    let app: Router = AdminRouter::new(&Limits::new(), &Recorder::new(), auth)
        .sign_in_failures(Quota::per_hour(2))
        .credentials_in(key.clone())
        .build();
    let status = async |value: Option<&str>| {
        let mut request = Request::get("/limits").body(Body::empty()).unwrap();
        let peer: SocketAddr = "192.0.2.1:1234".parse().unwrap();
        request.extensions_mut().insert(PeerAddr(peer));
        if let Some(value) = value {
            request
                .headers_mut()
                .insert(key.clone(), value.parse().unwrap());
        }
        app.clone()
            .oneshot(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(status(Some(TOKEN)).await, 200);
    for _ in 0..3 {
        assert_eq!(status(None).await, 401);
    }
    for expected in [401, 401, 429] {
        assert_eq!(status(Some("a-guess")).await, expected);
    }
    assert_eq!(status(Some(TOKEN)).await, 429);
}

/// During a rotation an operator has two tokens.
#[test]
fn the_log_of_replaced_tokens_names_each_change() {
    let [one, two, three] = ["one", "two", "three"]
        .map(|token| Token::named("anna", format!("the-token-that-is-{token}")).unwrap());
    let ben = Token::named("ben", TOKEN).unwrap();
    let tokens = Tokens::new([one.clone()]);
    let replace = |with: Vec<Token>| {
        let log = crate::logged::logged(|| tokens.replace(with));
        let words = log.iter().map(|line| {
            let line = line.trim_start_matches("INFO ");
            line.trim_end_matches(|char| char != '\"').to_owned()
        });
        words.collect::<Vec<_>>()
    };
    for (with, says) in [
        (
            vec![one.clone(), two.clone()],
            &["an admin token was added name=\"anna\" role=\"write\""][..],
        ),
        (
            vec![two.clone()],
            &["an admin token was removed name=\"anna\""],
        ),
        (vec![two.clone()], &[]),
        (
            vec![three.clone()],
            &["an admin token was changed name=\"anna\" role=\"write\""],
        ),
        (
            vec![three.clone().role(Role::Read)],
            &["the role of an admin token was changed name=\"anna\" role=\"read\""],
        ),
        (
            vec![ben],
            &[
                "an admin token was added name=\"ben\" role=\"write\"",
                "an admin token was removed name=\"anna\"",
            ],
        ),
    ] {
        assert_eq!(replace(with), says);
    }
}
