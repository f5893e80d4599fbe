//! With the admin endpoints of a real service: from the complaint of a client to the answer.

use std::net::SocketAddr;

use axum::Router;
use tower_admission::store::MemoryStore;
use tower_admission::{Key, KeyName, Limits, Override, Policy, RateLimiter, RequestHead};
use tower_admission_axum::admin::{AdminRouter, Recorder, RequestGroup, Role, Token, Tokens};

use crate::run::{Ran, end_with, program};

const ANNA: &str = "the-token-of-anna";
const SUPPORT: &str = "the-token-of-support";

struct Service {
    url: String,
    calls: RateLimiter,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Service {
    async fn start() -> Self {
        let limits = Limits::new();
        let calls = Policy::new("calls", "10/day".parse().unwrap()).tier("pro", "50/day");
        let calls = RateLimiter::with_limits(calls, &MemoryStore::new(), &limits);
        let of_file = Override::new("5/day".parse().unwrap());
        limits
            .set_base([("org:f".parse().unwrap(), of_file)])
            .unwrap();
        let tokens = Tokens::new([
            Token::named("anna", ANNA).unwrap(),
            Token::named("support", SUPPORT).unwrap().role(Role::Read),
        ]);
        let admin = AdminRouter::new(&limits, &Recorder::new(), tokens)
            .resolve_by(async |name: String| {
                (name == "Acme Inc.").then(|| "org:42".parse::<KeyName>().unwrap())
            })
            .groups(|head: RequestHead<'_>| {
                let group = RequestGroup::new("api").limit("calls");
                let is_api = head.uri.path().starts_with("/api");
                is_api.then_some(group).into_iter().collect::<Vec<_>>()
            });
        let app: Router = Router::new().nest("/admin", admin.build());
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/admin", listener.local_addr().unwrap());
        let serving = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self {
            url,
            calls,
            serving,
        }
    }

    async fn run(&self, token: &str, words: &[&str], stdin: &str) -> Ran {
        let mut command = program();
        command
            .args(words)
            .env("ADMISSION_ADMIN", &self.url)
            .env("ADMISSION_TOKEN", token);
        end_with(command, stdin).await
    }
}

#[tokio::test]
async fn a_complaint_is_answered_without_the_token_in_an_argument() {
    let service = Service::start().await;
    let key = Key::new("bearer", b"sk-horse");
    assert!(service.calls.decide(&[key], 10).await.is_admitted());
    let stdin = "Authorization: Bearer sk-horse\n";
    let name = KeyName::from(key).to_string();

    let words = ["explain", "--key-stdin", "--path", "/api/chat"];
    let explained = service.run(SUPPORT, &words, stdin).await.ok();
    let lines: Vec<_> = explained.lines().collect();
    assert_eq!(lines[..2], [&*format!("{name}: no override"), "group api"]);
    assert!(
        lines[3].starts_with(
            "calls  rate  10/day  default  10    rejected: quota exceeded, fits in 2h"
        )
    );
    let pid = std::process::id();
    let counted = format!("(pid {pid}): everything. Other replicas count separately");
    assert!(
        lines[4].starts_with("counted only by ") && lines[4].ends_with(&counted),
        "{explained}"
    );
    assert!(lines[5].starts_with("a request now: rejected: quota exceeded, fits in 2h"));
    assert!(lines[5].ends_with(" (calls)"), "{explained}");

    let get = service
        .run(SUPPORT, &["limits", "get", "--key-stdin"], stdin)
        .await;
    let expected = format!("{name}: no override\nNAME   LIMIT   FROM\ncalls  10/day  default");
    assert_eq!(get.ok(), expected);
    let set = ["limits", "set", "--key-stdin", "calls=20/day"];
    let denied = service.run(SUPPORT, &set, stdin).await.failed(3);
    assert!(denied.contains("the role `write`"), "{denied}");
    let set = service.run(ANNA, &set, stdin).await.ok();
    let expected = format!("{name}: calls=20/day (was the default)\nused: calls 10 of 20 (50%)");
    assert_eq!(set, expected);
    let explained = service.run(SUPPORT, &words, stdin).await.ok();
    let last = explained.lines().last().unwrap();
    assert_eq!(last, "a request now: admitted, 9 more after it (calls)");

    // Without a path, of all groups.
    let of_all = service.run(SUPPORT, &["explain", "org:other"], "").await;
    let of_all = of_all.ok();
    let last = of_all.lines().last().unwrap();
    assert!(
        last.starts_with("a request now: the path decides: set --path"),
        "{of_all}"
    );

    let changes = service
        .run(SUPPORT, &["limits", "changes", "-o", "json"], "")
        .await;
    let change = &changes.json()["changes"][0];
    assert_eq!(change["author"], "anna");
    assert_eq!(change["origin"], "ip:127.0.0.1");
    assert_eq!(change["after"]["limit"], "calls=20/day");
    assert!(change["at"].as_str().unwrap().ends_with('Z'), "{change}");
    let deleted = service
        .run(ANNA, &["limits", "delete", "--key-stdin", "--force"], stdin)
        .await;
    let expected = format!("{name}: the default (was calls=20/day): calls 10/day");
    assert_eq!(deleted.ok(), expected);
}

#[tokio::test]
async fn names_of_the_application_are_keys_and_slips_are_rejected() {
    let service = Service::start().await;
    let run = async |words: &[&str]| service.run(ANNA, words, "").await;
    let set = run(&["limits", "set", "Acme Inc.", "tier=pro"]).await.ok();
    assert!(
        set.starts_with("org:42: tier=pro (was the default)"),
        "{set}"
    );
    let get = run(&["limits", "get", "Acme Inc."]).await.ok();
    let lines: Vec<_> = get.lines().collect();
    assert_eq!(lines[0], "org:42: tier=pro (override)");
    assert!(lines[1].starts_with("set by anna at 2"), "{get}");
    assert_eq!(lines[3], "calls (pro)  50/day  stored tier");
    // With an end and a note, which the service keeps.
    let words = [
        "limits",
        "set",
        "Acme Inc.",
        "deny",
        "all",
        "--until",
        "2035-12-01T00:00:00Z",
        "--note",
        "ticket 4711",
    ];
    let set = run(&words).await.warned();
    let expected = "org:42: deny all until 2035-12-01T00:00:00Z (was tier=pro)";
    assert!(set.starts_with(expected), "{set}");
    let exported = run(&["limits", "export"]).await.ok();
    let expected = "\"org:42\" = { limit = \"deny all\", end = \"2035-12-01T00:00:00Z\", \
                    note = \"ticket 4711\", author = \"anna\" }";
    assert_eq!(exported.lines().last(), Some(expected));
    for (words, code, told) in [
        (
            &["limits", "set", "org:a", "cals=1/s"][..],
            3,
            "the names are calls",
        ),
        (
            &["limits", "set", "org:a", "tier=por"],
            3,
            "declared tiers: pro",
        ),
        (&["limits", "get", "Acme"], 3, "kind:name"),
        (&["explain", "org:a", "--tier", "por"], 3, "pro"),
        (
            &["explain", "org:a", "--address", "192.0.2.1"],
            3,
            "`address` requires a `path`",
        ),
        (
            &["limits", "set", "ip:203.0.113.0/24", "deny all"],
            3,
            "a network has no effect",
        ),
        (
            &["limits", "set", "ip:2002:cb00:7107::1", "unlimited"],
            3,
            "write ip:203.0.113.7",
        ),
        (
            &["limits", "get", "barer:horse"],
            2,
            "did you mean \"bearer\"?",
        ),
    ] {
        let rejected = run(words).await.failed(code);
        assert!(rejected.contains(told), "{words:?}: {rejected}");
        assert!(!rejected.contains("horse"), "{rejected}");
    }
    let wrong = service
        .run("not-a-token-of-any", &["limits", "list"], "")
        .await;
    assert!(wrong.failed(3).contains("reject the token"));
}

#[tokio::test]
async fn an_override_without_effect_is_rejected() {
    let service = Service::start().await;
    for (limit, told) in [
        (
            "5 concurrent",
            "5 concurrent has no effect on the limits of this service.",
        ),
        (
            "calls=5 concurrent, calls=1/s",
            "calls=5 concurrent has no effect on the limits of this service.",
        ),
    ] {
        let words = ["limits", "set", "org:a", limit];
        let rejected = service.run(ANNA, &words, "").await.failed(3);
        assert!(rejected.contains(told), "{rejected}");
    }
    for limit in ["9/day", "deny all", "tier=pro, calls=1/s"] {
        let words = ["limits", "set", "org:a", limit];
        assert_eq!(service.run(ANNA, &words, "").await.code, 0);
    }
}

#[tokio::test]
async fn a_ban_is_undone_by_a_service() {
    let service = Service::start().await;
    let run = async |words: &[&str]| service.run(ANNA, words, "").await;
    let plan = ["limits", "set", "org:a", "tier=pro", "--note", "a plan"];
    run(&plan).await.ok();
    let ban = run(&["limits", "set", "org:a", "deny all", "--for", "1h"]).await;
    assert_eq!(ban.code, 0, "{ban:?}");
    let told = "warning: tier=pro is not restored when this ends; to restore it then, run \
                `tower-admission limits undo org:a`, or: tower-admission limits set org:a tier=pro \
                --note 'a plan'\n";
    assert_eq!(ban.err, told);
    let undone = run(&["limits", "undo", "org:a", "--force"]).await.ok();
    assert!(
        undone.starts_with("org:a: tier=pro (was deny all until "),
        "{undone}"
    );
    let get = run(&["limits", "get", "org:a"]).await.ok();
    assert!(get.contains("set by anna") && get.contains(": a plan\n"));
    // Of another operator, as support may not change anything.
    let denied = service
        .run(SUPPORT, &["limits", "undo", "org:a", "--force"], "")
        .await;
    assert!(denied.failed(3).contains("the role `write`"));
    let none = run(&["limits", "undo", "org:b", "--force"]).await.failed(1);
    assert!(none.contains("nothing to undo"), "{none}");
}

/// What another operator sets while the question is read is not deleted with it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn only_what_was_shown_is_deleted() {
    let service = Service::start().await;
    let run = async |words: &[&str]| service.run(ANNA, words, "").await;
    run(&["limits", "set", "org:a", "9/day"]).await.ok();
    let environment = [
        ("ADMISSION_ADMIN", &*service.url),
        ("ADMISSION_TOKEN", ANNA),
    ];
    for (words, limit) in [("delete", "8/day"), ("undo", "7/day")] {
        let asking = crate::run::ask(&format!("limits {words} org:a"), &environment).await;
        run(&["limits", "set", "org:a", limit]).await.ok();
        let printed = asking.answer("y\n").await;
        let told = format!("was changed by someone else, to {limit}");
        assert!(printed.contains(&told), "{printed}");
        let get = run(&["limits", "get", "org:a"]).await.ok();
        assert!(get.starts_with(&format!("org:a: {limit} (override)")));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_limit_of_the_file_stays_under_what_is_set() {
    let service = Service::start().await;
    let run = async |words: &[&str]| service.run(ANNA, words, "").await;
    let get = run(&["limits", "get", "org:f"]).await.ok();
    assert!(get.starts_with("org:f: 5/day (from the file)"), "{get}");
    let deleted = run(&["limits", "delete", "org:f", "--force"]).await;
    assert!(deleted.failed(3).contains("from the configuration file"));
    assert_eq!(run(&["limits", "export"]).await.ok(), "[limits]");
    let set = run(&["limits", "set", "org:f", "6/day"]).await.ok();
    assert!(
        set.starts_with("org:f: 6/day (was 5/day from the file)"),
        "{set}"
    );
    let environment = [
        ("ADMISSION_ADMIN", &*service.url),
        ("ADMISSION_TOKEN", ANNA),
    ];
    let asking = crate::run::ask("limits delete org:f", &environment).await;
    let printed = asking.answer("y\n").await;
    let question = "Delete the limit of org:f (6/day)? 5/day from the file applies afterwards.";
    assert!(printed.contains(question), "{printed}");
    assert!(
        printed.contains("org:f: 5/day from the file (was 6/day)"),
        "{printed}"
    );
    // What was there before can be restored.
    let undo = ["limits", "undo", "org:f", "--force"];
    assert_eq!(run(&undo).await.ok(), "org:f: 6/day (was none)");
    assert_eq!(
        run(&undo).await.ok(),
        "org:f: 5/day from the file (was 6/day)"
    );
}
