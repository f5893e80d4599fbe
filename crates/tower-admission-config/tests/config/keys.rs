//! Which key a configured group charges.

use axum::Router;
use axum::routing::any;
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_admission::{BearerToken, Extracted, Key, KeyExtractor, PeerAddr, RequestHead, UnixPeer};
use tower_admission_config::{Admission, Config};

use crate::config;

#[derive(Clone)]
struct User(&'static str);

fn by_user(head: RequestHead<'_>) -> Option<Key> {
    let user = head.extensions.get::<User>()?;
    Some(Key::id("user", user.0))
}

fn from(ip: &str) -> Request<axum::body::Body> {
    let mut request = Request::new(axum::body::Body::empty());
    *request.uri_mut() = "/api".parse().unwrap();
    let address = format!("{ip}:1").parse().unwrap();
    request.extensions_mut().insert(PeerAddr(address));
    request
}

fn over_unix() -> Request<axum::body::Body> {
    let mut request = from("192.0.2.1");
    request.extensions_mut().clear();
    request.extensions_mut().insert(UnixPeer);
    request
}

fn with<B>(mut request: Request<B>, headers: &[(&'static str, &str)]) -> Request<B> {
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

fn app(admission: &Admission) -> Router {
    Router::new()
        .route("/{*path}", any(|| async { "ok" }))
        .layer(admission.layer())
}

async fn is_admitted(app: &Router, request: Request<axum::body::Body>) -> bool {
    let status = app.clone().oneshot(request).await.unwrap().status();
    assert!([StatusCode::OK, StatusCode::TOO_MANY_REQUESTS].contains(&status));
    status == StatusCode::OK
}

/// The limits of one group, of one request an hour.
fn group(clients: &str, key: &str) -> Config {
    config(&format!(
        "[clients]\n{clients}\n[groups.api]\npath = '/api'\nrate = '1/h'\nkey = '{key}'"
    ))
}

#[tokio::test]
async fn a_key_that_the_application_names_is_charged() {
    let config = group("trusted_proxies = '10.0.0.0/8'", "user");
    let admission = Admission::builder(&config).key_by("user", by_user);
    let app = app(&admission.build().unwrap());
    let user = |user, ip| {
        let mut request = from(ip);
        request.extensions_mut().insert(User(user));
        request
    };
    assert!(is_admitted(&app, user("alice", "192.0.2.1")).await);
    assert!(!is_admitted(&app, user("alice", "192.0.2.2")).await);
    assert!(is_admitted(&app, user("bob", "192.0.2.1")).await);
    // Without a user it is the client's address, also behind a proxy.
    let client = |ip| with(from("10.0.0.1"), &[("x-forwarded-for", ip)]);
    assert!(is_admitted(&app, client("198.51.100.7")).await);
    assert!(!is_admitted(&app, client("198.51.100.7")).await);
    assert!(is_admitted(&app, client("198.51.100.8")).await);
}

#[tokio::test]
async fn an_unusable_key_of_the_application_falls_back_to_the_address() {
    let config = group("", "broken");
    let admission =
        Admission::builder(&config).key_by("broken", |_: RequestHead<'_>| Extracted::Unusable);
    let app = app(&admission.build().unwrap());
    assert!(is_admitted(&app, from("192.0.2.1")).await);
    assert!(!is_admitted(&app, from("192.0.2.1")).await);
    assert!(is_admitted(&app, from("192.0.2.2")).await);
}

#[test]
fn a_key_that_is_not_there_is_an_error_that_lists_what_there_is() {
    let error = |config: &Config, keys: &[&str]| {
        let mut builder = Admission::builder(config);
        for key in keys {
            builder = builder.key_by(key, by_user);
        }
        builder.build().unwrap_err().to_string()
    };
    let unknown = group("", "usr");
    assert_eq!(
        error(&unknown, &["user", "org"]),
        "groups.api.key: \"usr\" is not one of `token`, `bearer`, `api-key`, `ip`, `shared`, `header \
                X-User`; this program names `user`, `org` (AdmissionBuilder::key_by)"
    );
    let none = error(&unknown, &[]);
    assert!(none.contains("this program names no keys"), "{none}");

    let plain = group("", "token");
    for name in ["ip", "token", "header X-User", "a b", "", "ä"] {
        let error = error(&plain, &[name]);
        let expected =
            format!("AdmissionBuilder::key_by: the name {name:?} is built in or not a word");
        assert!(error.starts_with(&expected), "{error}");
        assert!(error.contains("`api-key`, `ip`, `shared`"), "{error}");
    }
    let twice = error(&plain, &["user", "user"]);
    assert!(twice.ends_with("the name \"user\" occurs twice"), "{twice}");

    // A reload is checked as well.
    let admission = Admission::builder(&plain).key_by("user", by_user).build();
    let admission = admission.unwrap();
    let error = admission.reload(&unknown).unwrap_err();
    assert_eq!(error.field(), Some("groups.api.key"));
    admission.reload(&group("", "user")).unwrap();
}

#[tokio::test]
async fn an_extractor_can_be_named() {
    let config = group("", "own");
    let own = BearerToken.or(by_user);
    let admission = Admission::builder(&config).key_by("own", own).build();
    let app = app(&admission.unwrap());
    let token = |token| with(from("192.0.2.1"), &[("authorization", token)]);
    assert!(is_admitted(&app, token("Bearer a")).await);
    assert!(!is_admitted(&app, token("Bearer a")).await);
    assert!(is_admitted(&app, token("Bearer b")).await);
}

#[tokio::test]
async fn a_header_counts_only_from_a_trusted_proxy() {
    let config = group("trusted_proxies = '10.0.0.0/8'", "header X-User");
    let admission = Admission::new(&config).unwrap();
    let app = app(&admission);
    let proxied = |user| {
        let headers = [("x-user", user), ("x-forwarded-for", "198.51.100.7")];
        with(from("10.0.0.1"), &headers)
    };
    assert!(is_admitted(&app, proxied("alice")).await);
    assert!(!is_admitted(&app, proxied("alice")).await);
    assert!(is_admitted(&app, proxied("bob")).await);
    // Unusable: the client's address.
    assert!(is_admitted(&app, proxied("")).await);
    assert!(!is_admitted(&app, proxied("")).await);
    // A client makes it up: its address.
    let mut admitted = 0;
    for number in 0..20 {
        let request = with(from("203.0.113.5"), &[("x-user", &number.to_string())]);
        admitted += usize::from(is_admitted(&app, request).await);
    }
    assert_eq!(admitted, 1);
    let limits = admission.limits();
    let carol = "x-user:carol".parse().unwrap();
    limits
        .set(&carol, "api=3/h".parse().unwrap())
        .await
        .unwrap();
    for expected in [true, true, true, false] {
        assert_eq!(is_admitted(&app, proxied("carol")).await, expected);
    }
}

#[tokio::test]
async fn a_credential_that_the_group_does_not_accept_is_ignored() {
    for (key, authorization, api_key) in [
        ("bearer", "Bearer same", None),
        ("api-key", "", Some("same")),
    ] {
        let app = app(&Admission::new(&group("", key)).unwrap());
        let mut admitted = 0;
        for number in 0..20 {
            let made_up = number.to_string();
            let bearer = format!("Bearer {made_up}");
            let headers = match api_key {
                Some(api_key) => [("authorization", &*bearer), ("x-api-key", api_key)],
                None => [("authorization", authorization), ("x-api-key", &*made_up)],
            };
            let request = with(from("192.0.2.1"), &headers);
            admitted += usize::from(is_admitted(&app, request).await);
        }
        assert_eq!(admitted, 1, "{key}");
    }
}

#[tokio::test]
async fn clients_are_found_behind_what_is_configured() {
    let list = ("x-forwarded-for", "made-up, 198.51.100.7");
    let single = ("cf-connecting-ip", "198.51.100.7");
    let other = ("x-forwarded-for", "made-up, 198.51.100.8");
    let other_single = ("cf-connecting-ip", "198.51.100.8");
    for (clients, peer, one, two) in [
        ("trusted_hops = 1", from as fn(&str) -> _, list, other),
        ("trust_unix_socket = true", |_| over_unix(), list, other),
        (
            "trusted_proxies = '10.0.0.1'\nforwarded_header = 'single CF-Connecting-IP'",
            from,
            single,
            other_single,
        ),
    ] {
        let app = app(&Admission::new(&group(clients, "ip")).unwrap());
        assert!(is_admitted(&app, with(peer("10.0.0.1"), &[one])).await);
        assert!(!is_admitted(&app, with(peer("10.0.0.1"), &[one])).await);
        assert!(
            is_admitted(&app, with(peer("10.0.0.1"), &[two])).await,
            "{clients}"
        );
    }
    // Untrusted: all of them are the peer.
    let app = app(&Admission::new(&group("trusted_hops = 0", "ip")).unwrap());
    assert!(is_admitted(&app, with(from("10.0.0.1"), &[list])).await);
    assert!(!is_admitted(&app, with(from("10.0.0.1"), &[other])).await);
}
