//! Data that is older than the replicas know, after a failover or from a backup.

use tower_admission::Limits;

use super::{name, shown};
use crate::server::{Server, until};

const PARTS: [&str; 3] = ["of", "changes", "state"];

async fn set(limits: &Limits, key: &str, limit: &str) {
    limits
        .set(&name(key), limit.parse().unwrap())
        .await
        .unwrap();
}

/// Copies what the store has to another place, or back.
async fn copy(server: &Server, from: &str, to: &str) {
    for part in PARTS {
        let [from, to] = [from, to].map(|place| format!("{{admission:limits}}:{part}{place}"));
        let copied = server.command(&["COPY", &from, &to, "REPLACE"]).await;
        copied.unwrap();
    }
}

async fn lose_all(server: &Server) {
    for part in PARTS {
        let key = format!("{{admission:limits}}:{part}");
        server.command(&["DEL", &key]).await.unwrap();
    }
}

#[tokio::test]
async fn an_acceptance_in_a_backup_accepts_no_new_loss() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "org:a", "5/h").await;
    limits.accept_loss().await.unwrap();
    copy(&server, "", "-saved").await;
    set(&limits, "org:b", "deny all").await;
    limits.refresh().await.unwrap();
    lose_all(&server).await;
    limits.refresh().await.unwrap();
    assert_eq!(limits.lost(), 2);
    copy(&server, "-saved", "").await;
    for _ in 0..2 {
        limits.refresh().await.unwrap();
        assert_eq!((limits.len(), limits.lost()), (2, 1));
        limits.clear_caches().await.unwrap();
    }
    limits.accept_loss().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (1, 0));
}

/// The clock of a new primary may be behind that of the last one.
#[tokio::test]
async fn a_loss_can_be_accepted_after_an_acceptance_with_a_future_time() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "org:a", "5/h").await;
    let state = "{admission:limits}:state";
    let future = ["HSET", state, "accepted", "008999999999000000"];
    server.command(&future).await.unwrap();
    limits.clear_caches().await.unwrap();
    set(&limits, "org:a", "5/h").await;
    // With the acceptance, so that only this replica knows it.
    lose_all(&server).await;
    limits.refresh().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (1, 1));
    limits.accept_loss().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (0, 0));
    let accepted = server.word(&["HGET", state, "accepted"]).await;
    assert_eq!(accepted, "008999999999000001");
}

/// One replica has read the store after a failover before it makes a change; the other one reads after that change.
#[tokio::test]
async fn the_first_change_after_a_failover_makes_all_replicas_read_everything() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    for n in 0..3 {
        set(&here, &format!("org:{n}"), "25/h").await;
    }
    there.refresh().await.unwrap();
    let lose = [
        &["HDEL", "{admission:limits}:of", "org:2"][..],
        &["ZREM", "{admission:limits}:changes", "org:2"],
        &["HSET", "{admission:limits}:state", "version", "2"],
    ];
    for command in lose {
        server.command(command).await.unwrap();
    }
    here.refresh().await.unwrap();
    assert_eq!(here.lost(), 1);
    // It has the version of the change that was lost.
    set(&here, "org:x", "deny all").await;
    there.refresh().await.unwrap();
    assert_eq!(shown(&there, "org:x").await.as_deref(), Some("deny all"));
    for limits in [&here, &there] {
        limits.clear_caches().await.unwrap();
        assert_eq!((limits.len(), limits.lost()), (4, 1));
    }
    set(&there, "org:2", "25/h").await;
    until("nothing is lost", async || {
        here.lost() == 0 && there.lost() == 0
    })
    .await;
}

/// A process that starts after the loss does not know that there was one.
#[tokio::test]
async fn a_deletion_that_creates_the_table_reaches_all_replicas() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "org:a", "deny all").await;
    set(&limits, "org:b", "deny all").await;
    limits.refresh().await.unwrap();
    lose_all(&server).await;
    let late = Limits::in_store(&server.store());
    late.delete(&name("org:a")).await.unwrap();
    limits.refresh().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (1, 1));
    assert!(limits.get(&name("org:b")).is_some());
    assert!(late.is_empty());
}
