//! The protocol of the crate's `take.lua`, as the bare client speaks it: the only place to change with it.

use redis::Cmd;

use crate::contestants::{COUNT, INTERVAL_MICROS};

pub const SOURCE: &str = include_str!("../../../src/store/redis/take.lua");

/// Adds the arguments behind the keys, of which each has one bucket, for one request that charges them all.
pub fn add_arguments(command: &mut Cmd, keys: usize, cost: u32) {
    command.arg("take").arg(0);
    for _ in 0..keys {
        command.arg("b").arg(INTERVAL_MICROS).arg(COUNT);
    }
    command.arg(cost).arg(1);
}

/// Whether a reply says that the request was granted, and of each bucket what is left and the time until it is full.
pub fn is_admitted(reply: &[i64], keys: usize) -> bool {
    reply.len() == 1 + 2 * keys && reply[0] == 1
}
