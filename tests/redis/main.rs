//! The Redis store on real servers, which the tests start and end themselves.
#![cfg(all(feature = "redis", feature = "test-util"))]

mod cluster;
mod faults;
mod gateway;
mod layers;
mod leases;
mod model;
mod proxy;
mod rate;
mod server;
