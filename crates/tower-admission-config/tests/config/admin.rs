//! The tokens of operators in the file, which follow each reload.

use axum::Router;
use axum::body::Body;
use http::Request;
use tower::ServiceExt;
use tower_admission_axum::admin::Recorder;
use tower_admission_config::{Admission, Config};

use super::{File, config};
use crate::logged::logged;

const ANNA: &str = "the-token-of-anna";
const BEN: &str = "the-token-of-ben-";

/// What tokens are answered that read, and that write.
async fn statuses(app: &Router, token: &str) -> [u16; 2] {
    let status = async |method: &str| {
        let path = if method == "GET" {
            "/limits"
        } else {
            "/cache/clear"
        };
        let request = Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {token}"));
        let request = request.body(Body::empty()).unwrap();
        app.clone()
            .oneshot(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    [status("GET").await, status("POST").await]
}

#[tokio::test]
async fn tokens_have_names_and_roles_and_follow_reloads() {
    let admission = Admission::new(&config(&format!(
        "[admin]
        token = '{ANNA}'
        [admin.tokens.ben]
        token = '{BEN}'
        role = 'read'"
    )))
    .unwrap();
    let app: Router = admission.admin(&Recorder::new()).build();
    assert_eq!(statuses(&app, ANNA).await, [200, 204]);
    assert_eq!(statuses(&app, BEN).await, [200, 403]);

    let after = config(&format!(
        "[admin.tokens.anna]
        token = '{ANNA}-2'
        role = 'write'
        [admin.tokens.ben]
        token = '{BEN}'
        role = 'write'"
    ));
    let log = logged(|| admission.reload(&after).unwrap());
    let tokens: Vec<_> = log
        .iter()
        .filter(|line| line.contains("admin token"))
        .collect();
    assert_eq!(
        tokens,
        [
            "INFO an admin token was added name=\"anna\" role=\"write\"",
            "INFO the role of an admin token was changed name=\"ben\" role=\"write\"",
            "INFO an admin token was removed name=\"admin\"",
        ]
    );
    assert_eq!(statuses(&app, ANNA).await, [401, 401]);
    assert_eq!(statuses(&app, &format!("{ANNA}-2")).await, [200, 204]);
    assert_eq!(statuses(&app, BEN).await, [200, 204]);

    let changed = config(&format!(
        "[admin.tokens.anna]
        token = '{ANNA}-3'
        role = 'write'"
    ));
    let log = logged(|| admission.reload(&changed).unwrap());
    assert!(
        log.contains(&"INFO an admin token was changed name=\"anna\" role=\"write\"".to_owned())
    );
    assert!(!log.concat().contains(ANNA), "{log:?}");
    assert_eq!(statuses(&app, &format!("{ANNA}-2")).await, [401, 401]);
    // The same again is nothing to log.
    let log = logged(|| admission.reload(&changed).unwrap());
    assert!(!log.concat().contains("admin token"), "{log:?}");
    // A file that is rejected changes no token.
    let short = Config::from_toml("[admin]\ntoken = 'short'");
    short.unwrap_err();
    assert_eq!(statuses(&app, &format!("{ANNA}-3")).await, [200, 204]);
    admission.reload(&config("")).unwrap();
    assert_eq!(statuses(&app, &format!("{ANNA}-3")).await, [401, 401]);
}

#[tokio::test]
async fn a_path_is_explained_by_the_limits_of_its_group() {
    let admission = Admission::new(&config(&format!(
        "[admin]
        token = '{ANNA}'
        [groups.api]
        path = '/api'
        exclude = '/api/status'
        name = 'Gateway'
        concurrency = 8
        concurrency_per_ip = 3
        rates = {{ burst = '10/s', daily = '100/day' }}
        rate_per_ip = '50/s'
        [groups.tried]
        path = '/tried'
        rate = '5/s'
        dry_run = true
        [groups.addresses]
        path = '/addresses'
        rate_per_ip = '7/s'"
    )))
    .unwrap();
    let app: Router = admission.admin(&Recorder::new()).build();
    let explain = async |path: &str| {
        let body = serde_json::json!({ "key": "user:anna", "address": "192.0.2.1", "path": path });
        let request = Request::post("/explain")
            .header("authorization", format!("Bearer {ANNA}"))
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()));
        let response = app.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        let explained: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let limits = explained["limits"].as_array().unwrap().iter();
        let limits: Vec<_> = limits
            .map(|limit| {
                let text = |member: &str| limit[member].as_str().unwrap_or("all").to_owned();
                format!("{} {} {}", text("name"), text("key"), text("limit"))
            })
            .collect();
        (explained["groups"].to_string(), limits)
    };
    let group = |name: &str, enforce: u8, is_excluded: bool| {
        format!("[{{\"enforce\":{enforce},\"is_excluded\":{is_excluded},\"name\":\"{name}\"}}]")
    };
    let (groups, limits) = explain("/api/chat").await;
    assert_eq!(groups, group("Gateway", 100, false));
    let mut sorted = limits;
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [
            "Gateway all 8 concurrent",
            "Gateway ip:192.0.2.1 3 concurrent",
            "Gateway.burst user:anna 10/s",
            "Gateway.daily user:anna 100/day",
            "Gateway.ip ip:192.0.2.1 50/s",
        ]
    );
    assert_eq!(
        explain("/api/status").await,
        (group("Gateway", 100, true), Vec::new())
    );
    let tried = (
        group("tried", 0, false),
        vec!["tried user:anna 5/s".to_owned()],
    );
    assert_eq!(explain("/tried").await, tried);
    let addresses = (
        group("addresses", 100, false),
        vec!["addresses.ip ip:192.0.2.1 7/s".to_owned()],
    );
    assert_eq!(explain("/addresses").await, addresses);
    assert_eq!(explain("/other").await, ("[]".to_owned(), Vec::new()));
}

#[test]
fn a_token_that_cannot_be_used_is_an_error_at_its_field() {
    for (text, expected) in [
        (
            "[admin]\ntoken = 'the token of anna'",
            "admin.token: a token consists of letters",
        ),
        (
            "[admin.tokens.anna]\nrole = 'read'",
            "admin.tokens.anna.token: the token of the operator is missing",
        ),
        (
            "[admin.tokens.anna]\ntoken = 'the-token-of-anna'",
            "admin.tokens.anna.role: set a role: `read` or `write`",
        ),
        (
            "[admin.tokens.anna]\ntoken = 'the-token-of-anna'\nrole = 'root'",
            "admin.tokens.anna.role: \"root\" is not one of `read`, `write`",
        ),
        (
            "[admin.tokens.anna]\ntoken = 'short'\nrole = 'read'",
            "admin.tokens.anna.token: a token has at least 16 bytes",
        ),
        (
            "[admin]\ntoken = 'the-token-of-anna'\n[admin.tokens.anna]\ntoken = 'the-token-of-anna'\nrole = 'read'",
            "admin.tokens.anna.token: `admin` already has this token: use another one",
        ),
        (
            "[admin]\ntoken = 'the-token-of-anna'\n[admin.tokens.admin]\ntoken = 'the-token-of-ben-'\nrole = 'read'",
            "admin.tokens.admin: `admin.token` is the token of `admin` already",
        ),
        (
            "[admin.tokens.\"Zoë\"]\ntoken = 'the-token-of-anna'\nrole = 'read'",
            "the name of an operator is 1 to 64 bytes of printable ASCII",
        ),
        (
            "[admin.tokens]\nanna = 'the-token-of-anna'",
            "expected a table",
        ),
    ] {
        let error = Config::from_toml(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("the-token-of"), "{error}");
    }
}

#[test]
fn variables_set_tokens() {
    let file = File::new("");
    let config = file.load(&[
        ("ADMISSION_ADMIN__TOKENS__ANNA__TOKEN", ANNA),
        ("ADMISSION_ADMIN__TOKENS__ANNA__ROLE", "read"),
    ]);
    assert_eq!(config.unwrap().admin_tokens().collect::<Vec<_>>(), ["anna"]);
}
