//! Overrides that Redis lost: replicas keep them until an operator accepts the loss.

use tower_admission::{Limits, LimitsError, Override};

use super::{name, shown};
use crate::server::{Server, until};

async fn set(limits: &Limits, key: &str, limit: &str) {
    limits
        .set(&name(key), limit.parse().unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_replica_keeps_what_redis_lost_until_an_operator_accepts_the_loss() {
    let mut server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    for n in 0..3 {
        set(&here, &format!("org:{n}"), "25/h").await;
    }
    there.refresh().await.unwrap();
    server.kill();
    until("it is away", async || here.refresh().await.is_err()).await;
    assert_eq!((here.len(), here.lost()), (3, 0));
    let failed = here.set(&name("org:x"), "1/h".parse().unwrap()).await;
    assert!(
        matches!(failed, Err(LimitsError::Unavailable(_))),
        "{failed:?}"
    );
    server.restart().await;
    until("the loss is seen", async || {
        here.lost() == 3 && there.lost() == 3
    })
    .await;
    assert_eq!((here.len(), there.len()), (3, 3));

    // A change does not accept the loss of the others.
    set(&here, "org:0", "7/h").await;
    until("it is known", async || {
        shown(&there, "org:0").await.as_deref() == Some("7/h") && there.lost() == 2
    })
    .await;
    assert_eq!((here.len(), there.len()), (3, 3));
    // One that starts now knows of none of them.
    let late = Limits::in_store(&server.store());
    late.refresh().await.unwrap();
    assert_eq!((late.len(), late.lost()), (1, 0));

    there.accept_loss().await.unwrap();
    until("what was lost is gone", async || {
        [&here, &there]
            .iter()
            .all(|limits| limits.len() == 1 && limits.lost() == 0)
    })
    .await;
    // It was one loss that was accepted, and not the next one.
    server.clear().await;
    until("the next loss is seen", async || {
        [&here, &there, &late]
            .iter()
            .all(|limits| limits.lost() == 1)
    })
    .await;
    // All are set again.
    set(&late, "org:0", "7/h").await;
    until("nothing is lost", async || {
        [&here, &there, &late]
            .iter()
            .all(|limits| limits.lost() == 0 && limits.len() == 1)
    })
    .await;
}

#[tokio::test]
async fn an_override_that_was_lost_before_a_read_is_kept() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    limits.refresh().await.unwrap();
    set(&limits, "org:acme", "5/h").await;
    // On a runtime of one thread nothing was read in between.
    server.clear().await;
    until("the loss is seen", async || limits.lost() == 1).await;
    assert_eq!(limits.len(), 1);
    limits.clear_caches().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (1, 1));
    limits.accept_loss().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (0, 0));
}

/// A store that evicts keys may evict the table and keep the rest, or the rest and keep the table.
#[tokio::test]
async fn an_evicted_key_removes_no_override() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "org:acme", "5/h").await;
    limits.refresh().await.unwrap();
    server
        .command(&["DEL", "{admission:limits}:state"])
        .await
        .unwrap();
    limits.refresh().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (1, 0));
    set(&limits, "org:b", "6/h").await;
    limits.refresh().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (2, 0));

    server
        .command(&["DEL", "{admission:limits}:of"])
        .await
        .unwrap();
    limits.refresh().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (2, 2));
}

/// As after a failover to a replica of Redis that had not got the last writes.
#[tokio::test]
async fn writes_that_a_failover_lost_are_kept() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    for n in 0..3 {
        set(&limits, &format!("org:{n}"), "25/h").await;
    }
    limits.refresh().await.unwrap();
    server
        .command(&["HDEL", "{admission:limits}:of", "org:2"])
        .await
        .unwrap();
    server
        .command(&["ZREM", "{admission:limits}:changes", "org:2"])
        .await
        .unwrap();
    server
        .command(&["HSET", "{admission:limits}:state", "version", "2"])
        .await
        .unwrap();
    limits.refresh().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (3, 1));
    // A deletion is no loss.
    limits.delete(&name("org:1")).await.unwrap();
    limits.refresh().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (2, 1));
    limits.delete(&name("org:2")).await.unwrap();
    until("nothing is lost", async || {
        limits.clear_caches().await.unwrap();
        limits.lost() == 0
    })
    .await;
    let entry = Override::new("9/h".parse().unwrap());
    limits
        .edit(&name("org:2"))
        .only_if(None)
        .set(entry)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lost_override_can_be_deleted_in_all_replicas() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    set(&here, "ip:192.0.2.1", "deny all").await;
    set(&here, "org:b", "5/h").await;
    there.refresh().await.unwrap();
    server.clear().await;
    until("the loss is seen", async || {
        here.lost() == 2 && there.lost() == 2
    })
    .await;
    let banned = name("ip:192.0.2.1");
    let kept = here.get_override(&banned);
    // It is what was kept that is deleted, and that was there before.
    let edit = here.edit(&banned).only_if(kept.as_ref());
    assert_eq!(edit.delete().await.unwrap(), kept);
    until("there as well", async || {
        there.get(&banned).is_none() && there.lost() == 1 && here.lost() == 1
    })
    .await;
    let late = Limits::in_store(&server.store());
    late.refresh().await.unwrap();
    assert!(late.is_empty());
    // It can be set again, and be edited under a condition.
    let entry = Override::new("6/h".parse().unwrap());
    here.edit(&banned).only_if(None).set(entry).await.unwrap();
    let other = name("org:b");
    let kept = there.get_override(&other);
    let entry = Override::new("7/h".parse().unwrap());
    let edit = there.edit(&other).only_if(kept.as_ref());
    assert_eq!(edit.set(entry).await.unwrap(), kept);
    until("nothing is lost", async || {
        here.lost() == 0 && there.lost() == 0 && here.len() == 2
    })
    .await;
}
