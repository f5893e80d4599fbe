//! For crates that add stores, endpoints or configuration; not part of the stable API.
//!
//! A minor version may change or remove what is here. The crates of this workspace use it and are released
//! together with this crate; other crates pin the exact version (`=0.1.0`).

mod answer;
mod control;
mod names;

// Decide about requests by the allow and deny lists of a configuration.
pub use crate::access::gate::{AllowHeader, Gate};

// Check the tokens and names in a configuration before the secret of the process is installed.
pub use crate::extract::bearer::is_b64token;
pub use crate::key::{check_key_name, interned_kind};
pub use crate::limit::{NAME_RULE, is_addressable, is_name};

// The time for the metrics of a reload. Decisions use the clock of their store.
pub use crate::store::memory::clock::since_epoch;

pub use self::answer::rejected;
pub use self::control::{
    ConcurrencyLayerControl, ConcurrencyLimiterControl, LeasesControl, LimitsControl,
    PolicyControl, RateLayerControl, RateLimiterControl,
};
pub use self::names::KnownNames;
