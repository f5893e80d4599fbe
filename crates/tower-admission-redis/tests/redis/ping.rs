//! Errors that a ping finds.

use tower_admission::store::{FailureKind, StoreError};
use tower_admission_redis::RedisStore;

use crate::cluster::Cluster;
use crate::sentinel::Sentinels;
use crate::server::{Server, store, until};

async fn refused(store: &RedisStore, kind: FailureKind, cause: &str) -> StoreError {
    let error = store.ping().await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(cause), "{error}");
    error
}

async fn as_user(rules: &[&str]) -> (Server, RedisStore) {
    let server = Server::start().await;
    let words = [&["ACL", "SETUSER", "limited", "on", ">secret"], rules].concat();
    server.command(&words).await.unwrap();
    let url = format!("redis://limited:secret@127.0.0.1:{}", server.port);
    (server, store(&url))
}

#[tokio::test]
async fn a_ping_fails_if_scripts_are_denied() {
    let (_server, store) = as_user(&["~*", "+get", "+set", "+time"]).await;
    refused(&store, FailureKind::Denied, "evalsha").await;
}

#[tokio::test]
async fn a_ping_fails_if_a_command_of_the_script_is_denied() {
    let (_server, store) = as_user(&["~*", "+evalsha", "+eval", "+get", "+time"]).await;
    refused(&store, FailureKind::Denied, "").await;
}

#[tokio::test]
async fn a_ping_fails_if_the_key_pattern_excludes_the_prefix() {
    let (_server, store) = as_user(&["~gateway:*", "+@all"]).await;
    refused(&store, FailureKind::Denied, "").await;
    store.prefix("gateway").ping().await.unwrap();
}

#[tokio::test]
async fn a_ping_of_a_replica_fails() {
    let primary = Server::start().await;
    let port = primary.port.to_string();
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    refused(&replica.store(), FailureKind::ReadOnly, "replica").await;
}

#[tokio::test]
async fn a_ping_of_a_cluster_node_by_a_single_url_fails() {
    let cluster = Cluster::start().await;
    for node in &cluster.nodes {
        let cause = "use redis+cluster://";
        refused(&store(&node.url()), FailureKind::Configuration, cause).await;
    }
    store(&cluster.url()).ping().await.unwrap();
}

#[tokio::test]
async fn a_ping_of_a_single_server_by_a_cluster_url_fails() {
    let server = Server::start().await;
    let url = format!("redis+cluster://127.0.0.1:{}", server.port);
    let error = refused(&store(&url), FailureKind::Configuration, "use redis://").await;
    assert!(error.to_string().contains("127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_ping_fails_without_one_of_the_masters() {
    let mut cluster = Cluster::start().await;
    cluster.nodes[1].kill();
    let port = cluster.nodes[1].port.to_string();
    let store = store(&cluster.url());
    until("its absence is noticed", async || {
        let error = store.ping().await.unwrap_err();
        // Once the cluster leaves it out, its slots are missing.
        error.to_string().contains(&port) || error.kind() == FailureKind::Busy
    })
    .await;
}

#[tokio::test]
async fn a_ping_of_a_sentinel_fails() {
    let server = Server::start().await;
    let sentinels = Sentinels::start(server.port, "secret");
    until("a Sentinel answers", async || {
        sentinels.ask("secret", &["MASTERS"]).await.is_ok()
    })
    .await;
    let url = format!("redis://:secret@127.0.0.1:{}", sentinels.ports[0]);
    let cause = "use redis+sentinel://";
    refused(&store(&url), FailureKind::Configuration, cause).await;
}

#[tokio::test]
async fn a_ping_leaves_no_key() {
    let server = Server::start().await;
    server.store().ping().await.unwrap();
    until("no key is left", async || server.keys().await.is_empty()).await;
}
