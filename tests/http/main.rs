//! The layers over HTTP, from the outside.

#![cfg(all(
    feature = "axum",
    feature = "metrics",
    feature = "test-util",
    feature = "tonic",
    feature = "tracing"
))]

mod common;

// The files that the gateway example shows, to be tested here with a clock.
#[path = "../../examples/gateway/listener.rs"]
mod listener;
#[path = "../../examples/gateway/server.rs"]
mod server;

mod answers;
mod bad_input;
mod charges;
mod concurrency;
mod connections;
mod denied;
mod drain;
mod enforce;
mod grpc;
mod guard;
mod headers;
mod hold;
mod keys;
mod metrics;
mod nested;
mod observe;
mod observed_requests;
mod outcomes;
mod per_key;
mod proxies;
mod rate;
mod servers;
mod servers_axum;
mod servers_hyper;
mod servers_tonic;
mod setters;
mod several;
mod stalled;
mod table;
mod tiers;
mod types;
mod upgrades;
mod upstream;
mod wait;
