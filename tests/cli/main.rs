//! The program, as a process, on real Redis servers and against a service that is none.

mod admin;
mod line;
mod redis;
mod run;
#[path = "../redis/server.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod server;
mod stub;
