//! A changed file is applied without dropping requests or state.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::ServiceExt;
use tower_admission::{Key, PeerAddr};
use tower_admission_config::Admission;

use super::{NOTHING, admitted, app, config, status};

#[tokio::test]
async fn usage_stays_over_reloads() {
    let group = |rest: &str| config(&format!("[groups.api]\npath = '/api'\n{rest}"));
    let admission = Admission::new(&group("rate = '5/h'\nrate_per_ip = '100/h'")).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    // Raised, with another key, path and so on: the room that it adds.
    let changed = "rate = '8/h'\nrate_per_ip = '100/h'\nkey = 'bearer'\nheaders = 'off'";
    admission.reload(&group(changed)).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 3);
    // A rate that is added begins with nothing used, as do those that are checked with it.
    admission
        .reload(&group("rates = { a = '2/h', b = '9/h' }"))
        .unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 2);
    // A group that is gone limits nothing, and is new when it comes back with other rates.
    admission.reload(&config(NOTHING)).unwrap();
    assert_eq!(status(&app, "/api", "alice").await, StatusCode::OK);
    admission.reload(&group("rate = '1/h'")).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
    // Switched off and on.
    admission.reload(&group("rate = '0'")).unwrap();
    assert_eq!(status(&app, "/api", "alice").await, StatusCode::OK);
}

#[tokio::test]
async fn a_rate_that_was_off_goes_on() {
    let group = |rest: &str| config(&format!("[groups.api]\npath = '/api'\n{rest}"));
    let admission = Admission::new(&group("rate = '5/h'\nrate_per_ip = '100/h'")).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    let names = || {
        let names = admission.limits().names().into_iter();
        names.map(|name| name.to_string()).collect::<Vec<_>>()
    };
    for (off, rates) in [
        ("", &["api"][..]),
        ("rate = '0'\nrate_per_ip = '0'", &["api", "api.ip"]),
    ] {
        admission.reload(&group(off)).unwrap();
        assert_eq!(status(&app, "/api", "alice").await, StatusCode::OK);
        // What is not there is not told of meanwhile.
        assert_eq!(names(), rates);
        let alice: tower_admission::KeyName = "bearer:alice".parse().unwrap();
        let usage = admission.limits().usage(&alice).await;
        let limited = usage.iter().filter(|usage| usage.limit.is_some());
        assert_eq!(limited.count(), 0, "{usage:?}");
        admission
            .reload(&group("rate = '5/h'\nrate_per_ip = '100/h'"))
            .unwrap();
        assert_eq!(admitted(&app, "/api", "alice").await, 0);
        assert_eq!(names(), ["api", "api.ip"]);
    }
    // Until another has one of its names.
    admission.reload(&group("rate = '5/h'")).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    admission
        .reload(&group("rate = '5/h'\nrate_per_ip = '100/h'"))
        .unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    // Or there are too many.
    for n in 0..70 {
        admission
            .reload(&group(&format!("rates = {{ r{n} = '5/h' }}")))
            .unwrap();
    }
    admission.reload(&group("rates = { r50 = '5/h' }")).unwrap();
    assert_eq!(admitted(&app, "/api", "bob").await, 5);
    admission
        .reload(&group("rate = '5/h'\nrate_per_ip = '100/h'"))
        .unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    admission.reload(&group("rates = { r50 = '5/h' }")).unwrap();
    assert_eq!(admitted(&app, "/api", "bob").await, 0);
}

/// As in a program without a file.
#[tokio::test]
async fn an_override_switches_on_what_is_off_in_the_file() {
    for off in [
        "rate = '0'",
        "rates = { burst = '0', daily = '9/h' }",
        "rate = 'off'\nrate_per_ip = '9/h'",
    ] {
        let text = format!("[groups.api]\npath = '/api'\n{off}");
        let admission = Admission::new(&config(&text)).unwrap();
        let app = app(&admission);
        let name = if off.contains("burst") {
            "api.burst"
        } else {
            "api"
        };
        let limit = format!("{name}=2/h").parse().unwrap();
        let alice = "bearer:alice".parse().unwrap();
        admission.limits().set(&alice, limit).await.unwrap();
        assert_eq!(admitted(&app, "/api", "alice").await, 2, "{off}");
        assert_eq!(status(&app, "/api", "bob").await, StatusCode::OK);
        admission.limits().delete(&alice).await.unwrap();
        assert_eq!(status(&app, "/api", "alice").await, StatusCode::OK);
    }
}

#[tokio::test]
async fn bad_credentials_stay_counted() {
    let group = |quota: &str| {
        let other = if quota == "3/h" { "rate = '1/s'" } else { "" };
        config(&format!(
            "[groups.api]\npath = '/api'\nbad_credentials_per_ip = '{quota}'\n\
             [groups.other]\npath = '/other'\n{other}"
        ))
    };
    let admission = Admission::new(&group("3/h")).unwrap();
    let app = app(&admission);
    let failed = async || {
        let mut failed = 0;
        while status(&app, "/api/login", "guess").await == StatusCode::UNAUTHORIZED {
            failed += 1;
        }
        failed
    };
    assert_eq!(failed().await, 3);
    // Something else changes, however often, and then the quota.
    for _ in 0..10 {
        admission
            .reload(&config(
                "[groups.api]\npath = '/api'\nbad_credentials_per_ip = '3/h'",
            ))
            .unwrap();
        admission.reload(&group("3/h")).unwrap();
    }
    assert_eq!(failed().await, 0);
    admission.reload(&group("5/h")).unwrap();
    assert_eq!(failed().await, 2);
    // Off and on again.
    admission.reload(&group("0")).unwrap();
    assert_eq!(
        status(&app, "/api/login", "guess").await,
        StatusCode::UNAUTHORIZED
    );
    admission.reload(&group("5/h")).unwrap();
    assert_eq!(failed().await, 5);
}

#[tokio::test]
async fn permits_count_on() {
    let group = |limit: usize, per_key: usize| {
        config(&format!(
            "[groups.api]\npath = '/api'\nconcurrency = {limit}\nconcurrency_per_key = {per_key}"
        ))
    };
    let admission = Admission::new(&group(3, 2)).unwrap();
    let app = app(&admission);
    let hold = async |token: &str| {
        let request = Request::get("/api").header("authorization", format!("Bearer {token}"));
        let request = request.body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap()
    };
    let held = [hold("alice").await, hold("alice").await, hold("bob").await];
    assert_eq!(
        hold("carol").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    admission.reload(&group(4, 1)).unwrap();
    // Two of alice's are in flight, and three in all.
    assert_eq!(hold("alice").await.status(), StatusCode::TOO_MANY_REQUESTS);
    let more = hold("carol").await;
    assert_eq!(more.status(), StatusCode::OK);
    assert_eq!(hold("dave").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(held);
    drop(more);
    let [total] = &admission.limits().totals().await[..] else {
        panic!()
    };
    assert_eq!((total.used, total.limit), (0, Some(4)));
}

/// The limit of addresses is in the same layer, and a reload changes it in place; 0 turns it off.
#[tokio::test]
async fn permits_of_an_address_count_on() {
    let group = |limit: usize, per_ip: usize| {
        config(&format!(
            "[groups.api]\npath = '/api'\nconcurrency = {limit}\nconcurrency_per_key = 2\n\
             concurrency_per_ip = {per_ip}"
        ))
    };
    let admission = Admission::new(&group(9, 3)).unwrap();
    let app = app(&admission);
    let hold = async |token: &str, address: [u8; 4]| {
        let request = Request::get("/api").header("authorization", format!("Bearer {token}"));
        let request = request.extension(PeerAddr((address, 4711).into()));
        let request = request.body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap()
    };
    let (home, away) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let mut held = Vec::new();
    for token in ["made", "up", "tokens"] {
        held.push(hold(token, home).await);
    }
    assert_eq!(
        hold("more", home).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(hold("more", away).await.status(), StatusCode::OK);
    admission.reload(&group(9, 4)).unwrap();
    held.push(hold("more", home).await);
    assert_eq!(held[3].status(), StatusCode::OK);
    assert_eq!(
        hold("most", home).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    let usage = admission.limits().usage(&Key::ip(home.into()).into()).await;
    let usage: Vec<_> = usage
        .iter()
        .map(|usage| (usage.used, usage.limit))
        .collect();
    assert_eq!(usage, [(4, Some(4))]);

    // Off, it charges nothing; the limits that are on hold.
    admission.reload(&group(6, 0)).unwrap();
    held.push(hold("most", home).await);
    held.push(hold("most", home).await);
    assert!(
        held.iter()
            .all(|response| response.status() == StatusCode::OK)
    );
    assert_eq!(
        hold("most", home).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        hold("other", away).await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    // Nothing is limited in total, and the address has the four again that were charged to it.
    admission.reload(&group(0, 5)).unwrap();
    held.push(hold("other", home).await);
    assert_eq!(held[6].status(), StatusCode::OK);
    assert_eq!(
        hold("last", home).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    drop(held);
    assert_eq!(admission.limits().totals().await[0].used, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_response_gives_way_as_configured() {
    let group = |after: &str| {
        config(&format!(
            "[groups.api]\npath = '/api'\nconcurrency = 1\n{after}"
        ))
    };
    let admission = Admission::new(&group("")).unwrap();
    let endless = || async {
        let frames = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("frame"));
        Body::from_stream(frames)
    };
    let app = Router::new()
        .route("/api", axum::routing::get(endless))
        .layer(admission.layer());
    let call = async || {
        let request = Request::get("/api").body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap()
    };
    let stall = async || {
        let mut response = call().await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.frame().await.unwrap().is_ok());
        response
    };
    let _default = stall().await;
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(call().await.status(), StatusCode::SERVICE_UNAVAILABLE);
    tokio::time::advance(Duration::from_secs(1)).await;
    admission.reload(&group("reclaim_after = '5s'")).unwrap();
    let _five = stall().await;
    tokio::time::advance(Duration::from_secs(5)).await;
    admission.reload(&group("reclaim_after = 'off'")).unwrap();
    assert_eq!(call().await.status(), StatusCode::SERVICE_UNAVAILABLE);
    admission.reload(&group("reclaim_after = '5s'")).unwrap();
    assert_eq!(call().await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_bad_configuration_does_not_change_when_a_stalled_response_gives_way() {
    let groups = |after: &str, key: &str| {
        config(&format!(
            "[groups.api]\npath = '/api'\nconcurrency = 1\nreclaim_after = '{after}'
            [groups.other]\npath = '/other'\nkey = '{key}'"
        ))
    };
    let admission = Admission::new(&groups("1h", "token")).unwrap();
    let endless = || async {
        let frames = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("frame"));
        Body::from_stream(frames)
    };
    let app = Router::new()
        .route("/api", axum::routing::get(endless))
        .layer(admission.layer());
    let call = async || {
        let request = Request::get("/api").body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap()
    };
    let mut stalled = call().await;
    assert!(stalled.frame().await.unwrap().is_ok());
    let error = admission.reload(&groups("1s", "user")).unwrap_err();
    assert_eq!(error.field(), Some("groups.other.key"));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(call().await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_dry_run_admits_what_is_above_the_capacity() {
    let group = |more: &str| {
        config(&format!(
            "[groups.api]\npath = '/api'\nconcurrency = 1\n{more}"
        ))
    };
    let admission = Admission::new(&group("dry_run = true")).unwrap();
    let app = app(&admission);
    let call = async || {
        let request = Request::get("/api").body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap()
    };
    let _held = call().await;
    assert_eq!(call().await.status(), StatusCode::OK);
    admission.reload(&group("enforce = 50")).unwrap();
    let statuses = [call().await.status(), call().await.status()];
    assert_eq!(statuses, [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE]);
}

#[tokio::test]
async fn a_group_limits_addresses_alone() {
    let admission = Admission::new(&config(
        "[groups.api]\npath = '/api'\nconcurrency_per_ip = 1\nkey = 'shared'",
    ));
    let admission = admission.unwrap();
    let app = app(&admission);
    let hold = async |address: [u8; 4]| {
        let request = Request::get("/api").extension(PeerAddr((address, 4711).into()));
        let request = request.body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap()
    };
    let held = [hold([192, 0, 2, 1]).await, hold([192, 0, 2, 2]).await];
    assert!(
        held.iter()
            .all(|response| response.status() == StatusCode::OK)
    );
    for address in [[192, 0, 2, 1], [192, 0, 2, 2]] {
        assert_eq!(hold(address).await.status(), StatusCode::TOO_MANY_REQUESTS);
    }
}

#[tokio::test]
async fn a_bad_configuration_changes_nothing() {
    let good = "[groups.api]\npath = '/api'\nrate = '2/h'\n[groups.zzz]\nrate = '1/h'";
    let admission = Admission::new(&config(good)).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, 2);
    for (text, expected) in [(
        "[store]\nprefix = 'other'\n[groups.api]\npath = '/api'\nrate = '9/h'",
        "store: the store cannot change",
    )] {
        let error = admission.reload(&config(text)).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(
            status(&app, "/api", "alice").await,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
}

/// Real connections, while the file changes many times: each request is answered, and what is admitted
/// never exceeds what is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_hot_reload_under_load_loses_no_request_and_exceeds_no_limit() {
    const TOKENS: usize = 4;
    let text = |rate: usize, n: usize| {
        let headers = ["draft", "legacy", "off"][n % 3];
        let exclude = if n.is_multiple_of(2) {
            "'/api/health'"
        } else {
            ""
        };
        config(&format!(
            "[groups.api]\npath = '/api'\nconcurrency = {limit}\nrate = '{rate}/day'\n\
             headers = '{headers}'\nexclude = [{exclude}]",
            limit = 6 + n % 3,
        ))
    };
    let admission = Admission::new(&text(100, 0)).unwrap();
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (inside, most) = (inside.clone(), most.clone());
        any(move || async move {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            "ok"
        })
    };
    let app = Router::new()
        .route("/api/chat", handler)
        .layer(admission.layer());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let admitted = Arc::new([(); TOKENS].map(|()| AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..16 {
        let admitted = admitted.clone();
        clients.spawn(async move {
            let client = Client::builder(TokioExecutor::new()).build_http();
            for step in 0..100 {
                let token = (n + step) % TOKENS;
                let request = Request::get(format!("http://{address}/api/chat"))
                    .header("authorization", format!("Bearer {token}"))
                    .body(Body::empty());
                let response = client.request(request.unwrap()).await.unwrap();
                match response.status() {
                    StatusCode::OK => {
                        admitted[token].fetch_add(1, Ordering::SeqCst);
                    }
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {}
                    other => panic!("answered {other}"),
                }
                // So that the connection is used again.
                axum::body::to_bytes(Body::new(response.into_body()), 10_000)
                    .await
                    .unwrap();
            }
        });
    }
    let mut n = 0;
    while !clients.is_empty() {
        n += 1;
        admission.reload(&text(100 + n.min(50), n)).unwrap();
        tokio::select! {
            client = clients.join_next() => client.unwrap().unwrap(),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    server.abort();
    assert!(n > 10, "{n} changes");
    assert!(most.load(Ordering::SeqCst) <= 8);
    for admitted in admitted.iter() {
        let admitted = admitted.load(Ordering::SeqCst);
        // 1600 requests over four tokens, of which the last rate allows 150 each.
        assert!(admitted <= 150, "{admitted} with {n} changes");
        assert!(admitted >= 100, "{admitted}");
    }
}

#[tokio::test]
async fn the_limit_on_bad_credentials_is_changed_however_often() {
    let group = |n: u32| {
        config(&format!(
            "[groups.api]\npath = '/api'\nbad_credentials_per_ip = '{n}/h'"
        ))
    };
    let failures = async |app: &Router| {
        let mut failures = 0;
        while status(app, "/api/login", "alice").await == StatusCode::UNAUTHORIZED {
            failures += 1;
        }
        failures
    };
    let admission = Admission::new(&group(3)).unwrap();
    let app = app(&admission);
    assert_eq!(failures(&app).await, 3);
    for n in 4..200 {
        admission.reload(&group(n)).unwrap();
    }
    admission.reload(&group(12)).unwrap();
    // Three are used.
    assert_eq!(failures(&app).await, 9);
}

#[tokio::test]
async fn a_store_is_the_same_when_its_defaults_are_written_out() {
    let store = |rest: &str| {
        let secret = "07070707070707070707070707070707";
        config(&format!(
            "[store]\nurl = 'redis://127.0.0.1:1'\nsecret = '{secret}'\n{rest}"
        ))
    };
    let admission = Admission::new(&store("")).unwrap();
    let same = "prefix = 'admission'\ndeadline = '25ms'\nreplicas = 1\non_failure = 'open'";
    admission.reload(&store(same)).unwrap();
    for other in ["prefix = 'x'", "deadline = '30ms'", "replicas = 2"] {
        let error = admission.reload(&store(other)).unwrap_err();
        assert_eq!(error.field(), Some("store"), "{other}");
    }
}

#[tokio::test]
async fn in_memory_nothing_is_forgotten_for_how_a_store_would_fail() {
    let group = |mode: &str| {
        config(&format!(
            "[groups.api]\npath = '/api'\nrate = '5/h'\non_failure = '{mode}'"
        ))
    };
    let admission = Admission::new(&group("open")).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    admission.reload(&config(NOTHING)).unwrap();
    admission.reload(&group("closed")).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 0);
}
