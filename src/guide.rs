//! The guide: one chapter per task. Every snippet compiles.
//!
//! | chapter | read it to |
//! |---|---|
//! | [`getting_started`] | add limits to an axum, tonic or hyper service |
//! | [`choosing_keys`] | choose the key that a request is charged to |
//! | [`quotas`] | choose how much a key may use |
//! | [`proxies`] | find the address of the client behind proxies |
//! | [`streaming`] | limit streams, uploads, WebSockets, sessions and jobs |
//! | [`replicas`] | have one limit for all replicas, in Redis |
//! | [`tiers`] | give plans and keys other limits at run time, ban and exempt clients |
//! | [`testing`] | test a service with limits |
//! | [`answers`] | change the responses that rejected clients get |
//! | [`observability`] | measure, log and trace decisions |
//! | [`operating`] | run a service: configuration file, program, admin page, complaints, shutdown |
//! | [`performance`] | compare time and memory with other crates |
//! | [`limitations`] | learn what this crate does not do, and what to do about it |
//! | [`migrating`] | replace tower_governor, tower's limits, or a custom limiter |
//! | [`faq`] | find short answers |

#[doc = include_str!("../docs/guide/getting_started.md")]
pub mod getting_started {}

#[doc = include_str!("../docs/guide/choosing_keys.md")]
pub mod choosing_keys {}

#[doc = include_str!("../docs/guide/quotas.md")]
pub mod quotas {}

#[doc = include_str!("../docs/guide/proxies.md")]
pub mod proxies {}

#[doc = include_str!("../docs/guide/streaming.md")]
pub mod streaming {}

#[doc = include_str!("../docs/guide/replicas.md")]
pub mod replicas {}

#[doc = include_str!("../docs/guide/tiers.md")]
pub mod tiers {}

#[doc = include_str!("../docs/guide/testing.md")]
pub mod testing {}

#[doc = include_str!("../docs/guide/answers.md")]
pub mod answers {}

#[doc = include_str!("../docs/guide/observability.md")]
pub mod observability {}

#[doc = include_str!("../docs/guide/operating.md")]
#[doc = "# The file of the gateway"]
#[doc = ""]
#[doc = "`examples/gateway/gateway.toml`:"]
#[doc = ""]
#[doc = "```toml"]
#[doc = include_str!("../examples/gateway/gateway.toml")]
#[doc = "```"]
pub mod operating {}

#[doc = include_str!("../docs/guide/performance.md")]
pub mod performance {}

#[doc = include_str!("../docs/guide/limitations.md")]
pub mod limitations {}

#[doc = include_str!("../docs/guide/migrating.md")]
pub mod migrating {}

#[doc = include_str!("../docs/guide/faq.md")]
pub mod faq {}
