//! Limiters: they decide through a store and need no HTTP, for example for messages or jobs.

mod charged_buckets;
mod concurrency;
mod effect_checks;
mod interpret;
mod joined;
mod key_counters;
mod key_search;
mod leases;
mod parking;
mod permit;
mod rate;
mod rules;
mod shared_limiters;
mod slot_counter;
mod stall_clock;
mod stalled;
mod suspend;
mod wait;

pub(crate) use charged_buckets::ChargedBuckets;
pub use concurrency::ConcurrencyLimiter;
pub(crate) use concurrency::OpenedResources;
pub(crate) use joined::LimiterSet;
pub use leases::{HeartbeatLease, Lease, Leases};
pub use permit::Permit;
pub use rate::RateLimiter;
pub use rules::SetPolicyError;
pub(crate) use rules::TiersUnsupported;
pub use shared_limiters::SharedLimiters;

pub(crate) use parking::{Parking, Unparked};
pub(crate) use wait::{KeyedRejection, PermitFuture, PermitReply, WaitLimits};
