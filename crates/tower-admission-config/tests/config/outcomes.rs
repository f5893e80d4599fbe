//! Rates that count only some outcomes, or that are enforced only for a part of the keys.

use axum::Router;
use axum::extract::Path;
use axum::routing::any;
use http::StatusCode;
use tower_admission_config::{Admission, Config};

use super::{File, app, config, status};

/// Answers with the status in the path.
fn obeying(admission: &Admission) -> Router {
    let answer = async |Path(code): Path<u16>| StatusCode::from_u16(code).unwrap();
    Router::new()
        .route("/api/{code}", any(answer))
        .layer(admission.layer())
}

const LOGINS: &str = "[groups.login]\npath = '/api'\nkey = 'ip'\nrate = '2/h'\n";

async fn statuses(app: &Router, codes: &[u16]) -> Vec<u16> {
    let mut statuses = Vec::new();
    for code in codes {
        let answer = status(app, &format!("/api/{code}"), "token").await;
        statuses.push(answer.as_u16());
    }
    statuses
}

#[tokio::test]
async fn a_group_counts_the_outcomes_that_it_names() {
    for (count, counted, others) in [
        ("'401'", 401, [200, 403]),
        ("'4xx'", 404, [200, 500]),
        ("'401, 403'", 403, [200, 404]),
        ("['401', '5xx']", 500, [200, 404]),
        ("'!2xx'", 302, [200, 204]),
        ("'4xx, !404'", 400, [404, 200]),
    ] {
        let admission = Admission::new(&config(&format!("{LOGINS}count = {count}"))).unwrap();
        let app = obeying(&admission);
        let [a, b] = others;
        let answers = statuses(&app, &[a, b, a, b, counted, a, counted, a]).await;
        assert_eq!(answers, [a, b, a, b, counted, a, counted, 429], "{count}");
    }
}

#[tokio::test]
async fn outcomes_are_changed_without_a_restart_and_by_the_environment() {
    let admission = Admission::new(&config(LOGINS)).unwrap();
    let app = obeying(&admission);
    assert_eq!(statuses(&app, &[200]).await, [200]);
    let file = File::new(LOGINS);
    let variable = ("ADMISSION_GROUPS__LOGIN__COUNT", "401, 403");
    admission.reload(&file.load(&[variable]).unwrap()).unwrap();
    let answers = statuses(&app, &[200, 200, 200, 401, 200]).await;
    assert_eq!(answers, [200, 200, 200, 401, 429]);
}

#[tokio::test]
async fn a_group_is_enforced_for_a_part_of_its_keys() {
    let group = |enforce| {
        let text = format!("[groups.api]\npath = '/api'\nrate = 'deny all'\n{enforce}");
        app(&Admission::new(&config(&text)).unwrap())
    };
    let rejected = async |app: &Router| {
        let mut rejected = 0;
        for n in 0..200 {
            let answer = status(app, "/api/chat", &format!("token-{n}")).await;
            rejected += usize::from(answer == StatusCode::FORBIDDEN);
        }
        rejected
    };
    assert_eq!(rejected(&group("enforce = 0")).await, 0);
    assert_eq!(rejected(&group("dry_run = true")).await, 0);
    let part = rejected(&group("enforce = 25")).await;
    // 50 with a standard deviation of 6.
    assert!((10..100).contains(&part), "{part}");
    assert_eq!(rejected(&group("enforce = 100")).await, 200);
    assert_eq!(rejected(&group("")).await, 200);
}

#[test]
fn a_wrong_outcome_or_percentage_is_told() {
    for (line, problem) in [
        ("count = '4x'", "\"4x\" is not a status: use"),
        ("count = ''", "\"\" is not a status: use"),
        ("count = []", "\"\" is not a status: use"),
        ("count = 401", "expected text or a list of texts"),
        ("enforce = 101", "use 0 to 100"),
        ("enforce = '25%'", "expected a whole number from 0 to 255"),
        ("enforce = 25\ndry_run = true", "use either `enforce` or"),
    ] {
        let error = Config::from_toml(&format!("{LOGINS}{line}")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(problem), "{line}: {error}");
        let field = line.split(' ').next().unwrap();
        assert!(error.contains(&format!("groups.login.{field}")), "{error}");
    }
    let both = format!("{LOGINS}enforce = 25\ndry_run = false");
    assert!(Config::from_toml(&both).is_ok());
}
