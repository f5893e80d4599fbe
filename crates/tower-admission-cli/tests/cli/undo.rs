//! Undoing the last change of a key's limit, in Redis.

use tower_admission::{Limits, Override, Policy, RateLimiter};

use crate::run::{Ran, end, program};
use crate::server::{Server, until};

struct Service {
    server: Server,
    limits: Limits,
    _calls: RateLimiter,
}

impl Service {
    async fn start() -> Self {
        let server = Server::start().await;
        let limits = Limits::in_store(&server.store());
        let calls = Policy::new("calls", "10/day".parse().unwrap());
        let calls = RateLimiter::with_limits(calls, &server.store(), &limits);
        until("it is written down", async || {
            let hash = "{admission:limits}:limiters";
            let names = server.command(&["HKEYS", hash]).await;
            format!("{names:?}").contains("name calls")
        })
        .await;
        Self {
            server,
            limits,
            _calls: calls,
        }
    }

    async fn run(&self, words: &[&str]) -> Ran {
        let mut command = program();
        command
            .args(words)
            .env("ADMISSION_REDIS", self.server.url());
        end(command).await
    }

    async fn own(&self, key: &str) -> Option<Override> {
        self.limits.refresh().await.unwrap();
        self.limits.get_override(&key.parse().unwrap())
    }
}

#[tokio::test]
async fn the_last_change_is_undone_with_end_and_note() {
    let service = Service::start().await;
    let run = async |words: &[&str]| service.run(words).await;
    let plan = ["limits", "set", "org:acme", "20/day", "--note", "a plan"];
    run(&plan).await.ok();
    let banned = run(&["limits", "set", "org:acme", "deny all", "--for", "1h"]).await;
    let told = "tower-admission limits set org:acme 20/day --note 'a plan'\n";
    assert!(
        banned
            .err
            .contains("`tower-admission limits undo org:acme`")
    );
    assert!(banned.err.ends_with(told), "{banned:?}");
    let asked = run(&["limits", "undo", "org:acme"]).await.failed(2);
    assert!(asked.contains("--force"), "{asked}");

    let undo = ["limits", "undo", "org:acme", "--force", "--as", "bob"];
    let undone = run(&undo).await.ok();
    assert!(
        undone.starts_with("org:acme: 20/day (was deny all until 2"),
        "{undone}"
    );
    let own = service.own("org:acme").await.unwrap();
    assert_eq!((own.note(), own.author()), (Some("a plan"), Some("bob")));
    assert_eq!(own.end(), None);
    let changes = run(&["limits", "changes", "-n", "1"]).await.ok();
    assert!(changes.contains("-> 20/day, by bob"), "{changes}");
    // Undone again, it is the ban, with its end.
    let undone = run(&[&undo[..], &["-o", "json"]].concat()).await.json();
    assert_eq!(undone["after"]["limit"], "deny all");
    assert!(service.own("org:acme").await.unwrap().end().is_some());
}

#[tokio::test]
async fn a_first_limit_is_undone_by_its_deletion_and_a_deletion_by_the_limit() {
    let service = Service::start().await;
    let undo = ["limits", "undo", "org:a", "--force"];
    let none = service.run(&undo).await.failed(1);
    assert!(none.contains("no change of org:a is among"), "{none}");
    service.run(&["limits", "set", "org:a", "5/day"]).await.ok();
    let undone = service.run(&undo).await.ok();
    assert_eq!(undone, "org:a: the default (was 5/day)");
    assert_eq!(service.own("org:a").await, None);
    let undone = service.run(&undo).await.ok();
    assert_eq!(undone, "org:a: 5/day (was none)");
    assert!(service.own("org:a").await.is_some());
}

#[tokio::test]
async fn what_was_changed_since_or_has_ended_is_not_undone() {
    let service = Service::start().await;
    let set = ["HSET", "{admission:limits}:of", "org:a", "7/day"];
    let trail = async |change: &str| {
        let push = ["LPUSH", "{admission:limits}:audit", change];
        service.server.command(&push).await.unwrap();
    };
    service.server.command(&set).await.unwrap();
    trail(r#"{"at":1000,"key":"org:a","before":"4/day","after":"5/day"}"#).await;
    let undo = ["limits", "undo", "org:a", "--force"];
    let refused = service.run(&undo).await.failed(3);
    let told = "the limit of org:a is 7/day, but its last change left: ";
    assert!(refused.contains(told), "{refused}");
    trail(r#"{"at":1000,"key":"org:a","before":"5/day\nend: 1000","after":"7/day"}"#).await;
    let refused = service.run(&undo).await.failed(3);
    assert!(refused.contains("has ended at 1970"), "{refused}");

    // The end of a ban is undone with the ban.
    let undo = ["limits", "undo", "org:b", "--force"];
    trail(r#"{"at":1000,"key":"org:b","before":"4/day","after":"deny all\nend: 1000"}"#).await;
    trail(r#"{"at":1000,"key":"org:b","before":"deny all\nend: 1000","ended":true}"#).await;
    let undone = service.run(&undo).await.ok();
    assert_eq!(undone, "org:b: 4/day (was none)");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn only_what_was_shown_is_changed() {
    let service = Service::start().await;
    service.run(&["limits", "set", "org:a", "5/day"]).await.ok();
    let url = service.server.url();
    for (words, limit) in [("delete", "6/day"), ("undo", "7/day")] {
        let words = format!("limits {words} org:a");
        let asking = crate::run::ask(&words, &[("ADMISSION_REDIS", &*url)]).await;
        service.run(&["limits", "set", "org:a", limit]).await.ok();
        let printed = asking.answer("y\n").await;
        let told = format!("the limit of org:a was changed by someone else, to {limit}");
        assert!(printed.contains(&told), "{printed}");
    }
    let asking = crate::run::ask("limits undo org:a", &[("ADMISSION_REDIS", &*url)]).await;
    let printed = asking.answer("n\n").await;
    assert!(printed.contains("org:a: 7/day (not undone)"), "{printed}");
    assert!(service.own("org:a").await.is_some());
}
