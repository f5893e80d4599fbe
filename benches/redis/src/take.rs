//! The protocol of the crate's `take.lua`, as the bare client speaks it: the only place to change with it.

use redis::Cmd;

use crate::contestants::{COUNT, INTERVAL_MICROS};

pub const SOURCE: &str = include_str!("../../../src/store/redis/take.lua");

/// Adds the arguments behind the keys, of which each has one bucket.
pub fn add_arguments(command: &mut Cmd, keys: usize, cost: u32) {
    command.arg(cost).arg("take");
    for _ in 0..keys {
        let (quotas, bucket) = (1, 0);
        command.arg(quotas).arg(bucket);
        command.arg(INTERVAL_MICROS).arg(COUNT);
    }
}

/// Whether a reply says that all buckets had room: of each what is left, the time until it is full, and
/// the time to wait.
pub fn is_admitted(reply: &[i64], keys: usize) -> bool {
    reply.len() == 3 * keys && reply.chunks(3).all(|bucket| bucket[2] == 0)
}
