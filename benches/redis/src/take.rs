//! The protocol of the crate's `take.lua`, as the minimal client uses it: the only place to change
//! with it.

use redis::Cmd;

use crate::contestants::{COUNT, INTERVAL_MICROS};

pub const SOURCE: &str = concat!(
    include_str!("../../../crates/tower-admission-redis/src/scripts/take.lua"),
    include_str!("../../../crates/tower-admission-redis/src/scripts/take_general.lua"),
);

/// Adds the arguments after the keys, one bucket for each key, for one request that charges them
/// all.
pub fn add_arguments(command: &mut Cmd, keys: usize, cost: u32) {
    let rules = if keys == 1 { "b" } else { "b =" };
    command.arg(format!("take 0 {rules}"));
    command.arg(INTERVAL_MICROS).arg(COUNT);
    command.arg(cost).arg(1);
}

/// Whether a reply grants the request. The reply also has two numbers for each bucket: the
/// remaining requests, and the time until it is full.
pub fn is_admitted(reply: &[i64], keys: usize) -> bool {
    reply.len() == 1 + 2 * keys && reply[0] == 1
}
