//! Limiters: they ask a store, and are usable without HTTP, for a message or a job.

mod charged;
mod concurrency;
mod configured;
#[cfg(feature = "redis")]
mod elsewhere;
mod joined;
mod key_search;
mod lease;
mod lease_limits;
mod leases;
mod parking;
mod per_key;
mod permit;
#[cfg(feature = "redis")]
mod published;
mod rate;
mod reaper;
mod rules;
mod share;
mod slots;
mod stall_clock;
mod stalled;
mod verdict;
mod wait;

pub(crate) use charged::Charged;
pub use concurrency::ConcurrencyLimiter;
pub(crate) use concurrency::Opened;
#[cfg(feature = "redis")]
pub use elsewhere::SharedLimiters;
pub(crate) use joined::Parts;
pub use lease::{KeptLease, Lease};
pub use leases::Leases;
pub use permit::Permit;
pub use rate::RateLimiter;
pub use rules::SetPolicyError;
pub(crate) use rules::TiersUnsupported;

pub(crate) use parking::{Parking, Unparked};
pub(crate) use wait::{Acquire, Acquiring, Rejected, Wait};
