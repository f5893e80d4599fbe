//! With a service's admin endpoints.

use serde_json::json;

use crate::run::{Ran, end, program};
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
    run(&["limits", "get", "org:acme"]).await.failed(1);
    run(&["limits", "delete", "org:acme", "--force"])
        .await
        .failed(1);
    let set = run(&["limits", "set", "org:acme", "10/min"]).await.ok();
    assert_eq!(set, "org:acme: 10/min (was the default)");
    let set = run(&["limits", "set", "org:acme", "1000 per minute", "--json"]).await;
    assert_eq!(
        set.json(),
        json!({"key": "org:acme", "limit": "1000/min", "before": "10/min"})
    );
    let get = run(&["limits", "get", "org:acme"]).await.ok();
    assert_eq!(get, "org:acme: 1000/min (its own)");
    let refused = run(&["limits", "set", "org:acme", "0"]).await.failed(3);
    assert!(
        refused.contains("write `unlimited` or `deny all`"),
        "{refused}"
    );

    let usage = run(&["usage", "org:acme", "--json"]).await.json();
    let calls = json!({"name": "calls", "sort": "rate", "used": 7, "limit": 10, "is_own": true});
    assert_eq!(
        usage,
        json!({"key": "org:acme", "limit": "1000/min", "usage": [calls]})
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
    assert_eq!(deleted, "org:acme: the default (was 1000/min)");
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
    assert_eq!(asked[0], "PUT /limits/org%3Aa%2Fb%20c");
    assert!(
        asked
            .iter()
            .any(|asked| asked == "GET /limits?after=org%3Ab&count=1000")
    );
}

#[tokio::test]
async fn credentials_are_not_sent() {
    let stub = Stub::start().await;
    let words = ["limits", "set", "bearer:correct-horse", "10/min"];
    run(&stub, &words).await.failed(2);
    assert!(stub.held.asked.lock().unwrap().is_empty());
    let mut command = program();
    command
        .args(words)
        .args([
            "--admin",
            &format!("{}/admin", stub.url),
            "--token",
            "hunter2",
        ])
        .env("ADMISSION_SECRET", "07070707070707070707070707070707");
    let set = end(command).await.ok();
    let asked = stub.held.asked.lock().unwrap();
    assert!(asked[0].starts_with("PUT /limits/bearer%23"), "{asked:?}");
    assert!(!format!("{asked:?}{set}").contains("horse"));
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
        let refused = end(command).await.failed(3);
        assert!(refused.contains("ADMISSION_TOKEN"), "{refused}");
        assert!(!refused.contains("horse"), "{refused}");
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
async fn whatever_answers_is_shown_as_text_or_refused() {
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
async fn what_cannot_be_printed_is_a_failure() {
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
