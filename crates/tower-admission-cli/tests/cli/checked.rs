//! What would have no effect is rejected, and what is shown is what applies.

use serde_json::json;
use tower::Layer;
use tower_admission::store::MemoryStore;
use tower_admission::{
    AccessLayer, ByToken, ConcurrencyLimitLayer, Key, Limits, Policy, RateLimiter, SharedLimiters,
};

use crate::run::{Ran, end, end_with, program};
use crate::server::{Server, until};

/// That of `Server::store`.
const SECRET: &str = "07070707070707070707070707070707";

/// A service with a rate, permits and a tier in Redis, and a rate in memory.
struct Service {
    limits: Limits,
    calls: RateLimiter,
    _others: (RateLimiter, ConcurrencyLimitLayer),
}

impl Service {
    async fn start(server: &Server) -> Self {
        let store = server.store();
        let limits = Limits::in_store(&store).tier("pro", "jobs=20 concurrent");
        let calls = Policy::new("calls", "10/day".parse().unwrap());
        let calls = RateLimiter::with_limits(calls, &store, &limits);
        let local =
            Policy::new("local", "5/s".parse().unwrap()).and("daily", "9/day".parse().unwrap());
        let local = RateLimiter::with_limits(local, &MemoryStore::new(), &limits);
        let jobs = ConcurrencyLimitLayer::new(50).name("jobs").limits(&limits);
        let jobs = jobs.per_key(ByToken::default(), 2).store(store);
        let _ = jobs.limiter();
        let service = Self {
            limits,
            calls,
            _others: (local, jobs),
        };
        until("it is written down", async || {
            let names = server
                .command(&["HKEYS", "{admission:limits}:limiters"])
                .await;
            format!("{names:?}").contains("name jobs")
        })
        .await;
        service
    }
}

async fn run(server: &Server, words: &[&str]) -> Ran {
    let mut command = program();
    command
        .args(words)
        .env("ADMISSION_REDIS", server.url())
        .env("ADMISSION_SECRET", SECRET)
        .env("USER", "anna");
    end(command).await
}

#[tokio::test]
async fn a_prefix_without_services_is_rejected() {
    let server = Server::start().await;
    let _service = Service::start(&server).await;
    for words in [
        &["limits", "set", "org:acme", "10/day"][..],
        &["limits", "list"],
        &["limits", "export"],
        &["limits", "changes"],
        &["limits", "get", "org:acme"],
        &["limits", "accept-loss", "--force"],
        &["usage"],
        &["usage", "org:acme"],
        &["explain", "org:acme"],
        &["cache", "clear"],
    ] {
        let words = [words, &["--prefix", "other"]].concat();
        let rejected = run(&server, &words).await.failed(3);
        let told = "no service has published its limits under the prefix \"other\"";
        assert!(rejected.contains(told), "{words:?}: {rejected}");
    }
    let mut command = program();
    command
        .args(["limits", "list"])
        .env("ADMISSION_REDIS", server.url())
        .env("ADMISSION_PREFIX", "other");
    let rejected = end(command).await.failed(3);
    assert!(rejected.contains("\"other\""), "{rejected}");
    let words = [
        "limits",
        "set",
        "org:acme",
        "10/day",
        "--prefix",
        "other",
        "--unchecked",
    ];
    run(&server, &words).await.ok();
}

#[tokio::test]
async fn a_wrong_secret_is_rejected() {
    let server = Server::start().await;
    let _service = Service::start(&server).await;
    let with = async |secret: &str, words: &[&str]| {
        let mut command = program();
        command
            .args(words)
            .env("ADMISSION_REDIS", server.url())
            .env("ADMISSION_SECRET", secret);
        end(command).await
    };
    let wrong = "08070707070707070707070707070707";
    for words in [
        &["limits", "set", "bearer:hunter2", "10/day"][..],
        &["limits", "get", "bearer:hunter2"],
        &["usage", "org:acme"],
    ] {
        let rejected = with(wrong, words).await.failed(3);
        assert!(rejected.contains("have another secret"), "{rejected}");
        assert!(!rejected.contains("hunter2") && !rejected.contains(wrong));
        with(SECRET, words).await.ok();
    }
    // The check value is 32 bits, of a fingerprint that no key has.
    let held = server
        .command(&["HKEYS", "{admission:limits}:limiters"])
        .await;
    let held = format!("{:?}", held.unwrap());
    let check = held.split("secret ").nth(1).unwrap();
    assert!(check[..8].bytes().all(|b| b.is_ascii_hexdigit()), "{held}");
    assert!(!check.as_bytes()[8].is_ascii_alphanumeric(), "{held}");
    assert!(with(wrong, &["limits", "list", "--unchecked"]).await.code == 0);
}

/// Services without a secret find no credential that a tool has a fingerprint of.
#[tokio::test]
async fn credentials_of_services_without_a_secret_are_rejected() {
    let server = Server::start().await;
    let store = tower_admission_redis::RedisStore::connect(server.url().as_str()).unwrap();
    let limits = Limits::in_store(&store);
    let calls = Policy::new("calls", "10/day".parse().unwrap());
    let _calls = RateLimiter::with_limits(calls, &MemoryStore::new(), &limits);
    until("it is written down", async || {
        let count = server
            .command(&["HLEN", "{admission:limits}:limiters"])
            .await;
        count.unwrap() == redis::Value::Int(1)
    })
    .await;
    let rejected = run(&server, &["limits", "set", "bearer:hunter2", "10/day"]).await;
    let rejected = rejected.failed(3);
    assert!(rejected.contains("has a configured secret"), "{rejected}");
    run(&server, &["limits", "set", "org:acme", "10/day"])
        .await
        .ok();
}

#[tokio::test]
async fn a_limit_that_no_service_has_is_rejected() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    for (limit, told) in [
        (
            "cals=10/min",
            "unknown limit \"cals\": did you mean \"calls\"?",
        ),
        (
            "streams=5 concurrent",
            ": known are calls, daily, jobs, local",
        ),
        (
            "jobs=5/min, 7/day",
            "\"jobs=5/min\" matches no limit of the services: write calls=5/min or daily=5/min",
        ),
        ("tier=por", "unknown tier \"por\": did you mean \"pro\"?"),
    ] {
        let rejected = run(&server, &["limits", "set", "org:acme", limit]).await;
        let rejected = rejected.failed(3);
        assert!(rejected.contains(told), "{rejected}");
    }
    let rejected = run(&server, &["limits", "set", "barer:hunter2", "10/day"]).await;
    let rejected = rejected.failed(2);
    assert!(rejected.contains("did you mean \"bearer\"?"), "{rejected}");
    assert!(!rejected.contains("hunter2"));
    assert!(service.limits.is_empty());
    for (key, limit) in [
        ("org:a", "local=7/s"),
        ("org:b", "jobs=5 concurrent, calls=20/day"),
        ("org:c", "tier=pro"),
        ("org:d", "3/day"),
    ] {
        run(&server, &["limits", "set", key, limit]).await.ok();
    }
    // A name that is written is all of the limit.
    let set = ["limits", "set", "org:b", "calls=30/day"];
    let warned = run(&server, &set).await;
    let told = "warning: this replaces the whole limit: jobs=5 concurrent no longer applies; to keep it, run: \
                tower-admission limits set org:b 'jobs=5 concurrent, calls=30/day'\n";
    assert_eq!((warned.code, &*warned.err), (0, told));
}

#[tokio::test]
async fn a_change_shows_what_is_used_and_what_applies() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    assert!(
        service
            .calls
            .decide(&[Key::id("org", "acme")], 7)
            .await
            .is_admitted()
    );
    let get = run(&server, &["limits", "get", "org:acme"]).await.ok();
    assert_eq!(
        get,
        "org:acme: no override\n\
         NAME   LIMIT         FROM\n\
         jobs   2 concurrent  default\n\
         calls  10/day        default"
    );
    let set = run(&server, &["limits", "set", "org:acme", "calls=20/day"])
        .await
        .ok();
    assert_eq!(
        set,
        "org:acme: calls=20/day (was the default)\n\
         used: jobs 0 of 2 (0%), calls 7 of 20 (35%)"
    );
    let set = run(&server, &["limits", "set", "org:acme", "calls=5/day"]).await;
    assert_eq!(set.code, 0);
    let told = "warning: calls: 5 are used but the limit is 5: org:acme is rejected until fewer are used\n";
    assert_eq!(set.err, told);
    let words = ["limits", "set", "org:acme", "calls=5/day", "-o", "json"];
    let set = run(&server, &words).await.json();
    assert_eq!(set["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(set["usage"][1]["used"], 5);
    let get = run(&server, &["limits", "get", "org:acme"]).await.ok();
    assert!(
        get.contains("set by anna@") && get.ends_with("calls  5/day         override"),
        "{get}"
    );
    let deleted = run(&server, &["limits", "delete", "org:acme", "--force"]).await;
    assert!(
        deleted.out.starts_with(
            "org:acme: the default (was calls=5/day): jobs 2 concurrent, calls 10/day"
        ),
        "{deleted:?}"
    );
}

#[tokio::test]
async fn explain_shows_the_limits_that_apply() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    assert!(
        service
            .calls
            .decide(&[Key::id("org", "acme")], 10)
            .await
            .is_admitted()
    );
    let explained = run(
        &server,
        &["explain", "org:acme", "--tier", "pro", "-o", "json"],
    )
    .await;
    let explained = explained.json();
    let rows = explained["limits"].as_array().unwrap().iter();
    let rows: Vec<_> = rows
        .map(|row| {
            json!([
                row["name"],
                row["limit"],
                row["source"],
                row["used"],
                row["verdict"]
            ])
        })
        .collect();
    assert_eq!(
        json!(rows),
        json!([
            ["jobs", "20 concurrent", "request_tier", 0, "admitted"],
            ["jobs", "50 concurrent", "default", 0, "admitted"],
            ["calls", "10/day", "default", 10, "rejected"],
        ])
    );
    // A request need not pass both.
    assert_eq!(explained["scope"], "all_paths");
    assert_eq!(explained["now"], json!(null));
    let text = run(&server, &["explain", "org:acme"]).await.ok();
    let lines: Vec<_> = text.lines().rev().take(3).collect();
    assert_eq!(
        lines[..2],
        [
            "a request now: the path decides: no request passes all these limits",
            "not known here: [lists], [limits] and guards in the files of the services",
        ]
    );
    assert!(
        lines[2].contains("rejected: quota exceeded, fits in "),
        "{text}"
    );
    let wrong = run(&server, &["explain", "org:acme", "--tier", "por"])
        .await
        .failed(3);
    assert!(wrong.contains("did you mean \"pro\"?"), "{wrong}");
    let path = run(&server, &["explain", "org:acme", "--path", "/api"]).await;
    assert!(path.failed(2).contains("--admin"));
}

#[tokio::test]
async fn lists_in_redis_are_explained() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let address = ["explain", "org:acme", "--address", "203.0.113.7"];
    let without = run(&server, &address).await.failed(3);
    assert!(without.contains("no service has allow and deny lists"));
    // A network would have no effect, and an address less than it seems.
    let network = ["limits", "set", "ip:203.0.113.0/24", "deny all"];
    let without = run(&server, &network).await.failed(3);
    assert!(without.contains("ip:203.0.113.0/24 is a network, but no service has"));
    let address_alone = ["limits", "set", "ip:192.0.2.1", "deny all"];
    let warned = run(&server, &address_alone).await;
    assert!(
        warned
            .err
            .starts_with("warning: no service has allow and deny lists")
    );
    assert_eq!(warned.code, 0);
    let layer = AccessLayer::new(&service.limits).key(ByToken::default());
    let _service = layer.layer(tower::service_fn(async |_: http::Request<()>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(()))
    }));
    until("it is written down", async || {
        let read = SharedLimiters::read(&service.limits, &server.store()).await;
        read.unwrap().has_lists()
    })
    .await;
    for (key, limit) in [
        ("ip:203.0.113.0/24", "deny all"),
        ("ip:2001:db8::7/128", "deny all"),
        ("org:probe", "unlimited"),
    ] {
        run(&server, &["limits", "set", key, limit]).await.ok();
    }
    let banned = "banned by ip:203.0.113.0/24 (set at run time)";
    let explained = run(&server, &["explain", "ip:203.0.113.7"]).await.ok();
    let lines: Vec<_> = explained.lines().collect();
    assert_eq!(lines[..2], ["ip:203.0.113.7: no override", banned]);
    assert!(lines[3].ends_with("skipped"), "{explained}");
    assert_eq!(lines.last(), Some(&"a request now: rejected: banned"));
    for words in [
        &address[..],
        &["limits", "get", "ip:203.0.113.7"],
        &["usage", "ip:203.0.113.7"],
    ] {
        let shown = run(&server, words).await.ok();
        assert!(shown.lines().any(|line| line == banned), "{shown}");
    }
    let of_six = run(&server, &["explain", "ip:2001:db8::7", "--json"]).await;
    assert_eq!(of_six.json()["listed"]["key"], "ip:2001:db8::7/128");
    let of_six = run(&server, &["explain", "ip:2001:db8::8", "--json"]).await;
    assert_eq!(of_six.json()["listed"], json!(null));
    let unknown = run(&server, &["explain", "org:other"]).await.ok();
    let note = "not shown: lists, which depend on the client address (--address)";
    assert!(unknown.lines().any(|line| line == note), "{unknown}");
    // An exempt request counts in the capacity of the service alone.
    let exempt = run(&server, &["explain", "org:probe"]).await.ok();
    assert!(exempt.contains("exempt from rates and from limits per key by org:probe"));
    let last = exempt.lines().last().unwrap();
    assert_eq!(last, "a request now: admitted, 49 more after it (jobs)");
}

#[tokio::test]
async fn a_limit_ends_and_its_changes_are_kept() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    let ban = ["limits", "set", "ip:192.0.2.1", "deny all"];
    let words = [&ban[..], &["--for", "1h", "--note", "ticket 4711"]].concat();
    let set = run(&server, &words).await.warned();
    assert!(set.starts_with("ip:192.0.2.1: deny all until 2"), "{set}");
    for (wrong, told) in [
        (["--for", "0s"], "at least one second"),
        (["--until", "2020-01-01T00:00:00Z"], "in the past"),
    ] {
        let past = run(&server, &[&ban[..], &wrong].concat()).await.failed(2);
        assert!(past.contains(told), "{past}");
    }
    let key = "ip:192.0.2.1".parse().unwrap();
    until("the service knows", async || {
        service.limits.get(&key).is_some()
    })
    .await;
    let own = service.limits.get_override(&key).unwrap();
    assert_eq!(own.note(), Some("ticket 4711"));
    // The end that is printed is the one that Redis has.
    let end = humantime::format_rfc3339_seconds(own.end().unwrap());
    assert!(
        set.starts_with(&format!("ip:192.0.2.1: deny all until {end} (")),
        "{set}"
    );

    let words = ["limits", "delete", "ip:192.0.2.1", "--force", "--as", "bob"];
    run(&server, &words).await.ok();
    let changes = run(&server, &["limits", "changes", "--json"]).await.json();
    let [deleted, set] = &changes["changes"].as_array().unwrap()[..] else {
        panic!("{changes}");
    };
    assert_eq!(
        (&deleted["author"], &deleted["after"]),
        (&json!("bob"), &json!(null))
    );
    assert_eq!(deleted["before"]["note"], "ticket 4711");
    assert!(
        set["author"].as_str().unwrap().starts_with("anna@"),
        "{set}"
    );
    assert!(
        set["origin"]
            .as_str()
            .unwrap()
            .starts_with("tower-admission on ")
    );
    let text = run(&server, &["limits", "changes", "-n", "1"]).await.ok();
    assert!(
        text.contains("  ip:192.0.2.1: deny all until 2")
            && text.contains(" -> none, by bob, from ")
    );
}

#[tokio::test]
async fn a_key_from_standard_input_is_nowhere() {
    let server = Server::start().await;
    let service = Service::start(&server).await;
    // Longer than the name of a key may be.
    let token = "horse".repeat(100);
    let own = Key::new("bearer", token.as_bytes());
    let with = async |words: &[&str], stdin: &str| {
        let mut command = program();
        command
            .args(words)
            .env("ADMISSION_REDIS", server.url())
            .env("ADMISSION_SECRET", SECRET);
        end_with(command, stdin).await
    };
    let set = with(
        &["limits", "set", "--key-stdin", "20/day"],
        &format!("bearer:{token}\n"),
    )
    .await;
    let set = set.ok();
    assert!(
        set.starts_with("bearer#") && !set.contains("horse"),
        "{set}"
    );
    let key = own.into();
    until("the service knows", async || {
        service.limits.get(&key).is_some()
    })
    .await;
    assert!(service.calls.decide(&[own], 3).await.is_admitted());
    let usage = with(
        &["usage", "--key-stdin", "-o", "json"],
        &format!("Bearer {token}"),
    )
    .await;
    let usage = usage.json();
    let calls = usage["usage"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == "calls");
    assert_eq!(calls.unwrap()["used"], 3);
    let none = with(&["usage", "--key-stdin"], "\n").await.failed(2);
    assert!(none.contains("standard input has no key"), "{none}");
    let both = with(&["usage", "org:a", "--key-stdin"], "org:b").await;
    assert_eq!(both.code, 2);
}
