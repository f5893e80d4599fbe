//! While the store has lost limits that services keep.

use tower_admission::{Limits, Policy, RateLimiter};

use crate::run::{Ran, end, end_with, program};
use crate::server::{Server, until};

const HASH: &str = "{admission:limits}:limiters";

/// A service that keeps a limit for acme, which its store has lost.
struct Service {
    limits: Limits,
    _calls: RateLimiter,
}

impl Service {
    async fn start(server: &Server) -> Self {
        let limits = Limits::in_store(&server.store());
        let calls = Policy::new("calls", "10/day".parse().unwrap());
        let calls = RateLimiter::with_limits(calls, &server.store(), &limits);
        let key = "org:acme".parse().unwrap();
        limits.set(&key, "20/day".parse().unwrap()).await.unwrap();
        server.command(&["FLUSHALL"]).await.unwrap();
        let service = Self {
            limits,
            _calls: calls,
        };
        service.publishes(server, true).await;
        service
    }

    async fn publishes(&self, server: &Server, lost: bool) {
        until("the loss is written down", async || {
            let names = format!("{:?}", server.command(&["HKEYS", HASH]).await);
            names.contains("name calls") && names.contains("lost ") == lost
        })
        .await;
    }
}

async fn run(server: &Server, words: &[&str]) -> Ran {
    let mut command = program();
    command
        .args(words)
        .env("ADMISSION_REDIS", server.url())
        .env("ADMISSION_SECRET", "07".repeat(16));
    end(command).await
}

#[tokio::test]
async fn each_command_says_that_the_store_has_lost_limits() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let run = async |words: &[&str]| run(&server, words).await;
    for (words, code, out, err) in [
        (
            &["limits", "get", "org:acme"][..],
            0,
            "org:acme: no override in the store\n",
            "",
        ),
        (
            &["limits", "ls"],
            0,
            "no key has an override in the store\n",
            "",
        ),
        (&["usage", "org:acme"], 0, "org:acme: ", ""),
        (&["explain", "org:acme"], 0, "org:acme: ", ""),
        (&["limits", "changes"], 0, "no changes\n", ""),
        (
            &["limits", "delete", "org:acme", "--force"],
            1,
            "",
            "this may be one of them",
        ),
        (
            &["limits", "undo", "org:acme", "--force"],
            1,
            "",
            "nothing to undo",
        ),
        (&["limits", "export"], 3, "", "--force"),
        (&["limits", "export", "--force"], 0, "[limits]\n", ""),
        (&["cache", "clear"], 0, "all services", ""),
        (
            &["limits", "set", "org:b", "5/day"],
            0,
            "org:b: 5/day (the store had none)\n",
            "",
        ),
    ] {
        let ran = run(words).await;
        assert_eq!(ran.code, code, "{words:?}: {ran:?}");
        assert!(ran.out.starts_with(out), "{words:?}: {ran:?}");
        let told = "warning: the store has lost up to 1 limit, which services keep";
        assert!(ran.err.starts_with(told), "{words:?}: {ran:?}");
        assert!(ran.err.contains(err), "{words:?}: {ran:?}");
    }
    let list = run(&["limits", "ls", "-o", "json"]).await.json();
    assert_eq!(list["lost_overrides"], 1);
    let warning = list["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("the store has lost"), "{warning}");
    let refused = run(&["limits", "export", "x", "--json"]).await.failed(3);
    let refused: serde_json::Value = serde_json::from_str(&refused).unwrap();
    assert_eq!(refused["lost_overrides"], 1);

    // What was lost is set again.
    run(&["limits", "set", "org:acme", "20/day"]).await;
    service.publishes(&server, false).await;
    assert_eq!(service.limits.lost(), 0);
    let list = run(&["limits", "ls"]).await.ok();
    assert_eq!(list, "org:acme  20/day\norg:b     5/day");
}

/// A replica that is gone keeps nothing.
#[tokio::test]
async fn a_loss_that_no_service_speaks_of_any_more_is_over() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    drop(service);
    let keys = server.command(&["HKEYS", HASH]).await.unwrap();
    let keys: Vec<String> = redis::from_redis_value(keys).unwrap();
    let lost = keys.iter().find(|key| key.starts_with("lost ")).unwrap();
    let old = r#"1000 {"sort":"lost","replica":"a","overrides":7}"#;
    server.command(&["HSET", HASH, lost, old]).await.unwrap();
    let list = run(&server, &["limits", "ls"]).await.ok();
    assert_eq!(list, "no key has an override");
}

#[tokio::test]
async fn a_replacement_accepts_the_loss_after_it_has_asked() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let import = async |words: &[&str]| {
        let mut command = program();
        command
            .args(["limits", "import", "-", "--replace"])
            .args(words)
            .env("ADMISSION_REDIS", server.url());
        end_with(command, "[limits]\n'org:b' = '5/day'\n").await
    };
    let asked = import(&[]).await;
    let told = "say --force to delete up to 1 limit that the store has lost";
    assert!(asked.code == 2 && asked.err.contains(told), "{asked:?}");
    let dry = import(&["--dry-run"]).await;
    assert!(
        dry.err
            .contains("deletes up to 1 limit that the store has lost"),
        "{dry:?}"
    );
    assert_eq!(service.limits.lost(), 1);
    assert_eq!(import(&["--force"]).await.code, 0);
    service.publishes(&server, false).await;
    assert_eq!(service.limits.list().len(), 1);
}

#[tokio::test]
async fn each_command_names_limits_that_this_version_cannot_read() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let key = "org:acme".parse().unwrap();
    let limit = "20/day".parse().unwrap();
    service.limits.set(&key, limit).await.unwrap();
    service.publishes(&server, false).await;
    let write = ["HSET", "{admission:limits}:of", "org:b", "5/h per shard"];
    server.command(&write).await.unwrap();
    let listed = run(&server, &["limits", "list"]).await;
    assert!(listed.out.contains("org:acme") && !listed.out.contains("org:b"));
    let warned = "warning: 1 limit in the store cannot be read by this version";
    assert!(listed.err.contains(warned), "{}", listed.err);
    assert!(listed.err.contains("org:b"), "{}", listed.err);

    for words in [
        &["limits", "get", "org:b"][..],
        &["limits", "delete", "org:b", "--force"],
        &["limits", "undo", "org:b", "--force"],
        &["usage", "org:b"],
        &["explain", "org:b"],
        &["limits", "export"],
    ] {
        let ran = run(&server, words).await;
        assert_eq!((ran.code, &*ran.out), (3, ""), "{words:?}: {ran:?}");
        let error = ran.err.lines().last().unwrap();
        assert!(
            error.contains("cannot be read by this version"),
            "{words:?}: {ran:?}"
        );
    }
    let listed = run(&server, &["limits", "list", "--json"]).await.json();
    assert_eq!(listed["unreadable"], serde_json::json!(["org:b"]));
    let forced = run(&server, &["limits", "export", "--force"]).await;
    assert!(forced.warned().contains("org:acme"));

    let set = run(&server, &["limits", "set", "org:b", "5/day"]).await;
    let told = "org:b: 5/day (was a limit that this version cannot read)";
    assert!(set.out.starts_with(told), "{set:?}");
    // To undo that would delete it.
    let undo = run(&server, &["limits", "undo", "org:b", "--force"]).await;
    assert!(undo.failed(3).contains("cannot be read by this version"));
    let changes = run(&server, &["limits", "changes", "-n", "1"]).await.ok();
    assert!(changes.contains("of which one cannot be read"), "{changes}");
    assert_eq!(
        run(&server, &["limits", "list"]).await.ok(),
        "org:acme  20/day\norg:b     5/day"
    );
}
