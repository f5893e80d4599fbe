//! Tiers of a group's rates.

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::{HeaderValue, Request, StatusCode};
use tower::ServiceExt;
use tower_admission::{Limit, RequestHead};
use tower_admission_config::{Admission, Config};

use super::{File, config};

const TIERED: &str = r#"
    [groups.api]
    path = "/api"
    rates = { burst = "3/h", daily = "50/day" }
    rate_per_ip = "100/h"
    [groups.api.tiers.pro]
    rates = { burst = "6/h", weekly = "20 per 7d sliding" }
    [groups.api.tiers.staff]
    rate = "off"
"#;

fn plan<'a>(head: RequestHead<'a>) -> Option<&'a str> {
    head.headers.get("plan")?.to_str().ok()
}

fn tiered(text: &str) -> Admission {
    Admission::builder(&config(text))
        .tier_by(plan)
        .build()
        .unwrap()
}

fn app(admission: &Admission) -> Router {
    let app = Router::new().route("/{*path}", any(|| async { "ok" }));
    app.layer(admission.layer())
}

/// How many of a plan are admitted, and the policy that is told.
async fn admitted(app: &Router, plan: &'static str) -> (u32, Option<HeaderValue>) {
    let mut admitted = 0;
    loop {
        let request = Request::get("/api").header("authorization", "Bearer alice");
        let request = request.header("plan", plan).body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        if response.status() != StatusCode::OK || admitted == 20 {
            return (
                admitted,
                response.headers().get("ratelimit-policy").cloned(),
            );
        }
        admitted += 1;
    }
}

#[tokio::test]
async fn each_tier_of_a_group_counts_apart() {
    let app = app(&tiered(TIERED));
    let (free, told) = admitted(&app, "free").await;
    assert_eq!(free, 3);
    assert_eq!(
        told.unwrap(),
        "\"api.burst\";q=3;w=3600, \"api.daily\";q=50;w=86400, \"api.ip\";q=100;w=3600"
    );
    // A rate that the tier does not name keeps its default; one that only the tier names is off for the others.
    let (pro, told) = admitted(&app, "pro").await;
    assert_eq!(pro, 6);
    assert_eq!(
        told.unwrap(),
        "\"api.burst\";q=6;w=3600, \"api.daily\";q=50;w=86400, \"api.weekly\";q=20;w=604800, \
         \"api.ip\";q=100;w=3600"
    );
    let (staff, told) = admitted(&app, "staff").await;
    assert_eq!(staff, 20);
    assert_eq!(told.unwrap(), "\"api.ip\";q=100;w=3600");
    assert_eq!(admitted(&app, "free").await.0, 0);
    assert_eq!(admitted(&app, "pro").await.0, 0);
}

#[tokio::test]
async fn off_lifts_one_rate_or_all() {
    for (tier, policy) in [
        (
            "rates = { burst = 'off' }",
            Some("\"api.daily\";q=50;w=86400"),
        ),
        (
            "rates = { daily = 'off' }",
            Some("\"api.burst\";q=3;w=3600"),
        ),
        ("rate = 'off'", None),
        ("rate = '0'", None),
        (
            "rate = '9/h'",
            Some("\"api.burst\";q=3;w=3600, \"api.daily\";q=50;w=86400, \"api\";q=9;w=3600"),
        ),
    ] {
        let text = "[groups.api]\npath = '/api'\nrates = { burst = '3/h', daily = '50/day' }";
        let app = app(&tiered(&format!("{text}\n[groups.api.tiers.pro]\n{tier}")));
        let (_, told) = admitted(&app, "pro").await;
        let told = told.as_ref().map(|told| told.to_str().unwrap());
        assert_eq!(told, policy, "{tier}");
    }
    let denied = "[groups.api]\npath = '/api'\nrate = '3/h'\ntiers.banned.rate = 'deny all'";
    let app = app(&tiered(denied));
    assert_eq!(admitted(&app, "banned").await.0, 0);
    assert_eq!(admitted(&app, "free").await.0, 3);
}

#[tokio::test]
async fn a_changed_tier_keeps_what_is_used() {
    let admission = tiered(TIERED);
    let app = app(&admission);
    assert_eq!(admitted(&app, "pro").await.0, 6);
    admission
        .reload(&config(&TIERED.replace("6/h", "7/h")))
        .unwrap();
    assert_eq!(admitted(&app, "pro").await.0, 1);
    assert_eq!(admitted(&app, "free").await.0, 3);
    // A tier that is added or taken out changes nothing for the others.
    let other = "[groups.api.tiers.other]\nrates = { burst = '2/h' }";
    admission
        .reload(&config(&format!("{TIERED}\n{other}")))
        .unwrap();
    assert_eq!(admitted(&app, "other").await.0, 2);
    for plan in ["pro", "free"] {
        assert_eq!(admitted(&app, plan).await.0, 0, "{plan}");
    }
    admission.reload(&config(TIERED)).unwrap();
    for plan in ["pro", "free", "other"] {
        assert_eq!(admitted(&app, plan).await.0, 0, "{plan}");
    }
}

/// A limiter has room for 16 tiers in its life. Beyond that a group begins with a new one, not with wrong numbers.
#[tokio::test]
async fn tiers_are_renamed_as_often_as_one_likes() {
    let text = |n: u32| {
        let group = "[groups.api]\npath = '/api'\nrate = '3/h'";
        config(&format!("{group}\n[groups.api.tiers.t{n}]\nrate = '5/h'"))
    };
    let admission = Admission::builder(&text(0)).tier_by(plan).build().unwrap();
    let app = app(&admission);
    for n in 1..40 {
        admission.reload(&text(n)).unwrap();
        let plan: &'static str = format!("t{n}").leak();
        assert_eq!(admitted(&app, plan).await.0, 5, "{plan}");
    }
}

#[tokio::test]
async fn the_environment_sets_tiers() {
    let file = File::new(TIERED);
    let config = file.load(&[("ADMISSION_GROUPS__API__TIERS__GUEST__RATE", "1/h")]);
    let admission = Admission::builder(&config.unwrap())
        .tier_by(plan)
        .build()
        .unwrap();
    assert_eq!(admitted(&app(&admission), "guest").await.0, 1);
}

#[test]
fn an_invalid_tier_is_an_error() {
    super::agree();
    for (tier, expected) in [
        ("rat = '1/h'", "groups.api.tiers.pro: unknown field `rat`"),
        ("rate = '1/0s'", "groups.api.tiers.pro.rate: "),
        (
            "rate = '1/h'\nrates = { a = '1/h' }",
            "groups.api.tiers.pro.rate: use either",
        ),
        (
            "rates = { ip = '1/h' }",
            "groups.api.rate_per_ip: `groups.api.tiers.pro.rates.ip` already has the name",
        ),
        ("", "groups.api.tiers.pro: this tier has no rate"),
        (
            "rate = '1/h sliding'",
            "groups.api.tiers.pro: a rate must be sliding in the group and in the tier",
        ),
        ("rates = { 'é' = '1/h' }", "groups.api.tiers.pro.rates.é: "),
    ] {
        let group = "rate = '1/h'\nrate_per_ip = '1/h'";
        let text = format!("[groups.api]\n{group}\n[groups.api.tiers.pro]\n{tier}");
        let error = Config::from_toml(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = Config::from_toml("[groups.api]\n[groups.api.tiers.'']\nrate = '1/h'").unwrap_err();
    assert!(error.to_string().contains("printable ASCII"), "{error}");
    let many: String = (0..17)
        .map(|n| format!("[groups.api.tiers.t{n}]\nrate = '1/h'\n"))
        .collect();
    let error = Config::from_toml(&many).unwrap_err();
    assert!(error.to_string().contains("at most 16 tiers"), "{error}");
}

#[test]
fn tiers_that_nobody_is_in_are_an_error() {
    let error = Admission::new(&config(TIERED)).unwrap_err().to_string();
    assert!(
        error.contains("groups.api.tiers: ") && error.contains("tier_by"),
        "{error}"
    );
    let untold = Admission::new(&config("[groups.api]\nrate = '3/h'")).unwrap();
    let error = untold.reload(&config(TIERED)).unwrap_err().to_string();
    assert!(error.contains("groups.api.tiers: "), "{error}");
}

/// Of the first request as well, which is there before the layers have been applied to another one.
#[tokio::test]
async fn nested_routers_count_each_request_once() {
    let text = "[groups.api]\npath = '/api'\nrate = '3/h'\nconcurrency = 1";
    let admission = Admission::new(&config(text)).unwrap();
    let inner = Router::new().route("/api", any(|| async { "ok" }));
    let inner = inner.layer(admission.layer_of("api").unwrap());
    let app = Router::new()
        .fallback_service(inner)
        .layer(admission.layer());
    assert_eq!(admitted(&app, "none").await.0, 3);
    // Nor does the first of a limit that a reload begins.
    let text = text.replace("rate = '3/h'", "rates = { burst = '4/h' }");
    admission.reload(&config(&text)).unwrap();
    assert_eq!(admitted(&app, "none").await.0, 4);
}

#[tokio::test]
async fn tiers_of_the_limits_are_selected_as_well() {
    let text = "[groups.api]\npath = '/api'\nrate = '3/h'\nconcurrency_per_key = 1";
    for tiers in ["", "\ntiers.max.rate = '5/h'"] {
        let admission = tiered(&format!("{text}{tiers}"));
        let limits = admission.limits();
        limits.try_tier("pro", "api=7/h".parse().unwrap()).unwrap();
        let app = app(&admission);
        assert_eq!(admitted(&app, "pro").await.0, 7);
        assert_eq!(admitted(&app, "free").await.0, 3);
        limits.try_tier("banned", Limit::deny_all()).unwrap();
        let request = Request::get("/api").header("plan", "banned");
        let response = app.oneshot(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.unwrap().status(), StatusCode::FORBIDDEN);
    }
}

/// All tiers of the limits and all of a group are within the bounds of both.
#[tokio::test]
async fn tiers_of_the_limits_leave_room_for_those_of_a_group() {
    let text = |rates: &str| {
        let tiers = (0..16).map(|n| format!("tiers.p{n}.rates = {{ {rates} = '5/h' }}\n"));
        let tiers: String = tiers.collect();
        config(&format!(
            "[groups.api]\npath = '/api'\nrates = {{ {rates} = '3/h' }}\n{tiers}"
        ))
    };
    let admission = Admission::builder(&text("a"))
        .tier_by(plan)
        .build()
        .unwrap();
    for n in 0..16 {
        let limit = "api.a=7/h, api.b=8/h".parse().unwrap();
        admission
            .limits()
            .try_tier(&format!("l{n}"), limit)
            .unwrap();
    }
    let app = app(&admission);
    assert_eq!(admitted(&app, "p15").await.0, 5);
    assert_eq!(admitted(&app, "l15").await.0, 7);
    admission.reload(&text("b")).unwrap();
    assert_eq!(admitted(&app, "p15").await.0, 5);
    assert_eq!(admitted(&app, "l15").await.0, 8);
}

#[tokio::test]
async fn a_tier_that_becomes_sliding_is_counted_so() {
    let text = |rate: &str| format!("[groups.api]\npath = '/api'\ntiers.pro.rate = '{rate}'");
    let admission = tiered(&text("10/h"));
    let app = app(&admission);
    assert_eq!(admitted(&app, "pro").await.0, 10);
    admission
        .reload(&config(&text("10/h burst 5 sliding")))
        .unwrap();
    // A new rate, with nothing used.
    assert_eq!(admitted(&app, "pro").await.0, 15);
}
