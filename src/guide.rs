//! The guide: one chapter per task. Every snippet compiles.
//!
//! Read [`getting_started`] first.

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
pub mod operating {}

#[doc = include_str!("../docs/guide/performance.md")]
pub mod performance {}

#[doc = include_str!("../docs/guide/limitations.md")]
pub mod limitations {}

#[doc = include_str!("../docs/guide/migrating.md")]
pub mod migrating {}

#[doc = include_str!("../docs/guide/faq.md")]
pub mod faq {}
