//! Overrides in Redis that another program changed, or that lost data.

use std::time::Duration;

use tower_admission::store::FailureMode;
use tower_admission::{Key, Limits, RateLimiter};

use super::{calls, name, set, shown};
use crate::server::{Server, until};

const LIMITS: &str = "{admission:limits}:of";
const CHANGES: &str = "{admission:limits}:changes";

/// One unreadable entry does not affect decisions, and the others are read.
#[tokio::test]
async fn an_entry_that_is_not_utf8_is_skipped() {
    let bytes = &b"\xff\xfe"[..];
    for (write, key, words) in [
        ("HSET", LIMITS, [&b"org:\xff\xfe"[..], b"5/h"]),
        ("HSET", LIMITS, [b"org:odd", bytes]),
        ("ZADD", CHANGES, [b"1.5", b"org:odd"]),
        ("ZADD", CHANGES, [b"1e30", b"org:odd"]),
        ("ZADD", CHANGES, [b"2", bytes]),
    ] {
        let server = Server::start().await;
        let store = server.store().deadline(Duration::from_secs(1));
        let store = store.on_failure(FailureMode::Closed);
        let limits = Limits::in_store(&store);
        let limiter = RateLimiter::with_limits(calls("1000000/s"), &store, &limits);
        let odd = name("org:odd");
        limits.set(&odd, "50/h".parse().unwrap()).await.unwrap();
        let mut connection = server.connection().await.unwrap();
        let mut command = redis::cmd(write);
        command.arg(key).arg(&words);
        command.query_async::<()>(&mut connection).await.unwrap();

        // By its version, and with all the others.
        let other = Limits::in_store(&server.store());
        set(&other, "5/h").await;
        for _ in 0..2 {
            limits.refresh().await.unwrap();
            assert_eq!(shown(&limits, "org:acme").await.unwrap(), "5/h");
            let decision = limiter.decide(&[Key::id("org", "x")], 1).await;
            assert!(decision.is_admitted(), "{decision:?}");
            limits.clear_caches().await.unwrap();
        }
        // What it was before does not keep it from being set.
        limits.set(&odd, "7/h".parse().unwrap()).await.unwrap();
        assert_eq!(shown(&limits, "org:odd").await.unwrap(), "7/h");
        until("the other replica knows", async || {
            shown(&other, "org:odd").await.as_deref() == Some("7/h")
        })
        .await;
    }
}

/// A failover lost the last write, and the next one has its version.
#[tokio::test]
async fn a_repeated_version_is_noticed() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    set(&here, "5/h").await;
    let lost = name("org:lost");
    here.set(&lost, "2/h".parse().unwrap()).await.unwrap();
    for limits in [&here, &there] {
        limits.refresh().await.unwrap();
        assert_eq!(limits.len(), 2);
    }
    let mut connection = server.connection().await.unwrap();
    let mut lose = redis::pipe();
    lose.atomic().hdel(LIMITS, "org:lost").ignore();
    lose.zrem(CHANGES, "org:lost").ignore();
    lose.hset("{admission:limits}:state", "version", 1).ignore();
    let new = name("org:new");
    let new_limit = "3/h".parse().unwrap();
    // At once, so that no replica reads in between.
    let _: () = lose.query_async(&mut connection).await.unwrap();
    here.set(&new, new_limit).await.unwrap();
    assert_eq!(shown(&here, "org:new").await.unwrap(), "3/h");
    until("both know what there is and what is lost", async || {
        [&here, &there].iter().all(|limits| {
            let has = |key| limits.get(key).is_some();
            limits.lost() == 1 && has(&lost) && has(&new) && limits.len() == 3
        })
    })
    .await;
}

/// Redis loses what was set while a replica read for the first time.
#[tokio::test]
async fn an_override_that_is_lost_during_a_full_read_is_kept() {
    let server = Server::start().await;
    let replica = async |n: usize| {
        let prefix = format!("app{n}");
        let mut connection = server.connection().await.unwrap();
        // Read by a task, while this one sets.
        let limits = Limits::in_store(&server.store().prefix(&prefix));
        set(&limits, "5/h").await;
        let mut lose = redis::cmd("DEL");
        for part in ["of", "changes", "state"] {
            lose.arg(format!("{{{prefix}:limits}}:{part}"));
        }
        lose.query_async::<()>(&mut connection).await.unwrap();
        until("the loss is seen", async || limits.lost() == 1).await;
        assert_eq!(limits.len(), 1);
    };
    futures_util::future::join_all((0..50).map(replica)).await;
}
