//! The layers over HTTP, from the outside.

#![cfg(all(
    feature = "axum",
    feature = "metrics",
    feature = "test-util",
    feature = "tonic",
    feature = "tracing",
    feature = "ws"
))]

mod common;

mod answers;
mod bad_input;
mod concurrency;
mod denied;
mod grpc;
mod guard;
mod headers;
mod hold;
mod keys;
mod metrics;
mod observe;
mod per_key;
mod proxies;
mod rate;
mod servers;
mod servers_axum;
mod servers_hyper;
mod servers_tonic;
mod sessions;
mod several;
mod sockets;
mod sockets_ends;
mod sockets_pings;
mod sockets_recv;
mod tiers;
mod types;
mod upgrades;
mod wait;
