//! Limiters: they ask a store, and are usable without HTTP, for a message or a job.

mod charged;
mod concurrency;
mod configured;
mod effect_checks;
mod joined;
mod key_search;
mod lease;
mod lease_limits;
mod leases;
mod parking;
mod per_key;
mod permit;
mod rate;
mod reaper;
mod rules;
mod share;
mod shared_limiters;
mod slots;
mod stall_clock;
mod stalled;
mod verdict;
mod wait;

pub(crate) use charged::Charged;
pub use concurrency::ConcurrencyLimiter;
pub(crate) use concurrency::Opened;
pub(crate) use joined::Parts;
pub use lease::{KeptLease, Lease};
pub use leases::Leases;
pub use permit::Permit;
pub use rate::RateLimiter;
pub use rules::SetPolicyError;
pub(crate) use rules::TiersUnsupported;
pub use shared_limiters::SharedLimiters;

pub(crate) use parking::{Parking, Unparked};
pub(crate) use wait::{Acquire, Acquiring, Rejected, Wait};
