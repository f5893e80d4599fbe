//! A reload opens no second limiter where the first one counts in Redis.

use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use http::StatusCode;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tower_admission_config::{Admission, Config};

use super::server::Server;
use super::{NOTHING, admitted, app, config, status};

fn in_redis(server: &Server, groups: &str) -> Config {
    config(&format!(
        "store = {{ url = '{}', secret = '07070707070707070707070707070707', deadline = '2s' }}\n{groups}",
        server.url()
    ))
}

/// What rate limiters there are called.
async fn limiters(server: &Server) -> Vec<String> {
    let keys = server.keys().await.into_iter();
    let names =
        keys.filter_map(|key| Some(key.split_once(":rate:")?.1.split(':').next()?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    names
}

/// A request that a handler works at.
struct Held {
    leave: Arc<Notify>,
    answer: JoinHandle<StatusCode>,
}

impl Held {
    async fn new(admission: &Admission) -> Self {
        let (entered, mut inside) = mpsc::channel(1);
        let leave = Arc::new(Notify::new());
        let waits = leave.clone();
        let held = any(move || async move {
            entered.send(()).await.unwrap();
            waits.notified().await;
        });
        let app = Router::new().route("/api/held", held);
        let app = app.layer(admission.layer());
        let answer = tokio::spawn(async move { status(&app, "/api/held", "carol").await });
        inside.recv().await.unwrap();
        Self { leave, answer }
    }

    async fn end(self) {
        self.leave.notify_one();
        assert_eq!(self.answer.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn groups_go_on_by_their_names() {
    let server = Server::start().await;
    let groups = |one: &str, two: &str| {
        in_redis(
            &server,
            &format!(
                "[groups.api]\nname = '{one}'\npath = '/{one}'\nrate = '5/h'\n\
                 [groups.{two}]\nname = '{two}'\npath = '/{two}'\nrate = '7/h'"
            ),
        )
    };
    let swapped = in_redis(
        &server,
        "[groups.api]\nname = 'Y'\npath = '/Y'\nrate = '7/h'\n\
         [groups.Y]\nname = 'X'\npath = '/X'\nrate = '5/h'",
    );
    let renamed = in_redis(
        &server,
        "[groups.api2]\nname = 'X'\npath = '/X'\nrate = '5/h'\n\
         [groups.api]\nname = 'Z'\npath = '/Z'\nrate = '7/h'",
    );
    let admission = Admission::new(&groups("X", "Y")).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/X", "alice").await, 5);
    assert_eq!(admitted(&app, "/Y", "alice").await, 7);
    admission.reload(&swapped).unwrap();
    assert_eq!(admitted(&app, "/X", "alice").await, 0);
    assert_eq!(admitted(&app, "/Y", "alice").await, 0);
    admission.reload(&renamed).unwrap();
    assert_eq!(admitted(&app, "/X", "alice").await, 0);
    assert_eq!(admitted(&app, "/Z", "alice").await, 7);
    assert_eq!(limiters(&server).await, ["X", "Y", "Z"]);
    // Also where another group's rate has the name.
    admission
        .reload(&in_redis(
            &server,
            "[groups.a]\nname = 'A'\npath = '/A'\nrates = { b = '5/h' }",
        ))
        .unwrap();
    assert_eq!(admitted(&app, "/A", "alice").await, 5);
    admission
        .reload(&in_redis(
            &server,
            "[groups.'A.b']\npath = '/A'\nrate = '5/h'",
        ))
        .unwrap();
    assert_eq!(admitted(&app, "/A", "alice").await, 0);
    assert_eq!(limiters(&server).await, ["A%2Eb", "X", "Y", "Z"]);
}

#[tokio::test]
async fn a_rate_that_is_off_for_a_while_goes_on() {
    let server = Server::start().await;
    let rate = |rate: &str| {
        in_redis(
            &server,
            &format!("[groups.api]\npath = '/api'\nrate = '{rate}'"),
        )
    };
    let admission = Admission::new(&rate("5/h")).unwrap();
    let app = app(&admission);
    for between in [rate("0"), in_redis(&server, NOTHING)] {
        let held = Held::new(&admission).await;
        admission.reload(&between).unwrap();
        admission.reload(&rate("5/h")).unwrap();
        admitted(&app, "/api/x", "alice").await;
        held.end().await;
        assert_eq!(
            status(&app, "/api/x", "alice").await,
            StatusCode::TOO_MANY_REQUESTS
        );
        assert_eq!(limiters(&server).await, ["api"]);
    }
}

/// What is in flight from before a change holds a limiter whose place another one has taken by then.
#[tokio::test]
async fn a_request_in_flight_takes_no_name_from_a_resumed_limiter() {
    let server = Server::start().await;
    let group = |rest: &str| in_redis(&server, &format!("[groups.api]\npath = '/api'\n{rest}"));
    let both = "rate = '5/h'\nrate_per_ip = '100/h'";
    for (first, second) in [("rate = '5/h'", both), (both, "rate = '5/h'")] {
        server.clear().await;
        let admission = Admission::new(&group(first)).unwrap();
        let app = app(&admission);
        let held = Held::new(&admission).await;
        // Nothing limits what is in flight, so that Redis is not asked for it.
        let keys = server.keys().await;
        assert!(keys.iter().all(|key| !key.contains("lease")), "{keys:?}");
        admission.reload(&group(second)).unwrap();
        assert_eq!(status(&app, "/api", "alice").await, StatusCode::OK);
        admission.reload(&group(first)).unwrap();
        // Nobody is told twice of what has one name.
        let alice: tower_admission::KeyName = "bearer:alice".parse().unwrap();
        let usage = admission.limits().usage(&alice).await;
        assert_eq!(
            usage.iter().filter(|usage| *usage.name == *"api").count(),
            1
        );
        let replica = Admission::new(&group(first)).unwrap();
        let replica = super::app(&replica);
        let bob = admitted(&app, "/api", "bob").await + admitted(&replica, "/api", "bob").await;
        assert_eq!(bob, 5, "{first}");
        held.end().await;
        let limiters = limiters(&server).await;
        assert!(
            limiters.iter().all(|name| !name.contains('*')),
            "{limiters:?}"
        );
    }
}

#[tokio::test]
async fn a_group_that_comes_back_with_another_way_to_fail_counts_in_its_place() {
    let server = Server::start().await;
    let group = |mode: &str| {
        let text = format!("[groups.api]\npath = '/api'\nrate = '5/h'\non_failure = '{mode}'");
        in_redis(&server, &text)
    };
    let admission = Admission::new(&group("open")).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    admission.reload(&in_redis(&server, NOTHING)).unwrap();
    admission.reload(&group("closed")).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 0);
    assert_eq!(limiters(&server).await, ["api"]);
}
