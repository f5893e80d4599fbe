//! Allow and deny lists that replicas share.

use std::convert::Infallible;

use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_admission::{
    AccessLayer, ByToken, Limit, Limits, LimitsError, PeerAddr, Quota, RateLimitByTokenLayer,
};

use crate::server::{Server, until};

/// The status that a client at 203.0.113.7 gets of a replica with these limits.
async fn status(limits: &Limits, server: &Server, token: &str) -> u16 {
    let inner =
        service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(String::new())) });
    let rate = RateLimitByTokenLayer::new(Quota::per_hour(1)).store(server.store());
    let service = AccessLayer::new(limits)
        .key(ByToken::default())
        .layer(rate.layer(inner));
    let peer = PeerAddr(([203, 0, 113, 7], 4711).into());
    let request = Request::builder()
        .header("authorization", format!("Bearer {token}"))
        .extension(peer)
        .body(())
        .unwrap();
    service.oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_ban_at_one_replica_counts_in_the_other() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    let network = "ip:203.0.113.0/24".parse().unwrap();
    here.set(&network, Limit::deny_all()).await.unwrap();
    assert_eq!(status(&here, &server, "made-up-1").await, 403);
    until("the other one bans, too", async || {
        status(&there, &server, "made-up-2").await == 403
    })
    .await;
    // Of one that starts later it is the first thing that is read.
    let late = Limits::in_store(&server.store());
    late.refresh().await.unwrap();
    assert_eq!(status(&late, &server, "made-up-3").await, 403);
    // An exemption of a key, which is more specific.
    let probe = "bearer:probe".parse().unwrap();
    there.set(&probe, Limit::unlimited()).await.unwrap();
    until("the first one exempts", async || {
        status(&here, &server, "probe").await == 200
    })
    .await;
    for limits in [&here, &there, &here] {
        assert_eq!(status(limits, &server, "probe").await, 200);
    }
    there.delete(&network).await.unwrap();
    until("the ban is gone", async || {
        // 429 to a token that was used before.
        status(&here, &server, "other").await != 403
    })
    .await;
}

#[tokio::test]
async fn an_invalid_override_of_a_network_is_neither_stored_nor_read() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    let network = "ip:203.0.113.0/24".parse().unwrap();
    let error = limits.set(&network, "10/s".parse().unwrap()).await;
    assert!(
        matches!(error, Err(LimitsError::Network { .. })),
        "{error:?}"
    );
    // Another version of the crate may have stored it.
    limits.set(&network, Limit::deny_all()).await.unwrap();
    let hash = ["HSET", "{admission:limits}:of", "ip:203.0.113.0/24", "10/s"];
    server.command(&hash).await.unwrap();
    let late = Limits::in_store(&server.store());
    late.refresh().await.unwrap();
    assert!(late.is_empty());
}
