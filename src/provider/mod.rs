//! For crates that add stores, endpoints or configuration; not part of the stable API.
//!
//! A minor version may change or remove what is here. The crates of this workspace use it and are released
//! together with this crate; other crates pin the exact version (`=0.1.0`).
//!
//! The traits give methods to types of this crate: the methods are not for users, and so are not inherent.

mod answer;
mod concurrency_limiter;
mod control;
mod key;
mod limits;
mod names;
mod rate_limiter;

// Methods that are not for users.
pub use self::answer::rejected;
pub use self::concurrency_limiter::{ConcurrencyLimiterInternals, ConcurrencySettings};
pub use self::control::{
    ConcurrencyLayerControl, ConcurrencyLimiterControl, LeasesControl, LimitsControl,
    PolicyControl, RateLayerControl, RateLimiterControl,
};
pub use self::key::KeyInternals;
pub use self::limits::LimitsInternals;
pub use self::names::KnownNames;
pub use self::rate_limiter::RateLimiterInternals;

// Decide about requests by the allow and deny lists of a configuration.
pub use crate::access::gate::{AllowHeader, Gate};

// Explain a partial enforcement as the layers decide it.
pub use crate::enforce::Enforcement;

// Read admin tokens, and find the address of an operator as layers find the key of a request.
pub use crate::extract::bearer::{is_b64token, token as bearer_token};
pub use crate::extract::extractor::Extractor;

// Check the tokens and names in a configuration before the secret of the process is installed.
pub use crate::key::{check_key_name, intern_kind};
pub use crate::limit::{NAME_RULES, is_addressable, is_name};

// Recognise credentials in texts of operators, which neither URLs nor logs may contain; fingerprints and entity tags.
pub use crate::key::{is_credential_kind, siphash128};

// Show the source of an override, and the list entry that decides.
pub use crate::limits::{SourcedOverride, list_entry};

// Report decisions about WebSockets to observers as layers do.
pub use crate::observe::observers::Observers;

// Answer a WebSocket message and a session request with problem details.
pub use crate::respond::problem::{problem_json, quota_problem};

// For stores: how a rule counts, tasks that run once per process, and what a remote store keeps while it is away.
pub use crate::rule::RuleKind;
pub use crate::singleton_task::{SingletonTask, TaskTerm};
pub use crate::store::denials::DenialCache;
pub use crate::store::joined_set::split_joined_set;
pub use crate::store::lease::clamp_ttl;
pub use crate::store::local_share::LocalShare;

// The time for metrics of a reload, for answers, and for the status of a store. Decisions use the clock of their store.
pub use crate::store::memory::clock::since_epoch;

// Check the secret of a store as the layers do.
pub use crate::store::secret::SECRET_MISSING;
