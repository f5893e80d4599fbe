//! Tiers of a group's rates.

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::{HeaderValue, Request, StatusCode};
use tower::ServiceExt;
use tower_admission::RequestHead;
use tower_admission::config::{Admission, Config};

use super::{File, config};

const TIERED: &str = r#"
    [groups.api]
    path = "/api"
    rate = "3/h"
    rate_per_ip = "100/h"
    [groups.api.tiers.pro]
    rates = { burst = "6/h", daily = "8/day sliding" }
    [groups.api.tiers.staff]
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
async fn a_group_has_tiers() {
    let app = app(&tiered(TIERED));
    let (free, told) = admitted(&app, "free").await;
    assert_eq!(free, 3);
    assert_eq!(told.unwrap(), "\"api\";q=3;w=3600, \"api.ip\";q=100;w=3600");
    let (pro, told) = admitted(&app, "pro").await;
    assert_eq!(pro, 3);
    let told = told.unwrap();
    assert!(
        told.to_str()
            .unwrap()
            .starts_with("\"api.burst\";q=6;w=3600, \"api.daily\";q=8")
    );
    assert_eq!(admitted(&app, "staff").await.0, 20);
    assert_eq!(admitted(&app, "free").await.0, 0);
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
    assert_eq!(admitted(&app, "free").await.0, 0);
    // Without them it is another rate.
    admission
        .reload(&config("[groups.api]\npath = '/api'\nrate = '3/h'"))
        .unwrap();
    assert_eq!(admitted(&app, "pro").await.0, 3);
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
fn what_is_wrong_in_a_tier_is_told() {
    super::agree();
    for (tier, expected) in [
        ("rat = '1/h'", "groups.api.tiers.pro: unknown field `rat`"),
        ("rate = '1/0s'", "groups.api.tiers.pro.rate: "),
        (
            "rate = '1/h'\nrates = { a = '1/h' }",
            "groups.api.tiers.pro.rate: give either",
        ),
        (
            "rates = { ip = '1/h' }",
            "groups.api.rate_per_ip: `groups.api.tiers.pro.rates.ip` is called",
        ),
        ("rates = { 'é' = '1/h' }", "groups.api.tiers.pro.rates.é: "),
    ] {
        let text = format!("[groups.api]\nrate_per_ip = '1/h'\n[groups.api.tiers.pro]\n{tier}");
        let error = Config::from_toml(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = Config::from_toml("[groups.api]\n[groups.api.tiers.'']\nrate = '1/h'").unwrap_err();
    assert!(error.to_string().contains("printable ASCII"), "{error}");
    let many: String = (0..9)
        .map(|n| format!("[groups.api.tiers.t{n}]\nrate = '1/h'\n"))
        .collect();
    let error = Config::from_toml(&many).unwrap_err();
    assert!(error.to_string().contains("at most 8 tiers"), "{error}");
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
