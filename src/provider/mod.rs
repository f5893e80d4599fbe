//! For crates that add stores, endpoints or configuration; not part of the stable API.
//!
//! A minor version may change or remove what is here. The crates of this workspace use it and are released
//! together with this crate; other crates pin the exact version (`=0.1.0`).

// Every remote store caches rejections and falls back to a share of each limit while it cannot be reached.
pub use crate::store::denials::DenialCache;
pub use crate::store::local_share::LocalShare;

// Stores compile rules, clamp lifetimes and split the numbers of joined sets in the same way.
pub use crate::rule::RuleKind;
pub use crate::store::joined_set::split_joined_set;
pub use crate::store::lease::clamp_ttl;

// The only place that reads the wall clock.
pub use crate::store::memory::clock::since_epoch;

// Background tasks of stores run once per process.
pub use crate::singleton_task::{SingletonTask, TaskTerm};
