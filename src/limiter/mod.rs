//! Limiters: they ask a store, and are usable without HTTP, for a message or a job.

mod adjusted;
mod concurrency;
mod lease;
mod leases;
mod per_key;
mod permit;
mod rate;
mod reaper;
#[cfg(feature = "redis")]
mod shared;
mod slots;
mod wait;

pub use adjusted::SetPolicyError;
pub use concurrency::ConcurrencyLimiter;
pub use lease::{KeptLease, Lease};
pub use leases::Leases;
pub use permit::Permit;
pub use rate::RateLimiter;
#[cfg(feature = "redis")]
pub use shared::SharedLimiters;

pub(crate) use wait::{Acquire, Acquiring, Wait};
