//! For crates that add stores, endpoints or configuration; not part of the stable API.
//!
//! A minor version may change or remove what is here. The crates of this workspace use it and are released
//! together with this crate; other crates pin the exact version (`=0.1.0`).
//!
//! The traits give methods to types of this crate: the methods are not for users, and so are not inherent.

mod answer;
mod concurrency_limiter;
mod key;
mod known_names;
mod layers;
mod leases;
mod limits;
mod policy;
mod rate_limiter;

pub use self::answer::rejected;
pub use self::concurrency_limiter::{ConcurrencyLimiterInternals, ConcurrencySettings};
pub use self::key::KeyInternals;
pub use self::known_names::KnownNames;
pub use self::layers::{ConcurrencyLayerInternals, RateLayerInternals};
pub use self::leases::LeasesInternals;
pub use self::limits::{LimitsInternals, OverrideInternals};
pub use self::policy::PolicyInternals;
pub use self::rate_limiter::RateLimiterInternals;

/// For configuration, which decides about requests by the allow and deny lists of a file.
pub use crate::access::gate::{AllowHeader, Gate};
/// For `RequestGroup::enforce` of the admin endpoints, so that an explanation decides as the layers do.
pub use crate::enforce::Enforcement;
/// For admin tokens: the syntax of a token, and the token of a request.
pub use crate::extract::bearer::{is_b64token, token as bearer_token};
/// For the admin endpoints, which find the address of an operator as layers find the key of a request.
pub use crate::extract::extractor::Extractor;
/// For texts of operators, which may be credentials that no URL and no log may have.
pub use crate::key::is_credential_kind;
/// For fingerprints and entity tags.
pub use crate::key::siphash128;
/// For keys in a file, whose names are checked before the secret of the process is installed.
pub use crate::key::{check_key_name, intern_kind};
/// For names of operators, which have the syntax of names of limits.
pub use crate::limit::is_name;
/// For names of groups, rates and tiers in a file.
pub use crate::limit::{NAME_RULES, is_addressable};
/// For the admin endpoints, which show where an override comes from, and which list entry decides.
pub use crate::limits::{SourcedOverride, list_entry};
/// For WebSockets, whose limits report to observers as layers do.
pub use crate::observe::observers::Observers;
/// For answers outside of a layer: the problem details of a WebSocket message and of the session endpoints.
pub use crate::respond::problem::{problem_json, quota_problem};
/// For stores: how a rule counts.
pub use crate::rule::RuleKind;
/// For background tasks of stores, which run once per process.
pub use crate::singleton_task::{SingletonTask, TaskTerm};
/// For remote stores, which keep rejections for as long as they hold.
pub use crate::store::denials::DenialCache;
/// For stores that join the buckets of several limiters.
pub use crate::store::joined_set::split_joined_set;
/// For stores of leases, which clamp a time to live in the same way.
pub use crate::store::lease::clamp_ttl;
/// For remote stores, which decide by a share of each limit while they cannot be reached.
pub use crate::store::local_share::LocalShare;
/// For times in answers and in metrics of a reload, and for the status of a store. Decisions use the clock of their store.
pub use crate::store::memory::clock::since_epoch;
/// For crates that take a store, and check its secret as the layers do.
pub use crate::store::secret::SECRET_MISSING;
