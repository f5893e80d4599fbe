//! Several groups for one request: `also`.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::any;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};
use tower_admission::observe::Subject;
use tower_admission::{ConcurrencyLimiter, Key, Observer, PeerAddr, RateLimitStatus, Rejection};
use tower_admission_config::{Admission, Config, ConfigError};

use super::server::Server;
use super::{config, status};

/// What observers were told, as `event limiter policy`.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn note(&self, event: &str, subject: &Subject<'_>) {
        let text = format!("{event} {} {}", subject.limiter, subject.policy);
        self.0.lock().unwrap().push(text.trim().to_owned());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Seen {
    fn admitted(&self, subject: &Subject<'_>) {
        if subject.limit_type == "http" {
            self.note("admitted", subject);
        }
    }

    fn rejected(&self, subject: &Subject<'_>, _: &Rejection) {
        self.note("rejected", subject);
    }

    fn would_reject(&self, subject: &Subject<'_>, _: &Rejection) {
        self.note("would reject", subject);
    }
}

fn seen(config: &Config) -> (Admission, Seen) {
    let seen = Seen::default();
    let admission = Admission::builder(config)
        .observe(seen.clone())
        .respond(
            |rejection: &Rejection, _: tower_admission::RequestHead<'_>| {
                let mut response = Response::new(rejection.limiter().to_owned());
                *response.status_mut() = rejection.reason().status();
                response
            },
        )
        .tier_by(|head| head.headers.get("tier")?.to_str().ok())
        .build();
    (admission.unwrap(), seen)
}

fn app(admission: &Admission) -> Router {
    let more = any(|status: RateLimitStatus| async move { status.charge(1).await });
    let free = any(|status: RateLimitStatus| async move { status.refund(1).await });
    Router::new()
        .route("/{*path}", any(|| async { "ok" }))
        .route("/api/free", free)
        .route("/api/more", more)
        .route("/api/login", any(|| async { StatusCode::UNAUTHORIZED }))
        .layer(admission.layer())
}

fn request(path: &str, token: &str) -> Request<Body> {
    let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
    let request = Request::get(path)
        .header("authorization", format!("Bearer {token}"))
        .extension(PeerAddr(peer));
    request.body(Body::empty()).unwrap()
}

async fn send(app: &Router, path: &str, token: &str) -> Response<Body> {
    app.clone().oneshot(request(path, token)).await.unwrap()
}

/// How many requests are admitted, and who rejects then.
async fn admitted(app: &Router, path: &str, token: &str) -> (usize, String) {
    let mut admitted = 0;
    loop {
        let response = send(app, path, token).await;
        if response.status() != StatusCode::OK {
            let name = response.into_body().collect().await.unwrap().to_bytes();
            return (admitted, String::from_utf8(name.to_vec()).unwrap());
        }
        admitted += 1;
    }
}

fn by(admitted: usize, name: &str) -> (usize, String) {
    (admitted, name.to_owned())
}

const GROUPS: &str = "
    [groups.global]
    name = 'All'
    rate_per_ip = '5/h'

    [groups.api]
    path = '/api'
    rate = '3/h'
    also = ['global']

    [groups.batch]
    path = '/batch'
    rate = '9/h'
    also = 'global'
";

async fn one_decision_is_about_all_groups(admission: &Admission) {
    let app = app(admission);
    let told = send(&app, "/api", "alice").await;
    let policies = told.headers()["ratelimit-policy"].to_str().unwrap();
    assert_eq!(policies, "\"api\";q=3;w=3600, \"All.ip\";q=5;w=3600");
    assert_eq!(admitted(&app, "/api", "alice").await, by(2, "api"));
    // What one group rejects costs nothing in the other, and that has one bucket for all groups.
    assert_eq!(admitted(&app, "/batch", "alice").await, by(2, "All"));
    assert_eq!(admitted(&app, "/api", "bob").await, by(0, "All"));
    // The refusals took nothing from bob's tokens.
    let usage = admission
        .limits()
        .usage(&Key::new("bearer", b"bob").into())
        .await;
    assert!(usage.iter().all(|usage| usage.used == 0), "{usage:?}");
    // A layer of the named group counts in the same bucket.
    let part = Router::new().route("/x", any(|| async { "ok" }));
    let part = part.layer(admission.layer_of("global").unwrap());
    assert_eq!(admitted(&part, "/x", "bob").await, by(0, "All"));
    let part = Router::new().route("/x", any(|| async { "ok" }));
    let part = part.layer(admission.layer_of("api").unwrap());
    assert_eq!(admitted(&part, "/x", "bob").await, by(0, "All"));
}

#[tokio::test]
async fn rates_are_decided_as_one_in_memory() {
    let (admission, seen) = seen(&config(GROUPS));
    one_decision_is_about_all_groups(&admission).await;
    let seen = seen.take();
    assert_eq!(seen[0], "admitted api api");
    assert!(seen.contains(&"rejected api api".to_owned()));
    assert!(seen.contains(&"rejected All All.ip".to_owned()));
    assert_eq!(
        seen.iter()
            .filter(|event| event.starts_with("admitted"))
            .count(),
        5
    );
}

fn in_redis(server: &Server, groups: &str) -> Config {
    config(&format!(
        "[store]\nurl = '{}'\nsecret = '07070707070707070707070707070707'\ndeadline = '2s'\n{groups}",
        server.url()
    ))
}

#[tokio::test]
async fn rates_are_decided_as_one_in_redis() {
    let server = Server::start().await;
    let (admission, _) = seen(&in_redis(&server, GROUPS));
    one_decision_is_about_all_groups(&admission).await;
    // Another replica finds the same.
    let (replica, _) = seen(&in_redis(&server, GROUPS));
    let app = app(&replica);
    assert_eq!(admitted(&app, "/api", "bob").await, by(0, "All"));
    // A raised limit is seen although denials were kept.
    let raised = GROUPS.replace("5/h", "7/h");
    replica.reload(&in_redis(&server, &raised)).unwrap();
    assert_eq!(admitted(&app, "/api", "bob").await, by(2, "All"));
}

#[tokio::test]
async fn an_override_applies_at_once_where_denials_are_kept() {
    let server = Server::start().await;
    let (admission, _) = seen(&in_redis(&server, GROUPS));
    let app = app(&admission);
    assert_eq!(admitted(&app, "/batch", "alice").await, by(5, "All"));
    let address = "ip:192.0.2.1".parse().unwrap();
    let limit = "All.ip=8/h".parse().unwrap();
    admission.limits().set(&address, limit).await.unwrap();
    assert_eq!(admitted(&app, "/batch", "alice").await, by(3, "All"));
}

const DRY: &str = "
    [groups.trial]
    rate_per_ip = '2/h'
    dry_run = true

    [groups.api]
    path = '/api'
    rate = '3/h'
    also = ['trial']
";

async fn a_dry_run_hides_no_other_limit(config: Config) {
    let (admission, seen) = seen(&config);
    let app = app(&admission);
    let told = send(&app, "/api", "alice").await;
    // Clients are not told of a limit that is tried out.
    let policies = told.headers()["ratelimit-policy"].to_str().unwrap();
    assert_eq!(policies, "\"api\";q=3;w=3600");
    assert_eq!(admitted(&app, "/api", "alice").await, by(2, "api"));
    let expected = [
        "admitted api api",
        "admitted api trial.ip",
        "would reject trial trial.ip",
        "admitted api api",
        "would reject trial trial.ip",
        "rejected api api",
    ];
    let seen = seen.take();
    // Which of equals binds does not matter.
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    assert_eq!(seen[2..], expected[2..]);
}

#[tokio::test]
async fn a_dry_run_of_one_group_hides_no_limit_of_another() {
    a_dry_run_hides_no_other_limit(config(DRY)).await;
    let server = Server::start().await;
    a_dry_run_hides_no_other_limit(in_redis(&server, DRY)).await;
    // And the other way round.
    let swapped = DRY
        .replace("dry_run = true", "")
        .replace("rate = '3/h'", "rate = '1/h'\ndry_run = true");
    let (admission, _) = self::seen(&config(&swapped));
    assert_eq!(
        admitted(&app(&admission), "/api", "alice").await,
        by(2, "trial")
    );
}

/// A service that answers with a body that does not end.
async fn hold(
    admission: &Admission,
    path: &str,
) -> Response<impl http_body::Body<Data = Bytes, Error = tower::BoxError> + Unpin> {
    let endless = service_fn(|_: Request<Body>| async {
        let frames = stream::iter([Ok::<_, std::io::Error>("one"), Ok("two")]);
        Ok::<_, std::convert::Infallible>(Response::new(Body::from_stream(frames)))
    });
    let service = tower::Layer::layer(&admission.layer(), endless);
    service.oneshot(request(path, "alice")).await.unwrap()
}

#[tokio::test]
async fn a_dry_run_hides_no_limit_from_what_a_handler_charges() {
    let groups = DRY.replace("'2/h'", "'1/h'").replace("'3/h'", "'4/h'");
    let server = Server::start().await;
    for config in [config(&groups), in_redis(&server, &groups)] {
        let (admission, seen) = seen(&config);
        // Two for each request.
        let app = app(&admission);
        assert_eq!(admitted(&app, "/api/more", "alice").await, by(2, "api"));
        let seen = seen.take();
        assert_eq!(seen[1], "would reject trial trial.ip", "{seen:?}");
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn groups_of_one_decision_fail_together() {
    let away = |mode: &str| {
        let groups = GROUPS.replace("3/h", "8/h").replace("5/h", "12/h");
        let config = config(&format!(
            "[store]\nurl = 'redis://127.0.0.1:1'\nsecret = '07070707070707070707070707070707'\n\
             on_failure = '{mode}'\nreplicas = 2\n{groups}"
        ));
        app(&seen(&config).0)
    };
    assert_eq!(
        admitted(&away("closed"), "/api", "alice").await,
        by(0, "api")
    );
    let shares = away("local share");
    assert_eq!(admitted(&shares, "/api", "alice").await, by(4, "api"));
    assert_eq!(admitted(&shares, "/batch", "alice").await, by(2, "All"));
    let open = away("open");
    for _ in 0..20 {
        assert_eq!(send(&open, "/api", "alice").await.status(), StatusCode::OK);
    }
}

const PERMITS: &str = "
    [groups.global]
    concurrency = 2

    [groups.keys]
    concurrency_per_ip = 3
    also = 'global'

    [groups.api]
    path = '/api'
    concurrency = 2
    also = 'keys'

    [groups.batch]
    path = '/batch'
    concurrency = 1
    also = 'global'
";

async fn in_flight(admission: &Admission) -> Vec<(String, u64)> {
    let totals = admission.limits().totals().await.into_iter();
    let mut totals: Vec<_> = totals
        .map(|total| (total.name.to_string(), total.used))
        .collect();
    totals.sort();
    totals
}

/// Waits until as much is in flight: a store is told in the background of what is given back.
async fn until_in_flight(admission: &Admission, expected: &[(String, u64)]) {
    let reached = async {
        while in_flight(admission).await != expected {
            tokio::task::yield_now().await;
        }
    };
    let patience = std::time::Duration::from_secs(30);
    let reached = tokio::time::timeout(patience, reached).await;
    assert!(reached.is_ok(), "{:?}", in_flight(admission).await);
}

async fn permits_are_taken_of_all_groups(config: Config) {
    let (admission, seen) = seen(&config);
    let app = app(&admission);
    let counts = |counts: [(&str, u64); 4]| counts.map(|(name, count)| (name.to_owned(), count));
    let first = hold(&admission, "/api").await;
    let second = hold(&admission, "/batch").await;
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(
        in_flight(&admission).await,
        counts([("api", 1), ("batch", 1), ("global", 2), ("keys", 1)])
    );
    // The last of them rejects, and what was taken of the first ones is given back.
    let rejected = send(&app, "/api", "alice").await;
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    let name = rejected.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(name, "global");
    until_in_flight(
        &admission,
        &counts([("api", 1), ("batch", 1), ("global", 2), ("keys", 1)]),
    )
    .await;
    // The own group is asked first.
    assert_eq!(admitted(&app, "/batch", "alice").await.1, "batch");
    assert_eq!(seen.take(), ["rejected global", "rejected batch"]);
    drop(second);
    until_in_flight(
        &admission,
        &counts([("api", 1), ("batch", 0), ("global", 1), ("keys", 1)]),
    )
    .await;
    drop(first);
    until_in_flight(
        &admission,
        &counts([("api", 0), ("batch", 0), ("global", 0), ("keys", 0)]),
    )
    .await;
    // A store is told of it in the background.
    let admitted = async {
        while send(&app, "/api", "alice").await.status() != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    };
    let patience = std::time::Duration::from_secs(30);
    tokio::time::timeout(patience, admitted).await.unwrap();
}

#[tokio::test]
async fn permits_are_all_or_none() {
    permits_are_taken_of_all_groups(config(PERMITS)).await;
}

#[tokio::test]
async fn permits_in_redis_are_all_or_none() {
    let server = Server::start().await;
    permits_are_taken_of_all_groups(in_redis(&server, PERMITS)).await;
}

#[tokio::test]
async fn an_exempt_request_is_counted_by_the_capacity_of_all_groups_alone() {
    for (own, global, full) in [(2, 3, "api"), (3, 2, "global")] {
        let limits =
            "concurrency_per_key = 1\nconcurrency_per_ip = 1\nrate = '1/h'\nrate_per_ip = '1/h'";
        let config = config(&format!(
            "[lists]\nallow = 'bearer:alice'
            [groups.global]\nconcurrency = {global}\n{limits}
            [groups.api]\npath = '/api'\nalso = 'global'\nconcurrency = {own}\n{limits}"
        ));
        let (admission, seen) = seen(&config);
        let app = app(&admission);
        let mut held = Vec::new();
        for _ in 0..2 {
            let response = hold(&admission, "/api").await;
            assert_eq!(response.status(), StatusCode::OK);
            assert!(!response.headers().contains_key("ratelimit"));
            held.push(response);
        }
        let counted = |count| ["api", "global"].map(|name| (name.to_owned(), count));
        assert_eq!(in_flight(&admission).await, counted(2));
        assert_eq!(admitted(&app, "/api", "alice").await, by(0, full));
        drop(held);
        assert_eq!(in_flight(&admission).await, counted(0));
        for _ in 0..3 {
            let status = send(&app, "/api", "alice").await.status();
            assert_eq!(status, StatusCode::OK);
        }
        // No rate decided about it, and none was charged for it, that of its address neither.
        assert_eq!(seen.take(), [format!("rejected {full}")]);
        assert_eq!(admitted(&app, "/api", "bob").await, by(1, "api"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_response_loses_the_permits_of_all_groups() {
    let (admission, _) = seen(&config(PERMITS));
    let app = app(&admission);
    let mut first = hold(&admission, "/api").await;
    let mut second = hold(&admission, "/batch").await;
    // One frame each, and no more.
    first.body_mut().frame().await.unwrap().unwrap();
    second.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(send(&app, "/api", "bob").await.status(), 503);
    tokio::time::advance(ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER).await;
    // The group that has no room reclaims, also what is in flight of another group.
    let third = send(&app, "/api", "bob").await;
    assert_eq!(third.status(), StatusCode::OK);
    let in_flight: u64 = in_flight(&admission)
        .await
        .iter()
        .map(|(_, used)| used)
        .sum();
    drop(third);
    assert!(in_flight <= 3 + 3, "{in_flight}");
    let ended = [
        first.body_mut().frame().await.unwrap().is_err(),
        second.body_mut().frame().await.unwrap().is_err(),
    ];
    assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
    drop((first, second));
    let left: u64 = self::in_flight(&admission)
        .await
        .iter()
        .map(|(_, used)| used)
        .sum();
    assert_eq!(left, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_spares_a_stalled_response_and_what_it_holds_of_other_groups() {
    let groups = "
        [groups.trial]
        concurrency = 1
        dry_run = true
        [groups.api]
        path = '/api'
        concurrency = 2
        also = 'trial'
    ";
    let (admission, _) = seen(&config(groups));
    let mut first = hold(&admission, "/api").await;
    first.body_mut().frame().await.unwrap().unwrap();
    tokio::time::advance(ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER).await;
    let _second = hold(&admission, "/api").await;
    assert_eq!(
        in_flight(&admission).await,
        [("api".to_owned(), 2), ("trial".to_owned(), 1)]
    );
    // It goes on, and counts in its own group until it ends.
    first.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(admitted(&app(&admission), "/api", "bob").await.1, "api");
    drop(first);
    assert_eq!(
        in_flight(&admission).await,
        [("api".to_owned(), 1), ("trial".to_owned(), 1)]
    );
}

#[tokio::test]
async fn what_is_used_stays_used_over_a_reload() {
    let (admission, _) = seen(&config(GROUPS));
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, by(3, "api"));
    // Named by fewer and by more groups, and again.
    let apart = GROUPS.replace("also = ['global']", "");
    admission.reload(&config(&apart)).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, by(0, "api"));
    assert_eq!(admitted(&app, "/api", "bob").await, by(3, "api"));
    assert_eq!(admitted(&app, "/batch", "bob").await, by(2, "All"));
    admission.reload(&config(GROUPS)).unwrap();
    assert_eq!(admitted(&app, "/api", "carol").await, by(0, "All"));
    let raised = GROUPS.replace("5/h", "6/h").replace("3/h", "4/h");
    admission.reload(&config(&raised)).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, by(1, "api"));
    assert_eq!(admitted(&app, "/api", "carol").await, by(0, "All"));
}

#[tokio::test]
async fn excluded_paths_are_under_no_group() {
    let groups = GROUPS.replace("path = '/api'", "path = '/api'\nexclude = '/api/health'");
    let groups = groups.replace("name = 'All'", "name = 'All'\nexclude = '/api/ready'");
    let (admission, _) = seen(&config(&groups));
    let app = app(&admission);
    for _ in 0..9 {
        assert_eq!(
            send(&app, "/api/health", "alice").await.status(),
            StatusCode::OK
        );
    }
    // What the named group excludes is under the own group alone.
    assert_eq!(admitted(&app, "/api/ready", "alice").await, by(3, "api"));
    assert_eq!(admitted(&app, "/batch", "alice").await, by(5, "All"));
    assert_eq!(admitted(&app, "/api/ready", "bob").await, by(3, "api"));
}

#[tokio::test]
async fn refunds_go_to_all_groups() {
    let (admission, _) = seen(&config(GROUPS));
    let app = app(&admission);
    for _ in 0..9 {
        assert_eq!(
            send(&app, "/api/free", "alice").await.status(),
            StatusCode::OK
        );
    }
    assert_eq!(admitted(&app, "/api", "alice").await, by(3, "api"));
    assert_eq!(admitted(&app, "/batch", "alice").await, by(2, "All"));
}

async fn each_group_counts_what_it_counts(config: &dyn Fn(&str) -> Config) {
    let groups = GROUPS.replace("rate = '3/h'", "rate = '3/h'\ncount = '401'");
    let (admission, _) = seen(&config(&groups));
    let app = app(&admission);
    // These count in the named group only.
    let response = send(&app, "/api", "alice").await;
    let left = response.headers()["ratelimit"].to_str().unwrap();
    assert!(left.starts_with("\"api\";r=3;"), "{left}");
    assert!(left.contains("\"All.ip\";r=4;"), "{left}");
    assert_eq!(send(&app, "/api/login", "alice").await.status(), 401);
    assert_eq!(admitted(&app, "/api", "alice").await, by(3, "All"));
    assert_eq!(used(&admission, "api").await, 1);

    let groups = GROUPS.replace("rate_per_ip = '5/h'", "rate_per_ip = '5/h'\ncount = '401'");
    let (admission, _) = seen(&config(&groups.replace("api", "web")));
    let app = self::app(&admission);
    assert_eq!(admitted(&app, "/web", "alice").await, by(3, "web"));
    assert_eq!(used(&admission, "web").await, 3);
    assert_eq!(admitted(&app, "/batch", "alice").await, by(9, "batch"));
}

/// How much alice's token has used of a rate.
async fn used(admission: &Admission, name: &str) -> u64 {
    let usage = admission
        .limits()
        .usage(&Key::new("bearer", b"alice").into())
        .await;
    let found = usage
        .iter()
        .find(|usage| &*usage.name == name && usage.sort == "rate");
    found.map_or(0, |usage| usage.used)
}

#[tokio::test]
async fn each_group_counts_what_it_counts_in_memory() {
    each_group_counts_what_it_counts(&|groups| config(groups)).await;
}

#[tokio::test]
async fn each_group_counts_what_it_counts_in_redis() {
    let server = Server::start().await;
    // Two configurations with limits of one name would count together.
    let name = |groups: &str| {
        groups.replace(
            "'All'",
            if groups.contains("web") {
                "'Every'"
            } else {
                "'All'"
            },
        )
    };
    each_group_counts_what_it_counts(&|groups| in_redis(&server, &name(groups))).await;
}

#[tokio::test]
async fn each_group_has_its_own_tiers() {
    let groups = GROUPS.replace("rate = '3/h'", "rate = '3/h'\ntiers.pro.rate = '4/h'");
    let groups = groups.replace(
        "rate_per_ip = '5/h'",
        "rate = '2/h'\ntiers.max.rate = '9/h'",
    );
    let (admission, _) = seen(&config(&groups));
    let app = app(&admission);
    let in_tier = async |tier: &str, token: &str| {
        let mut admitted = 0;
        loop {
            let mut request = request("/api", token);
            request.headers_mut().insert("tier", tier.parse().unwrap());
            let response = app.clone().oneshot(request).await.unwrap();
            if response.status() != StatusCode::OK {
                let name = response.into_body().collect().await.unwrap().to_bytes();
                return (admitted, String::from_utf8(name.to_vec()).unwrap());
            }
            admitted += 1;
        }
    };
    assert_eq!(in_tier("none", "alice").await, by(2, "All"));
    assert_eq!(in_tier("pro", "bob").await, by(2, "All"));
    assert_eq!(in_tier("max", "carol").await, by(3, "api"));
}

#[tokio::test]
async fn bad_credentials_count_in_all_groups() {
    let groups = "
        [groups.global]
        bad_credentials_per_ip = '2/h'
        [groups.api]
        path = '/api'
        bad_credentials_per_ip = '9/h'
        also = 'global'
        [groups.batch]
        path = '/batch'
        also = 'global'
    ";
    let (admission, _) = seen(&config(groups));
    let app = app(&admission);
    for expected in [401, 401, 429] {
        assert_eq!(send(&app, "/api/login", "guess").await.status(), expected);
    }
    assert_eq!(admitted(&app, "/batch", "guess").await, by(0, "global"));
}

#[tokio::test]
async fn a_group_may_have_nothing_but_the_limits_of_others() {
    let groups = "
        [groups.global]
        rate = '2/h'
        [groups.api]
        path = '/api'
        also = 'global'
        [groups.none]
        path = '/none'
        also = 'empty'
        [groups.empty]
    ";
    let (admission, _) = seen(&config(groups));
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, by(2, "global"));
    assert_eq!(send(&app, "/none", "alice").await.status(), StatusCode::OK);
    // It has as many sorts of limits as these, for a path with dot segments.
    assert_eq!(
        admitted(&app, "/none/../api", "alice").await,
        by(0, "global")
    );
    assert_eq!(
        admitted(&app, "/api/../none/x", "alice").await,
        by(0, "global")
    );
}

#[test]
fn circles_and_unknown_names_are_errors() {
    let wrong = |text: &str| -> ConfigError { Config::from_toml(text).unwrap_err() };
    for (text, field, problem) in [
        (
            "[groups.a]\nalso = ['b']\n[groups.c]",
            "groups.a.also",
            "unknown group \"b\"; the groups are `a`, `c`",
        ),
        ("[groups.a]\nalso = ['a']", "groups.a.also", "`a` names `a`"),
        (
            "[groups.a]\nalso = ['b']\n[groups.b]\nalso = ['c']\n[groups.c]\nalso = ['b']",
            "groups.c.also",
            "`b` names `c` names `b`",
        ),
        (
            "[groups.a]\nalso = ['b', 'b']\n[groups.b]",
            "groups.a.also",
            "group `b` occurs twice",
        ),
        (
            "[groups.a]\nalso = ['b', 'c']\n[groups.b]\nalso = ['d']\n[groups.c]\nalso = ['d']\n[groups.d]",
            "groups.a.also",
            "group `d` occurs twice",
        ),
        (
            "[groups.a]\nalso = ['b', 'c', 'd', 'e']\n[groups.b]\n[groups.c]\n[groups.d]\n[groups.e]",
            "groups.a.also",
            "at most 4 groups, and these are 5",
        ),
        ("[groups.a]\nalso = 7", "groups.a.also", "a list of texts"),
    ] {
        let error = wrong(text);
        assert_eq!(error.field(), Some(field), "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[cfg(feature = "redis")]
#[test]
fn groups_of_one_decision_fail_in_the_same_way() {
    let text = "
        [store]
        url = 'redis://127.0.0.1:1'
        secret = '07070707070707070707070707070707'
        [groups.a]
        rate = '2/s'
        also = ['b']
        [groups.b]
        rate = '1/s'
        on_failure = 'closed'
    ";
    let error = Config::from_toml(text).unwrap_err().to_string();
    assert!(
        error.contains("groups `a` and `b` have rates, and differ in `on_failure`"),
        "{error}"
    );
    // One decision is about rates only.
    let one = Config::from_toml(&text.replace("rate = '2/s'", "concurrency = 1")).unwrap();
    Config::from_toml(&text.replace("rate = '1/s'", "concurrency = 1")).unwrap();
    super::agree();
    Admission::new(&one).unwrap();
    Config::from_toml(&text.replace("[store]", "[store]\non_failure = 'closed'")).unwrap();
}

/// While a store that fails closed is away, no more keys are rejected than without the other group.
#[tokio::test]
async fn a_part_of_the_keys_is_enforced_while_the_store_is_away() {
    let away = "store = { url = 'redis://127.0.0.1:1', secret = '07070707070707070707070707070707', \
                on_failure = 'closed' }\n";
    let groups = |enforce: &str, also: &str| {
        let text = format!(
            "{away}[groups.api]\npath = '/api'\nrate = '9/h'\n{enforce}\n{also}\n\
             [groups.global]\npath = 'off'\nrate = '9/h'\n{enforce}\n"
        );
        super::app(&Admission::new(&config(&text)).unwrap())
    };
    for enforce in ["enforce = 10", "dry_run = true"] {
        let [alone, joined] = ["", "also = 'global'"].map(|also| groups(enforce, also));
        let mut rejected = 0;
        for n in 0..100 {
            let token = format!("t{n}");
            let expected = status(&alone, "/api", &token).await;
            assert_eq!(
                status(&joined, "/api", &token).await,
                expected,
                "{enforce} {token}"
            );
            rejected += usize::from(!expected.is_success());
        }
        let some = if enforce == "dry_run = true" {
            0..=0
        } else {
            1..=50
        };
        assert!(some.contains(&rejected), "{enforce}: {rejected}");
    }
}
