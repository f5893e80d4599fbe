//! A changed file is applied without dropping requests or state.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::ServiceExt;
use tower_admission::config::{Admission, Config};

use super::File;

fn config(text: &str) -> Config {
    Config::from_toml(text).unwrap()
}

fn app(admission: &Admission) -> Router {
    let everywhere = Router::new().route("/{*path}", any(|| async { "ok" }));
    everywhere.layer(admission.layer())
}

async fn status(app: &Router, path: &str, token: &str) -> StatusCode {
    let request = Request::get(path).header("authorization", format!("Bearer {token}"));
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap().status()
}

async fn admitted(app: &Router, path: &str, token: &str) -> usize {
    let mut admitted = 0;
    while status(app, path, token).await == StatusCode::OK {
        admitted += 1;
    }
    admitted
}

#[tokio::test]
async fn what_is_used_stays_used() {
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
    // A group that is gone limits nothing, and goes on when it is back.
    admission.reload(&config("")).unwrap();
    assert_eq!(status(&app, "/api", "alice").await, StatusCode::OK);
    let nine = "rate = '9/h'\nrate_per_ip = '100/h'";
    admission.reload(&group(nine)).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
    // Switched off and on, and denied to all in between.
    for between in ["rate = '0'", "rate = 'deny all'\nrate_per_ip = '100/h'"] {
        admission.reload(&group(between)).unwrap();
        let expected = if between == "rate = '0'" { 200 } else { 429 };
        assert_eq!(status(&app, "/api", "alice").await, expected);
        admission.reload(&group(nine)).unwrap();
        assert_eq!(admitted(&app, "/api", "alice").await, 0);
    }
    // By what it is called, whatever its field.
    let renamed =
        "[groups.other]\nname = 'api'\npath = '/api'\nrate = '10/h'\nrate_per_ip = '100/h'";
    admission.reload(&config(renamed)).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
}

#[tokio::test]
async fn failed_logins_are_not_forgotten() {
    let text = "[groups.api]\npath = '/api'\nfailed_logins = '3/h'";
    let admission = Admission::new(&config(text)).unwrap();
    let refusing = Router::new().route("/api", any(|| async { StatusCode::UNAUTHORIZED }));
    let app = refusing.layer(admission.layer());
    let guess = async || {
        let peer: std::net::SocketAddr = "192.0.2.1:1".parse().unwrap();
        let request = Request::get("/api").extension(tower_admission::PeerAddr(peer));
        let request = request.body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap().status()
    };
    for expected in [401, 401, 401, 429] {
        assert_eq!(guess().await, expected);
    }
    let more = format!("{text}\n[groups.other]\npath = '/other'");
    admission.reload(&config(&more)).unwrap();
    assert_eq!(guess().await, 429);
    admission.reload(&config(&more.replace('3', "4"))).unwrap();
    assert_eq!(guess().await, 401);
    assert_eq!(guess().await, 429);
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
    let [total] = &admission.limits().totals()[..] else {
        panic!()
    };
    assert_eq!((total.used, total.limit), (0, Some(4)));
}

#[tokio::test]
async fn a_bad_configuration_changes_nothing() {
    let good = "[groups.api]\npath = '/api'\nrate = '2/h'\n[groups.zzz]\nrate = '1/h'";
    let admission = Admission::new(&config(good)).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, 2);
    for (text, expected) in [
        (
            "[store]\nprefix = 'other'\n[groups.api]\npath = '/api'\nrate = '9/h'",
            "store: the store cannot be changed",
        ),
        (
            "[groups.api]\npath = '/api'\nrate = '9/h'\n[groups.zzz]\non_failure = 'closed'",
            "groups.zzz.on_failure: this cannot be changed",
        ),
    ] {
        let error = admission.reload(&config(text)).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(
            status(&app, "/api", "alice").await,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_is_followed() {
    let file = File::new("[groups.api]\npath = '/api'\nrate = '1/h'");
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let app = app(&admission);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let following = admission.follow(file.path(), move |reloaded| {
        let outcome = match reloaded {
            Ok(()) => "applied".to_owned(),
            Err(error) => error.to_string(),
        };
        tell.lock().unwrap().push(outcome);
    });
    // What is applied by hand is not undone.
    admission
        .reload(&config(
            "[groups.api]\npath = '/api'\nrate = '1/h'\n[groups.x]",
        ))
        .unwrap();
    let pass = async || tokio::time::sleep(Duration::from_secs(10)).await;
    pass().await;
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
    // Half-written files are not looked at: this one is empty for a moment.
    tokio::time::sleep(Duration::from_millis(500)).await;
    file.write("");
    tokio::time::sleep(Duration::from_millis(1000)).await;
    file.write("[groups.api]\npath = '/api'\nrate = '3/h'");
    pass().await;
    assert_eq!(admitted(&app, "/api", "alice").await, 2);
    file.write("[groups.api]\nrate = '3 in an hour'");
    pass().await;
    assert_eq!(
        status(&app, "/api", "alice").await,
        StatusCode::TOO_MANY_REQUESTS
    );
    std::fs::remove_file(file.path()).unwrap();
    pass().await;
    file.write("[groups.api]\npath = '/api'\nrate = '4/h'");
    pass().await;
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
    drop(following);
    file.write("");
    pass().await;
    assert_eq!(
        status(&app, "/api", "alice").await,
        StatusCode::TOO_MANY_REQUESTS
    );
    let place = format!("{}: ", file.path().display());
    let told = told.lock().unwrap();
    let [first, bad, missing, last] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((&**first, &**last), ("applied", "applied"));
    assert!(
        bad.starts_with(&format!("{place}groups.api.rate: ")),
        "{bad}"
    );
    assert!(missing.starts_with(&place), "{missing}");
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
        admission.reload(&text(100 + n.min(100), n)).unwrap();
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
        // 1600 requests over four tokens, of which the last rate allows 200 each.
        assert!(admitted <= 200, "{admitted} with {n} changes");
        assert!(admitted >= 100, "{admitted}");
    }
}
