//! Resolves credentials, and names that the application knows, to keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_admission::{Key, KeyName, Limits};
use tower_admission_axum::admin::{AdminRouter, Recorder, Token};

use super::{Service, TOKEN, encoded, operator};

const SECRET: &str = "sk-live-0123456789";

fn fingerprint() -> String {
    KeyName::from(Key::new("bearer", SECRET.as_bytes())).to_string()
}

#[tokio::test]
async fn a_credential_in_a_body_resolves_to_its_charged_key() {
    let service = Service::new();
    let request = http::Request::get("/call").header("secret", SECRET);
    let request = request.body(axum::body::Body::empty()).unwrap();
    assert_eq!(service.send(request).await.status(), 200);
    let path = format!("/limits/{}", encoded(&fingerprint()));
    service.ask("PUT", &path, "{\"limit\":\"9/h\"}").await;

    let key = json!({
        "key": fingerprint(),
        "limit": "9/h",
        "listed": null,
        "usage": [{
            "name": "calls", "sort": "rate", "used": 1, "here": 1, "counted_in": "this process",
            "limit": 9, "is_override": true,
        }],
        "replica": service.ask("GET", "/now", "").await.json["replica"],
        "store": null,
    });
    let body = json!({ "key": format!("bearer:{SECRET}") }).to_string();
    let found = service.ask("POST", "/keys/resolve", &body).await;
    assert_eq!(
        (found.status, &found.json),
        (200, &json!({ "keys": [key] }))
    );
    assert!(!found.text.contains(SECRET));
    // Without a kind both keys are possible; with the scheme only a token is.
    for (credential, count) in [
        (SECRET.to_owned(), 2),
        (format!("Bearer {SECRET}"), 1),
        (format!(" bearer  {SECRET} "), 1),
    ] {
        let body = json!({ "credential": credential }).to_string();
        let found = service.ask("POST", "/keys/resolve", &body).await;
        assert_eq!(found.json["keys"][0], key, "{credential}");
        assert_eq!(found.json["keys"].as_array().unwrap().len(), count);
        assert!(!found.text.contains(SECRET));
    }
    // A token may be longer than the name of a key.
    let long = "x".repeat(8_000);
    let body = json!({ "key": format!("bearer:{long}") }).to_string();
    let found = service.ask("POST", "/keys/resolve", &body).await;
    let expected = KeyName::from(Key::new("bearer", long.as_bytes())).to_string();
    assert_eq!(found.json["keys"][0]["key"], json!(expected));
}

#[tokio::test]
async fn an_error_about_invalid_input_echoes_no_credential() {
    let service = Service::new();
    for (body, status) in [
        (json!({}), 400),
        (json!({ "key": SECRET, "credential": SECRET }), 400),
        (json!({ "key": [SECRET] }), 400),
        (json!({ "key": "org:acme", SECRET: SECRET }), 400),
        (json!([SECRET]), 400),
        (json!({ "key": SECRET }), 422),
        (
            json!({ "key": format!("Authorization: Basic {SECRET}") }),
            422,
        ),
        (json!({ "key": format!("token:{SECRET}") }), 422),
        (json!({ "key": "bearer:" }), 422),
        (json!({ "credential": " " }), 422),
        (json!({ "credential": "Bearer " }), 422),
        (
            json!({ "key": format!("bearer:{}", "x".repeat(17_000)) }),
            413,
        ),
    ] {
        let answer = service
            .ask("POST", "/keys/resolve", &body.to_string())
            .await;
        assert_eq!(answer.status, status, "{body} {}", answer.text);
        assert!(!answer.text.contains(SECRET), "{}", answer.text);
    }
}

/// An application that knows one organisation, and may be slow, panic or fail.
struct App {
    router: Router,
    limits: Limits,
    asked: Arc<AtomicUsize>,
}

impl App {
    fn new() -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let limits = Limits::new();
        let counted = asked.clone();
        let router = AdminRouter::new(&limits, &Recorder::new(), Token::new(TOKEN).unwrap())
            .resolve_within(Duration::from_millis(500))
            .resolve_by(move |name: String| {
                counted.fetch_add(1, Ordering::SeqCst);
                assert_ne!(name, "panics at once");
                async move {
                    match &*name {
                        "Acme Inc." | "org:acme" => Ok(KeyName::id("org", "42").ok()),
                        "slow" => std::future::pending().await,
                        "panics" => panic!("a bug in the application"),
                        "fails" => Err("the database is away"),
                        _ => Ok(None),
                    }
                }
            })
            .build();
        Self {
            router: Router::new().nest("/admin", router),
            limits,
            asked,
        }
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = operator(method, path, body);
        let (head, body) = (self.router.clone().oneshot(request).await.unwrap()).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let json = serde_json::from_slice(&body).unwrap_or_default();
        (head.status.as_u16(), json)
    }
}

#[tokio::test]
async fn the_application_resolves_names_for_each_endpoint() {
    let app = App::new();
    let acme = encoded("Acme Inc.");
    let limit = "{\"limit\":\"unlimited\"}";
    let (status, set) = app.ask("PUT", &format!("/limits/{acme}"), limit).await;
    assert_eq!((status, &set["key"]), (200, &json!("org:42")));
    for (method, path, body) in [
        ("GET", format!("/limits/{acme}"), ""),
        ("GET", "/limits/org:acme".to_owned(), ""),
        ("GET", format!("/usage/{acme}"), ""),
        ("POST", "/explain".to_owned(), "{\"key\":\"Acme Inc.\"}"),
        ("DELETE", format!("/limits/{acme}"), ""),
    ] {
        let (status, answer) = app.ask(method, &path, body).await;
        assert_eq!((status, &answer["key"]), (200, &json!("org:42")), "{path}");
    }
    let (_, found) = app
        .ask("POST", "/keys/resolve", "{\"key\":\"Acme Inc.\"}")
        .await;
    assert_eq!(found["keys"][0]["key"], json!("org:42"));
    assert!(app.limits.is_empty());

    // An unknown name is read as the name of a key.
    let (status, usage) = app.ask("GET", "/usage/org:other", "").await;
    assert_eq!((status, &usage["key"]), (200, &json!("org:other")));
    let (status, answer) = app.ask("GET", "/usage/nobody", "").await;
    assert_eq!(status, 422);
    let detail = answer["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("The application does not know this name"),
        "{detail}"
    );
}

#[tokio::test]
async fn the_application_never_sees_a_credential() {
    let app = App::new();
    for key in [
        format!("bearer:{SECRET}"),
        format!("api-key:{SECRET}"),
        fingerprint(),
        "ip:192.0.2.1".to_owned(),
        "shared".to_owned(),
    ] {
        let path = format!("/usage/{}", encoded(&key));
        let status = if key.contains(SECRET) { 422 } else { 200 };
        assert_eq!(app.ask("GET", &path, "").await.0, status, "{key}");
        let body = json!({ "key": key }).to_string();
        assert_eq!(
            app.ask("POST", "/keys/resolve", &body).await.0,
            200,
            "{key}"
        );
    }
    for key in [
        format!("Bearer {SECRET}"),
        format!("x-api-key: {SECRET}"),
        format!("authorization: bearer {SECRET}"),
    ] {
        let body = json!({ "key": key }).to_string();
        let (status, answer) = app.ask("POST", "/keys/resolve", &body).await;
        assert_eq!(status, 200, "{key}");
        assert!(!answer.to_string().contains(SECRET));
    }
    let body = json!({ "credential": SECRET }).to_string();
    assert_eq!(app.ask("POST", "/keys/resolve", &body).await.0, 200);
    assert_eq!(app.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_failing_application_is_an_error_and_changes_nothing() {
    let app = App::new();
    for (name, status, says) in [
        ("slow", 503, "did not resolve the key within 500ms"),
        ("panics", 500, "panicked"),
        ("panics at once", 500, "panicked"),
        ("fails", 503, "the database is away"),
    ] {
        for (method, path, body) in [
            (
                "PUT",
                format!("/limits/{}", encoded(name)),
                "{\"limit\":\"1/h\"}".to_owned(),
            ),
            (
                "POST",
                "/keys/resolve".to_owned(),
                json!({ "key": name }).to_string(),
            ),
        ] {
            let (answered, answer) = app.ask(method, &path, &body).await;
            assert_eq!(answered, status, "{name}");
            let detail = answer["detail"].as_str().unwrap();
            assert!(detail.contains(says), "{detail}");
        }
    }
    assert!(app.limits.is_empty());
}
