//! WebSockets with limits, with a real client.

#[allow(dead_code, reason = "not all helpers are needed here")]
#[path = "../../../../tests/http/common.rs"]
mod common;
#[allow(dead_code, reason = "not all helpers are needed here")]
#[path = "../../../../tests/http/servers.rs"]
mod servers;

mod ends;
mod limits;
mod pings;
mod recv;
