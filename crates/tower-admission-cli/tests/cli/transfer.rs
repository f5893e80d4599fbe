//! Limits in a file: out of a store, and into it again.

use serde_json::json;
use tower_admission::{Limits, Policy, RateLimiter};

use crate::run::{Ran, end, end_with, program};
use crate::server::{Server, until};
use crate::stub::Stub;

struct Service {
    limits: Limits,
    _calls: RateLimiter,
}

impl Service {
    async fn start(server: &Server) -> Self {
        let limits = Limits::in_store(&server.store());
        let calls = Policy::new("calls", "10/day".parse().unwrap());
        let calls = RateLimiter::with_limits(calls, &server.store(), &limits);
        until("it is written down", async || {
            let names = server
                .command(&["HKEYS", "{admission:limits}:limiters"])
                .await;
            format!("{names:?}").contains("name calls")
        })
        .await;
        Self {
            limits,
            _calls: calls,
        }
    }

    /// Waits until it has this limit for acme.
    async fn has(&self, limit: Option<&str>) {
        let key = "org:acme".parse().unwrap();
        until("the service knows", async || {
            let own = self.limits.get(&key).map(|limit| limit.to_string());
            own.as_deref() == limit
        })
        .await;
    }
}

async fn run(server: &Server, words: &[&str], stdin: &str) -> Ran {
    let mut command = program();
    command.args(words).env("ADMISSION_REDIS", server.url());
    end_with(command, stdin).await
}

#[tokio::test]
async fn a_lost_table_is_imported_again() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let run = async |words: &[&str], stdin: &str| run(&server, words, stdin).await;
    let set = [
        "limits",
        "set",
        "org:acme",
        "20/day",
        "--note",
        "a \"big\" one",
        "--as",
        "anna",
    ];
    run(&set, "").await.ok();
    run(&["limits", "set", "org:b", "5/day"], "").await.ok();
    service.has(Some("20/day")).await;
    let exported = run(&["limits", "export", "-"], "").await.ok();
    let first = exported.lines().nth(1).unwrap();
    assert_eq!(
        first,
        r#""org:acme" = { limit = "20/day", note = 'a "big" one', author = "anna" }"#
    );

    server.command(&["FLUSHALL"]).await.unwrap();
    until("the service has noticed", async || {
        service.limits.lost() == 2
    })
    .await;
    service.has(Some("20/day")).await;
    // It writes down its limits again.
    let dry = ["limits", "import", "-", "--dry-run"];
    until("it is written down", async || {
        run(&dry, &exported).await.code == 0
    })
    .await;
    let dry = run(&dry, &exported).await.warned();
    let [acme, b, count] = &dry.lines().collect::<Vec<_>>()[..] else {
        panic!("{dry}");
    };
    assert_eq!((*acme, *b), ("+ org:acme: 20/day", "+ org:b: 5/day"));
    assert_eq!(
        *count,
        "2 limits would be set, 0 would be deleted, 0 unchanged"
    );
    assert_eq!(service.limits.lost(), 2);

    let imported = run(&["limits", "import", "-", "-o", "json"], &exported)
        .await
        .json();
    assert_eq!(imported["changes"][0]["after"]["limit"], "20/day");
    until("the loss is over", async || service.limits.lost() == 0).await;
    service.has(Some("20/day")).await;
    let again = run(&["limits", "import", "-"], &exported).await.ok();
    assert_eq!(again, "0 limits set, 0 deleted, 2 unchanged");
}

#[tokio::test]
async fn a_limit_of_a_service_that_does_not_run_is_imported_after_a_loss() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let run = async |words: &[&str], stdin: &str| run(&server, words, stdin).await;
    let jobs = Policy::new("jobs", "10/day".parse().unwrap());
    let jobs = RateLimiter::with_limits(jobs, &server.store(), &Limits::in_store(&server.store()));
    until("it is written down", async || {
        let set = ["limits", "set", "org:b", "jobs=5/day"];
        run(&set, "").await.code == 0
    })
    .await;
    let ban = ["limits", "set", "ip:192.0.2.1", "deny all"];
    assert_eq!(run(&ban, "").await.code, 0);
    let exported = run(&["limits", "export"], "").await.ok();
    drop(jobs);
    until("the service knows", async || {
        service.limits.list().len() == 2
    })
    .await;
    server.command(&["FLUSHALL"]).await.unwrap();
    until("the service has noticed", async || {
        service.limits.lost() == 2
    })
    .await;
    let import = ["limits", "import", "-"];
    until("it is written down", async || {
        run(&["limits", "list"], "").await.err.contains("has lost")
    })
    .await;
    let imported = run(&import, &exported).await;
    assert_eq!(imported.code, 0, "{imported:?}");
    let told =
        "no running service uses 1 limit; a service that does not run now may use them: org:b: ";
    assert!(imported.err.contains(told), "{imported:?}");
    until("the loss is over", async || service.limits.lost() == 0).await;

    // Without a loss, an import checks each entry.
    let other = "[limits]\n'org:c' = '1/day'\n'org:d' = 'jobs=5/day'";
    let rejected = run(&import, other).await.failed(3);
    assert!(rejected.contains("nothing was changed"), "{rejected}");
    assert!(rejected.contains("import --unchecked"), "{rejected}");
    let done = run(&["limits", "import", "-", "--unchecked"], other).await;
    assert!(done.ok().contains("2 limits set"));
}

#[tokio::test]
async fn a_loss_is_accepted() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    run(&server, &["limits", "set", "org:acme", "20/day"], "")
        .await
        .ok();
    service.has(Some("20/day")).await;
    server.command(&["FLUSHALL"]).await.unwrap();
    until("the service has noticed", async || {
        service.limits.lost() == 1
    })
    .await;
    let asked = run(&server, &["limits", "accept-loss"], "").await;
    assert_eq!(asked.code, 2);
    assert!(asked.err.contains("--force"), "{asked:?}");
    let accept = ["limits", "accept-loss", "--force"];
    until("it is written down", async || {
        run(&server, &accept, "").await.code == 0
    })
    .await;
    service.has(None).await;
    until("the loss is over", async || service.limits.lost() == 0).await;
}

#[tokio::test]
async fn limits_that_are_not_in_the_file_are_deleted_on_request() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let run = async |words: &[&str], stdin: &str| run(&server, words, stdin).await;
    run(&["limits", "set", "org:acme", "20/day"], "").await.ok();
    run(&["limits", "set", "org:b", "5/day"], "").await.ok();
    let file = std::env::temp_dir().join(format!("tower-admission-{}.limits", std::process::id()));
    let path = file.to_str().unwrap();
    let written = run(&["limits", "export", path], "").await.ok();
    assert_eq!(written, format!("{path}: 2 limits written"));
    let text = "[limits]\n\"org:b\" = \"6/day\"\n'org:c' = { limit = '1/day', end = '2020-01-01T00:00:00Z' }";
    std::fs::write(&file, text).unwrap();
    let asked = run(&["limits", "import", path, "--replace"], "").await;
    assert!(asked.err.contains("--force to delete 1 limit"), "{asked:?}");
    assert_eq!(asked.code, 2);
    let done = run(&["limits", "import", path, "--replace", "--force"], "").await;
    assert_eq!(
        done.out,
        "~ org:b: 5/day -> 6/day\n- org:acme: 20/day\n1 limit set, 1 deleted, 0 unchanged\n"
    );
    assert!(
        done.err.contains("org:c: the end is in the past"),
        "{done:?}"
    );
    service.has(None).await;

    for (text, told) in [
        ("", "the table [limits] is missing"),
        (
            "[limits]\n'org:a' = '1/x'",
            "limits.\"org:a\": \"1/x\" is not a valid limit",
        ),
        (
            "[limits]\n'org:a' = 'cals=1/s'",
            "org:a: unknown limit \"cals\": did you mean \"calls\"? Known: calls (nothing was changed; \
             `import --unchecked` sets 1 limit that",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let wrong = run(&["limits", "import", path, "--replace", "--force"], "").await;
        let wrong = wrong.failed(3);
        assert!(wrong.contains(told), "{wrong}");
    }
    std::fs::remove_file(&file).unwrap();
    let list = run(&["limits", "list", "--json"], "").await.json();
    assert_eq!(list["limits"][0]["key"], "org:b");
    let gone = run(&["limits", "import", path], "").await.failed(3);
    assert!(gone.contains("cannot be read"), "{gone}");
}

#[tokio::test]
async fn a_service_takes_an_import_too() {
    let stub = Stub::start().await;
    let at = |words: &[&str]| {
        let mut command = program();
        command
            .args(words)
            .env("ADMISSION_ADMIN", format!("{}/admin", stub.url))
            .env("ADMISSION_TOKEN", "hunter2");
        command
    };
    let text = "[limits]\n\"org:acme\" = { limit = \"20/day\", note = \"big\" }\n";
    let done = end_with(at(&["limits", "import", "-"]), text).await;
    assert_eq!(
        done.out,
        "+ org:acme: 20/day\n1 limit set, 0 deleted, 0 unchanged\n"
    );
    assert_eq!((done.code, &*done.err), (0, ""));
    assert_eq!(end(at(&["limits", "export"])).await.ok(), text.trim_end());
    let list = end(at(&["limits", "list", "--json"])).await.json();
    assert_eq!(
        list["limits"],
        json!([{"key": "org:acme", "limit": "20/day", "note": "big"}])
    );
}

#[tokio::test]
async fn a_rejected_limit_does_not_stop_the_import_of_later_ones() {
    let stub = Stub::start().await;
    let old = ("org:old".to_owned(), json!({"limit": "1/day"}));
    stub.held.limits.lock().unwrap().extend([old]);
    let mut command = program();
    command
        .args(["limits", "import", "-", "--replace", "--force"])
        .env("ADMISSION_ADMIN", format!("{}/admin", stub.url))
        .env("ADMISSION_TOKEN", "hunter2");
    let text = "[limits]\n'org:a' = '1/s'\n'org:nobody' = '2/s'\n'org:z' = '3/s'";
    let rejected = end_with(command, text).await.failed(3);
    assert_eq!(
        rejected,
        "org:nobody: the service rejects this: no limit is called so (2 of 4 changes were made, 1 rejected, nothing was \
         deleted)"
    );
    let limits = stub.held.limits.lock().unwrap();
    let keys: Vec<_> = limits.keys().map(|key| &**key).collect();
    assert_eq!(keys, ["org:a", "org:old", "org:z"]);
}

#[tokio::test]
async fn a_backup_is_not_replaced_by_what_is_left_after_a_loss() {
    let server = Server::start().await;
    let _service = Service::start(&server).await;
    let run = async |words: &[&str]| run(&server, words, "").await;
    let name = format!("tower-admission-backup-{}.toml", std::process::id());
    let file = std::env::temp_dir().join(name);
    let path = file.to_str().unwrap();
    let backup =
        "[limits]\n'org:a' = '1/s'\n'org:b' = { limit = '1/s', end = '2020-01-01T00:00:00Z' }\n";
    std::fs::write(&file, backup).unwrap();
    run(&["limits", "set", "org:z", "deny all"]).await.ok();
    let rejected = run(&["limits", "export", path]).await.failed(3);
    assert!(rejected.contains("(org:a)"), "{rejected}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), backup);

    // Of what an operator has deleted the audit trail knows.
    run(&["limits", "set", "org:a", "1/s"]).await.ok();
    run(&["limits", "delete", "org:a", "--force"]).await.ok();
    let written = run(&["limits", "export", path]).await.ok();
    assert_eq!(written, format!("{path}: 1 limit written"));
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_file_with_something_in_it_is_not_replaced_by_an_empty_table() {
    let server = Server::start().await;
    let _service = Service::start(&server).await;
    let name = format!("tower-admission-empty-{}.toml", std::process::id());
    let file = std::env::temp_dir().join(name);
    let path = file.to_str().unwrap();
    for text in ["[limits]\n'org:a' = '1/s'\n", "[groups.api]\npath = '/'\n"] {
        std::fs::write(&file, text).unwrap();
        let rejected = run(&server, &["limits", "export", path], "").await;
        assert!(rejected.failed(3).contains("--force"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
    let forced = run(&server, &["limits", "export", path, "--force"], "").await;
    assert_eq!(forced.ok(), format!("{path}: 0 limits written"));
    let again = run(&server, &["limits", "export", path, "--json"], "").await;
    assert_eq!(again.json()["limits"], 0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "[limits]\n");
    std::fs::remove_file(&file).unwrap();
    let toml = run(&server, &["limits", "export", "--json"], "").await;
    assert!(toml.failed(2).contains("limits list -o json"));
}
