//! With Redis.

use std::time::Duration;

use serde_json::json;
use tower_admission::{ByToken, ConcurrencyLimitLayer, Key, Limits, Permit, Policy, RateLimiter};

use crate::run::{Ran, end, program};
use crate::server::{Server, until};

/// That of `Server::store`.
const SECRET: &str = "07070707070707070707070707070707";

async fn run(server: &Server, words: &[&str]) -> Ran {
    let mut command = program();
    command.args(words).env("ADMISSION_REDIS", server.url());
    end(command).await
}

/// Where no service runs.
async fn unchecked(server: &Server, words: &[&str]) -> Ran {
    run(server, &[words, &["--unchecked"]].concat()).await
}

/// With the services' secret.
async fn tell(server: &Server, words: &[&str]) -> Ran {
    let mut command = program();
    command
        .args(words)
        .env("ADMISSION_REDIS", server.url())
        .env("ADMISSION_SECRET", SECRET);
    end(command).await
}

#[tokio::test]
async fn limits_are_set_shown_and_deleted() {
    let server = Server::start().await;
    let run = async |words: &[&str]| unchecked(&server, words).await;
    let none = run(&["limits", "list"]).await.ok();
    assert_eq!(none, "no key has an override");
    let set = run(&["limits", "set", "org:acme", "10/min"]).await.ok();
    assert_eq!(set, "org:acme: 10/min (was the default)");
    let set = run(&["limits", "set", "org:acme", "1000/min", "burst", "50"]).await;
    assert_eq!(set.ok(), "org:acme: 1000/min burst 50 (was 10/min)");
    let set = run(&["limits", "set", "ip:192.0.2.1", "5 concurrent", "--json"]).await;
    let set = set.json();
    let shown = [&set["key"], &set["limit"], &set["before"]];
    assert_eq!(json!(shown), json!(["ip:192.0.2.1", "5 concurrent", null]));

    let get = run(&["limits", "get", "org:acme"]).await.ok();
    assert!(get.starts_with("org:acme: 1000/min burst 50 (override)\nset by "));
    let get = run(&["-o", "json", "limits", "get", "org:acme"])
        .await
        .json();
    let shown = [&get["key"], &get["limit"], &get["applies"]];
    assert_eq!(json!(shown), json!(["org:acme", "1000/min burst 50", []]));
    let list = run(&["limits", "list"]).await.ok();
    assert_eq!(
        list,
        "ip:192.0.2.1  5 concurrent\norg:acme      1000/min burst 50"
    );
    let list = run(&["limits", "list", "--json"]).await.json();
    assert_eq!(list["limits"][1]["key"], "org:acme");
    assert_eq!(list["limits"].as_array().unwrap().len(), 2);

    let deleted = run(&["limits", "delete", "org:acme", "--force"]).await.ok();
    assert_eq!(deleted, "org:acme: the default (was 1000/min burst 50)");
    let deleted = run(&["limits", "delete", "ip:192.0.2.1", "--force", "--json"]).await;
    let deleted = deleted.json();
    assert_eq!(deleted["before"]["limit"], "5 concurrent");
    assert_eq!(deleted["deleted"], true);
    let none = run(&["limits", "list", "--json"]).await.json();
    assert_eq!(none, json!({"limits": []}));
}

#[tokio::test]
async fn what_is_not_there_and_what_is_refused() {
    let server = Server::start().await;
    let run = async |words: &[&str]| unchecked(&server, words).await;
    let none = run(&["limits", "get", "org:acme"]).await.failed(1);
    assert!(none.contains("org:acme has no override"), "{none}");
    run(&["limits", "delete", "org:acme", "--force"])
        .await
        .failed(1);
    let none = run(&["limits", "get", "org:acme", "--json"])
        .await
        .failed(1);
    let none: serde_json::Value = serde_json::from_str(&none).unwrap();
    assert!(none["error"].as_str().unwrap().contains("org:acme"));

    for (limit, told) in [
        ("ten", "invalid limit: expected a quota such as"),
        ("0", "write `unlimited` or `deny all`"),
        ("10/s burst 0", "burst"),
    ] {
        let failed = run(&["limits", "set", "org:acme", limit]).await.failed(3);
        assert!(failed.contains(told), "{failed}");
    }
    let failed = run(&["limits", "get", "acme"]).await.failed(2);
    assert!(failed.contains("kind:name"), "{failed}");
    let failed = run(&["usage", "org:acme"]).await.failed(2);
    assert!(failed.contains("ADMISSION_SECRET"), "{failed}");
}

#[tokio::test]
async fn who_cannot_be_asked_does_not_delete() {
    let server = Server::start().await;
    let run = async |words: &[&str]| unchecked(&server, words).await;
    run(&["limits", "set", "org:acme", "10/min"]).await.ok();
    let refused = run(&["limits", "delete", "org:acme"]).await.failed(2);
    assert!(refused.contains("--force"), "{refused}");
    run(&["limits", "get", "org:acme"]).await.ok();
}

#[tokio::test]
async fn services_see_a_change_within_a_second() {
    let server = Server::start().await;
    let services = [(); 2].map(|()| Limits::in_store(&server.store()));
    for limits in &services {
        limits.refresh().await.unwrap();
    }
    let key = "org:acme".parse().unwrap();
    let all_have = async |limit: Option<&str>| {
        let has = |limits: &Limits| limits.get(&key).map(|limit| limit.to_string());
        let waited = until("both services know", async || {
            services
                .iter()
                .all(|limits| has(limits).as_deref() == limit)
        });
        // Twice what is promised, for a machine that is busy.
        let waited = tokio::time::timeout(Duration::from_secs(2), waited).await;
        waited.expect("within a second");
    };
    unchecked(&server, &["limits", "set", "org:acme", "10/min"])
        .await
        .ok();
    all_have(Some("10/min")).await;
    unchecked(&server, &["limits", "delete", "org:acme", "--force"])
        .await
        .ok();
    all_have(None).await;

    // What nobody was told of is found when caches are cleared.
    let behind = ["HSET", "{admission:limits}:of", "org:acme", "7/h"];
    server.command(&behind).await.unwrap();
    let cleared = unchecked(&server, &["cache", "clear", "--json"])
        .await
        .json();
    assert_eq!(cleared, json!({"cleared": true}));
    all_have(Some("7/h")).await;
}

/// A service with a bucket, a window and a concurrency limit, of which acme has used some.
struct Service {
    limits: Limits,
    _limiter: RateLimiter,
    _layer: ConcurrencyLimitLayer,
    _permits: Vec<Permit>,
}

impl Service {
    async fn start(server: &Server) -> Self {
        let limits = Limits::in_store(&server.store());
        let policy = Policy::new("bucket", "10/day".parse().unwrap())
            .and("window", "8/day sliding".parse().unwrap());
        let limiter = RateLimiter::with_limits(policy, &server.store(), &limits);
        let layer = ConcurrencyLimitLayer::new(50)
            .name("jobs")
            .limits(&limits)
            .per_key(ByToken::default(), 2)
            .store(server.store());
        let acme = [Key::id("org", "acme")];
        assert!(limiter.decide(&acme, 7).await.is_admitted());
        let mut permits = Vec::new();
        for _ in 0..2 {
            let permit = layer
                .limiter()
                .acquire_for(std::slice::from_ref(&acme[0]))
                .await;
            permits.push(permit.unwrap());
        }
        let hash = "{admission:limits}:limiters";
        until("it is written down", async || {
            server.command(&["HLEN", hash]).await.unwrap() == redis::Value::Int(6)
        })
        .await;
        Self {
            limits,
            _limiter: limiter,
            _layer: layer,
            _permits: permits,
        }
    }

    async fn set(&self, limit: &str) {
        let key = "org:acme".parse().unwrap();
        self.limits.set(&key, limit.parse().unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn usage_is_told_by_tier() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store()).tier("pro", "jobs=20 concurrent");
    let policy = Policy::new("plan", "3/day".parse().unwrap()).tier("pro", "10/day");
    let limiter = RateLimiter::with_limits(policy, &server.store(), &limits);
    let layer = ConcurrencyLimitLayer::new(50).name("jobs").limits(&limits);
    let layer = layer.per_key(ByToken::default(), 2).store(server.store());
    let _jobs = layer.limiter();
    let pro = limiter.tier("pro").unwrap();
    assert!(pro.decide(&[Key::id("org", "acme")], 5).await.is_admitted());
    until("it is written down", async || {
        let usage = tell(&server, &["usage", "org:acme"]).await;
        usage.ok().lines().map(str::trim_end).collect::<Vec<_>>()
            == [
                "org:acme: no override",
                "NAME        SORT         USED  LIMIT  PERCENT",
                "jobs        concurrency     0      2       0%  in the store",
                "plan        rate            0      3       0%  in the store",
                "plan (pro)  rate            5     10      50%  in the store",
            ]
    })
    .await;
    // One that no service has is refused, as it would be the default.
    let set = async |limit: &str| run(&server, &["limits", "set", "org:acme", limit]).await;
    let unknown = set("tier=max").await.failed(3);
    assert!(
        unknown.contains("unknown tier \"max\": known are pro"),
        "{unknown}"
    );
    let stored = set("tier=pro").await.ok();
    assert_eq!(stored, "org:acme: tier=pro (was the default)");
    let usage = tell(&server, &["usage", "org:acme"]).await.ok();
    let lines: Vec<_> = usage.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            "org:acme: tier=pro (override)",
            "NAME        SORT         USED  LIMIT  PERCENT",
            "jobs        concurrency     0     20       0%  in the store",
            "plan (pro)  rate            5     10      50%  in the store",
        ]
    );
}

#[tokio::test]
async fn usage_is_what_is_used() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let tell = async |words: &[&str]| tell(&server, words).await;
    let usage = tell(&["usage", "org:acme"]).await.ok();
    let lines: Vec<_> = usage.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            "org:acme: no override",
            "NAME    SORT         USED  LIMIT  PERCENT",
            "jobs    concurrency     2      2     100%  at the limit  in the store",
            "bucket  rate            7     10      70%  in the store",
            "window  rate            7      8      87%  in the store",
        ]
    );
    service.set("bucket=20/day, 5 concurrent").await;
    let usage = tell(&["usage", "org:acme", "--json"]).await.json();
    let entry = |name, sort, used, limit, is_override| {
        json!({
            "name": name, "sort": sort, "used": used, "counted_in": "store", "limit": limit,
            "is_override": is_override,
        })
    };
    let expected = json!({
        "key": "org:acme",
        "limit": "bucket=20/day, 5 concurrent",
        "listed": null,
        "usage": [
            entry("jobs", "concurrency", 2, 5, true),
            entry("bucket", "rate", 7, 20, true),
            entry("window", "rate", 7, 8, false),
        ],
    });
    assert_eq!(usage, expected);
    let list = tell(&["limits", "list", "--usage", "--json"]).await.json();
    assert_eq!(list["limits"][0]["usage"], expected["usage"]);
    let list = tell(&["limits", "list", "--usage"]).await.ok();
    assert_eq!(
        list,
        "org:acme  bucket=20/day, 5 concurrent  jobs 2 of 5 (40%), bucket 7 of 20 (35%), window 7 of 8 (87%)"
    );
    // Needs no secret.
    let totals = run(&server, &["usage", "--json"]).await.json();
    let expected = json!({
        "name": "jobs", "sort": "concurrency", "used": 2, "counted_in": "store", "limit": 50,
    });
    assert_eq!(totals, json!({"usage": [expected]}));
    let other = run(&server, &["usage", "ip:192.0.2.1", "--json"])
        .await
        .json();
    assert_eq!(other["usage"][1]["used"], 0);
}

#[tokio::test]
async fn deleting_warns_of_what_is_above_the_default() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    service.set("bucket=20/day, 5 concurrent").await;
    let deleted = tell(&server, &["limits", "delete", "org:acme", "--force"]).await;
    assert_eq!(deleted.code, 0);
    assert_eq!(deleted.err.lines().count(), 1, "{}", deleted.err);
    let told = "warning: jobs: 2 are used and the default is 2";
    assert!(deleted.err.contains(told), "{}", deleted.err);
    service.set("5 concurrent").await;
    let words = ["limits", "delete", "org:acme", "--force", "--json"];
    let deleted = tell(&server, &words).await.json();
    assert_eq!(deleted["warnings"].as_array().unwrap().len(), 1);
}

/// On a terminal, which is that of `script`.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_terminal_it_asks_and_has_colours() {
    use std::process::Stdio;
    use tokio::io::AsyncWriteExt;

    let server = Server::start().await;
    let service = Service::start(&server).await;
    let on_terminal = async |words: &str, answer: &str, no_color: bool| {
        let mut command = tokio::process::Command::new("script");
        let program = env!("CARGO_BIN_EXE_tower-admission");
        command
            .args(["-qec", &format!("'{program}' {words}"), "/dev/null"])
            .env("ADMISSION_REDIS", server.url())
            .env("ADMISSION_SECRET", SECRET)
            .env("TERM", "xterm")
            .env_remove("ADMISSION_ADMIN")
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if no_color {
            command.env("NO_COLOR", "1");
        }
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(answer.as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        drop(stdin);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let coloured = on_terminal("usage org:acme", "", false).await;
    // Amber from 70 percent, red from 90.
    assert!(
        coloured.contains("\u{1b}[33m   7     10      70%"),
        "{coloured:?}"
    );
    assert!(
        coloured.contains("\u{1b}[31m   2      2     100%"),
        "{coloured:?}"
    );
    let plain = on_terminal("usage org:acme", "", true).await;
    assert!(!plain.contains('\u{1b}'), "{plain:?}");

    service.set("20/day").await;
    let asked = on_terminal("limits delete org:acme", "n\n", true).await;
    let question = "Delete the limit of org:acme (20/day)? The default applies then. [y/N]";
    assert!(asked.contains(question), "{asked}");
    assert!(asked.contains("not deleted"), "{asked}");
    let asked = on_terminal("limits delete org:acme", "y\n", true).await;
    assert!(asked.contains("the default (was 20/day)"), "{asked}");
}

#[tokio::test]
async fn credentials_are_nowhere() {
    let server = Server::start().await;
    let refused = run(&server, &["limits", "set", "bearer:hunter2", "10/min"]).await;
    let refused = refused.failed(2);
    assert!(refused.contains("ADMISSION_SECRET") && !refused.contains("hunter2"));
    let mut shown = String::new();
    for words in [
        &["limits", "set", "bearer:hunter2", "10/min"][..],
        &["limits", "set", "api-key:hunter2", "10/min"],
        &["limits", "get", "bearer:hunter2"],
        &["limits", "list", "--usage"],
        &["usage", "bearer:hunter2"],
        &["limits", "get", "bearer: hunter22"],
        &["limits", "set", "bearer:hunter2", "ten"],
        &["limits", "delete", "bearer:hunter2"],
        &["limits", "changes"],
        &["limits", "export"],
    ] {
        let ran = tell(&server, &[words, &["--unchecked"]].concat()).await;
        shown += &ran.out;
        shown += &ran.err;
    }
    assert!(shown.contains("10/min (override)"), "{shown}");
    assert!(
        shown.contains("bearer#") && !shown.contains("hunter2"),
        "{shown}"
    );
    assert!(!shown.contains(SECRET));
    let mut held = format!("{:?}", server.keys().await);
    for command in [
        ["HGETALL", "{admission:limits}:of"],
        ["HGETALL", "{admission:limits}:state"],
    ] {
        held += &format!("{:?}", server.command(&command).await.unwrap());
    }
    for command in [
        ["ZRANGE", "{admission:limits}:changes", "0", "-1"],
        ["LRANGE", "{admission:limits}:audit", "0", "-1"],
    ] {
        held += &format!("{:?}", server.command(&command).await.unwrap());
    }
    assert!(
        held.contains("bearer#") && !held.contains("hunter2"),
        "{held}"
    );
}

#[tokio::test]
async fn redis_that_cannot_be_asked() {
    let mut server = Server::start_with(&["--requirepass", "hunter2"]).await;
    let denied = run(&server, &["limits", "list"]).await.failed(3);
    assert!(denied.contains("credentials"), "{denied}");
    let mut command = program();
    let url = format!("redis://:wrong@127.0.0.1:{}", server.port);
    command.args(["limits", "list", "--redis", &url]);
    let denied = end(command).await.failed(3);
    assert!(!denied.contains("wrong"), "{denied}");
    let mut command = program();
    let url = format!("redis://:hunter2@127.0.0.1:{}", server.port);
    command.args(["limits", "list", "--unchecked", "--redis", &url]);
    end(command).await.ok();

    server.signal("STOP");
    let words = ["limits", "list", "--timeout", "1", "--redis", &url];
    let mut command = program();
    command.args(words);
    end(command).await.failed(4);
    server.signal("CONT");
    server.kill();
    let gone = run(&server, &["limits", "list"]).await.failed(4);
    assert!(gone.contains("redis cannot be reached"), "{gone}");
    let gone = run(&server, &["cache", "clear", "--json"]).await.failed(4);
    let gone: serde_json::Value = serde_json::from_str(&gone).unwrap();
    assert!(gone["error"].is_string());
}

#[tokio::test]
async fn junk_in_redis_ends_in_words() {
    let server = Server::start().await;
    let hash = "{admission:limits}:limiters";
    for junk in [
        &["HSET", "{admission:limits}:of", "nonsense", "nonsense"][..],
        &["HSET", "{admission:limits}:of", "org:acme", "5/h"],
        &["HSET", hash, "rate x", "junk"],
        &["HSET", hash, "\u{7f}", "4000000000 {}"],
    ] {
        server.command(junk).await.unwrap();
    }
    let tell = async |words: &[&str]| tell(&server, &[words, &["--unchecked"]].concat()).await;
    let list = tell(&["limits", "list", "--usage"]).await.warned();
    assert_eq!(list, "org:acme  5/h");
    let usage = tell(&["usage", "org:acme"]).await.warned();
    assert_eq!(
        usage,
        "org:acme: 5/h (override)\nno limits per key are known"
    );
    server.command(&["SET", hash, "junk"]).await.unwrap();
    let failed = tell(&["usage"]).await.failed(3);
    assert!(failed.contains("--prefix"), "{failed}");
    server
        .command(&["DEL", "{admission:limits}:of"])
        .await
        .unwrap();
    let wrong = ["SET", "{admission:limits}:of", "junk"];
    server.command(&wrong).await.unwrap();
    for words in [
        &["limits", "list"][..],
        &["limits", "set", "org:acme", "1/h"],
    ] {
        unchecked(&server, words).await.failed(3);
    }
    // Nothing of that is anything to another prefix.
    let other = unchecked(&server, &["limits", "list", "--prefix", "other"]).await;
    assert_eq!(other.ok(), "no key has an override");
}

/// A server that may be ready in a moment is not a configuration that is wrong.
#[tokio::test]
async fn a_store_that_is_not_ready_is_no_wrong_configuration() {
    let server = Server::start_with(&["--cluster-enabled", "yes"]).await;
    let name = format!("tower-admission-store-{}.toml", std::process::id());
    let file = std::env::temp_dir().join(name);
    for (url, code) in [
        (server.url().replace("redis:", "redis+cluster:"), 4),
        (format!("{}/99", server.url()), 3),
    ] {
        let nothing = "allow_empty = true\ngroups = {}";
        let store = format!("{nothing}\n[store]\nurl = '{url}'\nsecret = '{SECRET}'");
        std::fs::write(&file, store).unwrap();
        let mut command = program();
        command.args(["config", "check", "--connect"]).arg(&file);
        end(command).await.failed(code);
    }
    std::fs::remove_file(&file).unwrap();
}
