//! A switch that is off switches off limits of all sorts, with the overrides of keys, and leaves bans.

use http::StatusCode;
use tower_admission::{Key, Reason};
use tower_admission_config::Admission;

use super::{app, config, status};

const TEXT: &str = "
    [groups.api]
    path = '/api'
    rate = '9/h'
    concurrency_per_key = 9

    [leases.jobs]
    per_tenant = 9

    [limits]
    'bearer:slow' = 'api=1/h'
    'bearer:denied' = 'api=deny all'
    'bearer:banned' = 'deny all'
    'org:acme' = 'jobs=1 concurrent, web=1 concurrent'
";

fn acme() -> Key {
    Key::id("org", "acme")
}

/// Whether limits of a request and of leases admit more than overrides do.
async fn are_off(admission: &Admission) -> [bool; 3] {
    let app = app(admission);
    status(&app, "/api", "slow").await;
    let rate = status(&app, "/api", "slow").await == StatusCode::OK;
    let concurrency = status(&app, "/api", "denied").await == StatusCode::OK;
    let jobs = admission.leases("jobs").unwrap();
    let _one = jobs.acquire(&acme(), "1").await.unwrap();
    let leases = jobs.acquire(&acme(), "2").await.is_ok();
    [rate, concurrency, leases]
}

#[tokio::test]
async fn suspended_limits_ignore_overrides_and_bans_stay() {
    let admission = Admission::new(&config(TEXT)).unwrap();
    for (text, off) in [
        (TEXT.to_owned(), [false; 3]),
        (format!("enabled = false\n{TEXT}"), [true; 3]),
        (TEXT.to_owned(), [false; 3]),
        (
            TEXT.replace("[leases.jobs]", "enabled = false\n[leases.jobs]"),
            [true, true, false],
        ),
        (
            TEXT.replace("[limits]", "enabled = false\n[limits]"),
            [false, false, true],
        ),
        // Their table is gone.
        (
            TEXT.replace("[leases.jobs]", "[leases.other]"),
            [false, false, true],
        ),
    ] {
        admission.reload(&config(&text)).unwrap();
        assert_eq!(are_off(&admission).await, off, "{text}");
        let banned = status(&app(&admission), "/api", "banned").await;
        assert_eq!(banned, StatusCode::FORBIDDEN, "{text}");
    }
}

#[tokio::test]
async fn the_lists_have_a_separate_switch() {
    let lists = "[lists]\ndeny = ['bearer:eve']\n";
    let admission = Admission::new(&config(&format!("{TEXT}{lists}"))).unwrap();
    let statuses = async || {
        let app = app(&admission);
        [
            status(&app, "/", "eve").await,
            status(&app, "/", "banned").await,
        ]
    };
    assert_eq!(statuses().await, [StatusCode::FORBIDDEN; 2]);
    admission
        .reload(&config(&format!("enabled = false\n{TEXT}{lists}")))
        .unwrap();
    assert_eq!(statuses().await, [StatusCode::FORBIDDEN; 2]);
    let off = format!("{TEXT}{lists}enabled = false");
    admission.reload(&config(&off)).unwrap();
    assert!(!statuses().await.contains(&StatusCode::FORBIDDEN));
    // Where a group limits, the entry of a key is a limit as any other.
    let denied = status(&app(&admission), "/api", "banned").await;
    assert_eq!(denied, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn usage_has_no_limit_that_is_suspended() {
    let admission = Admission::new(&config(TEXT)).unwrap();
    let jobs = admission.leases("jobs").unwrap();
    let _lease = jobs.acquire(&acme(), "1").await.unwrap();
    let usage = async || {
        let usage = admission.limits().usage(&acme().into()).await;
        let jobs = usage.into_iter().find(|usage| &*usage.name == "jobs");
        jobs.map(|usage| (usage.limit, usage.is_override))
    };
    assert_eq!(usage().await, Some((Some(1), true)));
    let off = format!("enabled = false\n{TEXT}");
    admission.reload(&config(&off)).unwrap();
    assert_eq!(usage().await, Some((None, false)));
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn sockets_that_are_switched_off_only_count() {
    let text = format!("{TEXT}[sockets.web]\nconnections_per_key = 5\n");
    let admission = Admission::new(&config(&text)).unwrap();
    let limiter = admission.sockets("web").unwrap().limiter();
    let connected = || {
        let permits = std::iter::from_fn(|| limiter.try_acquire_for(&acme()).ok());
        permits.take(7).collect::<Vec<_>>().len()
    };
    assert_eq!(connected(), 1);
    let off = format!("{text}enabled = false");
    admission.reload(&config(&off)).unwrap();
    assert_eq!(connected(), 7);
    admission.reload(&config(&text)).unwrap();
    assert_eq!(connected(), 1);
    admission
        .reload(&config(&format!("enabled = false\n{text}")))
        .unwrap();
    assert_eq!(connected(), 7);
    admission.reload(&config(TEXT)).unwrap();
    assert_eq!(connected(), 7);
}

/// No list is asked about a lease, or about a key that a handler makes for a WebSocket.
#[tokio::test]
async fn bans_stay_where_no_request_is_looked_up() {
    let text = "[leases.jobs]\nper_tenant = 9\n[limits]\n'org:acme' = 'deny all'\n\
                'org:other' = 'jobs=deny all'\n";
    let admission = Admission::new(&config(text)).unwrap();
    let jobs = admission.leases("jobs").unwrap();
    let other = Key::id("org", "other");
    for (text, admits_other) in [
        (text.to_owned(), false),
        (format!("enabled = false\n{text}"), true),
        (text.to_owned(), false),
        (text.replace("[leases.jobs]", "[leases.more]"), true),
    ] {
        admission.reload(&config(&text)).unwrap();
        let banned = jobs.acquire_new(&acme()).await.unwrap_err();
        assert_eq!(banned.reason(), Reason::Denied, "{text}");
        let is_admitted = jobs.acquire_new(&other).await.is_ok();
        assert_eq!(is_admitted, admits_other, "{text}");
    }
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_banned_key_opens_no_socket_where_limits_are_off() {
    let text = "[sockets.web]\nconnections_per_key = 9\n[limits]\n'org:acme' = 'deny all'\n\
                'org:other' = 'web=deny all'\n";
    let off = config(&format!("enabled = false\n{text}"));
    let reloaded = Admission::new(&config(text)).unwrap();
    reloaded.reload(&off).unwrap();
    for admission in [reloaded, Admission::new(&off).unwrap()] {
        let limiter = admission.sockets("web").unwrap().limiter();
        assert!(limiter.try_acquire_for(&acme()).is_err());
        let other = Key::id("org", "other");
        assert!(limiter.try_acquire_for(&other).is_ok());
    }
}

/// Two switches are off, so nothing is rejected.
#[tokio::test]
async fn groups_and_lists_that_are_off_ban_no_one() {
    let text = format!("enabled = false\n{TEXT}[lists]\nenabled = false\n");
    let admission = Admission::new(&config(&text)).unwrap();
    let banned = status(&app(&admission), "/api", "banned").await;
    assert_eq!(banned, StatusCode::OK);
}

#[tokio::test]
async fn leases_with_an_observer_are_switched_off_with_the_others() {
    let text = "[leases.jobs]\nper_tenant = 1\n";
    let off = format!("enabled = false\n{text}");
    let admission = Admission::new(&config(&off)).unwrap();
    let jobs = admission.leases("jobs").unwrap();
    let jobs = jobs.observe(tower_admission::observe::TracingObserver::new());
    let mut held = Vec::new();
    for (text, admitted) in [(&*off, true), (&*off, true), (text, false), (&*off, true)] {
        admission.reload(&config(text)).unwrap();
        let acquired = jobs.acquire_new(&acme()).await;
        assert_eq!(acquired.is_ok(), admitted, "{text}");
        held.push(acquired);
    }
}

/// As an import of a backup does during an incident.
#[cfg(feature = "axum")]
#[tokio::test]
async fn overrides_of_what_is_suspended_can_be_set() {
    use axum::body::Body;
    use http::Request;
    use tower::ServiceExt;
    use tower_admission_axum::admin::Recorder;

    let on = "[admin]\ntoken = 'the-token-of-anna'\n[groups.api]\npath = '/api'\nrate = '1/h'\n\
              tiers.pro.rate = '2/h'\n[groups.batch]\npath = '/batch'\nrates.daily = '1/h'\n\
              tiers.max.rates.daily = '2/h'\n";
    let off = on.replace("path = '/batch'", "enabled = false\npath = '/batch'");
    let admission = |text: &str| {
        let config = config(text);
        let admission = Admission::builder(&config).tier_by(|_| None);
        admission.build().unwrap()
    };
    let put = async |admission: &Admission, limit: &str| {
        let request = Request::put("/limits/org:acme")
            .header("authorization", "Bearer the-token-of-anna")
            .header("content-type", "application/json");
        let body = format!("{{\"limit\": \"{limit}\"}}");
        let request = request.body(Body::from(body)).unwrap();
        let app: axum::Router = admission.admin(&Recorder::new()).build();
        app.oneshot(request).await.unwrap().status().as_u16()
    };
    let (started, reloaded) = (admission(&off), admission(on));
    reloaded.reload(&config(&off)).unwrap();
    let all_off = admission(&format!("enabled = false\n{on}"));
    for admission in [&started, &reloaded, &all_off] {
        for limit in ["batch.daily=9/day", "tier=max", "9/day", "5 concurrent"] {
            assert_eq!(put(admission, limit).await, 200, "{limit}");
        }
        assert_eq!(put(admission, "batch.dayly=9/day").await, 422);
    }
    // A group that is gone has no names.
    let gone = on.split("[groups.batch]").next().unwrap();
    started.reload(&config(gone)).unwrap();
    assert_eq!(put(&started, "batch.daily=9/day").await, 422);
}
