//! The audit trail: authors and origins of changes.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use http::Request;
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_admission::extract::PeerAddr;
use tower_admission::{ClientIp, Limits};
use tower_admission_axum::admin::{AdminRouter, Recorder, Token, Tokens};

const ANNA: &str = "the-token-of-anna";
const BEN: &str = "the-token-of-ben-";

/// The response to operators behind a proxy.
async fn ask(app: &Router, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .header("x-forwarded-for", "192.0.2.7")
        .body(Body::from(body.to_owned()))
        .unwrap();
    let proxy: SocketAddr = "10.0.0.1:1234".parse().unwrap();
    request.extensions_mut().insert(PeerAddr(proxy));
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let json = serde_json::from_slice(&body).unwrap_or_default();
    (head.status.as_u16(), json)
}

#[tokio::test]
async fn a_change_is_recorded_with_its_operator_and_address() {
    let tokens = Tokens::new([
        Token::named("anna", ANNA).unwrap(),
        Token::named("ben", BEN).unwrap(),
    ]);
    let limits = Limits::new();
    let app: Router = AdminRouter::new(&limits, &Recorder::new(), tokens)
        .client_ip(ClientIp::forwarded_by(["10.0.0.0/8".parse().unwrap()]))
        .build();
    assert_eq!(
        ask(&app, ANNA, "GET", "/changes", "").await,
        (200, json!({ "changes": [] }))
    );

    let acme = "/limits/org:acme";
    assert_eq!(
        ask(&app, ANNA, "PUT", acme, "{\"limit\":\"5/h\"}").await.0,
        200
    );
    assert_eq!(
        ask(&app, BEN, "PUT", acme, "{\"limit\":\"deny all\"}")
            .await
            .0,
        200
    );
    assert_eq!(
        ask(&app, BEN, "PUT", acme, "{\"limit\":\"many\"}").await.0,
        422
    );
    assert_eq!(ask(&app, ANNA, "DELETE", acme, "").await.0, 200);
    assert_eq!(ask(&app, ANNA, "DELETE", acme, "").await.0, 404);
    let own = "9/h".parse().unwrap();
    limits
        .set(&"org:other".parse().unwrap(), own)
        .await
        .unwrap();

    let (_, answer) = ask(&app, BEN, "GET", "/changes", "").await;
    let noted = |limit: &str| json!({ "limit": limit });
    let [anna, ben] = [json!("anna"), json!("ben")];
    let address = json!("ip:192.0.2.7");
    let expected = [
        (
            "org:other",
            Value::Null,
            noted("9/h"),
            Value::Null,
            Value::Null,
        ),
        (
            "org:acme",
            noted("deny all"),
            Value::Null,
            anna.clone(),
            address.clone(),
        ),
        (
            "org:acme",
            noted("5/h"),
            noted("deny all"),
            ben,
            address.clone(),
        ),
        ("org:acme", Value::Null, noted("5/h"), anna, address),
    ];
    let changes = answer["changes"].as_array().unwrap();
    assert_eq!(changes.len(), expected.len(), "{answer}");
    for (change, (key, before, after, author, origin)) in changes.iter().zip(expected) {
        let mut change = super::untimed(change);
        let at = change.as_object_mut().unwrap().remove("at").unwrap();
        // The time is in this century.
        assert!(at.as_u64().unwrap() > 1_700_000_000, "{at}");
        let expected = json!({
            "key": key, "before": before, "after": after,
            "author": author, "origin": origin, "has_ended": false,
        });
        assert_eq!(change, expected);
    }
    let (_, last) = ask(&app, BEN, "GET", "/changes?count=1", "").await;
    assert_eq!(last["changes"], json!([changes[0]]));
    for count in ["0", "1001", "-1", "many", ""] {
        let path = format!("/changes?count={count}");
        assert_eq!(ask(&app, BEN, "GET", &path, "").await.0, 422, "{count}");
    }
}
