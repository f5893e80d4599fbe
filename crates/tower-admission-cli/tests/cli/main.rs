//! The program, as a process, on real Redis servers and against a service that is none.

mod admin;
#[cfg(feature = "tls")]
#[path = "../../../tower-admission-redis/tests/redis/certificates.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod certificates;
mod checked;
mod line;
mod lost;
mod redis;
#[path = "../../../../tests/gateway/replica.rs"]
mod replica;
mod replicas;
mod run;
mod served;
#[path = "../../../tower-admission-redis/tests/redis/server.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod server;
#[cfg(unix)]
mod shells;
mod stub;
#[cfg(feature = "tls")]
mod tls;
mod transfer;
mod undo;
