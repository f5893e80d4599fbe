//! `GET /now`. The clock is paused, and advances only while all tasks wait.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::Request;
use serde_json::{Value, json};
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, Key, Limits, PeerAddr, Policy, Quota, RateLimitLayer,
    RequestHead,
};
use tower_admission_axum::admin::{self, Recorder, Token};

use super::Service;

async fn now(service: &Service, seen: &str) -> Value {
    let answer = service.ask("GET", &format!("/now{seen}"), "").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json
}

async fn a_second() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn only_the_seconds_after_the_last_answer_are_reported() {
    let service = Service::new();
    let first = now(&service, "").await;
    assert_eq!(first["second"], -1);
    assert_eq!(first["store"], Value::Null);
    let chat = json!({
        "name": "chat", "sort": "concurrency", "used": 0, "here": 0, "counted_in": "this process",
        "limit": 10,
    });
    assert_eq!(first["in_flight"], json!([chat]));
    let id = first["replica"]["id"].as_str().unwrap();

    for second in 0..3 {
        for _ in 0..=second {
            service.calls("acme").await;
        }
        a_second().await;
    }
    let api = |admitted: &[u32], refused: &[u32]| {
        json!({
            "name": "api", "limit_type": "http", "admitted": admitted, "rejected": refused,
            "would_reject": vec![0; admitted.len()],
        })
    };
    let told = now(&service, &format!("?seen={id}:-1")).await;
    assert_eq!(
        (&told["second"], &told["limiters"][0]),
        (&json!(2), &api(&[1, 1, 0], &[0, 1, 3]))
    );
    let refused = json!([{
        "key": told["rejected_keys"][0]["key"], "name": "api", "limit_type": "http",
        "policy": "calls", "count": 4,
    }]);
    assert_eq!(told["rejected_keys"], refused);
    for (seen, admitted, refused) in [
        (format!("{id}:0"), &[1, 0][..], &[1, 3][..]),
        (format!("other:9,{id}:1"), &[0], &[3]),
        (format!("{id}:2"), &[], &[]),
        (format!("{id}:99"), &[], &[]),
        // Another replica answered before.
        ("other:1".to_owned(), &[1, 1, 0], &[0, 1, 3]),
    ] {
        let told = now(&service, &format!("?seen={seen}")).await;
        assert_eq!(told["limiters"][0], api(admitted, refused), "{seen}");
    }
    for wrong in ["x", "a:b", "a:1:2"] {
        let answer = service.ask("GET", &format!("/now?seen={wrong}"), "").await;
        assert_eq!(answer.status, 422, "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_without_data_gets_all_kept_seconds() {
    let service = Service::new();
    service.calls("acme").await;
    tokio::time::sleep(Duration::from_secs(500)).await;
    let told = now(&service, "").await;
    assert_eq!(told["limiters"][0]["admitted"], json!(vec![0; 119]));
    assert_eq!(told["rejected_keys"], json!([]));
}

#[tokio::test]
async fn a_change_of_an_override_changes_the_revision() {
    let service = Service::new();
    let mut revisions = Vec::new();
    for limit in ["1/h", "2/h", ""] {
        revisions.push(now(&service, "").await["revision"].clone());
        assert_eq!(Some(&now(&service, "").await["revision"]), revisions.last());
        match limit {
            "" => assert_eq!(
                service.ask("DELETE", "/limits/org:acme", "").await.status,
                200
            ),
            limit => assert_eq!(service.put("org:acme", limit).await.status, 200),
        }
    }
    revisions.push(now(&service, "").await["revision"].clone());
    revisions.dedup();
    assert_eq!(revisions.len(), 4);
}

/// A key that the limiter `calls` has rejected.
fn refused_key(key: &str, policy: &str, count: u64) -> Value {
    json!({ "key": key, "name": "api", "limit_type": "http", "policy": policy, "count": count })
}

#[tokio::test(start_paused = true)]
async fn the_most_rejected_keys_come_first() {
    let service = Service::new();
    for (org, refusals) in [("a", 1), ("b", 5), ("c", 3)] {
        service.put(&format!("org:{org}"), "calls=1/h").await;
        for _ in 0..=refusals {
            service.calls(org).await;
        }
    }
    let expected = json!([
        refused_key("org:b", "calls", 5),
        refused_key("org:c", "calls", 3),
        refused_key("org:a", "calls", 1),
    ]);
    assert_eq!(now(&service, "").await["rejected_keys"], expected);
}

/// One address attacks with made-up tokens.
#[tokio::test(start_paused = true)]
async fn a_rejection_names_the_key_whose_limit_rejected() {
    let recorder = Recorder::new();
    let by_token = |head: RequestHead<'_>| {
        let token = head.headers.get("secret")?;
        Some(Key::new("bearer", token.as_bytes()))
    };
    let calls = RateLimitLayer::by(by_token, Policy::new("token", Quota::per_hour(100)))
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(2)))
        .name("api")
        .observe(recorder.clone());
    let limits = Limits::new();
    let token = Token::new(super::TOKEN).unwrap();
    let service = Service {
        app: Router::new()
            .route("/call", get(|| async { "hello" }).layer(calls))
            .nest_service("/admin", admin::router(&limits, &recorder, token)),
        limits,
        chat: ConcurrencyLimitLayer::new(1).limiter(),
    };
    for n in 0..5 {
        let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
        let request = Request::get("/call")
            .header("secret", format!("made-up-{n}"))
            .extension(PeerAddr(peer));
        service.send(request.body(Body::empty()).unwrap()).await;
    }
    let told = now(&service, "").await;
    assert_eq!(
        told["rejected_keys"],
        json!([refused_key("ip:192.0.2.1", "ip", 3)])
    );
    assert!(!told.to_string().contains("made-up"), "{told}");
}
