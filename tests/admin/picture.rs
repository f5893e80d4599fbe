//! The picture of the page in the README: `ADMIN_PICTURE=docs/admin.png cargo test --features admin --test admin picture`.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Request;
use serde_json::json;
use tower::ServiceExt;
use tower_admission::admin::{self, Recorder, Token};
use tower_admission::extract::ClientIp;
use tower_admission::{
    ConcurrencyLimitLayer, Key, Limits, PeerAddr, Policy, Quota, RateLimitLayer, RequestHead,
};

use super::TOKEN;
use super::page::{open_app, sign_in};

/// For two minutes there is something to see. Without the variable there is nothing to do.
#[tokio::test]
async fn picture() {
    let Some(path) = std::env::var_os("ADMIN_PICTURE") else {
        return;
    };
    let by_org = |head: RequestHead<'_>| {
        let org = head.headers.get("org")?.to_str().ok()?;
        Some(Key::id("org", org))
    };
    let limits = Limits::new();
    let recorder = Recorder::new();
    let calls = RateLimitLayer::by(by_org, Policy::new("calls", Quota::per_second(30)))
        .name("api")
        .limits(&limits)
        .observe(recorder.clone());
    let logins = RateLimitLayer::by(
        ClientIp::peer(),
        Policy::new("logins", Quota::per_second(2)),
    )
    .name("login")
    .limits(&limits)
    .observe(recorder.clone());
    let chat = ConcurrencyLimitLayer::new(64)
        .name("chat")
        .limits(&limits)
        .observe(recorder.clone());
    let exports = ConcurrencyLimitLayer::new(8)
        .name("exports")
        .limits(&limits)
        .observe(recorder.clone());
    let (streams, jobs) = (chat.limiter(), exports.limiter());
    let app = Router::new()
        .route("/api", get(|| async {}).layer(calls))
        .route("/login", get(|| async {}).layer(logins))
        .route("/chat", get(|| async {}).layer(chat))
        .route("/exports", get(|| async {}).layer(exports))
        .nest(
            "/admin",
            admin::router(&limits, &recorder, Token::new(TOKEN).unwrap()),
        );
    for (key, limit) in [
        ("org:acme", "calls=50/s burst 100, chat=32 concurrent"),
        ("org:globex", "calls=10/s"),
        ("org:hooli", "2000/min burst 50"),
        ("org:initech", "deny all"),
        ("org:umbrella", "chat=4 concurrent"),
        ("ip:192.0.2.44", "logins=1/min"),
        ("ip:2001:db8:7::/64", "logins=20/s"),
        ("api-key:of-a-partner", "100/s"),
    ] {
        limits
            .set(&key.parse().unwrap(), limit.parse().unwrap())
            .await
            .unwrap();
    }

    let held: Vec<_> = (0..47).map(|_| streams.try_acquire().unwrap()).collect();
    let at_work: Vec<_> = (0..8).map(|_| jobs.try_acquire().unwrap()).collect();
    let traffic = tokio::spawn(traffic(app.clone()));
    tokio::time::sleep(Duration::from_secs(121)).await;

    let mut page = open_app(app.clone()).await;
    page.resize(1280, 800, false).await;
    page.call("Emulation.setScrollbarsHidden", json!({ "hidden": true }))
        .await;
    sign_in(&mut page).await;
    page.until(
        "at('refused-keys').rows.length > 2 && at('limits').rows.length",
        "8",
    )
    .await;
    page.evaluate("showUsage('org:globex')").await;
    page.until("at('usage').children.length > 0", "true").await;
    page.evaluate("scrollTo(0, 0)").await;
    let picture = page
        .call("Page.captureScreenshot", json!({ "format": "png" }))
        .await;
    let picture = BASE64_STANDARD.decode(picture["data"].as_str().unwrap());
    std::fs::write(path, picture.unwrap()).unwrap();
    traffic.abort();
    drop((held, at_work));
}

async fn traffic(app: Router) {
    let call = async |path: &str, org: &str, peer: [u8; 4]| {
        let request = Request::get(path).header("org", org);
        let mut request = request.body(Body::empty()).unwrap();
        let peer = PeerAddr((peer, 443).into());
        request.extensions_mut().insert(peer);
        let _ = app.clone().oneshot(request).await;
    };
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for n in 0_u32.. {
        tick.tick().await;
        let wave = |period: f64, high: f64| {
            let angle = f64::from(n) / period * std::f64::consts::TAU;
            ((1.0 + angle.sin()) / 2.0 * high) as u32
        };
        for _ in 0..wave(400.0, 4.0) + 2 {
            call("/api", "acme", [192, 0, 2, 1]).await;
        }
        for _ in 0..wave(230.0, 2.9) + u32::from(n % 600 > 450) {
            call("/api", "globex", [192, 0, 2, 2]).await;
        }
        for _ in 0..wave(310.0, 3.0) {
            call("/api", "hooli", [192, 0, 2, 3]).await;
        }
        if n % 9 == 0 {
            call("/api", "initech", [192, 0, 2, 4]).await;
            call("/chat", "acme", [192, 0, 2, 5]).await;
        }
        if n % 600 > 300 && n % 600 < 420 {
            call("/login", "", [203, 0, 113, 7]).await;
        }
        if n % 5 == 0 {
            call("/login", "", [198, 51, 100, (n % 250) as u8]).await;
        }
        if n % 20 == 0 {
            call("/exports", "acme", [192, 0, 2, 6]).await;
        }
    }
}
