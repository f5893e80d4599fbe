//! Allow and deny lists in the file, and next to those that change at run time.

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::Request;
use tower::ServiceExt;
use tower_admission::{Key, KeyName, PeerAddr, RequestHead};
use tower_admission_config::{Admission, Config};

use super::{File, agree, app, config};
use crate::logged::logged;

fn from(ip: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let address: IpAddr = ip.parse().unwrap();
    let mut request = Request::get("/api").extension(PeerAddr(SocketAddr::new(address, 1)));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

async fn status(app: &Router, request: Request<Body>) -> u16 {
    app.clone()
        .oneshot(request)
        .await
        .unwrap()
        .status()
        .as_u16()
}

async fn with_token(app: &Router, ip: &str, token: &str) -> u16 {
    let authorization = format!("Bearer {token}");
    status(app, from(ip, &[("authorization", &authorization)])).await
}

/// A group of one request an hour, with these lists.
fn lists(lists: &str) -> Config {
    config(&format!(
        "[lists]\n{lists}\n[groups.api]\npath = '/api'\nrate = '1/h'\nconcurrency = 8"
    ))
}

#[tokio::test]
async fn lists_of_the_file_ban_and_exempt() {
    let config = lists(
        "deny = ['ip:203.0.113.0/24', 'ip:2001:db8::/32', 'bearer:stolen', 'api-key:stolen']
        allow = ['ip:203.0.113.7', 'bearer:probe']",
    );
    let admission = Admission::new(&config).unwrap();
    let app = app(&admission);
    for n in 0..1000 {
        assert_eq!(
            with_token(&app, "203.0.113.8", &format!("made-up-{n}")).await,
            403
        );
    }
    assert_eq!(with_token(&app, "2001:db8::1", "x").await, 403);
    assert_eq!(with_token(&app, "::ffff:203.0.113.8", "x").await, 403);
    assert_eq!(with_token(&app, "192.0.2.1", "stolen").await, 403);
    let api_key = [("x-api-key", "stolen"), ("authorization", "Bearer other")];
    assert_eq!(status(&app, from("192.0.2.1", &api_key)).await, 403);
    for _ in 0..3 {
        assert_eq!(with_token(&app, "203.0.113.7", "x").await, 200);
        assert_eq!(with_token(&app, "203.0.113.8", "probe").await, 200);
    }
    assert_eq!(with_token(&app, "192.0.2.1", "x").await, 200);
    assert_eq!(with_token(&app, "192.0.2.1", "x").await, 429);
}

#[tokio::test]
async fn a_ban_covers_paths_outside_of_all_groups() {
    let admission = Admission::new(&lists("deny = 'ip:203.0.113.7'")).unwrap();
    let app = app(&admission);
    let mut request = from("203.0.113.7", &[]);
    *request.uri_mut() = "/other".parse().unwrap();
    assert_eq!(status(&app, request).await, 403);
}

/// Of the file's lists and those of run time the most specific entry decides, and on a tie deny.
#[tokio::test]
async fn the_file_and_run_time_are_one_list() {
    let config = lists(
        "deny = ['ip:203.0.113.0/24', 'ip:198.51.100.0/24', 'bearer:eve', 'ip:192.0.2.9']
        allow = ['ip:192.0.2.0/24', 'bearer:alice', 'ip:192.0.2.9']",
    );
    let admission = Admission::new(&config).unwrap();
    let app = app(&admission);
    let set = async |key: &str, limit: &str| {
        let key: KeyName = key.parse().unwrap();
        admission
            .limits()
            .set(&key, limit.parse().unwrap())
            .await
            .unwrap();
    };
    // More specific at run time.
    set("ip:203.0.113.7", "unlimited").await;
    set("ip:192.0.2.128/25", "deny all").await;
    // Less specific at run time.
    set("ip:198.51.0.0/16", "unlimited").await;
    // The same.
    set("ip:192.0.2.0/24", "deny all").await;
    set("bearer:alice", "deny all").await;
    set("bearer:eve", "unlimited").await;
    for (ip, token, expected) in [
        ("203.0.113.7", "a", 200),
        ("203.0.113.8", "b", 403),
        ("192.0.2.129", "c", 403),
        ("198.51.100.1", "d", 403),
        ("198.51.101.1", "e", 200),
        ("192.0.2.1", "f", 403),
        ("203.0.113.7", "alice", 403),
        ("203.0.113.7", "eve", 403),
        // On both lists of the file.
        ("192.0.2.9", "g", 403),
    ] {
        assert_eq!(with_token(&app, ip, token).await, expected, "{ip} {token}");
    }
}

#[tokio::test]
async fn a_reload_changes_the_lists_and_logs_what_changed() {
    let admission = Admission::new(&lists("deny = 'ip:203.0.113.7'")).unwrap();
    let app = app(&admission);
    assert_eq!(with_token(&app, "203.0.113.7", "x").await, 403);
    let changed = lists("deny = ['ip:203.0.113.8']\nallow = ['ip:203.0.113.7']");
    let mut log = logged(|| admission.reload(&changed).unwrap());
    log.retain(|line| line.contains("a list"));
    assert_eq!(
        log,
        [
            "INFO entries were added to a list list=\"lists.deny\" entries=\"ip:203.0.113.8\" more=0",
            "INFO entries were removed from a list list=\"lists.deny\" entries=\"ip:203.0.113.7\" more=0",
            "INFO entries were added to a list list=\"lists.allow\" entries=\"ip:203.0.113.7\" more=0",
        ]
    );
    for _ in 0..3 {
        assert_eq!(with_token(&app, "203.0.113.7", "x").await, 200);
    }
    assert_eq!(with_token(&app, "203.0.113.8", "x").await, 403);
    // What is the same is not logged.
    let log = logged(|| admission.reload(&changed).unwrap());
    assert!(!log.iter().any(|line| line.contains("a list")), "{log:?}");
    // A bad one changes nothing.
    let bad = Config::from_toml("[lists]\ndeny = 'ip:203.0.113.9/24'").unwrap_err();
    assert_eq!(bad.field(), Some("lists.deny"));
    assert_eq!(with_token(&app, "203.0.113.8", "x").await, 403);
    admission.reload(&lists("")).unwrap();
    assert_eq!(with_token(&app, "203.0.113.8", "x").await, 200);
}

#[test]
fn a_log_line_shows_no_credential() {
    agree();
    let log = logged(|| drop(Admission::new(&lists("deny = 'bearer:hunter2'")).unwrap()));
    let line = log.iter().find(|line| line.contains("a list")).unwrap();
    assert!(!line.contains("hunter2"), "{line}");
    assert!(line.contains("bearer#"), "{line}");
}

/// A ban with an end says when to come back, and one that has ended has no effect.
#[tokio::test]
async fn an_entry_can_have_an_end() {
    let config = lists(
        "deny = [
            'ip:203.0.113.7 until 9999-12-31T23:59:59Z',
            'ip:203.0.113.8 until 2020-01-01T00:00:00+01:00',
        ]
        allow = ['ip:203.0.113.9 until 2020-01-01T00:00:00Z']",
    );
    let mut admission = None;
    let log = logged(|| admission = Some(Admission::new(&config).unwrap()));
    let app = app(&admission.unwrap());
    let response = app.clone().oneshot(from("203.0.113.7", &[])).await.unwrap();
    assert_eq!(response.status(), 403);
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(wait > 1_000_000, "{wait}");
    assert_eq!(status(&app, from("203.0.113.8", &[])).await, 200);
    assert_eq!(status(&app, from("203.0.113.9", &[])).await, 200);
    assert_eq!(status(&app, from("203.0.113.9", &[])).await, 429);
    let warnings: Vec<_> = log.iter().filter(|line| line.starts_with("WARN")).collect();
    assert_eq!(warnings.len(), 2, "{log:?}");
    assert!(warnings[0].contains("lists.deny") && warnings[0].contains("ip:203.0.113.8"));
}

#[derive(Clone)]
struct User(&'static str);

#[tokio::test]
async fn a_key_that_the_application_names_can_be_listed() {
    let config = lists("deny = 'user:eve'\nallow = 'user:alice'");
    let admission = Admission::builder(&config).key_by("user", |head: RequestHead<'_>| {
        head.extensions
            .get()
            .map(|User(user)| Key::id("user", user))
    });
    let app = app(&admission.build().unwrap());
    let user = |user| {
        let mut request = from("192.0.2.1", &[]);
        request.extensions_mut().insert(User(user));
        request
    };
    assert_eq!(status(&app, user("eve")).await, 403);
    for _ in 0..3 {
        assert_eq!(status(&app, user("alice")).await, 200);
    }
}

#[tokio::test]
async fn an_identity_of_a_trusted_proxy_can_be_listed() {
    let config = config(
        "[clients]\ntrusted_proxies = '10.0.0.0/8'\n[lists]\ndeny = 'x-user:eve'
        [groups.api]\npath = '/api'\nkey = 'header X-User'\nrate = '9/h'",
    );
    let app = app(&Admission::new(&config).unwrap());
    let eve = [("x-user", "eve")];
    assert_eq!(status(&app, from("10.0.0.1", &eve)).await, 403);
    assert_eq!(status(&app, from("192.0.2.1", &eve)).await, 200);
}

#[tokio::test]
async fn a_header_exempts_from_a_trusted_proxy_alone() {
    let text = |clients: &str| {
        format!(
            "[clients]\n{clients}\n[lists]\nallow_header = 'X-Internal: probe'
            [groups.api]\npath = '/api'\nrate = '1/h'"
        )
    };
    for clients in ["", "trusted_hops = 1"] {
        let error = Config::from_toml(&text(clients)).unwrap_err().to_string();
        assert!(error.starts_with("lists.allow_header: "), "{error}");
        assert!(error.contains("clients.trusted_proxies"), "{error}");
    }
    let app = app(&Admission::new(&config(&text("trusted_proxies = '10.0.0.0/8'"))).unwrap());
    let probe = [("x-internal", "probe")];
    for _ in 0..3 {
        assert_eq!(status(&app, from("10.0.0.1", &probe)).await, 200);
    }
    assert_eq!(status(&app, from("192.0.2.1", &probe)).await, 200);
    assert_eq!(status(&app, from("192.0.2.1", &probe)).await, 429);
}

#[test]
fn a_header_that_is_made_up_is_logged_once() {
    let config = config(
        "[clients]\ntrusted_proxies = '10.0.0.0/8'
        [lists]\nallow_header = 'X-Internal: probe'",
    );
    let app = app(&Admission::new(&config).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let log = logged(|| {
        for _ in 0..3 {
            let request = from("192.0.2.1", &[("x-internal", "probe")]);
            runtime.block_on(status(&app, request));
        }
    });
    let warnings: Vec<_> = log.iter().filter(|line| line.starts_with("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log:?}");
    assert!(warnings[0].contains("x-internal") && !warnings[0].contains("probe"));
}

#[tokio::test]
async fn a_forwarded_address_is_that_of_clients() {
    let config = config(
        "[clients]\ntrusted_proxies = '10.0.0.0/8'\n[lists]\ndeny = 'ip:203.0.113.0/24'
        allow = 'ip:198.51.100.7'\n[groups.api]\npath = '/api'\nrate = '1/h'",
    );
    let app = app(&Admission::new(&config).unwrap());
    let forwarded = |list| [("x-forwarded-for", list)];
    assert_eq!(
        status(&app, from("10.0.0.1", &forwarded("203.0.113.7"))).await,
        403
    );
    let spoofed = forwarded("198.51.100.7, 203.0.113.7");
    assert_eq!(status(&app, from("10.0.0.1", &spoofed)).await, 403);
    assert_eq!(
        status(&app, from("203.0.113.7", &forwarded("198.51.100.7"))).await,
        403
    );
}

#[test]
fn what_is_wrong_is_told_without_what_may_be_a_secret() {
    for (lists, expected) in [
        (
            "deny = ['ip:203.0.113.7/24']",
            "\"ip:203.0.113.7/24\": the address has bits after its prefix: \
             the network is ip:203.0.113.0/24",
        ),
        (
            "deny = ['ip:203.0.113.7 until tomorrow']",
            "\"tomorrow\" is not a time, such as \"2026-12-01T00:00:00Z\"",
        ),
        ("allow = ['203.0.113.7']", "a key is written as kind:name"),
        ("allow = ['Bearer:hunter2']", "a key of the kind \"Bearer\""),
        ("deny = [17]", "expected text or a list of texts"),
        ("allow_header = 'hunter2'", "such as \"X-Internal: probe\""),
        (
            "allow_header = 'x-internal:'",
            "such as \"X-Internal: probe\"",
        ),
        ("block = 'ip:203.0.113.7'", "unknown field `block`"),
        (
            "allow = ['ip:2002:cb00:7107::1 until 2126-01-01T00:00:00Z']",
            "to exempt that one, write ip:203.0.113.7",
        ),
    ] {
        let error = Config::from_toml(&format!("[lists]\n{lists}")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn lists_can_come_from_the_environment() {
    let file = File::new("[groups.api]\npath = '/api'\nrate = '9/h'");
    let config = file.load(&[(
        "ADMISSION_LISTS__DENY",
        "ip:203.0.113.7, ip:198.51.100.0/24",
    )]);
    let config = config.unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains("203.0.113.7"), "{shown}");
    let app = app(&Admission::new(&config).unwrap());
    assert_eq!(with_token(&app, "203.0.113.7", "x").await, 403);
    assert_eq!(with_token(&app, "198.51.100.7", "x").await, 403);
    assert_eq!(with_token(&app, "192.0.2.1", "x").await, 200);
}

/// Handlers inside of nested layers see one decision.
#[tokio::test]
async fn the_layer_of_one_group_has_the_lists_too() {
    let admission =
        Admission::new(&lists("deny = 'ip:203.0.113.7'\nallow = 'ip:192.0.2.1'")).unwrap();
    let app = Router::new()
        .route("/api", any(|| async { "ok" }))
        .layer(admission.layer_of("api").unwrap());
    assert_eq!(with_token(&app, "203.0.113.7", "x").await, 403);
    for _ in 0..3 {
        assert_eq!(with_token(&app, "192.0.2.1", "x").await, 200);
    }
}
