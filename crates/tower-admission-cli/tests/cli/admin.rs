//! With a service's admin endpoints.

use serde_json::json;

use crate::run::{Ran, end, end_with, program};
use crate::stub::Stub;

async fn run_at(url: &str, words: &[&str]) -> Ran {
    let mut command = program();
    command
        .args(words)
        .env("ADMISSION_ADMIN", url)
        .env("ADMISSION_TOKEN", "hunter2");
    end(command).await
}

async fn run(stub: &Stub, words: &[&str]) -> Ran {
    run_at(&format!("{}/admin/", stub.url), words).await
}

#[tokio::test]
async fn each_command_does_what_it_does_in_redis() {
    let stub = Stub::start().await;
    let run = async |words: &[&str]| run(&stub, words).await;
    let get = run(&["limits", "get", "org:acme"]).await.ok();
    assert_eq!(
        get,
        "org:acme: no override\nNAME   LIMIT   FROM\ncalls  10/min  default"
    );
    run(&["limits", "delete", "org:acme", "--force"])
        .await
        .failed(1);
    let set = run(&["limits", "set", "org:acme", "10/min"]).await.ok();
    assert_eq!(
        set,
        "org:acme: 10/min (was the default)\nused: calls 7 of 10 (70%)"
    );
    let set = run(&["limits", "set", "org:acme", "1000 per minute", "--json"]).await;
    let set = set.json();
    let shown = [
        &set["key"],
        &set["limit"],
        &set["before"]["limit"],
        &set["warnings"],
    ];
    assert_eq!(json!(shown), json!(["org:acme", "1000/min", "10/min", []]));
    let get = run(&["limits", "get", "org:acme"]).await.ok();
    assert_eq!(
        get,
        "org:acme: 1000/min (override)\nNAME   LIMIT     FROM\ncalls  1000/min  override"
    );
    let rejected = run(&["limits", "set", "org:acme", "0"]).await.failed(3);
    assert!(
        rejected.contains("write `unlimited` or `deny all`"),
        "{rejected}"
    );

    let usage = run(&["usage", "org:acme", "--json"]).await.json();
    let calls =
        json!({"name": "calls", "sort": "rate", "used": 7, "limit": 10, "is_override": true});
    assert_eq!(
        usage,
        json!({"key": "org:acme", "limit": "1000/min", "listed": null, "usage": [calls]})
    );
    let usage = run(&["usage"]).await.ok();
    assert!(
        usage.contains("jobs  concurrency     3      -        -"),
        "{usage}"
    );
    assert!(
        usage.contains("in the store, 1 of them by gw-1 (pid 4711)"),
        "{usage}"
    );
    let usage = run(&["usage", "--json"]).await.json();
    assert_eq!(usage["replica"]["host"], "gw-1");
    assert_eq!(usage["store"], json!({"status": "ok"}));
    assert_eq!(usage["usage"][0]["here"], 1);
    // Of a store that does not answer its numbers are not shown, which is said.
    let failing = run_at(&format!("{}/failing", stub.url), &["usage"]).await;
    assert!(
        failing.err.contains("timeout: no answer") && failing.err.contains("(closed)"),
        "{}",
        failing.err
    );
    assert_eq!(failing.code, 0);
    assert!(
        failing.out.contains("in gw-1 (pid 4711)"),
        "{}",
        failing.out
    );
    run(&["cache", "clear"]).await.ok();
    run(&["limits", "delete", "org:acme"]).await.failed(2);
    let deleted = run(&["limits", "delete", "org:acme", "--force"]).await.ok();
    assert_eq!(
        deleted,
        "org:acme: the default (was 1000/min): calls 10/min"
    );
}

#[tokio::test]
async fn all_pages_are_listed() {
    let stub = Stub::start().await;
    for key in ["org:a/b c", "org:b", "org:ä", "user:d", "user:e"] {
        run(&stub, &["limits", "set", key, "10/min"]).await.ok();
    }
    let list = run(&stub, &["limits", "list", "--json"]).await.json();
    assert_eq!(list["limits"].as_array().unwrap().len(), 5);
    let list = run(&stub, &["limits", "list", "--usage"]).await.ok();
    assert_eq!(list.lines().count(), 5);
    assert!(
        list.contains("user:d     10/min  calls 7 of 10 (70%)"),
        "{list}"
    );
    let asked = stub.held.asked.lock().unwrap();
    assert_eq!(asked[2], "PUT /limits/org%3Aa%2Fb%20c");
    assert!(
        asked
            .iter()
            .any(|asked| asked == "GET /limits?after=org%3Ab&count=1000")
    );
}

/// The service has the secret, so the program needs none: the credential is sent to it, in a body.
#[tokio::test]
async fn credentials_are_in_no_path_and_on_no_screen() {
    let stub = Stub::start().await;
    let key = "bearer#07070707070707070707070707070707";
    let mut shown = String::new();
    for (words, stdin) in [
        (&["limits", "set", "bearer:correct-horse", "10/min"][..], ""),
        (
            &["limits", "set", "--key-stdin", "20/min"],
            "Authorization: Bearer correct-horse",
        ),
        (&["limits", "get", "--key-stdin"], "bearer:correct-horse\n"),
        (&["usage", "--key-stdin"], "bearer:correct-horse"),
        (&["explain", "--key-stdin"], "bearer:correct-horse"),
        (
            &["limits", "delete", "--key-stdin", "--force"],
            "bearer:correct-horse",
        ),
    ] {
        let mut command = program();
        command
            .args(words)
            .env("ADMISSION_ADMIN", format!("{}/admin", stub.url))
            .env("ADMISSION_TOKEN", "hunter2");
        let printed = end_with(command, stdin).await.ok();
        assert!(printed.starts_with(key), "{printed}");
        shown += &printed;
    }
    let asked = stub.held.asked.lock().unwrap();
    assert!(asked.contains(&"PUT /limits/bearer%2307070707070707070707070707070707".to_owned()));
    assert!(!format!("{asked:?}{shown}").contains("horse"));
}

#[tokio::test]
async fn a_service_resolves_names_of_its_application() {
    let stub = Stub::start().await;
    let set = run(&stub, &["limits", "set", "Acme Inc.", "10/min"])
        .await
        .ok();
    assert!(set.starts_with("org:acme: 10/min"), "{set}");
}

#[tokio::test]
async fn an_end_and_a_note_are_set_or_it_fails() {
    let stub = Stub::start().await;
    let words = [
        "limits",
        "set",
        "org:acme",
        "deny",
        "all",
        "--until",
        "2126-12-01T00:00:00Z",
        "--note",
        "spam",
    ];
    let set = run(&stub, &words).await.ok();
    assert!(
        set.starts_with("org:acme: deny all until 2126-12-01T00:00:00Z (was the default)"),
        "{set}"
    );
    let list = run(&stub, &["limits", "ls"]).await.ok();
    assert_eq!(
        list,
        "org:acme  deny all until 2126-12-01T00:00:00Z  # spam"
    );
    // A service that does not know ends.
    let old = run_at(&format!("{}/old", stub.url), &words).await.failed(3);
    assert!(old.contains("without its end"), "{old}");
    let named = run(&stub, &["limits", "set", "org:a", "1/s", "--as", "anna"]).await;
    assert!(named.failed(2).contains("name of the token"));
}

#[tokio::test]
async fn get_and_changes_show_limits_and_changes() {
    let stub = Stub::start().await;
    let words = [
        "explain",
        "org:acme",
        "--path",
        "/api/chat",
        "--tier",
        "pro",
    ];
    let explained = run(&stub, &words).await.ok();
    assert_eq!(
        explained,
        "org:acme: no override\n\
         group api\n\
         NAME           SORT         LIMIT          FROM     USED  A REQUEST NOW\n\
         calls (pro)    rate         10/min         default  7     admitted, 2 more after it\n\
         jobs           concurrency  2 concurrent   default  2     rejected: key at capacity, fits in 1s 500ms\n\
         all, all keys  concurrency  64 concurrent  default  2     admitted\n\
         not shown: calls.ip, which depend on the client address (--address)\n\
         a request now: rejected: key at capacity, fits in 1s 500ms (jobs)"
    );
    let changes = run(&stub, &["limits", "changes"]).await.ok();
    assert_eq!(
        changes,
        "2026-11-28T04:32:13Z  org:acme: none -> deny all until 2026-12-01T00:00:00Z, by anna, \
         from 192.0.2.7: spam\n\
         2026-11-28T04:30:00Z  org:b: 5/min -> none, because it ended"
    );
    let json = run(&stub, &["limits", "changes", "-n", "7", "-o", "json"]).await;
    assert_eq!(json.json()["changes"][0]["after"]["note"], "spam");
    let asked = stub.held.asked.lock().unwrap();
    assert!(asked.contains(&"GET /changes?count=7".to_owned()));
}

#[tokio::test]
async fn services_that_are_not_there_or_are_something_else() {
    let stub = Stub::start().await;
    let admin = format!("{}/admin", stub.url);
    for token in [&[][..], &["--token", "wrong-horse"], &["--token", ""]] {
        let mut command = program();
        command
            .args(["limits", "list", "--admin", &admin])
            .args(token);
        let rejected = end(command).await.failed(3);
        assert!(rejected.contains("ADMISSION_TOKEN"), "{rejected}");
        assert!(!rejected.contains("horse"), "{rejected}");
    }
    for (path, told) in [
        ("", "check the path"),
        ("/nowhere", "check the path"),
        ("/text", "check the path"),
        ("/odd", "check the path"),
        ("/loop", "check the path"),
        ("/down", "redis is away"),
    ] {
        let url = format!("{}{path}", stub.url);
        let failed = run_at(&url, &["limits", "list"]).await.failed(4);
        assert!(failed.contains(told), "{path}: {failed}");
        let failed = run_at(&url, &["limits", "get", "org:acme"]).await.failed(4);
        assert!(failed.contains("check the path"), "{path}: {failed}");
    }
    let port = crate::server::free_port();
    let url = format!("http://127.0.0.1:{port}");
    let failed = run_at(&url, &["cache", "clear"]).await.failed(4);
    assert!(failed.contains("cannot be reached"), "{failed}");

    // Accepts, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let words = ["limits", "list", "--timeout", "1", "--json"];
    let failed = run_at(&url, &words).await.failed(4);
    let failed: serde_json::Value = serde_json::from_str(&failed).unwrap();
    assert!(failed["error"].as_str().unwrap().contains("--timeout"));
}

#[tokio::test]
async fn every_answer_is_shown_as_text_or_rejected() {
    let stub = Stub::start().await;
    let run =
        async |path: &str, words: &[&str]| run_at(&format!("{}{path}", stub.url), words).await;
    // Another service that takes what is posted.
    run("/odd", &["cache", "clear"]).await.failed(4);
    for words in [&["limits", "list"][..], &["usage"]] {
        let text = run("/wide", words).await.ok();
        assert!(text.len() < 80_000, "{}", text.len());
        let json = run("/wide", &[words, &["--json"]].concat()).await.ok();
        for shown in [text, json] {
            assert!(!shown.contains(['\u{9b}', '\u{202e}']));
        }
    }
    let json = run("/wide", &["limits", "list", "--json"]).await.json();
    assert_eq!(json["limits"][0]["limit"], "\u{9b}31m\u{202e}1/min");
}

#[tokio::test]
async fn a_port_that_is_none_is_no_other() {
    for url in [
        "http://127.0.0.1:80999/a",
        "http://127.0.0.1:9o00",
        "http://[::1]:x",
    ] {
        let wrong = run_at(url, &["limits", "list"]).await.failed(2);
        assert!(!wrong.contains("hunter2"), "{wrong}");
    }
}

/// A full disk, as far as there is one.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn unprintable_output_is_a_failure() {
    let stub = Stub::start().await;
    let mut command = program();
    let full = std::fs::File::create("/dev/full").unwrap();
    command
        .args(["limits", "list"])
        .env("ADMISSION_ADMIN", format!("{}/admin", stub.url))
        .env("ADMISSION_TOKEN", "hunter2")
        .stdout(full);
    let status = command.status().await.unwrap();
    assert_eq!(status.code(), Some(5));
}

/// What a file of the service has is changed there.
#[tokio::test]
async fn overrides_of_a_file_differ_from_those_set_at_run_time() {
    let stub = Stub::start().await;
    let of_file = json!({"limit": "5/min", "source": "file"});
    let held = || stub.held.limits.lock().unwrap();
    held().insert("org:f".to_owned(), of_file.clone());
    let run = async |words: &[&str]| run(&stub, words).await;
    let get = run(&["limits", "get", "org:f"]).await.ok();
    assert!(get.starts_with("org:f: 5/min (from the file)\n"), "{get}");
    let list = run(&["limits", "ls"]).await.ok();
    assert_eq!(list, "org:f  5/min  from the file");
    let list = run(&["limits", "ls", "-o", "json"]).await.json();
    assert_eq!(list["limits"][0]["source"], "file");
    let deleted = run(&["limits", "delete", "org:f", "--force"]).await;
    let deleted = deleted.failed(3);
    assert!(deleted.contains("from the configuration file"), "{deleted}");
    let undone = run(&["limits", "undo", "org:f", "--force"]).await;
    assert!(undone.failed(1).contains("nothing to undo"));

    assert_eq!(run(&["limits", "export"]).await.ok(), "[limits]");
    let all = run(&["limits", "export", "--all"]).await.ok();
    assert_eq!(all, "[limits]\n\"org:f\" = \"5/min\"");
    let mut command = program();
    command
        .args(["limits", "import", "-", "--replace", "--force"])
        .env("ADMISSION_ADMIN", format!("{}/admin", stub.url))
        .env("ADMISSION_TOKEN", "hunter2");
    let imported = end_with(command, "[limits]\n\"org:a\" = \"1/min\"").await;
    assert_eq!(
        imported.ok(),
        "+ org:a: 1/min\n1 limit set, 0 deleted, 0 unchanged"
    );
    assert_eq!(held().get("org:f"), Some(&of_file));
    let set = run(&["limits", "set", "org:f", "6/min"]).await.ok();
    assert!(
        set.starts_with("org:f: 6/min (was 5/min from the file)"),
        "{set}"
    );
}

#[tokio::test]
async fn a_time_is_by_the_clock_of_the_service() {
    let stub = Stub::start().await;
    let words = ["limits", "set", "org:a", "deny all", "--for", "1h"];
    let set = run(&stub, &words).await.ok();
    assert!(
        set.starts_with("org:a: deny all until 2096-10-02T08:06:40Z ("),
        "{set}"
    );
}

#[tokio::test]
async fn a_change_without_an_answer_may_have_been_made() {
    let stub = Stub::start().await;
    let words = ["limits", "set", "org:down", "1/min"];
    let failed = run(&stub, &words).await.failed(4);
    assert!(failed.contains("may have been made"), "{failed}");
    let mut command = program();
    command
        .args(["limits", "import", "-"])
        .env("ADMISSION_ADMIN", format!("{}/admin", stub.url))
        .env("ADMISSION_TOKEN", "hunter2");
    let text = "[limits]\n'org:a' = '1/s'\n'org:down' = '1/s'\n'org:z' = '1/s'";
    let failed = end_with(command, text).await.failed(4);
    let told = "org:down (1 or 2 of 3 changes were made): ";
    assert!(failed.contains(told), "{failed}");
}
